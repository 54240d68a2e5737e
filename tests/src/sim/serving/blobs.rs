//! Blobs of the models: who keeps which, decided by the daemon's own code, fetched by asking who has been heard.

use std::collections::{BTreeMap, BTreeSet};

use mesh_consensus::ClusterState;
use mesh_daemon::control::spread::share::{ModelBlobs, share};
use mesh_inference::blobs::Hash;

use super::{Serving, ServingDeed};
use crate::sim::process::device_id;

/// Blobs of every model.
const PARTS: usize = 4;
/// Nothing is swept so soon after the start.
const SETTLED_MS: u64 = 5_000;
/// Pause between two questions for what is missing.
const ASK_AGAIN_MS: u64 = 1_000;
/// An import waits so long for its model to be replicated.
const IMPORT_MS: u64 = 15_000;

/// The blobs of a model.
pub(crate) fn weights(model: &str) -> Vec<Hash> {
    (0..PARTS).map(|part| Hash::of(format!("{model}/{part}").as_bytes())).collect()
}

/// What devices say to each other of blobs.
#[derive(Debug, Clone)]
pub(crate) enum Call {
    /// Asks for those that the other one has.
    Want(Vec<Hash>),
    /// Here they are.
    Have(Vec<Hash>),
}

/// What a device holds.
#[derive(Debug, Default)]
pub(super) struct Blobs {
    held: BTreeSet<Hash>,
    /// On their way over the network, until when.
    arriving: Vec<(u64, Hash)>,
    asked_ms: Option<u64>,
    /// Models that were imported here and are not replicated yet, until when that is waited for.
    importing: BTreeMap<String, u64>,
    pub(super) kept: BTreeSet<String>,
    since_ms: Option<u64>,
}

impl Blobs {
    pub(super) fn on_disk(held: BTreeSet<Hash>) -> Self {
        Self { held, ..Self::default() }
    }
}

impl Serving {
    pub(crate) fn held(&self) -> &BTreeSet<Hash> {
        &self.blobs.held
    }

    /// A model is imported here: its blobs lie here before anybody hears of it.
    pub(crate) fn import(&mut self, now_ms: u64, model: &str) {
        self.blobs.held.extend(weights(model));
        self.blobs.importing.insert(model.to_owned(), now_ms + IMPORT_MS);
    }

    /// Fetches what is missing of this device's share, and drops what no model needs.
    pub(super) fn look_at_blobs(&mut self, now_ms: u64, state: &ClusterState, is_led: bool) {
        let since_ms = *self.blobs.since_ms.get_or_insert(now_ms);
        self.blobs
            .importing
            .retain(|model, until_ms| *until_ms > now_ms && !state.models.contains_key(model));
        let (held, arriving) = (&mut self.blobs.held, &mut self.blobs.arriving);
        held.extend(arriving.extract_if(.., |(due_ms, _)| *due_ms <= now_ms).map(|(_, hash)| hash));
        let is_member = state.members.values().any(|member| member.device == device_id(self.index));
        if is_led && is_member && now_ms >= since_ms + SETTLED_MS && self.blobs.importing.is_empty() {
            let models = state.models.keys().filter(|_| !self.is_wasteful);
            let needed: BTreeSet<Hash> = models.flat_map(|model| weights(model)).collect();
            self.blobs.held.retain(|hash| needed.contains(hash));
        }
        let ids = state.members.values().map(|member| member.device.0.clone());
        let live: Vec<String> = ids.filter(|device| self.is_live(device)).collect();
        let models = state.models.keys().map(|model| ModelBlobs {
            model: model.clone(),
            small: Vec::new(),
            weights: Some(weights(model).into_iter().map(|hash| (hash, 1)).collect()),
        });
        let held = &self.blobs.held;
        let share = share(models, &device_id(self.index).0, &live, |hash| held.contains(hash));
        self.blobs.kept = share.kept;
        let is_time = self.blobs.asked_ms.is_none_or(|at| now_ms >= at + ASK_AGAIN_MS);
        if is_time && !share.missing.is_empty() {
            self.blobs.asked_ms = Some(now_ms);
            let wanted: Vec<Hash> = share.missing.into_keys().collect();
            for &to in &self.up {
                self.deeds.push(ServingDeed::Call { to, call: Call::Want(wanted.clone()) });
            }
        }
    }

    /// Another device asks for blobs, or sends some.
    pub(crate) fn call(&mut self, now_ms: u64, from: usize, call: Call) {
        match call {
            Call::Want(hashes) => {
                let here: Vec<Hash> =
                    hashes.into_iter().filter(|hash| self.blobs.held.contains(hash)).collect();
                if !here.is_empty() {
                    self.deeds.push(ServingDeed::Call { to: from, call: Call::Have(here) });
                }
            }
            Call::Have(hashes) => {
                for hash in hashes {
                    let is_new = !self.blobs.arriving.iter().any(|(_, other)| *other == hash);
                    if is_new && !self.blobs.held.contains(&hash) {
                        let due_ms = now_ms + self.dice.between(50, 2_000);
                        self.blobs.arriving.push((due_ms, hash));
                    }
                }
            }
        }
    }
}
