//! What this device knows of the others: newest report, liveness, round trip. One owner updates it, all read it.

use std::{
    collections::BTreeMap,
    sync::{Arc, RwLock},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::report::NodeReport;
use crate::net::PeerId;

/// One other device as seen from here.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Newest report, if one has come.
    pub report: Option<Arc<NodeReport>>,
    /// Smoothed round trip of the control link.
    pub rtt: Duration,
    /// Connected and not silent.
    pub up: bool,
    /// Since when it has been up or down.
    pub since: Instant,
    /// `ip:port` that it listens at, as far as is known.
    pub address: String,
}

/// Shared table of peers.
#[derive(Debug, Clone, Default)]
pub struct Peers {
    table: Arc<RwLock<BTreeMap<PeerId, Peer>>>,
    /// Counts how often a peer came up or went away.
    turns: watch::Sender<u64>,
}

/// Most peers that are remembered; the longest-gone make room.
const PEERS_MAX: usize = 4096;

impl Peers {
    /// A peer came up.
    pub fn up(&self, peer: PeerId, address: String) {
        self.change(peer, |p| {
            p.up = true;
            p.since = Instant::now();
            p.address = address;
        });
        self.turns.send_modify(|turns| *turns += 1);
    }

    /// A peer went away.
    pub fn down(&self, peer: PeerId) {
        self.change(peer, |p| {
            p.up = false;
            p.since = Instant::now();
        });
        self.turns.send_modify(|turns| *turns += 1);
    }

    /// Changes whenever a peer comes up or goes away.
    pub fn turns(&self) -> watch::Receiver<u64> {
        self.turns.subscribe()
    }

    /// A newer report of a peer.
    pub fn report(&self, peer: PeerId, report: NodeReport, rtt: Duration) {
        self.change(peer, |p| {
            p.report = Some(Arc::new(report));
            p.rtt = rtt;
        });
    }

    /// A copy of the whole table.
    pub fn snapshot(&self) -> BTreeMap<PeerId, Peer> {
        self.table.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// One peer.
    pub fn get(&self, peer: &PeerId) -> Option<Peer> {
        self.table.read().unwrap_or_else(std::sync::PoisonError::into_inner).get(peer).cloned()
    }

    /// Peers that are up.
    pub fn live(&self) -> Vec<PeerId> {
        let table = self.table.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        table.iter().filter(|(_, p)| p.up).map(|(id, _)| *id).collect()
    }

    fn change(&self, peer: PeerId, change: impl FnOnce(&mut Peer)) {
        let mut table = self.table.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !table.contains_key(&peer) && table.len() >= PEERS_MAX {
            let oldest = table.iter().filter(|(_, p)| !p.up).min_by_key(|(_, p)| p.since).map(|(id, _)| *id);
            match oldest {
                Some(oldest) => table.remove(&oldest),
                None => return,
            };
        }
        change(table.entry(peer).or_insert_with(|| Peer {
            report: None,
            rtt: Duration::ZERO,
            up: false,
            since: Instant::now(),
            address: String::new(),
        }));
    }
}
