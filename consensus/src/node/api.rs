//! What the daemon and the simulator call, apart from [`Node::step`].

use raft::{SnapshotStatus, StateRole};

use super::{Effects, FatalError, Identity, Node, ProposeError, Role, role_of};
use crate::command::{Command, MAX_REQUEST_BYTES, Request};
use crate::ids::{ClusterId, RaftId};
use crate::state::ClusterState;
use crate::store::{Conf, Store};

/// Ticks between two voters that stand after they lost the leader's connection: enough for a vote, which is one
/// exchange and one write to disk on each side.
const TICKS_BETWEEN_HEIRS: usize = 2;

impl<S: Store> Node<S> {
    /// One unit of time has passed. After a stall do not make up for all missed ticks at once: give a few, and
    /// the frames that wait first.
    pub fn tick(&mut self) {
        if self.stopped {
            return;
        }
        self.ticks += 1;
        let raft = &mut self.raw.raft;
        if raft.state != StateRole::Leader
            && raft.promotable()
            && raft.election_elapsed + 1 >= self.jitter.timeout
        {
            self.drain_now();
            // raft-rs' own timeout is constant and longer; this makes it run out now.
            let raft = &mut self.raw.raft;
            raft.election_elapsed = raft.randomized_election_timeout();
            self.jitter.redraw();
        }
        self.raw.tick();
        self.forget_lost_snapshots();
        self.after_input();
        self.continue_removal();
    }

    /// Stands for election at once, such as right after founding.
    pub fn campaign(&mut self) {
        self.drain_now();
        if self.stopped || !self.raw.raft.promotable() {
            return;
        }
        if let Err(error) = self.raw.campaign() {
            tracing::debug!(%error, "did not stand for election");
        }
        self.after_input();
    }

    /// Proposes a request. `Ok` means that it is under way: it was applied when its id is among
    /// [`super::Effects::applied`], and may be lost with the leadership. The removal of a member that votes waits until
    /// its seat is given to others ([`Node::reconcile_membership`] does the steps; for the leader that means handing
    /// over, and asking the next one). Where that does not succeed it ends among [`super::Effects::refused`].
    ///
    /// # Errors
    /// When this replica does not lead, is busy (also with another removal), the request is too large, or the last
    /// member is to be removed.
    pub fn propose(&mut self, request: &Request) -> Result<(), ProposeError> {
        self.leads()?;
        let bytes = request.encode();
        if bytes.len() > MAX_REQUEST_BYTES {
            return Err(ProposeError::TooLarge(bytes.len()));
        }
        match &request.command {
            Command::RemoveMember { device } if self.state.member(device).is_some() => {
                self.begin_removal(&request.id, device, bytes)
            }
            Command::RemoveMember { .. }
            | Command::Join { .. }
            | Command::UpdateMember { .. }
            | Command::SetDraining { .. }
            | Command::AddModel(_)
            | Command::RemoveModel { .. }
            | Command::Deploy(_)
            | Command::Undeploy { .. }
            | Command::PreparePlan { .. }
            | Command::ActivatePlan { .. }
            | Command::AbandonPlan { .. }
            | Command::SetFault { .. } => self.append(bytes),
        }
    }

    /// Puts an encoded request into the log.
    pub(super) fn append(&mut self, request: Vec<u8>) -> Result<(), ProposeError> {
        self.raw.propose(Vec::new(), request).map_err(|_dropped| ProposeError::Busy)
    }

    /// Hands the leadership to another voter, such as before a shutdown. It is done when the leader changes, and
    /// given up after an election timeout.
    ///
    /// # Errors
    /// When this replica does not lead or the other one does not vote.
    pub fn transfer_leadership(&mut self, to: RaftId) -> Result<(), ProposeError> {
        self.leads()?;
        if !self.conf.voters.contains(&to) {
            return Err(ProposeError::Refused("the new leader does not vote"));
        }
        self.raw.transfer_leader(to);
        Ok(())
    }

