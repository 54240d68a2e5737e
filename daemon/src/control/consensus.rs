//! The consensus thread: owns the store, the founding protocol and the Raft driver. Everything reaches it through
//! one bounded inbox; everybody reads its state from one watch.

mod thread;
mod view;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{SyncSender, sync_channel},
    },
    time::Duration,
};

use bytes::Bytes;
use mesh_consensus::{ClusterState, Listed, RaftId, Request, StorageId, founding::Candidate};
use tokio::sync::{oneshot, watch};

use super::rpc::{JoinReply, ProposeReply};
use crate::net::{Net, PeerId};

/// Raft's unit of time.
const TICK: Duration = Duration::from_millis(100);
/// Ticks without a leader until an election: 1.5 to 3 s, with jitter.
const ELECTION_TICKS: usize = 15;
/// Ticks between heartbeats.
const HEARTBEAT_TICKS: usize = 3;
/// After a stall at most this many ticks are made up for, so that a stalled device does not campaign at once.
const TICKS_CATCH_UP: u32 = 5;
/// Inputs waiting for the thread; senders from the network drop beyond this, which Raft repairs.
const INBOX: usize = 1024;
/// Proposals that wait for their outcome here.
const WAITERS_MAX: usize = 1024;
/// A voter out of touch for longer than this (15 s) may lose its seat to a learner.
const GRACE_TICKS: u64 = 150;
/// A snapshot that has not been acknowledged by then (5 s) counts as lost and is sent again.
const SNAPSHOT_TICKS: u64 = 50;
/// Name of the founding protocol's record in the store.
const FOUNDING_RECORD: &str = "founding";
/// Name of the record that identifies the data directory: a wiped disk is a new member.
const STORAGE_RECORD: &str = "storage";

/// How far this device is with being part of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for enough devices to found a cluster, or for one to join.
    Founding {
        /// Devices without a cluster that are here, this one included.
        present: usize,
        /// Devices needed.
        needed: usize,
    },
    /// Found a cluster and asks to join it.
    Joining,
    /// Member.
    Member,
}

/// Consensus as the rest of the daemon sees it.
#[derive(Debug, Clone)]
pub struct ClusterView {
    /// How far this device is.
    pub phase: Phase,
    /// Applied state; empty before membership.
    pub state: Arc<ClusterState>,
    /// This device's id in Raft; 0 before membership.
    pub raft_id: RaftId,
    /// Raft term.
    pub term: u64,
    /// The leader, if one is known and in touch.
    pub leader: Option<PeerId>,
    /// Whether this device leads.
    pub is_leader: bool,
    /// Members that vote.
    pub voters: Vec<RaftId>,
    /// Something that a person must settle: what, and the remedy.
    pub conflict: Option<(String, String)>,
    /// This device has no part in the cluster: joining was refused, it was removed, or members do not list it. Why.
    pub refused: Option<String>,
}

impl ClusterView {
    fn outside() -> Self {
        Self {
            phase: Phase::Founding { present: 1, needed: 1 },
            state: Arc::new(ClusterState::empty(mesh_consensus::ClusterId([0; 16]))),
            raft_id: 0,
            term: 0,
            leader: None,
            is_leader: false,
            voters: Vec::new(),
            conflict: None,
            refused: None,
        }
    }

    /// Whether nothing has changed, so that nobody need be woken.
    fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
            && self.phase == other.phase
            && self.raft_id == other.raft_id
            && self.term == other.term
            && self.leader == other.leader
            && self.is_leader == other.is_leader
            && self.voters == other.voters
            && self.conflict == other.conflict
            && self.refused == other.refused
    }

    /// Id of a member by PeerId.
    pub fn member(&self, peer: &PeerId) -> Option<&mesh_consensus::Member> {
        let device = peer.to_string();
        self.state.members.values().find(|m| m.device.0 == device)
    }
}

/// What reaches the consensus thread.
#[derive(Debug)]
pub enum Input {
    /// A Raft frame from an admitted peer.
    Raft(PeerId, Bytes),
    /// A founding message from an admitted peer.
    Founding(PeerId, Bytes),
    /// A peer came up.
    PeerUp(PeerId),
    /// A peer went away.
    PeerDown(PeerId),
    /// A peer says at the door that this device was removed from the cluster.
    RemovedBy(PeerId),
    /// Propose a command if this device leads.
    Propose(Request, oneshot::Sender<ProposeReply>),
    /// Answer to the request of this device, with this data directory, to join.
    JoinAnswer(StorageId, JoinReply),
    /// End the thread.
    Shutdown,
}

