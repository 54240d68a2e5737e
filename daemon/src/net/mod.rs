//! The network: libp2p with cluster admission, discovery, connection upkeep, control links and streams.
//! Bytes only: what messages mean is their owners' business.
//!
//! - `NetworkTask` (swarm.rs) owns the swarm: dials (dialing.rs), connections, and one session per peer.
//!   - `Session` (session.rs), a task per peer: lanes of the control link, heartbeats, calls, silence.
//!     - `Forwarder`, a task per session: hands events to their owner, who may be slow.
//! - `Net` is the handle: queues, calls and streams go through the links (link.rs) that sessions publish.

mod address;
mod admission;
mod dialing;
mod frames;
mod identity;
mod link;
mod probe;
mod reach;
mod session;
mod sever;
mod shared;
mod start;
mod stream;
mod streams;
mod swarm;
mod transport;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU32},
    time::{Duration, Instant},
};

use bytes::Bytes;
pub use libp2p::PeerId;
use tokio::sync::{mpsc, oneshot, watch};

use frames::{Frame, MAX_CALL, MAX_MESSAGE, MAX_REPORT};
pub use identity::{Identity, IdentityError};
pub use probe::{Chore, Chores, Probe};
pub use reach::missing_interfaces;
use shared::Shared;
pub use start::{NetConfig, NetStartError};
pub use stream::NetStream;
use streams::{BLOB, DATA, OpenStream, PROBE};
use swarm::Command;

/// Time for a stream to be opened.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// The same link is probed at most this often.
const PROBE_EVERY: Duration = Duration::from_secs(2);

/// Long-lived byte streams beside the control link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Activation frames.
    Data,
    /// Weights.
    Blob,
}

/// What happens on the network, in order.
#[derive(Debug)]
pub enum NetEvent {
    /// An admitted peer is connected; its control link works.
    PeerUp {
        /// Who.
        peer: PeerId,
        /// Where it listens, as `ip:port`.
        address: SocketAddr,
    },
    /// The last connection to a peer has closed, or it has been silent for longer than the freeze limit.
    PeerDown {
        /// Who.
        peer: PeerId,
        /// `true` when it fell silent, `false` when the connection closed.
        silent: bool,
    },
    /// A message on the control link, in order per peer.
    Message {
        /// Sender, authenticated.
        peer: PeerId,
        /// Which subsystem it is for.
        topic: Topic,
        /// Its bytes.
        body: Bytes,
    },
    /// The newest report of a peer (latest value wins; older ones may be skipped).
    Report {
        /// Sender.
        peer: PeerId,
        /// Its bytes.
        body: Bytes,
        /// Round trip of the control link, smoothed.
        rtt: Duration,
    },
    /// A peer's heartbeat has told of jobs, or that there are none any more.
    Jobs {
        /// Sender.
        peer: PeerId,
        /// Jobs that wait or run in its stages.
        jobs: u32,
    },
    /// Nothing has come from a peer for longer than usual, or something has again; it is up until it has been silent for
    /// longer.
    Late {
        /// Who.
        peer: PeerId,
        /// `false` when it is heard of again.
        is_late: bool,
    },
    /// A peer asks for something and waits.
    Call {
        /// Caller.
        peer: PeerId,
        /// Method number.
        method: u16,
        /// Its bytes.
        body: Bytes,
        /// Where the answer goes; dropping it tells the caller that there is none.
        reply: oneshot::Sender<Bytes>,
    },
    /// A peer opened a stream.
    Stream {
        /// Opener.
        peer: PeerId,
        /// What for.
        channel: Channel,
        /// The stream.
        stream: NetStream,
    },
    /// A device was refused at the door (wrong key, wrong cluster, removed), for status and doctor. Rate-limited.
    Refused {
        /// Who or where, for people.
        whom: String,
        /// Why, for people.
        why: String,
        /// The peer, where it is the one that refuses: it says that this device was removed.
        removed_by: Option<PeerId>,
    },
}

/// Subsystems that talk on the control link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Topic {
    /// Raft frames.
    Raft,
    /// Founding protocol messages.
    Founding,
}

impl Topic {
    fn code(self) -> u8 {
        match self {
            Self::Raft => 0,
            Self::Founding => 1,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Raft, Self::Founding].into_iter().find(|topic| topic.code() == code)
    }
}

