//! Which connections a peer has, and which session runs over them.

use std::{collections::BTreeSet, net::SocketAddr, time::Instant};

use libp2p::{PeerId, StreamProtocol, core::ConnectedPoint, swarm::ConnectionId};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::{
    super::{
        Channel,
        admission::endpoint_key,
        dialing::Source,
        frames::Lane,
        link::SILENCE,
        probe,
        session::{Ended, Session},
        streams::{BLOB, CONTROL, DATA, Inbound, PROBE},
    },
    NetworkTask,
    peer::{Connection, LaneArrival, SessionControl, cancel, read_lane},
};

/// Lanes that have not said yet which they are.
const MAX_PREFACES: usize = 256;
/// Streams of one peer that wait for a slow owner of events.
const STREAMS: usize = 64;

impl NetworkTask {
    pub(super) fn on_established(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
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
        state.connections.push(Connection {
            id,
            boot: admitted.boot,
            address,
            sever: admitted.sever,
            since: Instant::now(),
        });
        self.start_session(peer);
    }

    pub(super) fn on_connection_closed(&mut self, peer: PeerId, id: ConnectionId) {
        let Some(state) = self.peers.get_mut(&peer) else {
            return;
        };
        state.connections.retain(|c| c.id != id);
        if state.session.as_ref().is_some_and(|s| s.used.contains(&id)) {
            cancel(&mut state.session);
        }
        self.forget_if_gone(peer);
    }

    pub(super) fn on_session_ended(&mut self, ended: Ended) {
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
        if ended.silent {
            state.cut_older_than(SILENCE);
        }
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

    pub(super) fn on_stream(&self, arrival: Inbound) {
        let Inbound { peer, connection, protocol, stream } = arrival;
        if protocol == CONTROL {
            if self.prefaces.len() < MAX_PREFACES {
                self.prefaces.push(Box::pin(read_lane(peer, connection, stream)));
            }
        } else if protocol == PROBE {
            if let Ok(permit) = self.probes.clone().try_acquire_owned() {
                let shared = self.shared.clone();
                let pulse = shared.link(&peer).map(|link| link.pulse);
                tokio::spawn(async move {
                    probe::serve(stream, pulse, shared).await;
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

    pub(super) fn on_lane(&mut self, lane: LaneArrival) {
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