/// Handle on the consensus thread.
#[derive(Debug, Clone)]
pub struct Consensus {
    inbox: SyncSender<Input>,
    view: watch::Receiver<ClusterView>,
}

impl Consensus {
    /// Queues an input; drops it when the thread is far behind (Raft and founding repeat what matters).
    pub fn offer(&self, input: Input) {
        if self.inbox.try_send(input).is_err() {
            tracing::debug!("the consensus inbox is full: message dropped");
        }
    }

    /// The newest view, to read or to wait on.
    pub fn view(&self) -> watch::Receiver<ClusterView> {
        self.view.clone()
    }

    /// Proposes on this device; `NotLeader` when it does not lead.
    pub async fn propose_here(&self, request: Request) -> ProposeReply {
        let (reply, answer) = oneshot::channel();
        if self.inbox.try_send(Input::Propose(request, reply)).is_err() {
            return ProposeReply::Busy;
        }
        answer.await.unwrap_or(ProposeReply::Busy)
    }
}

/// Why the consensus thread cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ConsensusError {
    /// The store cannot be opened.
    #[error("cannot open the consensus store {path}")]
    Store {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: mesh_consensus::StoreError,
    },
    /// The store holds something that cannot be driven.
    #[error("cannot start consensus from {path}")]
    Open {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: mesh_consensus::OpenError,
    },
    /// The store does not take a new cluster.
    #[error("cannot write the cluster into {path}")]
    Found {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: mesh_consensus::FoundError,
    },
    /// The founding record cannot be read.
    #[error(
        "the founding record in the consensus store cannot be read; move the data directory away and restart to join anew"
    )]
    Record(#[source] mesh_consensus::founding::FoundingError),
    /// A write failed or replicated state is not understood.
    #[error("consensus cannot go on")]
    Fatal(#[source] mesh_consensus::FatalError),
    /// The thread could not be started.
    #[error("cannot start the consensus thread")]
    Thread(#[source] std::io::Error),
    /// The thread has panicked.
    #[error(
        "the consensus thread has panicked, the log says where: start the daemon again, and report this if it happens again"
    )]
    Panicked,
}

/// How the thread ended; well only if it was told to.
pub type End = Result<(), ConsensusError>;

/// What to start, and whom to tell when it ends.
#[derive(Debug)]
pub struct Start {
    /// What the thread needs.
    pub thread: ThreadStart,
    /// Told how the thread ends; dropped without a word when it panics.
    pub ended: oneshot::Sender<End>,
}

/// Asks one of these peers for membership of a device with this data directory, listed so far like that.
pub type Join = Box<dyn Fn(StorageId, Listed, Vec<PeerId>) + Send>;

/// What the thread needs to start.
pub struct ThreadStart {
    /// File of the store.
    pub path: PathBuf,
    /// This device as a founder or joiner.
    pub me: Candidate,
    /// Devices that will be there when the cluster is formed.
    pub devices: u32,
    /// Cluster name.
    pub cluster_name: String,
    /// Data directory, for messages.
    pub data_dir: String,
    /// The network.
    pub net: Net,
    /// Asks one of these peers for membership; the answer comes back as [`Input::JoinAnswer`].
    pub join: Join,
    /// Seed for back-off and ids.
    pub seed: u64,
}

impl std::fmt::Debug for ThreadStart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ThreadStart").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Starts the thread. The store is opened before it returns, so that a bad one is told before anything else starts.
pub fn start(start: Start) -> Result<Consensus, ConsensusError> {
    let (inbox, inputs) = sync_channel(INBOX);
    let (publish, view) = watch::channel(ClusterView::outside());
    let Start { ended, thread } = start;
    let mut thread = thread::Thread::new(thread, publish)?;
    spawn(move || thread.run(&inputs), ended)?;
    Ok(Consensus { inbox, view })
}

/// Does this on the consensus thread.
pub(super) fn spawn(
    work: impl FnOnce() -> End + Send + 'static,
    ended: oneshot::Sender<End>,
) -> Result<(), ConsensusError> {
    let thread = std::thread::Builder::new().name("mesh-consensus".into());
    let started = thread.spawn(move || {
        // Nobody listens any more while the daemon ends.
        let _ = ended.send(work());
    });
    started.map(drop).map_err(ConsensusError::Thread)
}