    /// The connection to another replica was closed. Where that was the leader, its lease is over at once, as if it had
    /// been silent for an election timeout: the system of a device closes what a killed process had open, so that
    /// nobody needs to wait for silence. The voters stand one after another, the one with the lowest id first; the first
    /// after two ticks, when all have noticed. Where the others still hear the leader, they refuse (pre-vote), and its
    /// next heartbeat ends this.
    pub fn peer_gone(&mut self, id: RaftId) {
        self.report_unreachable(id);
        self.report_snapshot(id, false);
        let raft = &mut self.raw.raft;
        if self.stopped || raft.state != StateRole::Follower || raft.leader_id != id {
            return;
        }
        let before = self.conf.voters.iter().filter(|v| **v != id && **v < self.identity.raft_id).count();
        raft.election_elapsed = raft.election_elapsed.max(self.options.election_ticks);
        self.jitter.timeout = raft.election_elapsed + TICKS_BETWEEN_HEIRS * (1 + before);
    }

    /// A frame could not be sent: its receiver is probed gently until it answers.
    pub fn report_unreachable(&mut self, id: RaftId) {
        if !self.stopped {
            self.raw.report_unreachable(id);
        }
    }

    /// A frame with a snapshot was delivered or lost. Without a report the receiver gets nothing more for
    /// [`super::Options::snapshot_ticks`].
    pub fn report_snapshot(&mut self, id: RaftId, delivered: bool) {
        if self.stopped || self.snapshots.remove(&id).is_none() {
            return;
        }
        let status = if delivered { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.raw.report_snapshot(id, status);
    }

    /// Makes everything durable that came in, and says what to send and what has happened.
    ///
    /// # Errors
    /// When the replica cannot go on.
    pub fn process(&mut self) -> Result<Effects, FatalError> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        if self.stopped {
            return Err(FatalError::Stopped);
        }
        self.drain().inspect_err(|_| self.stopped = true)?;
        self.report_role();
        Ok(std::mem::take(&mut self.effects))
    }

    /// What the devices agree on, as far as this one knows.
    pub fn state(&self) -> &ClusterState {
        &self.state
    }

    /// Which replica of which cluster this is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// This replica.
    pub fn id(&self) -> RaftId {
        self.identity.raft_id
    }

    /// The cluster.
    pub fn cluster_id(&self) -> ClusterId {
        self.identity.cluster_id
    }

    /// What this replica does in the group.
    pub fn role(&self) -> Role {
        role_of(self.raw.raft.state, self.raw.raft.promotable())
    }

    /// The leader, as far as is known.
    pub fn leader(&self) -> Option<RaftId> {
        Some(self.raw.raft.leader_id).filter(|id| *id != 0)
    }

    /// The newest term seen.
    pub fn term(&self) -> u64 {
        self.raw.raft.term
    }

    /// Entries up to this one are known to be committed.
    pub fn commit(&self) -> u64 {
        self.raw.raft.raft_log.committed
    }

    /// Entries up to this one are in [`Node::state`].
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Index of the newest snapshot.
    pub fn snapshot_index(&self) -> u64 {
        self.raw.store().snapshot().map_or(0, |snapshot| snapshot.index)
    }

    /// Who votes and who listens.
    pub fn conf(&self) -> &Conf {
        &self.conf
    }

    /// A leader is known and was heard lately: requests get through. (A leader that loses its quorum steps down
    /// within an election timeout.)
    pub fn has_quorum(&self) -> bool {
        let raft = &self.raw.raft;
        raft.state == StateRole::Leader
            || raft.leader_id != 0 && raft.election_elapsed < 2 * self.options.election_ticks
    }

    /// This device is a member, as far as it knows. False on a joiner before its first snapshot.
    pub fn is_member(&self) -> bool {
        self.state.members.contains_key(&self.identity.raft_id)
    }

    /// The store, for small records.
    pub fn store(&self) -> &S {
        self.raw.store().store()
    }

    /// The store, for small records.
    pub fn store_mut(&mut self) -> &mut S {
        self.raw.mut_store().store_mut()
    }

    pub(super) fn leads(&self) -> Result<(), ProposeError> {
        if self.stopped || self.raw.raft.state != StateRole::Leader {
            let leader = self.leader().filter(|id| *id != self.identity.raft_id);
            return Err(ProposeError::NotLeader { leader });
        }
        Ok(())
    }
}
