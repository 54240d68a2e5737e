//! How the requests of a stage are shared among its replicas.

use crate::evaluate::{Draft, Evaluation, Resource, evaluate_draft};
use crate::instance::Instance;

/// Rounds of improvement; each costs one evaluation.
const ROUNDS: usize = 24;
/// A replica is not worth its memory below this share.
const LEAST_SHARE: f64 = 1e-4;

/// Shares in proportion to the devices' rates for blocks `first..end`.
pub(super) fn by_speed(
    instance: &Instance<'_>,
    devices: &[usize],
    first: usize,
    end: usize,
) -> Vec<(usize, f64)> {
    let seconds = |device: usize| instance.seconds(device, first, end).max(1e-12);
    let total: f64 = devices.iter().map(|&device| 1.0 / seconds(device)).sum();
    devices.iter().map(|&device| (device, 1.0 / seconds(device) / total)).collect()
}

/// Moves shares away from busy resources as long as that helps. `keep` leaves every replica in.
pub(super) fn polish(instance: &Instance<'_>, draft: Draft, keep: bool) -> (Draft, Evaluation) {
    let mut best = (draft.clone(), evaluate_draft(instance, &draft));
    if draft.stages.iter().all(|stage| stage.replicas.len() == 1) {
        return best;
    }
    let mut current = best.clone();
    for _ in 0..ROUNDS {
        let mut draft = shifted(instance, &current, 0.5);
        if !keep {
            drop_idle(&mut draft);
        }
        let evaluation = evaluate_draft(instance, &draft);
        if evaluation.bottleneck_s < best.1.bottleneck_s {
            best = (draft.clone(), evaluation.clone());
        }
        current = (draft, evaluation);
    }
    best
}

/// One step of multiplicative updates: a replica's share shrinks with the load of its busiest resource.
fn shifted(instance: &Instance<'_>, (draft, evaluation): &(Draft, Evaluation), power: f64) -> Draft {
    let mut busy = vec![0.0f64; instance.devices()];
    for (resource, load) in &evaluation.loads {
        let seconds = load.seconds;
        match *resource {
            Resource::Compute(device) | Resource::CardOut(device) | Resource::CardIn(device) => {
                busy[device] = busy[device].max(seconds);
            }
            Resource::Link(from, to) => {
                busy[from] = busy[from].max(seconds);
                busy[to] = busy[to].max(seconds);
            }
        }
    }
    // An ingress is slowed down by links to others; taking more itself relieves them, so only its compute counts.
    for (device, _) in instance.ingress.iter().enumerate().filter(|(_, share)| **share > 0.0) {
        busy[device] = evaluation.loads.get(&Resource::Compute(device)).map_or(0.0, |load| load.seconds);
    }
    let mut draft = draft.clone();
    for stage in &mut draft.stages {
        let mut total = 0.0;
        for (device, share) in &mut stage.replicas {
            let ratio = evaluation.bottleneck_s / busy[*device].max(evaluation.bottleneck_s * 0.05);
            *share *= if ratio.is_finite() { ratio.powf(power) } else { 1.0 };
            total += *share;
        }
        for (_, share) in &mut stage.replicas {
            *share = (*share / total).max(1e-9);
        }
    }
    draft
}

fn drop_idle(draft: &mut Draft) {
    for stage in &mut draft.stages {
        if stage.replicas.iter().any(|&(_, share)| share >= LEAST_SHARE) {
            stage.replicas.retain(|&(_, share)| share >= LEAST_SHARE);
        }
        let total: f64 = stage.replicas.iter().map(|&(_, share)| share).sum();
        stage.replicas.iter_mut().for_each(|(_, share)| *share /= total);
    }
}
