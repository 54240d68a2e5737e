//! The driver: one replica of the Raft group, with everything that is around raft-rs to make it safe.

mod api;
mod drive;
mod guard;
mod jitter;
mod logger;
mod open;
mod reconcile;
mod removal;

use std::collections::BTreeMap;
use std::fmt;

use raft::{RawNode, StateRole};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use guard::StepError;

use crate::command::{DecodeError, Outcome, RequestId};
use crate::ids::{ClusterId, RaftId};
use crate::state::{ClusterState, Member, SnapshotError};
use crate::store::{Conf, Log, Store, StoreError};

/// How a replica runs. Pre-vote and check-quorum are always on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Ticks without a leader after which a voter stands for election, at least; at most twice as many.
    pub election_ticks: usize,
    /// Ticks between a leader's heartbeats.
    pub heartbeat_ticks: usize,
    /// Applied entries after which a snapshot is taken and the log compacted.
    pub snapshot_entries: u64,
    /// Entries kept in the log behind a snapshot, for followers that are a little behind.
    pub kept_entries: u64,
    /// Ticks after which a snapshot whose delivery nobody reported counts as lost.
    pub snapshot_ticks: u64,
    /// Seed of the election timeouts. Differs between devices; the same seed gives the same run.
    pub seed: u64,
}

impl Default for Options {
    /// For ticks of 100 ms: elections after 1 to 2 s without a leader.
    fn default() -> Self {
        Self {
            election_ticks: 10,
            heartbeat_ticks: 2,
            snapshot_entries: 512,
            kept_entries: 128,
            snapshot_ticks: 300,
            seed: 0,
        }
    }
}

/// How a cluster begins. Every founding voter writes the same one: it becomes a snapshot at index 1, term 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Genesis {
    /// The cluster, for life.
    pub cluster_id: ClusterId,
    /// Its name, for people.
    pub cluster_name: String,
    /// The first members, with raft ids from 1 on.
    pub members: Vec<Member>,
    /// The raft ids of those that vote: 1, 3 or 5 of them.
    pub voters: Vec<RaftId>,
}

/// Which replica of which cluster a store belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The replica.
    pub raft_id: RaftId,
}

/// What a replica does in the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Listens and does not vote.
    Learner,
    /// Votes and follows.
    Follower,
    /// Stands for election.
    Candidate,
    /// Leads.
    Leader,
}

/// A frame to be sent. Losing it is harmless; delivering it twice or late is, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outbound {
    /// The receiver.
    pub to: RaftId,
    /// It carries a snapshot: [`Node::report_snapshot`] must be called once it was sent or has failed.
    pub snapshot: bool,
    /// Its bytes.
    pub frame: Vec<u8>,
}

/// A request that was applied here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Its place in the log.
    pub index: u64,
    /// Its name.
    pub request: RequestId,
    /// What became of it.
    pub outcome: Outcome,
}

/// What [`Node::process`] wants done and has to tell. Everything in it is durable already.
#[derive(Debug, Default)]
pub struct Effects {
    /// Frames to send, in order.
    pub messages: Vec<Outbound>,
    /// Requests that were applied, in order. Requests that came in by a snapshot are not among them: look at
    /// [`ClusterState::outcome`] for those waiting when `state_changed`.
    pub applied: Vec<Applied>,
    /// The role, if it is another one now, or the leadership of a newer term. Whoever waits for a request that
    /// was proposed here as leader before must be told that its fate is unknown.
    pub role_changed: Option<Role>,
    /// The leader, if it is another one now (or none is known).
    pub leader_changed: Option<Option<RaftId>>,
    /// Requests that [`Node::propose`] took and that are given up, and why: this replica did not put them into the log.
    pub refused: Vec<(RequestId, ProposeError)>,
    /// [`Node::state`] is not what it was.
    pub state_changed: bool,
    /// This device is no longer a member: it was removed, or another disk has taken its place.
    pub removed_self: bool,
}

impl Effects {
    /// Nothing to do and nothing to tell.
    pub fn is_empty(&self) -> bool {
        let Self { messages, applied, refused, role_changed, leader_changed, state_changed, removed_self } =
            self;
        messages.is_empty()
            && applied.is_empty()
            && refused.is_empty()
            && role_changed.is_none()
            && leader_changed.is_none()
            && !state_changed
            && !removed_self
    }
}

