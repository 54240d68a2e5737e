//! Where this device listens and what it may reach, where the config names interfaces: their addresses change, when a
//! lease ends or a laptop is carried into another network.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use libp2p::{PeerId, core::transport::ListenerId};

use super::{
    super::{dialing::Source, reach::Reach, transport},
    NetworkTask,
};

/// Addresses of interfaces are looked at this often.
const LOOK: Duration = Duration::from_secs(3);
/// Announced addresses out of reach that are remembered.
const MAX_BEYOND: usize = 256;

/// Where this device listens.
#[derive(Debug)]
pub(in super::super) struct Listening {
    reach: Reach,
    /// What the config says, with the port that was bound.
    wanted: SocketAddr,
    listeners: BTreeMap<IpAddr, ListenerId>,
    /// Addresses that could not be listened at when that was last tried.
    failed: BTreeSet<IpAddr>,
    /// What mDNS has told of and is out of reach: it tells it once.
    beyond: BTreeSet<(PeerId, SocketAddr)>,
    next_look: Instant,
}

impl Listening {
    pub(in super::super) fn new(
        reach: Reach,
        wanted: SocketAddr,
        listeners: BTreeMap<IpAddr, ListenerId>,
    ) -> Self {
        let (failed, beyond) = (BTreeSet::new(), BTreeSet::new());
        Self { reach, wanted, listeners, failed, beyond, next_look: Instant::now() + LOOK }
    }

    /// When the interfaces are looked at next.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.reach.is_bounded().then_some(self.next_look)
    }

    /// Whether an address that mDNS tells of may be dialled; else it is remembered.
    pub(super) fn discovered(&mut self, peer: PeerId, address: SocketAddr) -> bool {
        let allowed = self.reach.allows(address.ip());
        if !allowed && self.beyond.len() < MAX_BEYOND {
            self.beyond.insert((peer, address));
        }
        allowed
    }

    pub(super) fn expired(&mut self, peer: PeerId, address: SocketAddr) {
        self.beyond.remove(&(peer, address));
    }

    /// A listener has come to its end by itself: it is begun anew.
    pub(super) fn closed(&mut self, listener: ListenerId) {
        self.listeners.retain(|_, id| *id != listener);
    }

    /// Takes the interfaces as they are now; returns what mDNS has told of and has come into reach.
    fn set_reach(&mut self, reach: Reach) -> Vec<(PeerId, SocketAddr)> {
        self.reach = reach;
        let beyond = std::mem::take(&mut self.beyond).into_iter();
        let (near, far): (Vec<_>, _) = beyond.partition(|(_, address)| self.reach.allows(address.ip()));
        self.beyond = far.into_iter().collect();
        near
    }
}

impl NetworkTask {
    /// Follows the addresses of the interfaces, when it is time to.
    pub(super) fn look_at_interfaces(&mut self) {
        let now = Instant::now();
        if self.listening.next_look().is_none_or(|at| now < at) {
            return;
        }
        self.listening.next_look = now + LOOK;
        match self.listening.reach.now() {
            Ok(reach) if reach != self.listening.reach => {
                for (peer, address) in self.listening.set_reach(reach) {
                    self.dialing.announced(peer, address, Source::Mdns, now);
                }
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "the network interfaces cannot be listed"),
        }
        self.follow();
    }

    fn follow(&mut self) {
        let Self { listening, swarm, .. } = self;
        let at = listening.listeners.keys().copied().collect();
        let changes = listening.reach.changes(listening.wanted.ip(), &at);
        for ip in changes.end {
            if let Some(listener) = listening.listeners.remove(&ip) {
                swarm.remove_listener(listener);
                tracing::info!(%ip, "the interface has lost this address: not listening there any more");
            }
        }
        let begun: BTreeSet<IpAddr> = changes.begin.iter().copied().collect();
        listening.failed.retain(|ip| begun.contains(ip));
        for ip in begun {
            let address = SocketAddr::new(ip, listening.wanted.port());
            match transport::check_free(address).and_then(|()| transport::listen(swarm, address)) {
                Ok(listener) => {
                    listening.listeners.insert(ip, listener);
                    listening.failed.remove(&ip);
                    tracing::info!(%address, "listening at a new address of the interface");
                }
                // It is tried again at every look.
                Err(error) if listening.failed.insert(ip) => {
                    tracing::warn!(%address, %error, "cannot listen at a new address of the interface");
                }
                Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_out_of_reach_is_dialled_once_it_comes_into_reach() {
        let lo = Reach::new(&["lo".to_owned()]).unwrap();
        let wanted = SocketAddr::from(([0, 0, 0, 0], 1));
        let mut listening = Listening::new(lo, wanted, BTreeMap::new());
        assert!(listening.next_look().is_some());
        let (peer, far) = (PeerId::random(), SocketAddr::from(([10, 0, 0, 1], 2)));
        assert!(listening.discovered(peer, SocketAddr::from(([127, 0, 0, 1], 2))));
        assert!(!listening.discovered(peer, far));
        let gone = SocketAddr::from(([10, 0, 0, 2], 2));
        assert!(!listening.discovered(peer, gone));
        listening.expired(peer, gone);
        assert_eq!(listening.set_reach(Reach::new(&[]).unwrap()), [(peer, far)]);
        assert_eq!(listening.next_look(), None);
        assert!(listening.beyond.is_empty());
    }
}
