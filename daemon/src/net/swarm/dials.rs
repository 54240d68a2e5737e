//! The network task's dials: carries out what [`Dialing`](super::super::dialing::Dialing) decides.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    time::{Duration, Instant},
};

use libp2p::{
    PeerId,
    swarm::{
        ConnectionId, DialError,
        dial_opts::{DialOpts, PeerCondition},
    },
};

use super::{
    super::{
        address::multiaddr,
        admission::Door,
        dialing::{Failure, Target},
    },
    Internal, NetworkTask,
    peer::Peer,
};

/// Time for names of static peers to resolve.
const RESOLVE: Duration = Duration::from_secs(5);
/// Addresses of one name that are tried.
const MAX_RESOLVED: usize = 8;

pub(super) struct Dial {
    pub(super) target: Target,
    pub(super) address: SocketAddr,
    pub(super) refused: bool,
}

impl NetworkTask {
    pub(super) fn dial_due(&mut self) {
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

    pub(super) fn next_wake(&self) -> Instant {
        let settled = |peer: &PeerId| is_settled(&self.peers, &self.door, peer);
        let idle = Instant::now() + Duration::from_secs(60);
        let due = [self.dialing.next_due(settled), self.listening.next_look()];
        due.into_iter().flatten().fold(idle, Instant::min)
    }

    pub(super) fn dial_named(&mut self, target: Target, addresses: &[SocketAddr]) {
        if addresses.is_empty() {
            self.dialing.failed(&target, Failure::Unreachable, rand::random(), Instant::now());
            return;
        }
        if let Some(peer) = self.connected_at(addresses) {
            // It has connected to us meanwhile: one connection is enough.
            self.dialing.succeeded(&target, peer);
            return;
        }
        self.named.insert(target.clone(), addresses.len());
        for address in addresses {
            self.dial(target.clone(), None, *address);
        }
    }

    fn connected_at(&self, addresses: &[SocketAddr]) -> Option<PeerId> {
        let mut peers = self.peers.iter();
        let found = peers.find(|(_, state)| {
            let mut connections = state.connections.iter();
            connections.any(|c| addresses.contains(&c.address))
        });
        found.map(|(peer, _)| *peer)
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

    pub(super) fn on_dial_failed(&mut self, id: ConnectionId, error: &DialError) {
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
