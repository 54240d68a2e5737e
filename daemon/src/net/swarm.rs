//! The network task: owns the swarm, the dials, and which connections and which session belong to a peer.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{AsyncReadExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use libp2p::{
    PeerId, Stream, StreamProtocol, Swarm,
    core::ConnectedPoint,
    mdns,
    swarm::{
        ConnectionId, DialError, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::JoinHandle,
};

use super::{
    Channel, NetEvent,
    address::{multiaddr, socket_address},
    admission::{Door, Refused, endpoint_key},
    dialing::{Dialing, Failure, Source, Target},
    frames::{self, Lane, PREFACE_BYTES},
    probe,
    session::{Ended, Session},
    sever::Sever,
    shared::Shared,
    streams::{BLOB, CONTROL, DATA, Inbound, OpenStream, PROBE},
    transport::{Mesh, MeshEvent},
};

/// Time for a peer to say which lane it has opened.
const PREFACE: Duration = Duration::from_secs(5);
/// Lanes that have not said so yet.
const MAX_PREFACES: usize = 256;
/// Streams of one peer that wait for a slow owner of events.
const STREAMS: usize = 64;
/// Time for names of static peers to resolve.
const RESOLVE: Duration = Duration::from_secs(5);
/// Addresses of one name that are tried.
const MAX_RESOLVED: usize = 8;
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

struct Connection {
    id: ConnectionId,
    boot: u64,
    address: SocketAddr,
    sever: Sever,
}

struct SessionControl {
    id: u64,
    home: ConnectionId,
    /// The other side's name for its session.
    remote: Option<u64>,
    /// Connections that carry lanes: they go when the session goes.
    used: BTreeSet<ConnectionId>,
    lanes: mpsc::Sender<(Lane, Stream)>,
    streams: mpsc::Sender<(Channel, Stream)>,
    /// Gone once the session has been told to end.
    cancel: Option<oneshot::Sender<()>>,
}

#[derive(Default)]
struct Peer {
    connections: Vec<Connection>,
    session: Option<SessionControl>,
    /// Lanes of the other side's newest session that our next session will use.
    waiting: Vec<LaneArrival>,
    forwarder: Option<JoinHandle<()>>,
}

struct LaneArrival {
    peer: PeerId,
    connection: ConnectionId,
    lane: Lane,
    session: u64,
    stream: Stream,
}

