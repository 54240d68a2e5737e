//! Spreading blobs so that losing any one device (two, from five devices on) loses none: every blob has a fixed set
//! of keepers by rendezvous hashing over the live members, and every device fetches what it should keep.

pub mod share;
mod sweep;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use mesh_consensus::{ClusterState, ModelRecord};
use mesh_inference::blobs::Hash;

use super::{
    deploy::{Imports, Quiet},
    facts::Facts,
    models::Models,
    transfer::{FetchError, Transfer, Wanted},
};
use share::{ModelBlobs, Share, share};
use sweep::sweep;

/// Nothing is swept so soon after the start: a device with a leader has by then applied what it had missed.
const SETTLED: Duration = Duration::from_secs(30);
/// Pause between two looks at what should be kept here, while nothing has changed.
const PAUSE: Duration = Duration::from_secs(5);
/// Pause between two attempts at what is missing.
const RETRY: Duration = Duration::from_millis(300);
/// Longest pause when the store cannot take what comes.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Keeps this device's share of all models' blobs.
#[derive(Debug)]
pub struct Spread {
    facts: Facts,
    transfer: Transfer,
    imports: Imports,
    busy: Arc<AtomicBool>,
    backoff: Arc<Mutex<Backoff>>,
    looked: Option<(Instant, Situation)>,
    /// Models of which this device holds its whole share.
    kept: BTreeSet<String>,
    /// No import was under way at the last look.
    quiet: Option<Quiet>,
    /// What the store was last swept for.
    swept: Option<Reason>,
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
            backoff: Arc::default(),
            looked: None,
            kept: BTreeSet::new(),
            quiet: None,
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
        let now = Instant::now();
        self.looked = Some((now, situation));
        if missing.is_empty() || !lock(&self.backoff).allows(now) {
            return;
        }
        let (transfer, busy, backoff) =
            (self.transfer.clone(), Arc::clone(&self.busy), Arc::clone(&self.backoff));
        busy.store(true, Ordering::Release);
        tokio::spawn(async move {
            match transfer.fetch(&missing, &AtomicU64::new(0)).await {
                Ok(()) => *lock(&backoff) = Backoff::default(),
                Err(error @ (FetchError::Store(_) | FetchError::Check(_))) => {
                    let pause = lock(&backoff).failed(Instant::now());
                    let error = super::chain(&error);
                    tracing::warn!(%error, ?pause, "blobs that this device should keep cannot be stored");
                }
                Err(
                    error @ (FetchError::Missing { .. }
                    | FetchError::Stuck { .. }
                    | FetchError::Damaged { .. }),
                ) => {
                    tracing::debug!(%error, "blobs that this device should keep are not here yet");
                }
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

    /// Removes blobs that belong to no model, and unfinished fetches of such: of models that were removed, and of imports
    /// that failed. Only as a member, with all models known, and while nothing is being imported here.
    fn sweep(&mut self, state: &ClusterState, models: &Models, caught_up: bool) {
        // After a restart the log is applied only up to where it was known to be committed: what is not known yet may
        // be needed by the entries that follow.
        if !caught_up || self.started.elapsed() < SETTLED {
            return;
        }
        // Quiet since the last look, so that `state`, which is newer, has the models of all imports before.
        let before = std::mem::replace(&mut self.quiet, self.imports.quiet());
        let Some(quiet) = self.quiet.filter(|quiet| before == Some(*quiet)) else { return };
        let reason = Reason { named: named(state), in_vain: quiet.in_vain };
        let member = state.members.values().any(|m| m.device.0 == self.facts.me().to_string());
        if !member || self.swept.as_ref() == Some(&reason) {
            return;
        }
        let mut keep: BTreeSet<Hash> = reason.named.iter().filter_map(|hash| hash.parse().ok()).collect();
        for record in state.models.values() {
            let Some(model) = models.get(&record.hash) else { return };
            keep.extend(model.blobs().iter().map(|blob| blob.hash));
        }
        let swept = sweep(self.transfer.store(), &keep, &self.imports, quiet);
        if swept.has_freed {
            // There is room again, perhaps enough.
            *lock(&self.backoff) = Backoff::default();
        }
        if swept.is_complete {
            self.swept = Some(reason);
        }
    }

    /// What this device should keep and does not hold. Also notes which models are complete here.
    fn missing(&mut self, state: &ClusterState, models: &Models, live: &[String]) -> Vec<Wanted> {
        let (me, store) = (self.facts.me().to_string(), self.transfer.store());
        let blobs = state.models.values().map(|record| ModelBlobs {
            model: record.hash.clone(),
            small: small(record).filter_map(|hash| hash.parse().ok()).collect(),
            weights: models
                .get(&record.hash)
                .map(|model| model.blobs().iter().map(|blob| (blob.hash, blob.bytes)).collect()),
        });
        let Share { missing, kept } = share(blobs, &me, live, |hash| store.has(hash));
        self.kept = kept;
        missing.into_iter().map(|(hash, bytes)| Wanted { hash, bytes }).collect()
    }
}

/// The manifests and profiles that the replicated state names.
fn named(state: &ClusterState) -> BTreeSet<String> {
    state.models.values().flat_map(small).cloned().collect()
}

/// A model's manifest and profile.
fn small(record: &ModelRecord) -> impl Iterator<Item = &String> {
    std::iter::once(&record.hash).chain(&record.profile_blob)
}

/// What a sweep is for: as long as this stays the same, there is nothing new to remove.
#[derive(Debug, PartialEq, Eq)]
struct Reason {
    named: BTreeSet<String>,
    in_vain: u64,
}

/// Pauses after errors of the store, twice as long every time: a disk that is full stays so for a while, and each try may
/// take the network and the disk for gigabytes.
#[derive(Debug, Default)]
struct Backoff {
    failures: u32,
    until: Option<Instant>,
}

impl Backoff {
    /// Gives the pause that begins now.
    fn failed(&mut self, now: Instant) -> Duration {
        let pause = RETRY.saturating_mul(1 << self.failures.min(16)).min(RETRY_MAX);
        self.failures = self.failures.saturating_add(1);
        self.until = Some(now + pause);
        pause
    }

    fn allows(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now >= until)
    }
}

fn lock(backoff: &Mutex<Backoff>) -> MutexGuard<'_, Backoff> {
    backoff.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What decides which blobs this device should keep.
#[derive(Debug, PartialEq, Eq)]
struct Situation {
    live: Vec<String>,
    known: BTreeSet<String>,
    models: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_half_a_minute() {
        let (start, mut backoff) = (Instant::now(), Backoff::default());
        assert!(backoff.allows(start));
        let pauses: Vec<u128> = (0..40).map(|_| backoff.failed(start).as_millis()).collect();
        assert_eq!(pauses[..9], [300, 600, 1_200, 2_400, 4_800, 9_600, 19_200, 30_000, 30_000]);
        assert_eq!(pauses[39], 30_000);
        assert!(!backoff.allows(start + RETRY_MAX / 2) && backoff.allows(start + RETRY_MAX));
    }
}
