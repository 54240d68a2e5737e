//! What the handle, the network task and the sessions share.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{PoisonError, RwLock},
};

use bytes::Bytes;
use libp2p::PeerId;
use tokio::sync::watch;

use super::link::PeerLink;

/// Peers that are up, and our report.
#[derive(Debug)]
pub(super) struct Shared {
    links: RwLock<HashMap<PeerId, PeerLink>>,
    up: watch::Sender<BTreeSet<PeerId>>,
    report: watch::Sender<Bytes>,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            links: RwLock::default(),
            up: watch::channel(BTreeSet::new()).0,
            report: watch::channel(Bytes::new()).0,
        }
    }

    pub(super) fn link(&self, peer: &PeerId) -> Option<PeerLink> {
        self.links.read().unwrap_or_else(PoisonError::into_inner).get(peer).cloned()
    }

    pub(super) fn peer_up(&self, peer: PeerId, link: PeerLink) {
        let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        links.insert(peer, link);
        drop(links);
        self.up.send_modify(|up| {
            up.insert(peer);
        });
    }

    /// Forgets a peer, unless a newer session has taken over.
    pub(super) fn peer_down(&self, peer: PeerId, session: u64) {
        let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        if links.get(&peer).is_none_or(|link| link.session != session) {
            return;
        }
        links.remove(&peer);
        drop(links);
        self.up.send_modify(|up| {
            up.remove(&peer);
        });
    }

    pub(super) fn peers(&self) -> watch::Receiver<BTreeSet<PeerId>> {
        self.up.subscribe()
    }

    pub(super) fn set_report(&self, report: Bytes) {
        self.report.send_replace(report);
    }

    pub(super) fn report(&self) -> watch::Receiver<Bytes> {
        self.report.subscribe()
    }
}
