//! Hill climbing on whole plans: move a device to another stage, bring one in, leave one out, shift a boundary.

use super::chain::Steps;
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
        for draft in neighbours(instance, &best.0) {
            if !steps.pay(cost(&draft)) {
                return improved.unwrap_or(best);
            }
            if !fits(instance, &draft) {
                continue;
            }
            let limit = improved
                .as_ref()
                .map_or(best.1.bottleneck_s, |(_, old): &(Draft, Evaluation)| old.bottleneck_s);
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

fn neighbours(instance: &Instance<'_>, draft: &Draft) -> Vec<Draft> {
    let mut drafts = Vec::new();
    for device in instance.usable() {
        let home =
            draft.stages.iter().position(|stage| stage.replicas.iter().any(|&(other, _)| other == device));
        let alone = home.is_some_and(|home| draft.stages[home].replicas.len() == 1);
        if alone {
            continue;
        }
        drafts.extend(home.map(|home| regrouped(instance, draft, device, Some(home), None)));
        for stage in (0..draft.stages.len()).filter(|&stage| Some(stage) != home) {
            drafts.push(regrouped(instance, draft, device, home, Some(stage)));
        }
    }
    for boundary in 1..draft.stages.len() {
        let position = draft.stages[boundary].first;
        for shifted in [position - 1, position + 1] {
            if draft.stages[boundary - 1].first < shifted && shifted < draft.stages[boundary].end {
                let mut next = draft.clone();
                next.stages[boundary - 1].end = shifted;
                next.stages[boundary].first = shifted;
                drafts.push(next);
            }
        }
    }
    drafts
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