/// What is known of the link to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkInfo {
    /// Round trip of the control link, smoothed; `None` before the first answer.
    pub rtt: Option<Duration>,
    /// The shortest of the last half minute or less: without what processors at both ends had to do first.
    pub least_rtt: Option<Duration>,
    /// Where the peer listens.
    pub address: SocketAddr,
}

/// Why a message or call did not get through.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
pub enum NetError {
    /// No admitted connection.
    #[error("not connected")]
    NotConnected,
    /// The peer's bounded queue is full.
    #[error("the queue to this peer is full")]
    Full,
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// The message is over the limit.
    #[error("the message is too large")]
    TooLarge,
    /// The peer closed the stream or refused to answer.
    #[error("the peer closed the stream")]
    Closed,
}

/// Cheap handle on the network task. The task ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub struct Net {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    local: PeerId,
    listen: SocketAddr,
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    /// When each link was last probed.
    probed: Mutex<BTreeMap<PeerId, Instant>>,
    /// Held while something is measured: two measurements would measure each other.
    probing: tokio::sync::Mutex<()>,
}

impl Net {
    /// Starts to listen, to discover and to connect. Events come out of the second part; one owner must read them.
    pub async fn start(config: NetConfig) -> Result<(Self, NetEvents), NetStartError> {
        start::start(config).await
    }

    /// This device.
    pub fn local_peer(&self) -> PeerId {
        self.inner.local
    }

    /// The address that this device listens at, with the port that was bound.
    pub fn listen_address(&self) -> SocketAddr {
        self.inner.listen
    }

    /// Queues a control message of at most 16 MiB; never blocks.
    pub fn send(&self, peer: PeerId, topic: Topic, body: Bytes) -> Result<(), NetError> {
        if body.len() > MAX_MESSAGE {
            return Err(NetError::TooLarge);
        }
        let link = self.inner.shared.link(&peer).ok_or(NetError::NotConnected)?;
        link.messages.push(Frame::Message { topic: topic.code(), body })
    }

    /// Sets what the heartbeat carries to all peers from now on (sent when it changes). At most 256 KiB.
    pub fn set_report(&self, body: Bytes) {
        if body.len() > MAX_REPORT {
            tracing::error!(bytes = body.len(), "the report is over the limit and was not taken");
            return;
        }
        self.inner.shared.set_report(body);
    }

    /// Heartbeats tell all peers what `jobs` counts: work that waits or runs here. Taken once.
    pub fn count_jobs(&self, jobs: Arc<AtomicU32>) {
        self.inner.shared.count_jobs(jobs);
    }

