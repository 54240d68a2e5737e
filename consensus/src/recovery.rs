//! Going on after a majority is lost for good: one replica's copy becomes the cluster.
//!
//! Raft cannot do this by itself, and rightly: the lost majority may have agreed on something that this replica never
//! heard of. A person says that the majority will not come back. Then the copy, with everything that is in its log,
//! becomes a snapshot whose only voter is this replica, so far ahead in index and term that every other replica that
//! still runs takes it over as it is, whatever it holds. The numbers of plans and replicas go ahead too: the lost
//! ones may have given out some that this copy never heard of, and one of them may live.

use std::collections::BTreeSet;

use thiserror::Error;

use crate::command::{DecodeError, Request};
use crate::ids::RaftId;
use crate::node::{Identity, Node};
use crate::state::{ClusterState, Member, SnapshotError};
use crate::store::{Conf, EntryKind, Store, StoreError, StoredHardState, StoredSnapshot, Write};

/// How far index, term, epochs and replica ids are moved on: more than the lost replicas can have got to since.
const AHEAD: u64 = 1_000_000;

/// Why a copy cannot become the cluster.
#[derive(Debug, Error)]
pub enum RecoveryError {
    /// The store.
    #[error("the cluster's log cannot be read or written")]
    Store(#[from] StoreError),
    /// There is nothing to recover.
    #[error(
        "this device is in no cluster: there is nothing to recover; start it, and it founds or joins one"
    )]
    NoCluster,
    /// It has joined and never got the state.
    #[error("this device has joined a cluster and holds nothing of it yet: recover on another device")]
    Empty,
    /// It was removed.
    #[error("this device was removed from the cluster: recover on a member")]
    NotAMember,
    /// The state is of a newer build.
    #[error("the stored cluster state cannot be read")]
    State(#[from] SnapshotError),
    /// A request in the log is of a newer build.
    #[error("entry {index} of the log cannot be read")]
    Request {
        /// Its place.
        index: u64,
        /// Why not.
        #[source]
        source: DecodeError,
    },
}

/// What a recovery would do; nothing has been done yet.
#[derive(Debug)]
pub struct Recovery {
    /// The state that all will have.
    pub state: ClusterState,
    /// The replica that goes on.
    pub me: Member,
    /// Replicas that voted until now, as far as this one knows.
    pub voters: BTreeSet<RaftId>,
    /// The last entry of this copy. Of two copies, the one whose last term is higher is newer; of the same term, the one
    /// whose last index is.
    pub last_index: u64,
    /// The term of that entry.
    pub last_term: u64,
    /// Entries up to this one are known here to be committed.
    pub committed: u64,
    write: Write,
}

impl Recovery {
    /// Looks at a store.
    ///
    /// # Errors
    /// When its copy cannot become the cluster.
    pub fn of<S: Store>(store: &S) -> Result<Self, RecoveryError> {
        let Identity { raft_id, .. } = Node::identity_in(store)?.ok_or(RecoveryError::NoCluster)?;
        let stored = store.load()?;
        let snapshot = stored.snapshot.ok_or(RecoveryError::Empty)?;
        let mut state = ClusterState::decode(&snapshot.data)?;
        // Also what is not known to be committed: the lost ones may have said that it is.
        for entry in stored.entries.iter().filter(|entry| entry.index > snapshot.index) {
            if entry.kind == EntryKind::Request && !entry.data.is_empty() {
                let index = entry.index;
                let request = Request::decode(&entry.data)
                    .map_err(|source| RecoveryError::Request { index, source })?;
                state.apply(index, request);
            }
        }
        let me = state.members.get(&raft_id).cloned().ok_or(RecoveryError::NotAMember)?;
        go_ahead(&mut state);
        let last = stored.entries.last();
        let (last_index, last_term) = last.map_or((snapshot.index, snapshot.term), |e| (e.index, e.term));
        let (index, term) = (last_index + AHEAD, stored.hard_state.term.max(last_term) + AHEAD);
        let voters = &snapshot.conf.voters | &snapshot.conf.outgoing;
        let learners = state.members.keys().copied().filter(|id| *id != raft_id).collect();
        let conf = Conf { voters: [raft_id].into(), learners, ..Conf::default() };
        let write = Write {
            install: Some(StoredSnapshot { index, term, conf, data: state.encode() }),
            hard_state: Some(StoredHardState { term, vote: 0, commit: index }),
            ..Write::default()
        };
        let committed = stored.hard_state.commit;
        Ok(Self { state, me, voters, last_index, last_term, committed, write })
    }

    /// Members other than the one that goes on.
    pub fn others(&self) -> impl Iterator<Item = &Member> {
        self.state.members.values().filter(|member| member.raft_id != self.me.raft_id)
    }

    /// Does it, in one transaction.
    ///
    /// # Errors
    /// When the disk refuses; then nothing has changed.
    pub fn carry_out<S: Store>(self, store: &mut S) -> Result<(), RecoveryError> {
        Ok(store.write(&self.write)?)
    }
}

/// Moves on what is numbered. Frames are fenced by deployment, epoch and stage alone: a plan made from now on must not
/// share its epoch with one that a device of the lost majority may still serve.
fn go_ahead(state: &mut ClusterState) {
    state.next_raft_id += AHEAD;
    state.epoch_floor += AHEAD;
    for deployment in state.deployments.values_mut() {
        // The epoch of what is asked stays: the active plan serves it, or does not, as before.
        deployment.next_epoch += AHEAD;
        // Perhaps never committed, and its epoch then another plan's. An active plan was committed when it was
        // prepared, so its epoch is its own.
        deployment.preparing = None;
    }
}
