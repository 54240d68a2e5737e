//! Copies of the models' blobs: no fewer disks may take one away than it has copies for, and in the end every blob lies
//! where it belongs.

use std::collections::BTreeMap;

use mesh_consensus::{ClusterState, Node, RedbStore};
use mesh_daemon::control::spread::share::{copies, keepers};
use mesh_inference::blobs::Hash;

use super::process::{Process, device_index};
use super::serving::weights;
use super::world::{Device, World};

/// What is known of the copies of each model's blobs.
#[derive(Debug, Default)]
pub(crate) struct Replication {
    /// Disks that were lost.
    losses: u64,
    models: BTreeMap<String, Tracked>,
}

#[derive(Debug, Default)]
struct Tracked {
    /// A replica that has applied this entry knows the model, unless it was removed.
    known_at: u64,
    /// By blob: copies that there were, of those that there should be, and the disks lost until then.
    copies: BTreeMap<Hash, (u64, u64)>,
}

impl Replication {
    /// Forgets models that were removed: their blobs may go.
    pub(crate) fn observe(&mut self, node: &Node<RedbStore>) {
        let (applied, models) = (node.applied(), &node.state().models);
        self.models.retain(|model, tracked| applied < tracked.known_at || models.contains_key(model));
    }
}

impl World {
    fn holds(device: &Device, hash: &Hash) -> bool {
        match device.process.as_ref().and_then(Process::held) {
            Some(held) => held.contains(hash),
            None => device.blobs.contains(hash),
        }
    }

    fn holders(&self, hash: &Hash) -> usize {
        self.devices.iter().filter(|device| !device.retired && Self::holds(device, hash)).count()
    }

    /// Notes how many copies blobs have: so many disks may be lost but one.
    pub(crate) fn note_copies(&mut self) {
        let Some(leader) = self.leader().and_then(|leader| self.devices[leader].process.as_ref()?.node())
        else {
            return;
        };
        let (applied, members) = (leader.applied(), leader.state().members.len());
        let models: Vec<String> = leader.state().models.keys().cloned().collect();
        let losses = self.replication.losses;
        for model in models {
            for hash in weights(&model) {
                let copies = self.holders(&hash).min(copies(members)) as u64;
                let tracked = self.replication.models.entry(model.clone());
                let tracked = tracked.or_insert_with(|| Tracked { known_at: applied, ..Tracked::default() });
                let known =
                    tracked.copies.get(&hash).map_or(0, |(had, before)| had.saturating_sub(losses - before));
                if copies > known {
                    tracked.copies.insert(hash, (copies, losses));
                }
            }
        }
    }

    /// A device's disk is gone. Ends the run where a blob is nowhere that had more copies.
    pub(crate) fn lose_blobs(&mut self, device: usize) {
        if self.options.ask_every_ms == 0 {
            return;
        }
        self.note_copies();
        self.replication.losses += 1;
        self.devices[device].blobs.clear();
        let lost = self.lost_blob();
        self.broken = self.broken.take().or(lost);
    }

    /// A blob that is nowhere, though it had more copies than disks were lost since.
    pub(crate) fn lost_blob(&self) -> Option<String> {
        let losses = self.replication.losses;
        self.replication.models.iter().find_map(|(model, tracked)| {
            let (_, (copies, before)) = tracked
                .copies
                .iter()
                .find(|(hash, (copies, before))| losses - before < *copies && self.holders(hash) == 0)?;
            let since = losses - before;
            Some(format!(
                "a blob of model {model} had {copies} copies, {since} disks were lost since, and it is gone"
            ))
        })
    }

    /// A blob that some device holds and one that should keep it does not.
    pub(crate) fn unkept(&self, state: &ClusterState) -> Option<String> {
        let ids: Vec<String> = state.members.values().map(|member| member.device.0.clone()).collect();
        state.models.keys().find_map(|model| {
            let hashes = weights(model).into_iter().filter(|hash| self.holders(hash) > 0);
            let lacking = hashes.flat_map(|hash| {
                let keepers = keepers(&hash, &ids).into_iter().map(str::to_owned).collect::<Vec<_>>();
                keepers.into_iter().map(move |keeper| (hash, keeper))
            });
            let mut lacking = lacking.filter(|(hash, keeper)| {
                let device = device_index(&mesh_consensus::DeviceId(keeper.clone()));
                !Self::holds(&self.devices[device], hash)
            });
            lacking.next().map(|(_, keeper)| format!("{keeper} does not hold its share of model {model}"))
        })
    }
}
