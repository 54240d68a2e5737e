//! What the network task keeps of one peer: its connections, its session and lanes that came too early.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use futures::AsyncReadExt;
use libp2p::{PeerId, Stream, swarm::ConnectionId};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::super::{
    Channel,
    frames::{self, Lane, PREFACE_BYTES},
    sever::Sever,
};

/// Time for a peer to say which lane it has opened.
const PREFACE: Duration = Duration::from_secs(5);

pub(super) struct Connection {
    pub(super) id: ConnectionId,
    pub(super) boot: u64,
    pub(super) address: SocketAddr,
    pub(super) sever: Sever,
    pub(super) since: Instant,
}

pub(super) struct SessionControl {
    pub(super) id: u64,
    pub(super) home: ConnectionId,
    /// The other side's name for its session.
    pub(super) remote: Option<u64>,
    /// Connections that carry lanes: they go when the session goes.
    pub(super) used: BTreeSet<ConnectionId>,
    pub(super) lanes: mpsc::Sender<(Lane, Stream)>,
    pub(super) streams: mpsc::Sender<(Channel, Stream)>,
    /// Gone once the session has been told to end.
    pub(super) cancel: Option<oneshot::Sender<()>>,
}

#[derive(Default)]
pub(super) struct Peer {
    pub(super) connections: Vec<Connection>,
    pub(super) session: Option<SessionControl>,
    /// Lanes of the other side's newest session that our next session will use.
    pub(super) waiting: Vec<LaneArrival>,
    pub(super) forwarder: Option<JoinHandle<()>>,
}

pub(super) struct LaneArrival {
    pub(super) peer: PeerId,
    pub(super) connection: ConnectionId,
    pub(super) lane: Lane,
    pub(super) session: u64,
    pub(super) stream: Stream,
}

/// Tells the session to end.
pub(super) fn cancel(session: &mut Option<SessionControl>) {
    if let Some(cancel) = session.as_mut().and_then(|s| s.cancel.take()) {
        // Fails only when it has ended already.
        let _ = cancel.send(());
    }
}

impl Peer {
    /// Where to open a stream.
    pub(super) fn best_connection(&self) -> Option<ConnectionId> {
        let home = self.session.as_ref()?.home;
        let open = |c: &&Connection| c.id == home;
        self.connections.iter().find(open).or(self.connections.first()).map(|c| c.id)
    }

    /// The peer has fallen silent: connections that are older than its silence are no better than the silent one.
    pub(super) fn cut_older_than(&mut self, age: Duration) {
        let now = Instant::now();
        self.connections.retain(|connection| {
            let young = now - connection.since < age;
            if !young {
                connection.sever.cut();
            }
            young
        });
    }

    /// Ends the session and all connections at once.
    pub(super) fn cut_all(&mut self) {
        cancel(&mut self.session);
        for connection in self.connections.drain(..) {
            connection.sever.cut();
        }
    }

    /// Gives a lane to the session that it belongs to: this one, or the next one.
    pub(super) fn take_lane(&mut self, lane: LaneArrival) {
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

/// Learns which lane a stream is.
pub(super) async fn read_lane(
    peer: PeerId,
    connection: ConnectionId,
    mut stream: Stream,
) -> Option<LaneArrival> {
    let mut preface = [0; PREFACE_BYTES];
    tokio::time::timeout(PREFACE, stream.read_exact(&mut preface)).await.ok()?.ok()?;
    let (lane, session) = frames::read_preface(preface)?;
    Some(LaneArrival { peer, connection, lane, session, stream })
}