struct Dial {
    target: Target,
    address: SocketAddr,
    refused: bool,
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
    dialing: Dialing,
    peers: HashMap<PeerId, Peer>,
    dials: HashMap<ConnectionId, Dial>,
    /// Dials under way for each name: it has failed when all have.
    named: BTreeMap<Target, usize>,
    prefaces: FuturesUnordered<BoxFuture<'static, Option<LaneArrival>>>,
    probes: Arc<Semaphore>,
    told: BTreeMap<(PeerId, super::admission::Refusal), Instant>,
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
        named: &[String],
        channels: Channels,
    ) -> Self {
        let (internal, reports) = mpsc::channel(256);
        Self {
            dialing: Dialing::new(*swarm.local_peer_id(), named, Instant::now()),
            swarm,
            shared,
            door,
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
                    if let Some(address) = socket_address(&address) {
                        self.dialing.announced(peer, address, Source::Mdns, now);
                    }
                }
            }
            mdns::Event::Expired(gone) => {
                for (peer, address) in gone {
                    if let Some(address) = socket_address(&address) {
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
        // For people only: a full queue drops it.
        let _ = self
            .channels
            .events
            .try_send(NetEvent::Refused { whom: format!("{peer} at {remote}"), why: why.to_string() });
    }
}

/// Dials.
impl NetworkTask {
    fn dial_due(&mut self) {
        let (peers, door) = (&self.peers, &self.door);
        let settled = |peer: &PeerId| is_settled(peers, door, peer);
        for target in self.dialing.due(Instant::now(), settled) {
            match target {
                Target::Named(ref host) => {
                    let resolving = resolve(host.clone());
                    let internal = self.internal.clone();
                    tokio::spawn(async move {
                        let addresses = resolving.await;
                        // Fails only when the network task is gone.
                        let _ = internal.send(Internal::Resolved { target, addresses }).await;
                    });
                }
                Target::Peer(peer, address) => self.dial(target, Some(peer), address),
            }
        }
    }

    fn next_wake(&self) -> Instant {
        let settled = |peer: &PeerId| is_settled(&self.peers, &self.door, peer);
        let idle = Instant::now() + Duration::from_secs(60);
        self.dialing.next_due(settled).unwrap_or(idle).min(idle)
    }

    fn dial_named(&mut self, target: Target, addresses: &[SocketAddr]) {
        if addresses.is_empty() {
            self.dialing.failed(&target, Failure::Unreachable, rand::random(), Instant::now());
            return;
        }
        self.named.insert(target.clone(), addresses.len());
        for address in addresses {
            self.dial(target.clone(), None, *address);
        }
    }

    fn dial(&mut self, target: Target, peer: Option<PeerId>, address: SocketAddr) {
        let options = match peer {
            Some(peer) => DialOpts::peer_id(peer)
                .addresses(vec![multiaddr(address)])
                .condition(PeerCondition::Always)
                .allocate_new_port()
                .build(),
            None => DialOpts::unknown_peer_id().address(multiaddr(address)).allocate_new_port().build(),
        };
        let id = options.connection_id();
        // Admissions are told apart by address, so that one dial per address is under way at a time.
        let busy = self.dials.values().any(|dial| dial.address == address);
        let dial = Dial { target, address, refused: false };
        if busy {
            self.dial_ended(&dial, Failure::Unreachable);
            return;
        }
        match self.swarm.dial(options) {
            Ok(()) => {
                self.dials.insert(id, dial);
            }
            Err(error) => self.dial_ended(&dial, failure(&dial, &error)),
        }
    }

    fn on_dial_failed(&mut self, id: ConnectionId, error: &DialError) {
        // The refusal was reported before the failure; it must be known here.
        while let Ok(refused) = self.channels.refused.try_recv() {
            self.on_refused(refused);
        }
        if let Some(dial) = self.dials.remove(&id) {
            tracing::debug!(address = %dial.address, %error, "dial failed");
            self.dial_ended(&dial, failure(&dial, error));
        }
    }

    fn dial_ended(&mut self, dial: &Dial, failure: Failure) {
        if let Some(open) = self.named.get_mut(&dial.target) {
            *open -= 1;
            if *open > 0 {
                return;
            }
            self.named.remove(&dial.target);
        }
        self.dialing.failed(&dial.target, failure, rand::random(), Instant::now());
    }
}

fn failure(dial: &Dial, error: &DialError) -> Failure {
    match error {
        DialError::LocalPeerId { .. } => Failure::Ourselves,
        DialError::WrongPeerId { obtained, .. } => Failure::OtherPeer(*obtained),
        DialError::NoAddresses
        | DialError::DialPeerConditionFalse(_)
        | DialError::Aborted
        | DialError::Denied { .. }
        | DialError::Transport(_) => {
            if dial.refused {
                Failure::Refused
            } else {
                Failure::Unreachable
            }
        }
    }
}

fn is_settled(peers: &HashMap<PeerId, Peer>, door: &Door, peer: &PeerId) -> bool {
    peers.get(peer).is_some_and(|p| !p.connections.is_empty()) || door.is_removed(peer)
}

async fn resolve(host: String) -> Vec<SocketAddr> {
    match tokio::time::timeout(RESOLVE, tokio::net::lookup_host(&host)).await {
        Ok(Ok(addresses)) => {
            let unique: BTreeSet<_> = addresses.take(MAX_RESOLVED).collect();
            unique.into_iter().collect()
        }
        Ok(Err(error)) => {
            tracing::debug!(host, %error, "the name of a static peer does not resolve");
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}

/// Connections, lanes and sessions.
impl NetworkTask {
    fn on_established(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
        let admitted = endpoint_key(peer, endpoint).and_then(|key| self.door.take(&key).zip(Some(key.1)));
        if let Some(dial) = self.dials.remove(&id) {
            self.named.remove(&dial.target);
            self.dialing.succeeded(&dial.target, peer);
        }
        let Some((admitted, remote)) = admitted else {
            // Cannot be reached by our own transport; a connection without an admission must not live.
            self.swarm.close_connection(id);
            return;
        };
        if self.door.is_removed(&peer) {
            admitted.sever.cut();
            return;
        }
        self.dialing.admitted(&peer);
        let address = SocketAddr::new(remote.ip(), admitted.listen_port);
        self.dialing.announced(peer, address, Source::Seen, Instant::now());
        let state = self.peers.entry(peer).or_default();
        if state.connections.iter().any(|c| c.boot != admitted.boot) {
            // The peer has restarted: what is left of its old life goes.
            state.cut_all();
            state.waiting.clear();
        }
        state.connections.push(Connection { id, boot: admitted.boot, address, sever: admitted.sever });
        self.start_session(peer);
    }

    fn on_connection_closed(&mut self, peer: PeerId, id: ConnectionId) {
        let Some(state) = self.peers.get_mut(&peer) else {
            return;
        };
        state.connections.retain(|c| c.id != id);
        if state.session.as_ref().is_some_and(|s| s.used.contains(&id)) {
            cancel(&mut state.session);
        }
        self.forget_if_gone(peer);
    }

    fn on_session_ended(&mut self, ended: Ended) {
        let Some(state) = self.peers.get_mut(&ended.peer) else {
            return;
        };
        let Some(session) = state.session.take_if(|s| s.id == ended.id) else {
            return;
        };
        state.forwarder = ended.forwarder;
        for connection in &state.connections {
            if session.used.contains(&connection.id) {
                connection.sever.cut();
            }
        }
        state.connections.retain(|c| !session.used.contains(&c.id));
        self.dialing.lost(ended.peer, ended.worked, rand::random(), Instant::now());
        self.start_session(ended.peer);
        self.forget_if_gone(ended.peer);
    }

    fn forget_if_gone(&mut self, peer: PeerId) {
        let gone = self.peers.get(&peer).is_some_and(|state| {
            state.connections.is_empty()
                && state.session.is_none()
                && state.forwarder.as_ref().is_none_or(JoinHandle::is_finished)
        });
        if gone {
            self.peers.remove(&peer);
        }
    }

    /// Starts a session when there is a connection and no session.
    fn start_session(&mut self, peer: PeerId) {
        let Some(state) = self.peers.get_mut(&peer) else {
            return;
        };
        if state.session.is_some() {
            return;
        }
        let carries_lanes = |c: &&Connection| state.waiting.iter().any(|l| l.connection == c.id);
        let home = state.connections.iter().find(carries_lanes).or(state.connections.last());
        let Some(home) = home else {
            return;
        };
        let (cancel, cancelled) = oneshot::channel();
        let (lanes, lane_reader) = mpsc::channel(Lane::ALL.len());
        let (streams, stream_reader) = mpsc::channel(STREAMS);
        self.next_session = self.next_session.wrapping_add(1);
        let session = Session {
            peer,
            address: home.address,
            id: self.next_session,
            home: home.id,
            shared: self.shared.clone(),
            internal: self.internal.clone(),
            events: self.channels.events.clone(),
            lanes: lane_reader,
            streams: stream_reader,
            cancel: cancelled,
            previous: state.forwarder.take(),
        };
        state.session = Some(SessionControl {
            id: self.next_session,
            home: home.id,
            remote: None,
            used: BTreeSet::from([home.id]),
            lanes,
            streams,
            cancel: Some(cancel),
        });
        tokio::spawn(session.run());
        for lane in std::mem::take(&mut state.waiting) {
            state.take_lane(lane);
        }
    }

    fn on_stream(&mut self, arrival: Inbound) {
        let Inbound { peer, connection, protocol, stream } = arrival;
        if protocol == CONTROL {
            if self.prefaces.len() < MAX_PREFACES {
                self.prefaces.push(Box::pin(read_lane(peer, connection, stream)));
            }
        } else if protocol == PROBE {
            if let Ok(permit) = self.probes.clone().try_acquire_owned() {
                tokio::spawn(async move {
                    probe::serve(stream).await;
                    drop(permit);
                });
            }
        } else if let (Some(channel), Some(session)) =
            (channel_of(&protocol), self.peers.get(&peer).and_then(|state| state.session.as_ref()))
            && session.streams.try_send((channel, stream)).is_err()
        {
            tracing::debug!(%peer, ?channel, "stream reset: too many wait for their owner");
        }
    }

    fn on_lane(&mut self, lane: LaneArrival) {
        if let Some(state) = self.peers.get_mut(&lane.peer)
            && state.connections.iter().any(|c| c.id == lane.connection)
        {
            state.take_lane(lane);
        }
    }
}

fn channel_of(protocol: &StreamProtocol) -> Option<Channel> {
    if *protocol == DATA {
        Some(Channel::Data)
    } else if *protocol == BLOB {
        Some(Channel::Blob)
    } else {
        None
    }
}

fn cancel(session: &mut Option<SessionControl>) {
    if let Some(cancel) = session.as_mut().and_then(|s| s.cancel.take()) {
        // Fails only when it has ended already.
        let _ = cancel.send(());
    }
}

impl Peer {
    fn best_connection(&self) -> Option<ConnectionId> {
        let home = self.session.as_ref()?.home;
        let open = |c: &&Connection| c.id == home;
        self.connections.iter().find(open).or(self.connections.first()).map(|c| c.id)
    }

    fn cut_all(&mut self) {
        cancel(&mut self.session);
        for connection in self.connections.drain(..) {
            connection.sever.cut();
        }
    }

    /// Gives a lane to the session that it belongs to: this one, or the next one.
    fn take_lane(&mut self, lane: LaneArrival) {
        let current = self.session.as_mut().filter(|s| s.cancel.is_some());
        if let Some(session) = current
            && *session.remote.get_or_insert(lane.session) == lane.session
        {
            session.used.insert(lane.connection);
            // One more than there are lanes is a fault of the other side: it is reset.
            let _ = session.lanes.try_send((lane.lane, lane.stream));
            return;
        }
        // The other side has begun anew: so must we.
        cancel(&mut self.session);
        self.waiting.retain(|l| l.session == lane.session);
        if self.waiting.len() < Lane::ALL.len() {
            self.waiting.push(lane);
        }
    }
}

async fn read_lane(peer: PeerId, connection: ConnectionId, mut stream: Stream) -> Option<LaneArrival> {
    let mut preface = [0; PREFACE_BYTES];
    tokio::time::timeout(PREFACE, stream.read_exact(&mut preface)).await.ok()?.ok()?;
    let (lane, session) = frames::read_preface(preface)?;
    Some(LaneArrival { peer, connection, lane, session, stream })
}
