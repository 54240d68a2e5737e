//! The door: right after Noise, and before any protocol, both sides prove that they hold the cluster key.
//!
//! Three fixed-size messages in each direction: hello (nonce and what the session needs to know), proof, verdict.
//! The proof is BLAKE3 keyed with a key derived from the cluster key, over both hellos, both identities (which Noise
//! has authenticated) and the role of the prover, so that it can be neither replayed nor reflected. The verdict byte
//! lets both sides say why a device was refused.

use std::{
    collections::{BTreeSet, VecDeque},
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::{
    PeerId,
    core::{
        ConnectedPoint, UpgradeInfo,
        upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade},
    },
    yamux,
};
use rand::Rng;
use tokio::sync::mpsc;

use super::{
    address::socket_address,
    sever::{Sever, Severable},
};

const PROTOCOL: &str = "/mesh/admission/1";
const KEY_CONTEXT: &str = "mesh 2026 admission proof key v1";
const NAME_CONTEXT: &str = "mesh 2026 cluster name tag v1";
const MAGIC: [u8; 8] = *b"mesh-adm";
/// Both sides answer at once; a device under heavy load may need a second or two.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Admitted connections whose establishment the swarm has not reported yet; it does so within milliseconds.
const MAX_WAITING: usize = 256;
const HELLO_BYTES: usize = 8 + 32 + 16 + 8 + 2;

/// Why a device was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub(super) enum Refusal {
    /// Another cluster key.
    #[error(
        "it holds another cluster key: copy cluster.key of this cluster to it, or give it another cluster name"
    )]
    Key,
    /// Another cluster name.
    #[error("it belongs to a cluster of another name")]
    Name,
    /// We have removed it.
    #[error("it was removed from the cluster: delete its data directory to let it join as a new device")]
    Removed,
    /// It has removed us.
    #[error(
        "it says that this device was removed from the cluster: delete the data directory to join as a new device"
    )]
    RemovedUs,
    /// It answered something else.
    #[error("it does not speak this version of the mesh admission: run the same version on all devices")]
    Protocol,
}

const VERDICT_OK: u8 = 0;
const VERDICT_KEY: u8 = 1;
const VERDICT_NAME: u8 = 2;
const VERDICT_REMOVED: u8 = 3;

/// What the other side said about itself.
#[derive(Debug, Clone)]
pub(super) struct Admitted {
    /// Changes with every start of its process.
    pub(super) boot: u64,
    /// Port that it listens on.
    pub(super) listen_port: u16,
    /// Cuts this connection.
    pub(super) sever: Sever,
}

/// A refusal, for the network task.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refused {
    pub(super) peer: PeerId,
    pub(super) remote: SocketAddr,
    pub(super) why: Refusal,
}

/// Which connection an admission belongs to; unique while it is open.
pub(super) type EndpointKey = (PeerId, SocketAddr, bool);

/// The key under which the swarm's report of a connection finds its admission.
pub(super) fn endpoint_key(peer: PeerId, endpoint: &ConnectedPoint) -> Option<EndpointKey> {
    let remote = socket_address(endpoint.get_remote_address())?;
    Some((peer, remote, endpoint.is_dialer()))
}

/// What every admission of this device shares.
pub(super) struct Door {
    local: PeerId,
    proof_key: [u8; blake3::KEY_LEN],
    name: String,
    name_tag: [u8; 16],
    boot: u64,
    listen_port: RwLock<u16>,
    removed: RwLock<BTreeSet<PeerId>>,
    waiting: Mutex<VecDeque<(EndpointKey, Admitted)>>,
    refused: mpsc::Sender<Refused>,
}

impl std::fmt::Debug for Door {
    /// Leaves the key out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door").field("local", &self.local).finish_non_exhaustive()
    }
}

impl Door {
    pub(super) fn new(
        local: PeerId,
        cluster_name: &str,
        cluster_key: &[u8; 32],
        refused: mpsc::Sender<Refused>,
    ) -> Self {
        let tag = blake3::derive_key(NAME_CONTEXT, cluster_name.as_bytes());
        let mut name_tag = [0; 16];
        name_tag.copy_from_slice(&tag[..16]);
        Self {
            local,
            proof_key: blake3::derive_key(KEY_CONTEXT, cluster_key),
            name: cluster_name.to_owned(),
            name_tag,
            boot: rand::rng().next_u64(),
            listen_port: RwLock::new(0),
            removed: RwLock::default(),
            waiting: Mutex::default(),
            refused,
        }
    }

    pub(super) fn set_listen_port(&self, port: u16) {
        *self.listen_port.write().unwrap_or_else(PoisonError::into_inner) = port;
    }

