//! More stages than there are devices that could each run one.

use super::chain::Steps;
use super::{Infeasible, Solution, TURNS_PART, choose, consider, turns};
use crate::bound::lower_bound;
use crate::evaluate::{Draft, DraftStage, evaluate_draft, fits};
use crate::explain::Considered;
use crate::instance::Instance;
use crate::plan::Objective;
use crate::problem::Problem;

/// Few devices and blocks in turns; else the stages of plans with fewer of them divided further.
pub(super) fn search(instance: &Instance<'_>, steps: u64) -> Result<(Solution, Vec<Considered>), Infeasible> {
    let (wanted, devices) = (instance.stage_limits().0, instance.usable().len());
    let found =
        if wanted > 1 { in_turns(instance, steps).or_else(|| divisions(instance, steps)) } else { None };
    let (mut solution, considered) = found.ok_or_else(|| Infeasible::no_arrangement(instance))?;
    solution.remark = Some(match devices < wanted {
        true => format!(
            "{wanted} stages were asked for and {devices} devices can run them, so some devices run several."
        ),
        false => {
            format!("{wanted} stages were asked for; some devices run several, as others cannot take one.")
        }
    });
    Ok((solution, considered))
}

fn in_turns(instance: &Instance<'_>, steps: u64) -> Option<(Solution, Vec<Considered>)> {
    let latency = instance.problem.objective == Objective::Latency;
    if !turns::is_small(instance) {
        return None;
    }
    let turns = turns::search(instance, latency, f64::INFINITY, &mut Steps::new(steps / TURNS_PART));
    let (draft, evaluation) = turns.better?;
    let considered = vec![Considered::new("devices in turns", Some((draft.clone(), evaluation.clone())))];
    let lower_bound_s = lower_bound(instance).min(evaluation.bottleneck_s);
    Some((Solution { draft, evaluation, optimal: false, lower_bound_s, remark: None }, considered))
}

/// Of the longest plan that there is, and on latency also of shorter ones, down to one device.
fn divisions(instance: &Instance<'_>, steps: u64) -> Option<(Solution, Vec<Considered>)> {
    let latency = instance.problem.objective == Objective::Latency;
    let most = instance.usable().len().min(instance.stage_limits().0);
    let mut count = instance.usable().len().min(instance.stage_limits().0 - 1);
    let mut best: Option<(Solution, Vec<Considered>)> = None;
    while count > 0 && (best.is_none() || latency) {
        let found = divided(instance, count, steps);
        best = match (best, found) {
            (Some(old), Some(new)) if old.0.evaluation.latency_s <= new.0.evaluation.latency_s => Some(old),
            (old, new) => new.or(old),
        };
        // One less where the longest does not fit; then ever fewer, not one by one through hundreds of devices.
        count = if count + 2 > most { count - 1 } else { count / 2 };
    }
    best
}

/// The best plan with so many stages, divided further until there are as many as were asked for.
fn divided(instance: &Instance<'_>, stages: usize, steps: u64) -> Option<(Solution, Vec<Considered>)> {
    let relaxed = Problem { min_stages: Some(stages), max_stages: Some(stages), ..instance.problem.clone() };
    let relaxed = Instance::new(&relaxed);
    let (mut solution, considered) = choose(&relaxed, consider(&relaxed, steps))?;
    while solution.draft.stages.len() < instance.stage_limits().0 {
        solution.draft = divide(instance, &solution.draft)?;
    }
    solution.evaluation = evaluate_draft(instance, &solution.draft);
    solution.optimal = false;
    solution.lower_bound_s = lower_bound(instance).min(solution.evaluation.bottleneck_s);
    Some((solution, considered))
}

/// Cuts one stage in two where the fewest bytes cross and memory allows.
fn divide(instance: &Instance<'_>, draft: &Draft) -> Option<Draft> {
    let mut best: Option<(u64, Draft)> = None;
    for (index, stage) in draft.stages.iter().enumerate() {
        for position in stage.first + 1..stage.end {
            let bytes = instance.problem.cuts[position];
            if best.as_ref().is_some_and(|(old, _)| *old <= bytes) {
                continue;
            }
            let mut divided = draft.clone();
            divided.stages[index].end = position;
            let rest = DraftStage { first: position, ..stage.clone() };
            divided.stages.insert(index + 1, rest);
            if fits(instance, &divided) {
                best = Some((bytes, divided));
            }
        }
    }
    best.map(|(_, draft)| draft)
}
