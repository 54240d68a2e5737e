//! Membership changes of the Raft group.

use std::collections::BTreeMap;

use raft::ProgressState;
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};

use super::{Node, ProposeError};
use crate::ids::RaftId;
use crate::membership::{MembershipChange, MembershipStep, PeerView, next_step};
use crate::store::Store;

/// A learner this many entries behind is as good as caught up: it will be there before the change is committed.
const NEARLY: u64 = 8;

impl<S: Store> Node<S> {
    /// The leader's duty, to be called every few ticks: does the next step towards the right configuration, if
    /// there is one, and returns it. A voter that was not heard for more than `grace_ticks` loses its seat.
    pub fn reconcile_membership(&mut self, grace_ticks: u64) -> Option<MembershipStep> {
        self.leads().ok()?;
        self.continue_removal();
        if self.is_changing() {
            return None;
        }
        let step = next_step(self.id(), &self.conf, &self.view(grace_ticks))?;
        let done = match &step {
            MembershipStep::Change(change) => self.propose_membership(change),
            MembershipStep::LeaveJoint => self.propose_leave_joint(),
            MembershipStep::Transfer { to } => self.transfer_leadership(*to),
        };
        match done {
            Ok(()) => Some(step),
            Err(error) => {
                tracing::debug!(?step, %error, "membership step not taken");
                None
            }
        }
    }

    /// Ticks since a peer was last heard, or since this replica leads; `None` unless it leads and knows the peer.
    pub fn ticks_since_heard(&self, id: RaftId) -> Option<u64> {
        self.heard.get(&id).map(|heard| self.ticks - heard)
    }

    /// Proposes a change of the configuration. A change of voters ends in a joint configuration, which
    /// [`Node::reconcile_membership`] leaves.
    ///
    /// # Errors
    /// When this replica does not lead, another change is under way, or the group would have a number of voters
    /// other than 1, 3 or 5.
    pub fn propose_membership(&mut self, change: &MembershipChange) -> Result<(), ProposeError> {
        self.leads()?;
        if self.is_changing() || self.conf.is_joint() {
            return Err(ProposeError::Busy);
        }
        if *change == MembershipChange::default() {
            return Err(ProposeError::Refused("it changes nothing"));
        }
        if self.leaving().is_some_and(|id| change.promote.contains(&id)) {
            return Err(ProposeError::Refused("a device that is being removed cannot vote"));
        }
        if !matches!(change.voters_after(&self.conf).len(), 1 | 3 | 5) {
            return Err(ProposeError::Refused("there would not be 1, 3 or 5 voters"));
        }
        let single = |kind, ids: &std::collections::BTreeSet<RaftId>| -> Vec<_> {
            ids.iter().map(|id| change_single(kind, *id)).collect()
        };
        let mut changes = single(ConfChangeType::AddNode, &change.promote);
        changes.extend(single(ConfChangeType::AddLearnerNode, &change.demote));
        changes.extend(single(ConfChangeType::AddLearnerNode, &change.add));
        changes.extend(single(ConfChangeType::RemoveNode, &change.remove));
        let joint = change.is_joint(&self.conf) || changes.len() > 1;
        let mut proposal = ConfChangeV2::default();
        proposal.set_changes(changes.into());
        proposal.set_transition(if joint {
            ConfChangeTransition::Explicit
        } else {
            ConfChangeTransition::Auto
        });
        self.propose_conf_change(proposal)
    }

    fn propose_leave_joint(&mut self) -> Result<(), ProposeError> {
        self.propose_conf_change(ConfChangeV2::default())
    }

    fn propose_conf_change(&mut self, change: ConfChangeV2) -> Result<(), ProposeError> {
        self.raw.propose_conf_change(Vec::new(), change).map_err(|_dropped| ProposeError::Busy)
    }

    /// raft-rs would silently turn a second change into an empty entry.
    pub(super) fn is_changing(&self) -> bool {
        self.raw.raft.has_pending_conf() || self.raw.raft.lead_transferee.is_some()
    }

    fn view(&self, grace_ticks: u64) -> BTreeMap<RaftId, PeerView> {
        let recently = 2 * self.options.heartbeat_ticks as u64 + 2;
        let commit = self.commit();
        let (me, leaving) = (self.id(), self.leaving());
        let view = |id: RaftId, draining: bool| {
            let silent = self.ticks_since_heard(id).unwrap_or(u64::MAX);
            let progress = self.raw.raft.prs().get(id);
            // After a snapshot raft-rs keeps probing until the next entry comes: what counts is what was matched.
            // Nothing is matched before the first answer; a replica that never answered may not even run.
            let caught_up = progress.is_some_and(|progress| {
                progress.state != ProgressState::Snapshot
                    && progress.matched > 0
                    && progress.matched + NEARLY >= commit
            });
            let live = id == me || silent <= grace_ticks;
            let ready = id == me || silent <= recently && caught_up;
            PeerView { live, ready, draining, leaving: leaving == Some(id) }
        };
        self.state
            .members
            .values()
            .map(|member| (member.raft_id, view(member.raft_id, member.draining)))
            .collect()
    }
}

fn change_single(kind: ConfChangeType, id: RaftId) -> ConfChangeSingle {
    let mut change = ConfChangeSingle::default();
    change.set_change_type(kind);
    change.set_node_id(id);
    change
}
