//! Spreading blobs so that losing any one device (two, from five devices on) loses none: every blob has a fixed set
//! of keepers by rendezvous hashing over the live members, and every device fetches what it should keep.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use mesh_consensus::ClusterState;
use mesh_inference::blobs::Hash;

use super::{
    deploy::Imports,
    facts::Facts,
    models::Models,
    transfer::{Transfer, Wanted},
};

/// Nothing is swept so soon after the start: a device with a leader has by then applied what it had missed.
const SETTLED: Duration = Duration::from_secs(30);
/// Pause between two looks at what should be kept here, while nothing has changed.
const PAUSE: Duration = Duration::from_secs(5);
/// Pause between two attempts at what is missing.
const RETRY: Duration = Duration::from_millis(300);

/// Keeps this device's share of all models' blobs.
#[derive(Debug)]
pub struct Spread {
    facts: Facts,
    transfer: Transfer,
    imports: Imports,
    busy: Arc<AtomicBool>,
    looked: Option<(Instant, Situation)>,
    /// Models of which this device holds its whole share.
    kept: BTreeSet<String>,
    /// The models that the store was last swept for.
    swept: Option<BTreeSet<String>>,
    started: Instant,
}

impl Spread {
    /// On this device.
    pub fn new(facts: Facts, transfer: Transfer, imports: Imports) -> Self {
        Self {
            facts,
            transfer,
            imports,
            busy: Arc::default(),
            looked: None,
            kept: BTreeSet::new(),
            swept: None,
            started: Instant::now(),
        }
    }

    /// Models of which this device holds its whole share, as of the last look.
    pub fn kept(&self) -> &BTreeSet<String> {
        &self.kept
    }

    /// Starts fetching what is missing of this device's share, unless a fetch is under way. `caught_up`: whether
    /// `state` is known to be recent, so that what it does not name may be removed.
    pub fn look(&mut self, state: &ClusterState, models: &Models, caught_up: bool) {
        let live = self.live(state);
        let known = state.models.keys().filter(|hash| models.get(hash).is_some()).cloned().collect();
        let situation = Situation { live, known, models: state.models.len() };
        let all_kept = self.kept.len() == state.models.len();
        let pause = if all_kept { PAUSE } else { RETRY };
        let fresh = self.looked.as_ref().is_some_and(|(at, then)| *then == situation && at.elapsed() < pause);
        if fresh || self.busy.load(Ordering::Acquire) {
            return;
        }
        self.sweep(state, models, caught_up);
        let missing = self.missing(state, models, &situation.live);
        self.looked = Some((Instant::now(), situation));
        if missing.is_empty() {
            return;
        }
        let (transfer, busy) = (self.transfer.clone(), Arc::clone(&self.busy));
        busy.store(true, Ordering::Release);
        tokio::spawn(async move {
            if let Err(error) = transfer.fetch(&missing, &AtomicU64::new(0)).await {
                tracing::debug!(%error, "blobs that this device should keep are not here yet");
            }
            busy.store(false, Ordering::Release);
        });
    }

    fn live(&self, state: &ClusterState) -> Vec<String> {
        let members = state.members.values().map(|m| m.device.0.clone());
        members.filter(|d| self.facts.is_live(d)).collect()
    }

    /// Whether a model is uploaded, imported or profiled on this device.
    pub fn is_importing(&self) -> bool {
        self.imports.is_at_work()
    }

