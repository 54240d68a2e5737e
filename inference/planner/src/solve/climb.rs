//! Hill climbing on whole plans: move a device to another stage, bring one in, leave one out, shift a boundary.

use super::chain::Steps;
use super::rates::least_busy_s;
use super::shares::{by_speed, polish};
use crate::evaluate::{Draft, DraftStage, Evaluation, fits};
use crate::instance::Instance;

/// Climbs from a draft until no single change helps or the steps are used up.
pub(super) fn climb(
    instance: &Instance<'_>,
    start: (Draft, Evaluation),
    steps: &mut Steps,
) -> (Draft, Evaluation) {
    let mut best = start;
    loop {
        let mut improved = None;
        for change in changes(instance, &best.0) {
            let draft = changed(instance, &best.0, change);
            if !steps.pay(cost(&draft)) {
                return improved.unwrap_or(best);
            }
            if !fits(instance, &draft) {
                continue;
            }
            let limit = improved
                .as_ref()
                .map_or(best.1.bottleneck_s, |(_, old): &(Draft, Evaluation)| old.bottleneck_s);
            // Most changes cannot help whatever the shares are.
            if least_busy_s(instance, &draft) >= limit {
                continue;
            }
            let costed = polish(instance, draft, false);
            if costed.1.bottleneck_s < limit * (1.0 - 1e-9) {
                improved = Some(costed);
            }
        }
        match improved {
            Some(costed) => best = costed,
            None => return best,
        }
    }
}

/// About how many steps the evaluation of a draft is worth.
pub(super) fn cost(draft: &Draft) -> u64 {
    let pairs = draft.stages.windows(2).map(|pair| pair[0].replicas.len() * pair[1].replicas.len());
    let replicas = draft.stages.iter().map(|stage| stage.replicas.len());
    100 * (replicas.sum::<usize>() + pairs.sum::<usize>()) as u64
}

/// A single change of a draft.
#[derive(Debug, Clone, Copy)]
pub(super) enum Change {
    /// A device goes from one stage to another; nowhere is no stage.
    Regroup { device: usize, from: Option<usize>, to: Option<usize> },
    /// The stage before a boundary ends here.
    Shift { boundary: usize, position: usize },
}

pub(super) fn changes(instance: &Instance<'_>, draft: &Draft) -> Vec<Change> {
    let mut changes = Vec::new();
    for device in instance.usable() {
        let home =
            draft.stages.iter().position(|stage| stage.replicas.iter().any(|&(other, _)| other == device));
        let alone = home.is_some_and(|home| draft.stages[home].replicas.len() == 1);
        if alone {
            continue;
        }
        changes.extend(home.map(|_| Change::Regroup { device, from: home, to: None }));
        let runs = |stage: usize| draft.stages[stage].replicas.iter().any(|&(other, _)| other == device);
        for stage in (0..draft.stages.len()).filter(|&stage| !runs(stage)) {
            changes.push(Change::Regroup { device, from: home, to: Some(stage) });
        }
    }
    for boundary in 1..draft.stages.len() {
        let at = draft.stages[boundary].first;
        for position in [at - 1, at + 1] {
            if draft.stages[boundary - 1].first < position && position < draft.stages[boundary].end {
                changes.push(Change::Shift { boundary, position });
            }
        }
    }
    changes
}

pub(super) fn changed(instance: &Instance<'_>, draft: &Draft, change: Change) -> Draft {
    match change {
        Change::Regroup { device, from, to } => regrouped(instance, draft, device, from, to),
        Change::Shift { boundary, position } => {
            let mut next = draft.clone();
            next.stages[boundary - 1].end = position;
            next.stages[boundary].first = position;
            next
        }
    }
}

fn regrouped(
    instance: &Instance<'_>,
    draft: &Draft,
    device: usize,
    from: Option<usize>,
    to: Option<usize>,
) -> Draft {
    let mut draft = draft.clone();
    let reshare = |stage: &mut DraftStage, devices: &[usize]| {
        stage.replicas = by_speed(instance, devices, stage.first, stage.end);
    };
    if let Some(from) = from {
        let stage = &mut draft.stages[from];
        let left: Vec<usize> =
            stage.replicas.iter().map(|&(other, _)| other).filter(|&d| d != device).collect();
        reshare(stage, &left);
    }
    if let Some(to) = to {
        let stage = &mut draft.stages[to];
        let mut joined: Vec<usize> = stage.replicas.iter().map(|&(other, _)| other).collect();
        joined.push(device);
        reshare(stage, &joined);
    }
    draft
}
