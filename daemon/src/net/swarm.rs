//! The network task: owns the swarm, the dials, and which connections and which session belong to a peer.

mod connections;
mod dials;
mod listening;
mod peer;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use libp2p::{
    PeerId, Swarm, mdns,
    swarm::{ConnectionId, SwarmEvent},
};
use tokio::sync::{Semaphore, mpsc, oneshot};

pub(super) use self::listening::Listening;
use self::{
    dials::Dial,
    peer::{LaneArrival, Peer, cancel},
};
use super::{
    NetEvent,
    address::socket_address,
    admission::{Door, Refusal, Refused},
    dialing::{Dialing, Source, Target},
    probe,
    session::Ended,
    shared::Shared,
    streams::{Inbound, OpenStream},
    transport::{Mesh, MeshEvent},
};

/// The same refusal is told once in this time.
const REFUSAL_EVERY: Duration = Duration::from_secs(30);
/// Refusals remembered for that.
const MAX_REFUSALS: usize = 256;
/// Time for connections to close in good order at the end.
const CLOSING: Duration = Duration::from_secs(1);

/// What handles ask for.
#[derive(Debug)]
pub(super) enum Command {
    Open { peer: PeerId, request: OpenStream },
    SetRemoved(BTreeSet<PeerId>),
    SetKnown(Vec<(PeerId, SocketAddr)>),
    Shutdown(oneshot::Sender<()>),
}

/// What sessions and helpers of this task report.
#[derive(Debug)]
pub(super) enum Internal {
    Open { peer: PeerId, connection: ConnectionId, request: OpenStream },
    Ended(Ended),
    Resolved { target: Target, addresses: Vec<SocketAddr> },
}

/// The channels of the task.
pub(super) struct Channels {
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) arrived: mpsc::Receiver<Inbound>,
    pub(super) refused: mpsc::Receiver<Refused>,
    pub(super) events: mpsc::Sender<NetEvent>,
}

/// The task.
pub(super) struct NetworkTask {
    swarm: Swarm<Mesh>,
    shared: Arc<Shared>,
    door: Arc<Door>,
    listening: Listening,
    dialing: Dialing,
    peers: HashMap<PeerId, Peer>,
    dials: HashMap<ConnectionId, Dial>,
    /// Dials under way for each name: it has failed when all have.
    named: BTreeMap<Target, usize>,
    prefaces: FuturesUnordered<BoxFuture<'static, Option<LaneArrival>>>,
    probes: Arc<Semaphore>,
    told: BTreeMap<(PeerId, Refusal), Instant>,
    next_session: u64,
    channels: Channels,
    internal: mpsc::Sender<Internal>,
    reports: mpsc::Receiver<Internal>,
}

impl NetworkTask {
    pub(super) fn new(
        swarm: Swarm<Mesh>,
        shared: Arc<Shared>,
        door: Arc<Door>,
        listening: Listening,
        named: &[String],
        channels: Channels,
    ) -> Self {
        let (internal, reports) = mpsc::channel(256);
        Self {
            dialing: Dialing::new(*swarm.local_peer_id(), named, Instant::now()),
            swarm,
            shared,
            door,
            listening,
            peers: HashMap::new(),
            dials: HashMap::new(),
            named: BTreeMap::new(),
            prefaces: FuturesUnordered::new(),
            probes: Arc::new(Semaphore::new(probe::MAX_SERVED)),
            told: BTreeMap::new(),
            // Random, so that a restarted device never reuses a name.
            next_session: rand::random(),
            channels,
            internal,
            reports,
        }
    }

    /// Runs until the handles are gone or one of them says so.
    pub(super) async fn run(mut self) {
        let done = loop {
            self.look_at_interfaces();
            self.dial_due();
            let wake = self.next_wake();
            tokio::select! {
                command = self.channels.commands.recv() => match command {
                    Some(Command::Shutdown(done)) => break Some(done),
                    Some(command) => self.on_command(command),
                    None => break None,
                },
                Some(report) = self.reports.recv() => self.on_internal(report),
                Some(refused) = self.channels.refused.recv() => self.on_refused(refused),
                Some(arrival) = self.channels.arrived.recv() => self.on_stream(arrival),
                Some(lane) = self.prefaces.next() => {
                    if let Some(lane) = lane {
                        self.on_lane(lane);
                    }
                }
                event = self.swarm.select_next_some() => self.on_swarm_event(event),
                () = tokio::time::sleep_until(wake.into()) => {}
            }
        };
        self.close().await;
        if let Some(done) = done {
            let _ = done.send(());
        }
    }

