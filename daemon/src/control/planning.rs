//! Planner input from what devices report: who can take stages, how fast they are, how they are linked.

use std::collections::BTreeMap;

use mesh_inference::profile::ModelProfile;
use mesh_planner::{
    Block, Device, LinkRate, Links, Objective, PairLink, PinnedStage, Plan, Problem, TransferCost,
};
use serde::{Deserialize, Serialize};

/// The class that profiles are kept under: times of the device that measured, scaled by calibration for others.
const CLASS: &str = "profiled";
/// Assumed for a link that has not been measured yet: 1 Gbit/s.
pub const BYTES_PER_S_UNMEASURED: f64 = 125e6;
/// Assumed latency of a link that has not been measured yet, seconds.
pub const LATENCY_S_UNMEASURED: f64 = 0.0005;

/// A profile as it is stored in a blob: with the calibration time of the device that measured it, so that other
/// devices can be scaled from it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoredProfile {
    /// Seconds of the calibration run on the measuring device.
    pub calibration_s: f64,
    /// Times and sizes by block.
    pub profile: ModelProfile,
}

/// A device that can take stages.
#[derive(Debug, Clone)]
pub struct DeviceFacts {
    /// PeerId as text.
    pub id: String,
    /// Memory that stages may use, bytes.
    pub memory_bytes: u64,
    /// Seconds of its calibration run.
    pub calibration_s: f64,
    /// What moving data costs it.
    pub transfer: TransferCost,
    /// What its network card carries in all, where that is less than its links together: bytes per second.
    pub card_bytes_per_s: Option<f64>,
    /// Measured links to other devices, by PeerId: bytes per second and one-way seconds.
    pub links: BTreeMap<String, (f64, f64)>,
}

/// What somebody wants of a plan.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// Rate or latency.
    pub objective: Objective,
    /// Exact number of stages.
    pub stages: Option<usize>,
    /// A plan to take as it is.
    pub pin: Option<Plan>,
}

/// The planner's problem for one model on these devices.
pub fn problem(stored: &StoredProfile, devices: &[DeviceFacts], wishes: &Wishes) -> Problem {
    let profile = &stored.profile;
    let cuts = crossing(profile);
    let blocks = (0..profile.block_seconds.len())
        .map(|b| Block {
            weight_bytes: profile.block_weight_bytes[b],
            overhead_bytes: profile.overhead_bytes(b),
            peak_bytes: peak(profile, &cuts, b),
            seconds: BTreeMap::from([(CLASS.to_owned(), profile.block_seconds[b])]),
        })
        .collect();
    let pin = wishes.pin.as_ref().map(|plan| {
        plan.stages
            .iter()
            .map(|s| PinnedStage {
                first_block: s.first_block,
                last_block: s.last_block,
                devices: s.replicas.iter().map(|r| r.device.clone()).collect(),
            })
            .collect()
    });
    let share = 1.0 / devices.len().max(1) as f64;
    Problem {
        blocks,
        cuts,
        devices: devices
            .iter()
            .map(|d| Device {
                id: d.id.clone(),
                class: CLASS.to_owned(),
                speed: stored.calibration_s / d.calibration_s,
                memory_bytes: d.memory_bytes,
                card_bytes_per_s: d.card_bytes_per_s,
                transfer: d.transfer,
            })
            .collect(),
        links: links(devices),
        ingress: Some(devices.iter().map(|d| (d.id.clone(), share)).collect()),
        arriving: BTreeMap::new(),
        objective: wishes.objective,
        replication: wishes.stages.is_none(),
        min_stages: wishes.stages,
        max_stages: wishes.stages,
        pin,
    }
}

/// Bytes that really cross each cut: tensors with many zeros are sent without them.
fn crossing(profile: &ModelProfile) -> Vec<u64> {
    let sparse = profile.cut_sparse_bytes.iter().copied().chain(std::iter::repeat(u64::MAX));
    profile.cut_bytes.iter().zip(sparse).map(|(whole, sparse)| sparse.min(*whole)).collect()
}

/// Bytes that a block needs while it runs. The planner adds what crosses a stage's two cuts as buffers; in memory the
/// tensors are whole, so the blocks on both sides of a cut get the difference.
fn peak(profile: &ModelProfile, crossing: &[u64], block: usize) -> u64 {
    let left_out = |cut: usize| {
        let both = profile.cut_bytes.get(cut).zip(crossing.get(cut));
        both.map_or(0, |(whole, crossing)| whole.saturating_sub(*crossing))
    };
    let peak = profile.block_peak_bytes[block];
    peak.saturating_add(left_out(block)).saturating_add(left_out(block + 1))
}

fn links(devices: &[DeviceFacts]) -> Links {
    let mut pairs = Vec::new();
    for from in devices {
        for to in devices.iter().filter(|to| to.id != from.id) {
            // Each side measures its own sending direction; where only the other side has measured, take that.
            let measured = from.links.get(&to.id).or_else(|| to.links.get(&from.id));
            if let Some(&(bytes_per_s, latency_s)) = measured {
                pairs.push(PairLink { from: from.id.clone(), to: to.id.clone(), bytes_per_s, latency_s });
            }
        }
    }
    Links {
        default: LinkRate { bytes_per_s: BYTES_PER_S_UNMEASURED, latency_s: LATENCY_S_UNMEASURED },
        pairs,
    }
}

/// Links of a device within this part of its fastest one are as fast...
const AS_FAST: f64 = 0.8;
/// ...and peers that reach others so many times as fast are not what limits them.
const FASTER: f64 = 1.25;

/// Gives devices of whose card nothing is known the card that their links speak of: behind one switch or access point a
/// link is as fast as the slower of two cards. Where a device's fastest links, two at least, are all alike and go to
/// peers that reach others faster, it is its own card that they share.
pub fn assume_cards(problem: &mut Problem) {
    let mut links: BTreeMap<&str, Vec<(f64, &str)>> = BTreeMap::new();
    for pair in &problem.links.pairs {
        links.entry(&pair.from).or_default().push((pair.bytes_per_s, &pair.to));
    }
    links.values_mut().for_each(|links| links.sort_by(|a, b| b.0.total_cmp(&a.0)));
    let of = |device: &str| links.get(device).map_or(&[][..], Vec::as_slice);
    let card = |device: &str| {
        let &(fastest, _) = of(device).first()?;
        let is_limited_here = |&&(rate, peer): &&(f64, &str)| {
            let elsewhere = of(peer).iter().find(|(_, to)| *to != device);
            rate >= AS_FAST * fastest && elsewhere.is_some_and(|(rate, _)| *rate >= FASTER * fastest)
        };
        (of(device).iter().filter(is_limited_here).count() >= 2).then_some(fastest)
    };
    let cards: Vec<Option<f64>> =
        problem.devices.iter().map(|device| device.card_bytes_per_s.or_else(|| card(&device.id))).collect();
    for (device, card) in problem.devices.iter_mut().zip(cards) {
        device.card_bytes_per_s = card;
    }
}

#[cfg(test)]
mod tests;