    pub(super) fn set_removed(&self, removed: BTreeSet<PeerId>) {
        *self.removed.write().unwrap_or_else(PoisonError::into_inner) = removed;
    }

    pub(super) fn is_removed(&self, peer: &PeerId) -> bool {
        self.removed.read().unwrap_or_else(PoisonError::into_inner).contains(peer)
    }

    /// Takes what was learned when this connection was admitted.
    pub(super) fn take(&self, key: &EndpointKey) -> Option<Admitted> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let index = waiting.iter().position(|(k, _)| k == key)?;
        waiting.remove(index).map(|(_, admitted)| admitted)
    }

    fn put(&self, key: EndpointKey, admitted: Admitted) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // One of the same key is of a connection that is gone: that of a dial, of which there is one per address at a
        // time, may have led to another peer than the one expected, and is never reported as established.
        waiting.retain(|(other, _)| *other != key);
        if waiting.len() >= MAX_WAITING {
            waiting.pop_front();
        }
        waiting.push_back((key, admitted));
    }

    fn hello(&self) -> Hello {
        let mut nonce = [0; 32];
        rand::rng().fill_bytes(&mut nonce);
        Hello {
            nonce,
            name_tag: self.name_tag,
            boot: self.boot,
            listen_port: *self.listen_port.read().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// What `prover` must send: everything that both sides know, with the prover's part first.
    fn proof(&self, prover: Party<'_>, verifier: Party<'_>, prover_dials: bool) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.proof_key);
        let role: &[u8] = if prover_dials { b"dialer" } else { b"listener" };
        let parts = [PROTOCOL.as_bytes(), role, self.name.as_bytes()];
        for part in parts
            .into_iter()
            .chain([&prover.peer.to_bytes()[..], &verifier.peer.to_bytes()[..]])
            .chain([&prover.hello[..], &verifier.hello[..]])
        {
            // Lengths keep the parts apart.
            hasher.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
            hasher.update(part);
        }
        hasher.finalize()
    }

    fn judge(&self, peer: &PeerId, theirs: &Hello, proof_holds: bool) -> Result<(), Refusal> {
        if self.is_removed(peer) {
            return Err(Refusal::Removed);
        }
        if theirs.name_tag != self.name_tag {
            return Err(Refusal::Name);
        }
        if proof_holds { Ok(()) } else { Err(Refusal::Key) }
    }

    async fn converse<C>(&self, socket: &mut C, peer: PeerId, dialer: bool) -> io::Result<Outcome>
    where
        C: AsyncRead + AsyncWrite + Unpin,
    {
        let mine = self.hello().encode();
        let mut theirs = [0; HELLO_BYTES];
        exchange(socket, &mine, &mut theirs).await?;
        let Some(hello) = Hello::decode(&theirs) else {
            return Ok(Err(Refusal::Protocol));
        };
        let me = Party { peer: &self.local, hello: &mine };
        let them = Party { peer: &peer, hello: &theirs };
        let mut proof = [0; blake3::OUT_LEN];
        exchange(socket, self.proof(me, them, dialer).as_bytes(), &mut proof).await?;
        // `blake3::Hash` compares in constant time.
        let holds = self.proof(them, me, !dialer) == blake3::Hash::from_bytes(proof);
        let judgement = self.judge(&peer, &hello, holds);
        let verdict = match judgement {
            Ok(()) => VERDICT_OK,
            Err(Refusal::Removed) => VERDICT_REMOVED,
            Err(Refusal::Name) => VERDICT_NAME,
            Err(Refusal::Key | Refusal::RemovedUs | Refusal::Protocol) => VERDICT_KEY,
        };
        let mut answer = [0];
        exchange(socket, &[verdict], &mut answer).await?;
        let refused = judgement.err().or(match answer[0] {
            VERDICT_OK => None,
            VERDICT_KEY => Some(Refusal::Key),
            VERDICT_NAME => Some(Refusal::Name),
            VERDICT_REMOVED => Some(Refusal::RemovedUs),
            _ => Some(Refusal::Protocol),
        });
        Ok(refused.map_or(Ok(hello), Err))
    }
}

type Outcome = Result<Hello, Refusal>;

#[derive(Clone, Copy)]
struct Party<'a> {
    peer: &'a PeerId,
    hello: &'a [u8; HELLO_BYTES],
}

struct Hello {
    nonce: [u8; 32],
    name_tag: [u8; 16],
    boot: u64,
    listen_port: u16,
}