/// A replica that cannot go on. Drop it; opening it again from its store is safe.
#[derive(Debug, Error)]
pub enum FatalError {
    /// The disk did not take what must be durable.
    #[error("the cluster's log cannot be kept")]
    Store(#[from] StoreError),
    /// The log holds a request of a newer build; skipping it would make this device differ from the others.
    #[error("entry {index} of the cluster's log cannot be applied")]
    Request {
        /// Its place in the log.
        index: u64,
        /// Why.
        #[source]
        source: DecodeError,
    },
    /// A leader's snapshot of a newer build.
    #[error("the cluster's snapshot cannot be installed")]
    Snapshot(#[source] SnapshotError),
    /// The replica has failed before.
    #[error("this replica has stopped after an earlier error; open it again")]
    Stopped,
    /// Something that raft-rs promises does not hold.
    #[error("the consensus library broke a promise: {0}; report this with the log")]
    Broken(String),
}

/// Why a replica cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The store.
    #[error("the cluster's log cannot be opened")]
    Store(#[from] StoreError),
    /// The store belongs to no cluster yet.
    #[error("this device is in no cluster yet; found one or join one first")]
    NoCluster,
    /// The stored state is of a newer build.
    #[error("the stored cluster state cannot be read")]
    State(#[from] SnapshotError),
    /// Impossible options.
    #[error("impossible raft options: {0}")]
    Options(String),
}

/// Why a store cannot be given to a cluster.
#[derive(Debug, Error)]
pub enum FoundError {
    /// The store.
    #[error("the cluster's log cannot be written")]
    Store(#[from] StoreError),
    /// It has one already.
    #[error("this device is already in cluster {} as replica {}; move its data directory away first", .0.cluster_id, .0.raft_id)]
    NotEmpty(Identity),
    /// The beginning makes no sense.
    #[error("a cluster cannot begin like this: {0}")]
    Genesis(&'static str),
}

/// Why a request or change was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProposeError {
    /// Another replica leads, if any.
    #[error("this device does not lead the cluster; ask the leader")]
    NotLeader {
        /// The leader, if it is known.
        leader: Option<RaftId>,
    },
    /// Too much is under way, or a change or a hand-over.
    #[error("the cluster is busy with earlier requests; try again in a moment")]
    Busy,
    /// Larger than [`crate::command::MAX_REQUEST_BYTES`].
    #[error("the request has {0} bytes, more than {max}; make it smaller", max = crate::command::MAX_REQUEST_BYTES)]
    TooLarge(usize),
    /// The change makes no sense in this configuration.
    #[error("this membership change is not possible: {0}")]
    Refused(&'static str),
}

/// One replica. Feed it ticks, frames and requests; after each batch call [`Node::process`] and do what it says.
pub struct Node<S: Store> {
    raw: RawNode<Log<S>>,
    identity: Identity,
    options: Options,
    state: ClusterState,
    conf: Conf,
    applied: u64,
    /// Ticks since it was opened.
    ticks: u64,
    jitter: jitter::Jitter,
    /// The tick at which a peer was last heard, since this replica leads.
    heard: BTreeMap<RaftId, u64>,
    /// Snapshots under way, by the tick at which they were sent.
    snapshots: BTreeMap<RaftId, u64>,
    /// The tick since which a commit index is known that is not on the disk.
    commit_unsaved: Option<u64>,
    removal: removal::Removal,
    effects: Effects,
    /// Role, leader, and the term that this replica leads in, as last told by [`Effects`].
    reported: (Role, Option<RaftId>, Option<u64>),
    failure: Option<FatalError>,
    stopped: bool,
}

impl<S: Store> fmt::Debug for Node<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("identity", &self.identity)
            .field("role", &self.role())
            .field("term", &self.term())
            .field("applied", &self.applied)
            .finish_non_exhaustive()
    }
}

fn role_of(state: StateRole, votes: bool) -> Role {
    match state {
        StateRole::Leader => Role::Leader,
        StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
        StateRole::Follower if votes => Role::Follower,
        StateRole::Follower => Role::Learner,
    }
}
