//! Frames from peers, checked before raft-rs sees them.
//!
//! raft-rs trusts its peers: an index out of range, a hole in the entries or a broken configuration make it
//! panic. A peer here is another device, perhaps of another build, perhaps with a lost disk; so everything
//! that raft-rs takes for granted is checked first, and a frame that fails is refused without harm.

use raft::StateRole;
use raft::eraftpb::ConfChangeV2;
use thiserror::Error;

use super::Node;
use crate::command::MAX_REQUEST_BYTES;
use crate::ids::{ClusterId, RaftId};
use crate::state::{ClusterState, SnapshotError};
use crate::store::{EntryKind, Store, StoredEntry, StoredSnapshot};
use crate::wire::{Body, Frame, FrameError};

/// No group gets this far: at a million entries a second it would take two thousand years.
const LAST_INDEX: u64 = 1 << 56;

/// The furthest that a term may be ahead of ours. No group holds so many elections while one device is away.
const TERM_JUMP: u64 = 1 << 32;

/// The most bytes of an encoded membership change.
const MAX_CONF_CHANGE_BYTES: usize = 16 * 1024;

/// Why a frame was refused. The replica is as it was.
#[derive(Debug, Error)]
pub enum StepError {
    /// Not a frame.
    #[error("refused a frame")]
    Frame(#[from] FrameError),
    /// For a cluster that this device is not in.
    #[error("refused a frame of cluster {0}, which this device is not in")]
    OtherCluster(ClusterId),
    /// For a replica that this device is not.
    #[error("refused a frame for replica {0}, which this device is not")]
    NotForMe(RaftId),
    /// The connection's device is not the replica that the frame names.
    #[error("refused a frame of replica {claimed} that replica {from} sent")]
    WrongSender {
        /// Who sent it.
        from: RaftId,
        /// Who it says it is from.
        claimed: RaftId,
    },
    /// No replica that works would send it.
    #[error("refused an impossible frame of replica {from}: {what}")]
    Impossible {
        /// Who sent it.
        from: RaftId,
        /// What is wrong.
        what: &'static str,
    },
    /// The snapshot in it cannot be read.
    #[error("refused a snapshot of replica {from}")]
    Snapshot {
        /// Who sent it.
        from: RaftId,
        /// What is wrong.
        #[source]
        source: SnapshotError,
    },
    /// An answer of a replica that is not, or no longer, in the configuration.
    #[error("refused an answer of replica {0}, which is not in the configuration")]
    UnknownPeer(RaftId),
    /// The replica has failed before.
    #[error("this replica has stopped after an earlier error; open it again")]
    Stopped,
}

type Check = Result<(), &'static str>;

fn ensure(holds: bool, otherwise: &'static str) -> Check {
    if holds { Ok(()) } else { Err(otherwise) }
}

impl<S: Store> Node<S> {
    /// Takes a frame that the device of replica `from` sent. The caller vouches for `from` (the connection is
    /// authenticated); a joiner may not know its peers yet, and then passes what the peer says it is.
    ///
    /// # Errors
    /// When the frame is refused. The replica goes on.
    pub fn step(&mut self, from: RaftId, frame: &[u8]) -> Result<(), StepError> {
        if self.stopped {
            return Err(StepError::Stopped);
        }
        let frame = Frame::decode(frame)?;
        self.check(from, &frame)?;
        if matches!(frame.body, Body::TimeoutNow | Body::VoteAnswer { .. }) {
            // raft-rs takes it for granted that whoever wins an election has its whole log on the disk.
            self.drain_now();
        }
        match self.raw.step(frame.into_message()) {
            Ok(()) => {}
            Err(raft::Error::StepPeerNotFound) => return Err(StepError::UnknownPeer(from)),
            Err(error) => tracing::debug!(from, %error, "raft did not take a frame"),
        }
        if self.raw.raft.state == StateRole::Leader && self.conf.contains(from) {
            self.heard.insert(from, self.ticks);
        }
        self.after_input();
        Ok(())
    }

    fn check(&self, from: RaftId, frame: &Frame) -> Result<(), StepError> {
        if frame.cluster != self.identity.cluster_id {
            return Err(StepError::OtherCluster(frame.cluster));
        }
        if frame.to != self.identity.raft_id {
            return Err(StepError::NotForMe(frame.to));
        }
        if frame.from != from || from == 0 || from == self.identity.raft_id {
            return Err(StepError::WrongSender { from, claimed: frame.from });
        }
        let impossible = |what| StepError::Impossible { from, what };
        let term = self.raw.raft.term;
        ensure(frame.term != 0 && frame.term < LAST_INDEX && frame.term <= term + TERM_JUMP, "its term")
            .map_err(impossible)?;
        if frame.term < term {
            // raft-rs ignores it, or tells the sender of the newer term.
            return Ok(());
        }
        self.check_leader(frame).and_then(|()| self.check_body(frame)).map_err(impossible)?;
        match &frame.body {
            Body::Snapshot(snapshot) => self.check_state(from, snapshot),
            Body::Append { .. }
            | Body::AppendAnswer { .. }
            | Body::Vote { .. }
            | Body::VoteAnswer { .. }
            | Body::Heartbeat { .. }
            | Body::HeartbeatAnswer { .. }
            | Body::TimeoutNow => Ok(()),
        }
    }