impl Hello {
    fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..40].copy_from_slice(&self.nonce);
        bytes[40..56].copy_from_slice(&self.name_tag);
        bytes[56..64].copy_from_slice(&self.boot.to_le_bytes());
        bytes[64..].copy_from_slice(&self.listen_port.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HELLO_BYTES]) -> Option<Self> {
        if bytes[..8] != MAGIC {
            return None;
        }
        Some(Self {
            nonce: bytes[8..40].try_into().ok()?,
            name_tag: bytes[40..56].try_into().ok()?,
            boot: u64::from_le_bytes(bytes[56..64].try_into().ok()?),
            listen_port: u16::from_le_bytes(bytes[64..].try_into().ok()?),
        })
    }
}

/// Sends and receives at the same step; the messages are small enough to fit in the socket's buffers.
async fn exchange<C>(socket: &mut C, mine: &[u8], theirs: &mut [u8]) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    socket.write_all(mine).await?;
    socket.flush().await?;
    socket.read_exact(theirs).await
}

/// The upgrade of one connection: admission, then yamux over the same socket.
#[derive(Clone)]
pub(super) struct Admission {
    door: Arc<Door>,
    peer: PeerId,
    endpoint: Option<EndpointKey>,
    yamux: yamux::Config,
}

impl Admission {
    pub(super) fn new(
        door: Arc<Door>,
        peer: &PeerId,
        endpoint: &ConnectedPoint,
        yamux: yamux::Config,
    ) -> Self {
        Self { door, peer: *peer, endpoint: endpoint_key(*peer, endpoint), yamux }
    }

    /// Lets the connection pass or fails it, and leaves what was learned at the door.
    async fn admit<C>(&self, socket: &mut C, dialer: bool) -> io::Result<Sever>
    where
        C: AsyncRead + AsyncWrite + Unpin,
    {
        let key = self.endpoint.ok_or_else(|| io::Error::other("not a TCP connection"))?;
        let outcome = tokio::time::timeout(TIMEOUT, self.door.converse(socket, self.peer, dialer))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        match outcome {
            Ok(hello) => {
                let sever = Sever::default();
                self.door.put(
                    key,
                    Admitted { boot: hello.boot, listen_port: hello.listen_port, sever: sever.clone() },
                );
                Ok(sever)
            }
            Err(why) => {
                // A lost report costs a line in the status; the back-off of the dial works without it.
                let _ = self.door.refused.try_send(Refused { peer: self.peer, remote: key.1, why });
                // Lets the verdict reach the other side before the socket goes.
                let _ = socket.close().await;
                Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
            }
        }
    }
}

impl UpgradeInfo for Admission {
    type Info = &'static str;
    type InfoIter = std::iter::Once<&'static str>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(PROTOCOL)
    }
}

type Muxing<C> = Pin<Box<dyn Future<Output = io::Result<yamux::Muxer<Severable<C>>>> + Send>>;

impl<C> InboundConnectionUpgrade<C> for Admission
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = yamux::Muxer<Severable<C>>;
    type Error = io::Error;
    type Future = Muxing<C>;

    fn upgrade_inbound(self, mut socket: C, _: Self::Info) -> Self::Future {
        Box::pin(async move {
            let sever = self.admit(&mut socket, false).await?;
            self.yamux.upgrade_inbound(Severable::new(socket, sever), "").await
        })
    }
}

impl<C> OutboundConnectionUpgrade<C> for Admission
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = yamux::Muxer<Severable<C>>;
    type Error = io::Error;
    type Future = Muxing<C>;

    fn upgrade_outbound(self, mut socket: C, _: Self::Info) -> Self::Future {
        Box::pin(async move {
            let sever = self.admit(&mut socket, true).await?;
            self.yamux.upgrade_outbound(Severable::new(socket, sever), "").await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admission_that_was_never_taken_does_not_outlive_the_next_one() {
        let door = Door::new(PeerId::random(), "test", &[7; 32], mpsc::channel(1).0);
        let admitted = |boot| Admitted { boot, listen_port: 1, sever: Sever::default() };
        let address = |port| SocketAddr::from(([10, 0, 0, 1], port));
        let key: EndpointKey = (PeerId::random(), address(1), true);
        let others = [(PeerId::random(), key.1, true), (key.0, address(2), true), (key.0, key.1, false)];
        door.put(key, admitted(1));
        for other in others {
            door.put(other, admitted(9));
        }
        door.put(key, admitted(2));
        assert_eq!(door.take(&key).map(|admitted| admitted.boot), Some(2));
        assert!(door.take(&key).is_none());
        for other in others {
            assert_eq!(door.take(&other).map(|admitted| admitted.boot), Some(9));
        }
    }
}
