//! Streams as a libp2p behaviour: opens them on a chosen connection and hands out those that peers open.
//!
//! Unlike `libp2p-stream`, it names the connection of every stream (a session must know which connections carry it)
//! and its queue of arrived streams has room for bursts.

use std::{
    collections::VecDeque,
    convert::Infallible,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol,
    core::{Endpoint, InboundUpgrade, UpgradeInfo, transport::PortUse, upgrade::ReadyUpgrade},
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
        NetworkBehaviour, NotifyHandler, SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent,
        ToSwarm,
        handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
};
use tokio::sync::{mpsc, oneshot};

/// Lanes of the control link.
pub(super) const CONTROL: StreamProtocol = StreamProtocol::new("/mesh/control/1");
/// Activation frames.
pub(super) const DATA: StreamProtocol = StreamProtocol::new("/mesh/data/1");
/// Weights.
pub(super) const BLOB: StreamProtocol = StreamProtocol::new("/mesh/blob/1");
/// Bandwidth probes.
pub(super) const PROBE: StreamProtocol = StreamProtocol::new("/mesh/probe/2");

/// Streams that wait in one connection to be opened; openers wait for theirs, so that this bounds tasks, not bytes.
const MAX_OPENING: usize = 256;

/// A stream that a peer opened.
#[derive(Debug)]
pub(super) struct Inbound {
    pub(super) peer: PeerId,
    pub(super) connection: ConnectionId,
    pub(super) protocol: StreamProtocol,
    pub(super) stream: Stream,
}

/// A stream to be opened; dropping `reply` says that it could not be.
#[derive(Debug)]
pub(super) struct OpenStream {
    pub(super) protocol: StreamProtocol,
    pub(super) reply: oneshot::Sender<Stream>,
}

/// The behaviour.
pub(super) struct Behaviour {
    arrived: mpsc::Sender<Inbound>,
    opening: VecDeque<(PeerId, ConnectionId, OpenStream)>,
}

impl Behaviour {
    /// Streams that peers open go to `arrived`; those that find it full are reset.
    pub(super) fn new(arrived: mpsc::Sender<Inbound>) -> Self {
        Self { arrived, opening: VecDeque::new() }
    }

    /// Opens a stream on this connection. The caller polls the swarm next.
    pub(super) fn open(&mut self, peer: PeerId, connection: ConnectionId, request: OpenStream) {
        if self.opening.len() < MAX_OPENING {
            self.opening.push_back((peer, connection, request));
        }
    }

    fn handler(&self, peer: PeerId, connection: ConnectionId) -> Handler {
        Handler { peer, connection, arrived: self.arrived.clone(), opening: VecDeque::new() }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer, connection))
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer, connection))
    }

    fn on_swarm_event(&mut self, _: FromSwarm) {}

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        match self.opening.pop_front() {
            Some((peer_id, connection, event)) => Poll::Ready(ToSwarm::NotifyHandler {
                peer_id,
                handler: NotifyHandler::One(connection),
                event,
            }),
            None => Poll::Pending,
        }
    }
}

/// One connection's part.
pub(super) struct Handler {
    peer: PeerId,
    connection: ConnectionId,
    arrived: mpsc::Sender<Inbound>,
    opening: VecDeque<OpenStream>,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = OpenStream;
    type ToBehaviour = Infallible;
    type InboundProtocol = Accept;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = oneshot::Sender<Stream>;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(Accept, ())
    }

    fn connection_keep_alive(&self) -> bool {
        // Sessions decide when a connection has served its time.
        true
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Self::OutboundOpenInfo, Self::ToBehaviour>> {
        match self.opening.pop_front() {
            Some(OpenStream { protocol, reply }) => {
                Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                    protocol: SubstreamProtocol::new(ReadyUpgrade::new(protocol), reply),
                })
            }
            None => Poll::Pending,
        }
    }

    fn on_behaviour_event(&mut self, request: OpenStream) {
        if self.opening.len() < MAX_OPENING {
            self.opening.push_back(request);
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the enum is marked non-exhaustive")]
    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<
            Self::InboundProtocol,
            Self::OutboundProtocol,
            Self::InboundOpenInfo,
            Self::OutboundOpenInfo,
        >,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (stream, protocol),
                ..
            }) => {
                let arrival = Inbound { peer: self.peer, connection: self.connection, protocol, stream };
                if let Err(error) = self.arrived.try_send(arrival) {
                    tracing::debug!(peer = %self.peer, %error, "stream reset: too many arrive at once");
                }
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, info }) => {
                // The opener may have given up meanwhile.
                let _ = info.send(protocol);
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, .. }) => {
                tracing::debug!(peer = %self.peer, %error, "stream not opened");
            }
            // Nothing here depends on these (and the enum may grow).
            _ => {}
        }
    }
}

/// Accepts every protocol of the mesh.
#[derive(Debug, Clone, Copy)]
pub(super) struct Accept;

impl UpgradeInfo for Accept {
    type Info = StreamProtocol;
    type InfoIter = std::array::IntoIter<StreamProtocol, 4>;

    fn protocol_info(&self) -> Self::InfoIter {
        [CONTROL, DATA, BLOB, PROBE].into_iter()
    }
}

impl InboundUpgrade<Stream> for Accept {
    type Output = (Stream, StreamProtocol);
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        std::future::ready(Ok((stream, protocol)))
    }
}
