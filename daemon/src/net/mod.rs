//! The network: libp2p with cluster admission, discovery, connection upkeep, control links and streams.
//! Bytes only: what messages mean is their owners' business.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use bytes::Bytes;
pub use libp2p::PeerId;
use tokio::sync::{mpsc, oneshot, watch};

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

/// A bidirectional byte stream to a peer (`AsyncRead + AsyncWrite` of tokio).
#[derive(Debug)]
pub struct NetStream {}

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

/// Cheap handle on the network task.
#[derive(Debug, Clone)]
pub struct Net {}

impl Net {
    /// This device.
    pub fn local_peer(&self) -> PeerId {
        PeerId::random()
    }
    /// Queues a control message; never blocks.
    pub fn send(&self, _peer: PeerId, _topic: Topic, _body: Bytes) -> Result<(), NetError> {
        Err(NetError::NotConnected)
    }
    /// Sets what the heartbeat carries to all peers from now on (sent at least every 250 ms).
    pub fn set_report(&self, _body: Bytes) {}
    /// Asks a peer and waits for its answer.
    pub async fn call(
        &self,
        _peer: PeerId,
        _method: u16,
        _body: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, NetError> {
        tokio::time::sleep(timeout).await;
        Err(NetError::Timeout)
    }
    /// Opens a stream (bounded by a timeout of its own).
    pub async fn open(&self, _peer: PeerId, _channel: Channel) -> Result<NetStream, NetError> {
        tokio::task::yield_now().await;
        Err(NetError::NotConnected)
    }
    /// Peers that are connected and not silent.
    pub fn peers(&self) -> watch::Receiver<BTreeSet<PeerId>> {
        watch::channel(BTreeSet::new()).1
    }
    /// Identities that are refused from now on; their connections are closed.
    pub fn set_removed(&self, _removed: BTreeSet<PeerId>) {}
    /// Addresses that members are known to listen at, dialled when not connected.
    pub fn set_known(&self, _known: Vec<(PeerId, SocketAddr)>) {}
}

/// Where events come out; one owner reads them.
pub type NetEvents = mpsc::Receiver<NetEvent>;
