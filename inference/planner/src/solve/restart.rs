//! Climbing again from places nearby: a local optimum is shaken by a few random changes and climbed from anew.

use super::chain::Steps;
use super::climb::climb;
use super::order::Dice;
use super::shares::by_speed;
use super::shift::shift;
use crate::evaluate::{Draft, DraftStage, Evaluation, evaluate_draft, fits};
use crate::instance::Instance;

/// Shakes in a row that bring nothing before the search ends.
const PATIENCE: usize = 60;
/// Most random changes in one shake.
const CHANGES: usize = 4;

/// Climbs, then shakes and climbs again until nothing better turns up or the steps are used up. Stops at `enough`.
pub(super) fn search(
    instance: &Instance<'_>,
    start: (Draft, Evaluation),
    enough: f64,
    steps: &mut Steps,
) -> (Draft, Evaluation) {
    let mut best = start;
    let mut dice = Dice::new(11);
    let mut failures = 0;
    while failures < PATIENCE && steps.left() > 0 && best.1.bottleneck_s > enough {
        failures += 1;
        let mut draft = best.0.clone();
        for _ in 0..=dice.below(CHANGES) {
            draft = shaken(instance, &draft, &mut dice).unwrap_or(draft);
        }
        steps.pay(1000);
        if !fits(instance, &draft) || !within_limits(instance, &draft) {
            continue;
        }
        let evaluation = evaluate_draft(instance, &draft);
        let climbed = to_the_top(instance, (draft, evaluation), steps);
        if climbed.1.bottleneck_s < best.1.bottleneck_s * (1.0 - 1e-9) {
            (best, failures) = (climbed, 0);
        }
    }
    best
}

/// Climbs by whole changes and by fine ones, in turns.
pub(super) fn to_the_top(
    instance: &Instance<'_>,
    start: (Draft, Evaluation),
    steps: &mut Steps,
) -> (Draft, Evaluation) {
    let top = climb(instance, start, steps);
    let before = top.1.bottleneck_s;
    let finer = shift(instance, top, steps);
    // Other shares can open another way up.
    if finer.1.bottleneck_s < before * (1.0 - 1e-6) { climb(instance, finer, steps) } else { finer }
}

fn within_limits(instance: &Instance<'_>, draft: &Draft) -> bool {
    let (min, max) = instance.stage_limits();
    (min..=max).contains(&draft.stages.len())
}

/// One random change; nothing when it is not possible.
fn shaken(instance: &Instance<'_>, draft: &Draft, dice: &mut Dice) -> Option<Draft> {
    match dice.below(4) {
        0 => merged(instance, draft, dice.below(draft.stages.len())),
        1 => divided(instance, draft, dice),
        _ => moved(instance, draft, dice),
    }
}

fn members(stage: &DraftStage) -> Vec<usize> {
    stage.replicas.iter().map(|&(device, _)| device).collect()
}

/// Blocks `first..end` on those of the devices that hold them; nothing when none does.
pub(super) fn stage_of(
    instance: &Instance<'_>,
    devices: &[usize],
    first: usize,
    end: usize,
) -> Option<DraftStage> {
    let bytes = instance.stage_bytes(first, end);
    let devices: Vec<usize> = devices.iter().copied().filter(|&d| bytes <= instance.memory(d)).collect();
    let replicas = by_speed(instance, &devices, first, end);
    (!replicas.is_empty()).then_some(DraftStage { first, end, replicas })
}

/// A stage and the next one become one.
fn merged(instance: &Instance<'_>, draft: &Draft, index: usize) -> Option<Draft> {
    let (stage, next) = (draft.stages.get(index)?, draft.stages.get(index + 1)?);
    let mut devices = members(stage);
    devices.extend(members(next).into_iter().filter(|device| !members(stage).contains(device)));
    let mut draft = draft.clone();
    draft.stages[index] = stage_of(instance, &devices, stage.first, next.end)?;
    draft.stages.remove(index + 1);
    Some(draft)
}

/// A stage is cut in two, with its replicas and an unused device dealt out.
fn divided(instance: &Instance<'_>, draft: &Draft, dice: &mut Dice) -> Option<Draft> {
    let index = dice.below(draft.stages.len());
    let stage = &draft.stages[index];
    if stage.end - stage.first < 2 {
        return None;
    }
    let position = stage.first + 1 + dice.below(stage.end - stage.first - 1);
    let mut devices = members(stage);
    let spare = unused(instance, draft);
    if !spare.is_empty() {
        devices.push(spare[dice.below(spare.len())]);
    }
    let (front, back): (Vec<usize>, Vec<usize>) = devices.iter().partition(|_| dice.below(2) == 0);
    let mut divided = draft.clone();
    divided.stages[index] = stage_of(instance, &front, stage.first, position)?;
    divided.stages.insert(index + 1, stage_of(instance, &back, position, stage.end)?);
    Some(divided)
}

/// A device goes to another stage or out, or comes in; or two devices change places.
fn moved(instance: &Instance<'_>, draft: &Draft, dice: &mut Dice) -> Option<Draft> {
    let usable = instance.usable();
    let device = usable[dice.below(usable.len())];
    let target = dice.below(draft.stages.len());
    let swap = dice.below(2) == 0;
    let home = draft.stages.iter().position(|stage| members(stage).contains(&device));
    let mates = members(&draft.stages[target]);
    let other = mates[dice.below(mates.len())];
    let mut moved = draft.clone();
    for (index, stage) in draft.stages.iter().enumerate() {
        let mut devices = members(stage);
        if Some(index) == home {
            devices.retain(|&member| member != device);
            devices.extend((swap && home != Some(target)).then_some(other));
        }
        if index == target {
            devices.retain(|&member| !swap || member != other);
            devices.push(device);
            devices.dedup();
        }
        if Some(index) == home || index == target {
            devices.sort_unstable();
            devices.dedup();
            moved.stages[index] = stage_of(instance, &devices, stage.first, stage.end)?;
        }
    }
    Some(moved)
}

fn unused(instance: &Instance<'_>, draft: &Draft) -> Vec<usize> {
    let is_used = |device: &usize| draft.stages.iter().any(|stage| members(stage).contains(device));
    instance.usable().into_iter().filter(|device| !is_used(device)).collect()
}
