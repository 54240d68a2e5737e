//! What the handle, the network task and the sessions share.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use libp2p::PeerId;
use tokio::{sync::watch, time::Instant};

use super::{link::PeerLink, probe::Costs};

/// Peers that are up, and our report.
#[derive(Debug)]
pub(super) struct Shared {
    links: RwLock<HashMap<PeerId, PeerLink>>,
    up: watch::Sender<BTreeSet<PeerId>>,
    report: watch::Sender<Bytes>,
    /// Counts the jobs that wait or run here, once somebody counts them.
    jobs: OnceLock<Arc<AtomicU32>>,
    /// Heartbeats to all peers go out together, counted from here: one waking for all of them.
    started: Instant,
    /// What moving bytes costs the processors.
    pub(super) costs: Costs,
    /// Processors that this device may use.
    pub(super) cores: f64,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            links: RwLock::default(),
            up: watch::channel(BTreeSet::new()).0,
            report: watch::channel(Bytes::new()).0,
            jobs: OnceLock::new(),
            started: Instant::now(),
            costs: Costs::default(),
            cores: mesh_inference::profile::cores(),
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

    /// Nobody is woken for a report that says what the last one said.
    pub(super) fn set_report(&self, report: Bytes) {
        self.report.send_if_modified(|last| {
            let changed = *last != report;
            *last = report;
            changed
        });
    }

    pub(super) fn count_jobs(&self, jobs: Arc<AtomicU32>) {
        if self.jobs.set(jobs).is_err() {
            tracing::error!("the jobs of this device are counted already");
        }
    }

    pub(super) fn jobs(&self) -> u32 {
        self.jobs.get().map_or(0, |jobs| jobs.load(Ordering::Relaxed))
    }

    /// The next whole multiple of `period` since the start.
    pub(super) fn next_beat(&self, period: Duration) -> Instant {
        let micros = self.started.elapsed().as_micros() % period.as_micros();
        let passed = Duration::from_micros(u64::try_from(micros).unwrap_or(0));
        Instant::now() + (period - passed)
    }

    pub(super) fn report(&self) -> watch::Receiver<Bytes> {
        self.report.subscribe()
    }
}
