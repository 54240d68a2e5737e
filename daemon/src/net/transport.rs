//! Builds the swarm: TCP, Noise, admission, yamux; streams and discovery on top.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use libp2p::{
    PeerId, Swarm, Transport,
    connection_limits::{self, ConnectionLimits},
    core::{transport::ListenerId, upgrade::Version},
    identity::Keypair,
    mdns, noise,
    swarm::{self, NetworkBehaviour, behaviour::toggle::Toggle},
    tcp, yamux,
};
use socket2::SockRef;
use tokio::sync::mpsc;

use super::{
    address::multiaddr,
    admission::{Admission, Door},
    streams::{self, Inbound},
};

/// TCP, Noise and admission together. Noise costs a slow device some milliseconds; the rest is waiting.
const SETUP: Duration = Duration::from_secs(8);
/// While this many bytes of a connection wait in the kernel, beside those on their way, it takes no more.
const UNSENT_MAX: u32 = 64 << 10;
/// How often a device asks who is there. A new device asks at once, and again after 0.5, 1 and 2 s; this is for
/// answers that were lost.
const MDNS_QUERY: Duration = Duration::from_secs(4);
/// How long an announcement stands: many lost answers in a row.
const MDNS_TTL: Duration = Duration::from_secs(120);
/// Streams per connection, in both directions together.
const MAX_STREAMS: usize = 512;
/// Strangers in the middle of the handshake.
const MAX_KNOCKING: u32 = 128;
/// Connections that were admitted.
const MAX_CONNECTIONS: u32 = 1024;
/// One is enough; dials that cross make two, several networks more.
const MAX_PER_PEER: u32 = 8;

/// The behaviours of the mesh.
#[derive(NetworkBehaviour)]
pub(super) struct Mesh {
    pub(super) limits: connection_limits::Behaviour,
    pub(super) streams: streams::Behaviour,
    pub(super) mdns: Toggle<mdns::tokio::Behaviour>,
}

/// Builds it all; nothing listens yet.
pub(super) fn build(
    keypair: &Keypair,
    door: Arc<Door>,
    arrived: mpsc::Sender<Inbound>,
    discover: bool,
) -> Result<Swarm<Mesh>, noise::Error> {
    let noise = noise::Config::new(keypair)?;
    let mut yamux = yamux::Config::default();
    yamux.set_max_num_streams(MAX_STREAMS);
    let transport = tcp::tokio::Transport::new(tcp::Config::new().nodelay(true))
        .map(|stream, _| shallow(stream))
        .upgrade(Version::V1)
        .authenticate(noise)
        .multiplex_ext(move |peer, endpoint| Admission::new(door, peer, endpoint, yamux))
        .timeout(SETUP)
        .boxed();
    let local = keypair.public().to_peer_id();
    let behaviour = Mesh {
        limits: connection_limits::Behaviour::new(
            ConnectionLimits::default()
                .with_max_pending_incoming(Some(MAX_KNOCKING))
                .with_max_established(Some(MAX_CONNECTIONS))
                .with_max_established_per_peer(Some(MAX_PER_PEER)),
        ),
        streams: streams::Behaviour::new(arrived),
        mdns: discovery(local, discover).into(),
    };
    let config = swarm::Config::with_tokio_executor()
        // Streams are handed on at once, so that these only bound bursts.
        .with_max_negotiating_inbound_streams(MAX_STREAMS)
        .with_idle_connection_timeout(Duration::from_secs(u64::from(u32::MAX)));
    Ok(Swarm::new(transport, behaviour, local, config))
}

/// Keeps what waits in the kernel short, so that a heartbeat need not wait behind seconds of activations on a slow
/// link, nor behind what a link that was fast a moment ago was given.
fn shallow(stream: tcp::tokio::TcpStream) -> tcp::tokio::TcpStream {
    if let Err(error) = SockRef::from(&stream.0).set_tcp_notsent_lowat(UNSENT_MAX) {
        tracing::debug!(%error, "the kernel does not bound what waits to be sent");
    }
    stream
}

/// Without a working mDNS the mesh still has its static peers: that is worth a warning, not the end.
fn discovery(local: PeerId, wanted: bool) -> Option<mdns::tokio::Behaviour> {
    if !wanted {
        return None;
    }
    let config = mdns::Config { ttl: MDNS_TTL, query_interval: MDNS_QUERY, enable_ipv6: false };
    mdns::tokio::Behaviour::new(config, local)
        .inspect_err(|error| {
            tracing::warn!(%error, "mDNS does not work here: name the other devices in network.peers");
        })
        .ok()
}

/// Fails when another process already listens at `address`: libp2p shares ports, so that it would not notice.
pub(super) fn check_free(address: SocketAddr) -> io::Result<()> {
    if address.port() == 0 {
        return Ok(());
    }
    std::net::TcpListener::bind(address).map(drop)
}

/// Starts to listen.
pub(super) fn listen(swarm: &mut Swarm<Mesh>, address: SocketAddr) -> io::Result<ListenerId> {
    swarm.listen_on(multiaddr(address)).map_err(|error| match error {
        libp2p::TransportError::Other(error) => error,
        libp2p::TransportError::MultiaddrNotSupported(_) => io::ErrorKind::Unsupported.into(),
    })
}