    /// Says goodbye to every peer, for a bounded time.
    async fn close(&mut self) {
        for peer in self.peers.values_mut() {
            cancel(&mut peer.session);
        }
        let connected: Vec<_> = self.swarm.connected_peers().copied().collect();
        for peer in connected {
            // Fails only for peers that have gone meanwhile.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let all_closed = async {
            while self.swarm.connected_peers().next().is_some() {
                self.swarm.next().await;
            }
        };
        let _ = tokio::time::timeout(CLOSING, all_closed).await;
        for peer in self.peers.values() {
            for connection in &peer.connections {
                connection.sever.cut();
            }
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Open { peer, request } => {
                let home = self.peers.get(&peer).and_then(Peer::best_connection);
                if let Some(connection) = home {
                    self.swarm.behaviour_mut().streams.open(peer, connection, request);
                }
            }
            Command::SetRemoved(removed) => {
                self.door.set_removed(removed);
                let door = &self.door;
                for (_, peer) in self.peers.iter_mut().filter(|(id, _)| door.is_removed(id)) {
                    peer.cut_all();
                }
            }
            Command::SetKnown(known) => self.dialing.set_members(&known, Instant::now()),
            // Handled where the loop ends.
            Command::Shutdown(_) => {}
        }
    }

    fn on_internal(&mut self, report: Internal) {
        match report {
            Internal::Open { peer, connection, request } => {
                self.swarm.behaviour_mut().streams.open(peer, connection, request)
            }
            Internal::Ended(ended) => self.on_session_ended(ended),
            Internal::Resolved { target, addresses } => self.dial_named(target, &addresses),
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the enum is marked non-exhaustive")]
    fn on_swarm_event(&mut self, event: SwarmEvent<MeshEvent>) {
        match event {
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_established(peer_id, connection_id, &endpoint)
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, .. } => {
                self.on_connection_closed(peer_id, connection_id)
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                self.on_dial_failed(connection_id, &error)
            }
            SwarmEvent::Behaviour(MeshEvent::Mdns(event)) => self.on_mdns(event),
            SwarmEvent::ListenerClosed { listener_id, .. } => self.listening.closed(listener_id),
            SwarmEvent::ListenerError { error, .. } => {
                tracing::warn!(%error, "a connection could not be accepted");
            }
            // Everything else is told by one of the above as well, or concerns nothing that is kept here.
            _ => {}
        }
    }

    fn on_mdns(&mut self, event: mdns::Event) {
        let now = Instant::now();
        match event {
            mdns::Event::Discovered(found) => {
                for (peer, address) in found {
                    if let Some(address) = socket_address(&address)
                        && self.listening.discovered(peer, address)
                    {
                        self.dialing.announced(peer, address, Source::Mdns, now);
                    }
                }
            }
            mdns::Event::Expired(gone) => {
                for (peer, address) in gone {
                    if let Some(address) = socket_address(&address) {
                        self.listening.expired(peer, address);
                        self.dialing.withdrawn(peer, address, Source::Mdns);
                    }
                }
            }
        }
    }

    fn on_refused(&mut self, refused: Refused) {
        let Refused { peer, remote, why } = refused;
        let now = Instant::now();
        self.dialing.refused(peer, rand::random(), now);
        for dial in self.dials.values_mut().filter(|d| d.address == remote) {
            dial.refused = true;
        }
        self.told.retain(|_, at| now - *at < REFUSAL_EVERY);
        if self.told.contains_key(&(peer, why)) || self.told.len() >= MAX_REFUSALS {
            return;
        }
        self.told.insert((peer, why), now);
        tracing::warn!(%peer, address = %remote, %why, "device refused");
        // It is refused again before long: a full queue drops it.
        let _ = self.channels.events.try_send(NetEvent::Refused {
            whom: format!("{peer} at {remote}"),
            why: why.to_string(),
            removed_by: (why == Refusal::RemovedUs).then_some(peer),
        });
    }
}