    /// Asks a peer and waits for its answer. Body and answer are at most 8 MiB each.
    pub async fn call(
        &self,
        peer: PeerId,
        method: u16,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, NetError> {
        if body.len() > MAX_CALL {
            return Err(NetError::TooLarge);
        }
        let link = self.inner.shared.link(&peer).ok_or(NetError::NotConnected)?;
        let call = link.calls.start()?;
        link.requests.push(Frame::Request { id: call.id, method, patience: timeout, body })?;
        call.wait(timeout).await
    }

    /// Opens a stream (bounded by a timeout of its own).
    pub async fn open(&self, peer: PeerId, channel: Channel) -> Result<NetStream, NetError> {
        let protocol = match channel {
            Channel::Data => DATA,
            Channel::Blob => BLOB,
        };
        let pulse = self.inner.shared.link(&peer).ok_or(NetError::NotConnected)?.pulse;
        Ok(NetStream::new(self.open_raw(peer, protocol).await?, pulse))
    }

    async fn open_raw(
        &self,
        peer: PeerId,
        protocol: libp2p::StreamProtocol,
    ) -> Result<libp2p::Stream, NetError> {
        if self.inner.shared.link(&peer).is_none() {
            return Err(NetError::NotConnected);
        }
        let (reply, stream) = oneshot::channel();
        let opening = async {
            let request = OpenStream { protocol, reply };
            let command = Command::Open { peer, request };
            let sent = self.inner.commands.send(command).await;
            sent.map_err(|_| NetError::NotConnected)?;
            stream.await.map_err(|_| NetError::Closed)
        };
        tokio::time::timeout(OPEN_TIMEOUT, opening).await.map_err(|_| NetError::Timeout)?
    }

    /// Peers that are connected and not silent.
    pub fn peers(&self) -> watch::Receiver<BTreeSet<PeerId>> {
        self.inner.shared.peers()
    }

    /// What is known of the link to a peer that is up.
    pub fn link(&self, peer: PeerId) -> Option<LinkInfo> {
        let link = self.inner.shared.link(&peer)?;
        Some(LinkInfo { rtt: link.pulse.rtt(), least_rtt: link.pulse.least_rtt(), address: link.address })
    }

    /// Measures the way to a peer by sending up to 1 MiB for up to 200 ms, one peer after another; a link that is slow to
    /// carry the first 64 KiB gets no more than so much at a time. A link that was probed a moment ago gives
    /// [`NetError::Full`].
    pub async fn probe(&self, peer: PeerId) -> Result<Probe, NetError> {
        self.begin_probe(&[peer])?;
        let _turn = self.inner.probing.lock().await;
        self.probe_now(peer).await
    }

    /// The same with two peers at once, to see what they get together.
    pub async fn probe_both(&self, peers: [PeerId; 2]) -> Result<[Probe; 2], NetError> {
        self.begin_probe(&peers)?;
        let _turn = self.inner.probing.lock().await;
        let probes = tokio::try_join!(self.probe_now(peers[0]), self.probe_now(peers[1]))?;
        Ok(probes.into())
    }

    fn begin_probe(&self, peers: &[PeerId]) -> Result<(), NetError> {
        let now = Instant::now();
        let mut probed = self.inner.probed.lock().unwrap_or_else(PoisonError::into_inner);
        probed.retain(|_, at| now - *at < PROBE_EVERY);
        if peers.iter().any(|peer| probed.contains_key(peer)) {
            return Err(NetError::Full);
        }
        probed.extend(peers.iter().map(|peer| (*peer, now)));
        Ok(())
    }

    async fn probe_now(&self, peer: PeerId) -> Result<Probe, NetError> {
        let stream = self.open_raw(peer, PROBE).await?;
        let link = self.inner.shared.link(&peer);
        let rtt = link.and_then(|link| link.pulse.least_rtt()).unwrap_or_default();
        probe::measure(stream, rtt, &self.inner.shared).await.map_err(|error| {
            if error.kind() == std::io::ErrorKind::TimedOut { NetError::Timeout } else { NetError::Closed }
        })
    }

    /// Processor seconds per byte sent and per byte received, as far as probes have shown them.
    pub fn costs_per_byte(&self) -> (Option<f64>, Option<f64>) {
        self.inner.shared.costs.per_byte()
    }

    /// What this process uses at rest, in processors: it is no part of what a byte costs.
    pub fn set_rest(&self, processors: f64) {
        self.inner.shared.costs.set_rest(processors);
    }

    /// What keeps this device busy beside serving: it is no rest.
    pub fn chores(&self) -> Chores {
        self.inner.shared.costs.chores()
    }

    /// Begins a chore, which ends when this is dropped.
    pub fn chore(&self) -> Chore {
        Chore::begin(&self.inner.shared)
    }

    /// Processor seconds of one message, sent or received, by so many small calls that go there and back.
    pub async fn message_cost(&self, peer: PeerId, method: u16, body: Bytes, calls: u32) -> Option<f64> {
        let _turn = self.inner.probing.lock().await;
        let _chore = self.chore();
        let before = probe::processor_s();
        for _ in 0..calls {
            self.call(peer, method, body.clone(), OPEN_TIMEOUT).await.ok()?;
        }
        // Each call is a message sent and one received.
        let idle = self.inner.shared.jobs() == 0;
        idle.then(|| (probe::processor_s() - before) / f64::from(2 * calls.max(1)))
    }

    /// Identities that are refused from now on; their connections are closed.
    pub fn set_removed(&self, removed: BTreeSet<PeerId>) {
        self.command(Command::SetRemoved(removed));
    }

    /// Addresses that members are known to listen at, dialled when not connected.
    pub fn set_known(&self, known: Vec<(PeerId, SocketAddr)>) {
        self.command(Command::SetKnown(known));
    }

    /// Hands a command to the network task without waiting; it empties its queue faster than anybody fills it.
    fn command(&self, command: Command) {
        if let Err(error) = self.inner.commands.try_send(command) {
            tracing::error!(%error, "the network task does not take commands");
        }
    }

    /// Closes all connections in good order and ends the network task.
    pub async fn shutdown(&self) {
        let (done, finished) = oneshot::channel();
        if self.inner.commands.send(Command::Shutdown(done)).await.is_ok() {
            // An error says that the task is gone, which is what is wanted.
            let _ = finished.await;
        }
    }
}

/// Where events come out; one owner reads them.
pub type NetEvents = mpsc::Receiver<NetEvent>;
