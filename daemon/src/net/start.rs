//! Starts the network.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::StreamExt;
use libp2p::{Swarm, core::transport::ListenerId, swarm::SwarmEvent};
use tokio::sync::mpsc;

use super::{
    Inner, Net, NetEvents,
    address::socket_address,
    admission::Door,
    identity::Identity,
    reach::{Reach, free_port},
    shared::Shared,
    swarm::{Channels, Listening, NetworkTask},
    transport::{self, Mesh},
};

/// Events that wait for their owner; behind them wait the queues of the peers.
const EVENTS: usize = 256;
/// Commands, refusals and streams in a burst.
const BURST: usize = 256;
/// Binding is local work.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);

/// What the network needs to know.
#[derive(Clone)]
pub struct NetConfig {
    /// Who we are.
    pub identity: Identity,
    /// The cluster's name.
    pub cluster_name: String,
    /// The cluster's secret.
    pub cluster_key: [u8; 32],
    /// Where to listen; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Whether to find and be found by mDNS.
    pub mdns: bool,
    /// `host:port` of other devices.
    pub peers: Vec<String>,
    /// Network interfaces to use; empty for all.
    pub interfaces: Vec<String>,
}

impl std::fmt::Debug for NetConfig {
    /// Leaves the key out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NetConfig")
            .field("peer", &self.identity.peer_id())
            .field("cluster_name", &self.cluster_name)
            .field("listen", &self.listen)
            .field("mdns", &self.mdns)
            .field("peers", &self.peers)
            .field("interfaces", &self.interfaces)
            .finish_non_exhaustive()
    }
}

/// Why the network could not start.
#[derive(Debug, thiserror::Error)]
pub enum NetStartError {
    /// Somebody else listens there.
    #[error(
        "cannot listen on {address}: another program uses the port (see `ss -ltnp`); stop it or change network.listen"
    )]
    PortTaken {
        /// Where.
        address: SocketAddr,
    },
    /// The address cannot be used.
    #[error("cannot listen on {address}: check network.listen; the address must belong to this device")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No such interface.
    #[error(
        "this device has no network interface {name}, which network.interfaces names: see `ip addr`, or leave it out"
    )]
    UnknownInterface {
        /// Which.
        name: String,
    },
    /// The interfaces do not have the one address that is wanted.
    #[error(
        "the network interface {name} of network.interfaces has no address that network.listen covers: check its name with `ip addr`"
    )]
    Interface {
        /// Which.
        name: String,
    },
    /// The interfaces cannot be listed.
    #[error("cannot list this device's network interfaces: leave network.interfaces empty to use all")]
    Interfaces(#[source] io::Error),
    /// The key does not work for encryption.
    #[error(
        "the identity key cannot be used for encryption: move identity.key away and restart, which makes this a new device"
    )]
    Key(#[source] libp2p::noise::Error),
}

pub(super) async fn start(config: NetConfig) -> Result<(Net, NetEvents), NetStartError> {
    let local = config.identity.peer_id();
    let (commands, command_reader) = mpsc::channel(BURST);
    let (arrivals, arrived) = mpsc::channel(BURST);
    let (refusals, refused) = mpsc::channel(BURST);
    let (events, event_reader) = mpsc::channel(EVENTS);
    let door = Arc::new(Door::new(local, &config.cluster_name, &config.cluster_key, refusals));
    let keypair = config.identity.keypair();
    let mut swarm =
        transport::build(keypair, door.clone(), arrivals, config.mdns).map_err(NetStartError::Key)?;
    let reach = Reach::new(&config.interfaces)?;
    let (listen, listeners) = listen_all(&mut swarm, config.listen, &reach).await?;
    let listening = Listening::new(reach, listen, listeners);
    door.set_listen_port(listen.port());
    let shared = Arc::new(Shared::new());
    let channels = Channels { commands: command_reader, arrived, refused, events };
    let task = NetworkTask::new(swarm, shared.clone(), door, listening, &config.peers, channels);
    tokio::spawn(task.run());
    tracing::info!(peer = %local, address = %listen, "listening");
    let inner = Inner {
        local,
        listen,
        shared,
        commands,
        probed: Mutex::new(BTreeMap::new()),
        probing: tokio::sync::Mutex::new(()),
    };
    Ok((Net { inner: Arc::new(inner) }, event_reader))
}

/// Listens on `address`, or on its port at each interface that may be used; returns it with the port that was bound.
async fn listen_all(
    swarm: &mut Swarm<Mesh>,
    mut address: SocketAddr,
    reach: &Reach,
) -> Result<(SocketAddr, BTreeMap<IpAddr, ListenerId>), NetStartError> {
    let ips = reach.listen_ips(address.ip())?;
    let unused = if address.ip().is_unspecified() { reach.without_address(address.ip()) } else { Vec::new() };
    for interface in unused {
        tracing::warn!(
            interface,
            "this interface of network.interfaces has no address that network.listen covers: it is used once it has one"
        );
    }
    let mut listeners = BTreeMap::new();
    for ip in ips {
        // The first decides about the port when any will do.
        let (port, listener) = listen(swarm, SocketAddr::new(ip, address.port())).await?;
        address.set_port(port);
        listeners.insert(ip, listener);
    }
    if address.port() == 0 {
        let free = free_port(address.ip()).map_err(|source| NetStartError::Listen { address, source })?;
        address.set_port(free);
    }
    Ok((address, listeners))
}

/// Binds the address; returns the port that was bound.
async fn listen(swarm: &mut Swarm<Mesh>, address: SocketAddr) -> Result<(u16, ListenerId), NetStartError> {
    let failed = |source: io::Error| {
        if source.kind() == io::ErrorKind::AddrInUse {
            NetStartError::PortTaken { address }
        } else {
            NetStartError::Listen { address, source }
        }
    };
    transport::check_free(address).map_err(failed)?;
    let listener = transport::listen(swarm, address).map_err(failed)?;
    if address.port() != 0 {
        return Ok((address.port(), listener));
    }
    let bound = async {
        loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await
                && let Some(bound) = socket_address(&address)
            {
                return bound.port();
            }
        }
    };
    let port = tokio::time::timeout(LISTEN_TIMEOUT, bound)
        .await
        .map_err(|_| failed(io::ErrorKind::TimedOut.into()))?;
    Ok((port, listener))
}