    /// Removes blobs that belong to no model: of models that were removed, and of imports that failed. Only as a
    /// member, with all models known, and while nothing is being imported here.
    fn sweep(&mut self, state: &ClusterState, models: &Models, caught_up: bool) {
        // After a restart the log is applied only up to where it was known to be committed: what is not known yet may
        // be needed by the entries that follow.
        if !caught_up || self.started.elapsed() < SETTLED {
            return;
        }
        let names: BTreeSet<String> = state.models.keys().cloned().collect();
        let member = state.members.values().any(|m| m.device.0 == self.facts.me().to_string());
        if !member || self.imports.any() || self.swept.as_ref() == Some(&names) {
            return;
        }
        let mut keep: BTreeSet<Hash> = BTreeSet::new();
        for record in state.models.values() {
            let Some(model) = models.get(&record.hash) else { return };
            let small = std::iter::once(&record.hash).chain(record.profile_blob.iter());
            keep.extend(small.filter_map(|hash| hash.parse::<Hash>().ok()));
            keep.extend(model.blobs().iter().map(|blob| blob.hash));
        }
        let store = self.transfer.store();
        let Ok(held) = store.list() else { return };
        for (hash, bytes) in held.into_iter().filter(|(hash, _)| !keep.contains(hash)) {
            match store.remove(&hash) {
                Ok(()) => tracing::debug!(%hash, bytes, "blob of no model removed"),
                Err(error) => tracing::warn!(%hash, %error, "a blob of no model cannot be removed"),
            }
        }
        self.swept = Some(names);
    }

    /// What this device should keep and does not hold. Also notes which models are complete here.
    fn missing(&mut self, state: &ClusterState, models: &Models, live: &[String]) -> Vec<Wanted> {
        let me = self.facts.me().to_string();
        let store = self.transfer.store();
        let mut missing: BTreeMap<Hash, Option<u64>> = BTreeMap::new();
        self.kept.clear();
        for record in state.models.values() {
            let before = missing.len();
            // Manifests and profiles are small: every device keeps them.
            let small = std::iter::once(&record.hash).chain(record.profile_blob.iter());
            let small = small.filter_map(|hash| hash.parse::<Hash>().ok()).filter(|hash| !store.has(hash));
            missing.extend(small.map(|hash| (hash, None)));
            let Some(model) = models.get(&record.hash) else { continue };
            let mine = model.blobs().iter().filter(|b| keepers(&b.hash, live).contains(&me.as_str()));
            missing.extend(mine.filter(|b| !store.has(&b.hash)).map(|b| (b.hash, Some(b.bytes))));
            if missing.len() == before {
                self.kept.insert(record.hash.clone());
            }
        }
        missing.into_iter().map(|(hash, bytes)| Wanted { hash, bytes }).collect()
    }
}

/// What decides which blobs this device should keep.
#[derive(Debug, PartialEq, Eq)]
struct Situation {
    live: Vec<String>,
    known: BTreeSet<String>,
    models: usize,
}

/// How many devices keep each blob.
pub fn copies(devices: usize) -> usize {
    if devices >= 5 { 3 } else { 2 }
}

/// The devices that keep a blob: those with the highest hash of (blob, device) (rendezvous hashing: a device that
/// comes or goes moves only its own share).
pub fn keepers<'a>(blob: &Hash, devices: &'a [String]) -> Vec<&'a str> {
    let mut ranked: Vec<([u8; 32], &str)> = devices
        .iter()
        .map(|device| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(blob.as_bytes());
            hasher.update(device.as_bytes());
            (*hasher.finalize().as_bytes(), device.as_str())
        })
        .collect();
    ranked.sort_unstable();
    ranked.into_iter().rev().take(copies(devices.len())).map(|(_, device)| device).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn devices(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("device-{i}")).collect()
    }

    proptest! {
        #[test]
        fn every_blob_survives_the_promised_losses(seed in any::<[u8; 8]>(), count in 1usize..12) {
            let blob = Hash::of(&seed);
            let devices = devices(count);
            let kept: BTreeSet<&str> = keepers(&blob, &devices).into_iter().collect();
            let losses = if count >= 5 { 2 } else { 1 };
            prop_assert!(kept.len() > losses || kept.len() == count);
        }

        #[test]
        fn a_lost_device_moves_only_its_own_share(seed in any::<[u8; 8]>(), count in 6usize..12, lost in 0usize..6) {
            let blob = Hash::of(&seed);
            let all = devices(count);
            let mut rest = all.clone();
            let gone = rest.remove(lost);
            let before: BTreeSet<&str> = keepers(&blob, &all).into_iter().collect();
            let after: BTreeSet<&str> = keepers(&blob, &rest).into_iter().collect();
            let stayed: BTreeSet<&str> = before.iter().copied().filter(|d| *d != gone).collect();
            prop_assert!(stayed.is_subset(&after));
        }
    }
}
