//! Replicas near to where requests enter: the quickest way for all of them where no single chain is near to all.
//!
//! Hill climbing as in `climb`, by latency. Shares are as the devices' speeds, or as the requests enter: a replica where
//! requests enter saves them a hop.

use super::Costed;
use super::chain::Steps;
use super::climb::{changed, changes, cost};
use crate::evaluate::{Draft, DraftStage, evaluate_draft, fits};
use crate::instance::Instance;

/// Climbs from a plan until no single change makes a request quicker, or the steps are used up.
pub(super) fn climb(instance: &Instance<'_>, start: Costed, steps: &mut Steps) -> Costed {
    let mut best = start;
    loop {
        let mut improved: Option<Costed> = None;
        for change in changes(instance, &best.0) {
            let by_speed = changed(instance, &best.0, change);
            let at_home = at_home(instance, &by_speed);
            for draft in [Some(by_speed), at_home].into_iter().flatten() {
                if !steps.pay(cost(&draft)) {
                    return improved.unwrap_or(best);
                }
                let evaluation = evaluate_draft(instance, &draft);
                let limit = improved.as_ref().map_or(best.1.latency_s, |(_, found)| found.latency_s);
                if evaluation.latency_s < limit * (1.0 - 1e-9)
                    && evaluation.is_served()
                    && fits(instance, &draft)
                {
                    improved = Some((draft, evaluation));
                }
            }
        }
        match improved {
            Some(costed) => best = costed,
            None => return best,
        }
    }
}

/// The same stages with shares as the requests enter, in every stage that has replicas where they do; replicas elsewhere
/// are left out of those. `None` where that changes nothing.
pub(super) fn at_home(instance: &Instance<'_>, draft: &Draft) -> Option<Draft> {
    let mut next = draft.clone();
    for stage in next.stages.iter_mut().filter(|stage| stage.replicas.len() > 1) {
        share_as_entering(instance, stage);
    }
    (next != *draft).then_some(next)
}

fn share_as_entering(instance: &Instance<'_>, stage: &mut DraftStage) {
    let entering = stage.replicas.iter().map(|&(device, _)| (device, instance.ingress[device]));
    let entering: Vec<(usize, f64)> = entering.filter(|&(_, share)| share > 0.0).collect();
    let sum: f64 = entering.iter().map(|(_, share)| share).sum();
    if sum > 0.0 {
        stage.replicas = entering.into_iter().map(|(device, share)| (device, share / sum)).collect();
    }
}