    /// Only the one leader of a term says what leaders say.
    fn check_leader(&self, frame: &Frame) -> Check {
        let same_term = frame.term == self.raw.raft.term;
        let leader = self.raw.raft.leader_id;
        match frame.body {
            Body::TimeoutNow => ensure(same_term && leader == frame.from, "only the leader hands over"),
            Body::Append { .. } | Body::Heartbeat { .. } | Body::Snapshot(_) if same_term => {
                ensure(leader == 0 || leader == frame.from, "its term has another leader")
            }
            Body::Append { .. }
            | Body::Heartbeat { .. }
            | Body::Snapshot(_)
            | Body::AppendAnswer { .. }
            | Body::Vote { .. }
            | Body::VoteAnswer { .. }
            | Body::HeartbeatAnswer { .. } => Ok(()),
        }
    }

    fn check_body(&self, frame: &Frame) -> Check {
        let last = self.raw.raft.raft_log.last_index();
        let answers_me = self.raw.raft.state == StateRole::Leader && frame.term == self.raw.raft.term;
        match &frame.body {
            Body::Append { index, log_term, commit, entries } => {
                ensure(*commit <= LAST_INDEX, "its commit index")?;
                check_entries(*index, *log_term, frame.term, entries)
            }
            Body::AppendAnswer { index, log_term, commit, reject: _, reject_hint } => {
                ensure(*log_term <= frame.term, "a log term after its term")?;
                let furthest = (*index).max(*reject_hint).max(*commit);
                ensure(!answers_me || furthest <= last, "an answer past the end of the log")
            }
            Body::Vote { pre, transfer, index, log_term, commit, commit_term } => {
                ensure(!(*pre && *transfer), "a hand-over needs no pre-vote")?;
                ensure(*log_term <= frame.term && *commit_term <= *log_term, "a log term after its term")?;
                ensure(*index <= LAST_INDEX && *commit <= *index, "its commit index")
            }
            Body::VoteAnswer { commit, commit_term, .. } => {
                ensure(*commit <= LAST_INDEX && *commit_term <= LAST_INDEX, "its commit index")
            }
            Body::Heartbeat { commit } => ensure(
                *commit <= last,
                "a commit index past the end of this device's log; was its disk replaced?",
            ),
            Body::HeartbeatAnswer { commit } => {
                ensure(!answers_me || *commit <= last, "a commit index past the end of the log")
            }
            Body::Snapshot(snapshot) => self.check_snapshot(frame.term, snapshot),
            Body::TimeoutNow => Ok(()),
        }
    }

    fn check_snapshot(&self, term: u64, snapshot: &StoredSnapshot) -> Check {
        ensure((1..=LAST_INDEX).contains(&snapshot.index), "its snapshot's index")?;
        ensure((1..=term).contains(&snapshot.term), "its snapshot's term")?;
        ensure(snapshot.conf.is_valid(), "its snapshot's configuration")?;
        ensure(snapshot.conf.contains(self.identity.raft_id), "a snapshot that does not know this replica")?;
        let log = &self.raw.raft.raft_log;
        let committed_otherwise = snapshot.index == log.committed
            && log.committed > 0
            && !log.match_term(snapshot.index, snapshot.term);
        ensure(!committed_otherwise, "a snapshot that contradicts what was committed")
    }

    fn check_state(&self, from: RaftId, snapshot: &StoredSnapshot) -> Result<(), StepError> {
        let state =
            ClusterState::decode(&snapshot.data).map_err(|source| StepError::Snapshot { from, source })?;
        if state.cluster_id != self.identity.cluster_id {
            return Err(StepError::OtherCluster(state.cluster_id));
        }
        Ok(())
    }
}

/// Entries must follow `index` without a gap, with terms that never fall.
fn check_entries(index: u64, log_term: u64, term: u64, entries: &[StoredEntry]) -> Check {
    // The first entry of every cluster is a snapshot, so that nothing is ever appended to index 0.
    ensure((1..LAST_INDEX).contains(&index) && (1..=term).contains(&log_term), "the place of its entries")?;
    let mut before = (index, log_term);
    for entry in entries {
        ensure(entry.index == before.0 + 1 && entry.index < LAST_INDEX, "a gap in its entries")?;
        ensure(entry.term >= before.1 && entry.term <= term, "the terms of its entries")?;
        before = (entry.index, entry.term);
        match entry.kind {
            EntryKind::Request => {
                ensure(entry.data.len() <= MAX_REQUEST_BYTES, "a request that is too large")?
            }
            EntryKind::ConfChange => {
                ensure(entry.data.len() <= MAX_CONF_CHANGE_BYTES, "a membership change that is too large")?;
                ensure(parse_conf_change(&entry.data).is_some(), "a membership change that cannot be read")?;
            }
        }
    }
    Ok(())
}

/// Reads a membership change as raft-rs writes it into the log.
pub(super) fn parse_conf_change(bytes: &[u8]) -> Option<ConfChangeV2> {
    protobuf::Message::parse_from_bytes(bytes).ok()
}

#[cfg(test)]
#[path = "guard_tests.rs"]
mod tests;
