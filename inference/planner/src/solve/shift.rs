//! Fine work on shares: moves a part of a stage's requests from one device to another while that helps.
//!
//! The lines of `shares` look at one stage and estimate its links. This looks at the evaluation alone, so it ends where
//! no move between two devices helps, and it may bring in devices that have no stage yet.

use super::chain::Steps;
use super::climb::cost;
use crate::evaluate::{Draft, Evaluation, evaluate_draft, fits};
use crate::instance::Instance;

/// The first part that is moved, of all requests; halved until `LAST`.
const FIRST: f64 = 0.25;
const LAST: f64 = 1e-4;

/// Moves shares until nothing helps any more or the steps are used up.
pub(super) fn shift(
    instance: &Instance<'_>,
    start: (Draft, Evaluation),
    steps: &mut Steps,
) -> (Draft, Evaluation) {
    let mut best = start;
    let mut part = FIRST;
    while part > LAST {
        let before = best.1.bottleneck_s;
        for stage in 0..best.0.stages.len() {
            for from in devices(&best.0, stage) {
                for to in instance.usable() {
                    let Some(draft) = moved(&best.0, stage, (from, to), part) else { continue };
                    if !steps.pay(cost(&draft)) {
                        return best;
                    }
                    let evaluation = evaluate_draft(instance, &draft);
                    let is_better = evaluation.bottleneck_s < best.1.bottleneck_s * (1.0 - 1e-9);
                    if is_better && fits(instance, &draft) {
                        best = (draft, evaluation);
                    }
                }
            }
        }
        if best.1.bottleneck_s >= before {
            part /= 2.0;
        }
    }
    best
}

fn devices(draft: &Draft, stage: usize) -> Vec<usize> {
    draft.stages[stage].replicas.iter().map(|&(device, _)| device).collect()
}

/// Nothing when the move makes no sense: to itself, or to a device that runs another stage.
fn moved(draft: &Draft, stage: usize, (from, to): (usize, usize), part: f64) -> Option<Draft> {
    let runs = |stage: usize, device: usize| devices(draft, stage).contains(&device);
    let is_elsewhere = (0..draft.stages.len()).any(|other| other != stage && runs(other, to));
    if from == to || is_elsewhere || !runs(stage, from) {
        return None;
    }
    let mut draft = draft.clone();
    let replicas = &mut draft.stages[stage].replicas;
    let mut taken = 0.0;
    if let Some((_, share)) = replicas.iter_mut().find(|(device, _)| *device == from) {
        // A rest that is not worth its memory goes too.
        taken = if *share < part + LAST { *share } else { part };
        *share -= taken;
    }
    match replicas.iter_mut().find(|(device, _)| *device == to) {
        Some((_, share)) => *share += taken,
        None => replicas.push((to, taken)),
    }
    replicas.retain(|&(_, share)| share > 0.0);
    Some(draft)
}
