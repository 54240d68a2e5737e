//! From a problem to the best plan found, with a bound on what could be better.
//!
//! The plans looked at give a device at most one stage, unless more stages than devices are asked for, or devices are so
//! few that all divisions of the blocks (`turns`), or of runs of them (`runs`), can be looked at. A stage has one device,
//! or, with replication, several that share its requests.

mod beam;
mod chain;
mod climb;
mod divided;
mod every;
mod exact;
mod fit;
mod groups;
mod infeasible;
mod lighter;
mod near;
mod order;
mod rates;
mod replan;
mod restart;
mod runs;
mod shares;
mod shift;
mod spread;
mod subsets;
mod tiling;
mod turns;

use chain::{Goal, Steps};
use fit::{Effort, Fit};

use crate::bound::lower_bound;
use crate::evaluate::{Draft, DraftStage, Evaluation, entrances, evaluate_draft, fits};
use crate::explain::{Considered, plan_of};
use crate::instance::Instance;
use crate::plan::{Objective, Plan};
use crate::problem::Problem;
pub use infeasible::Infeasible;
pub use replan::{Replan, replan};

/// Steps that plan for 8 devices and 200 blocks exactly, in about 0.1 s of one core at most.
pub const DEFAULT_STEPS: u64 = 20_000_000;

/// Up to so many devices, searches go on until the bound is met.
const EXACTING: usize = 8;
/// With more devices, a plan that is so near to the bound is not searched further.
const GOOD_ENOUGH: f64 = 1.005;

/// With more devices, of two rates that are so close the plan that answers sooner is taken.
const HARDLY_WORSE: f64 = 0.002;

/// The part of the steps that `turns` may take.
const TURNS_PART: u64 = 16;

/// A solver's answer before it is explained.
#[derive(Debug)]
pub(crate) struct Solution {
    /// The best plan found.
    pub(crate) draft: Draft,
    /// Its cost.
    pub(crate) evaluation: Evaluation,
    /// Nothing in the space of plans is better.
    pub(crate) optimal: bool,
    /// No plan's bottleneck is shorter.
    pub(crate) lower_bound_s: f64,
    /// A remark on how the plan came to be.
    pub(crate) remark: Option<String>,
}

/// Finds a plan. Equal problems and steps give equal plans; more steps can give better ones.
///
/// The bound in the plan is on the bottleneck, on either objective; `optimal` speaks of the objective. Beyond the few
/// devices and blocks of `turns`, both speak of plans that give a device at most one stage, unless the plan itself gives
/// one several: then of all plans.
///
/// # Errors
/// When the problem is senseless or no plan can hold the model, with the reason in words and bytes.
pub fn solve(problem: &Problem, steps: u64) -> Result<Plan, Infeasible> {
    problem.validate().map_err(|error| Infeasible::senseless(&error))?;
    let instance = Instance::new(problem);
    let (solution, considered) = solved(&instance, steps)?;
    Ok(plan_of(&instance, solution, &considered))
}

/// As [`solve`]; where cuts can be moved so that fewer bytes cross and the rate becomes lower by at most this part of it,
/// they are: predictions are not that exact, and what is sent less comes sooner and bears links that become slow. Plans
/// for the least latency, and those that somebody gave, stay as they are.
///
/// # Errors
/// As [`solve`].
pub fn solve_lighter(problem: &Problem, steps: u64, part: f64) -> Result<Plan, Infeasible> {
    problem.validate().map_err(|error| Infeasible::senseless(&error))?;
    let instance = Instance::new(problem);
    let (mut solution, considered) = solved(&instance, steps)?;
    if problem.objective == Objective::Throughput && problem.pin.is_none() {
        solution = lightened(&instance, solution, part);
    }
    Ok(plan_of(&instance, solution, &considered))
}

fn lightened(instance: &Instance<'_>, solution: Solution, part: f64) -> Solution {
    let (least_s, limit_s) =
        (solution.evaluation.bottleneck_s, solution.evaluation.bottleneck_s / (1.0 - part));
    let start = (solution.draft, solution.evaluation);
    let mut steps = Steps::new(DEFAULT_STEPS / TURNS_PART);
    let (draft, evaluation) = lighter::lighter(instance, start, limit_s, &mut steps);
    let slower = evaluation.bottleneck_s / least_s - 1.0;
    let is_slower = slower > 1e-9;
    let remark = is_slower.then(|| {
        format!("A plan that is {:.1} % faster has more bytes to cross between its stages.", slower * 100.0)
    });
    let optimal = solution.optimal && !is_slower;
    Solution { draft, evaluation, optimal, remark: remark.or(solution.remark), ..solution }
}

/// The solution and all that was tried, for a valid problem.
fn solved(instance: &Instance<'_>, steps: u64) -> Result<(Solution, Vec<Considered>), Infeasible> {
    if instance.problem.pin.is_some() {
        return Ok((pinned(instance)?, Vec::new()));
    }
    infeasible::rule_out(instance)?;
    match choose(instance, consider(instance, steps)) {
        Some(found) => Ok(found),
        None => divided::search(instance, steps),
    }
}

/// Everything that was tried, and what was proved about plans with one device for each stage.
struct Tried {
    considered: Vec<Considered>,
    /// No such plan's value (load or latency, by objective) is smaller.
    proven: Option<f64>,
}

fn consider(instance: &Instance<'_>, steps: u64) -> Tried {
    let latency = instance.problem.objective == Objective::Latency;
    let alone = one_device(instance, latency);
    let known = alone.as_ref().map(|(_, evaluation)| evaluation.clone());
    let mut considered = vec![Considered::new("one device", alone)];
    considered.push(Considered::new("replicate everywhere", everywhere(instance, latency)));
    let mut budget = Steps::new(steps);
    let (chain, mut proven) = chain(instance, latency, known.as_ref(), &mut budget);
    considered.push(Considered::new("chain", chain));
    let value =
        |evaluation: &Evaluation| if latency { evaluation.latency_s } else { evaluation.bottleneck_s };
    let singles = [0, 2].map(|at: usize| considered[at].found.as_ref().map(|(_, evaluation)| evaluation));
    let best = singles.into_iter().flatten().min_by(|a, b| value(a).total_cmp(&value(b)));
    // Who asks for stages asks for devices that share the work.
    let is_free = instance.stage_limits().0 == 1;
    let mut budget = Steps::new(steps / TURNS_PART);
    if is_free && turns::is_small(instance) {
        let limit = best.map_or(f64::INFINITY, value);
        let turns = turns::search(instance, latency, limit, &mut budget);
        let least = turns.better.as_ref().map(|(_, evaluation)| evaluation).or(best).map(value);
        proven = least.filter(|_| turns.is_complete);
        if turns.better.is_some() {
            considered.push(Considered::new("devices in turns", turns.better));
        }
    } else if is_free && !latency {
        let all = considered.iter().filter_map(|other| other.found.as_ref());
        let limit = all.map(|(_, evaluation)| value(evaluation)).fold(f64::INFINITY, f64::min);
        if let Some(found) = runs::search(instance, limit, &mut budget) {
            considered.push(Considered::new("devices in turns", Some(found)));
        }
    }
    if instance.problem.replication && instance.devices() > 1 {
        if !latency {
            considered.push(Considered::new("mixture", mixture(instance, &considered, steps)));
        } else if entrances(instance).len() > 1 {
            considered.push(Considered::new("mixture", nearby(instance, &considered, steps)));
        }
    }
    Tried { considered, proven }
}

/// Replicas near to where requests enter, from every other plan and from the one with the highest rate.
fn nearby(instance: &Instance<'_>, considered: &[Considered], steps: u64) -> Option<Costed> {
    let known = considered.iter().filter_map(|other| other.found.clone());
    let starts: Vec<Costed> = known.chain(mixture(instance, considered, steps / 4)).collect();
    let share = steps / 4 / starts.len().max(1) as u64;
    let climbed = starts.into_iter().map(|start| near::climb(instance, start, &mut Steps::new(share)));
    climbed.min_by(|a, b| a.1.latency_s.total_cmp(&b.1.latency_s))
}

/// Stages on groups of devices, and what climbing from every other plan finds. Nothing when a plan that is known
/// already cannot be beaten.
fn mixture(instance: &Instance<'_>, considered: &[Considered], steps: u64) -> Option<Costed> {
    let known: Vec<Costed> = considered.iter().filter_map(|other| other.found.clone()).collect();
    let by_bottleneck = |a: &Costed, b: &Costed| a.1.bottleneck_s.total_cmp(&b.1.bottleneck_s);
    let bound = lower_bound(instance);
    let best = known.iter().min_by(|a, b| by_bottleneck(a, b));
    let is_large = instance.devices() > EXACTING;
    let enough = bound * if is_large { GOOD_ENOUGH } else { 1.0 + 1e-9 };
    // A chain of many stages may reach the bound; groups can do so with fewer hops.
    let is_short = |(draft, _): &&Costed| !is_large || draft.stages.len() < EXACTING;
    if let Some(best) = best.filter(|(_, cost)| cost.bottleneck_s <= enough).filter(is_short) {
        return Some(best.clone());
    }
    let spread = spread::search(instance, &mut Steps::new(steps / 4));
    if let Some(spread) = spread.as_ref().filter(|(_, evaluation)| evaluation.bottleneck_s <= enough) {
        return Some(spread.clone());
    }
    if let Some(best) = best.filter(|(_, evaluation)| evaluation.bottleneck_s <= enough) {
        return Some(best.clone());
    }
    let known_s =
        known.iter().chain(&spread).map(|(_, cost)| cost.bottleneck_s).fold(f64::INFINITY, f64::min);
    let groups = groups::search(instance, known_s, &mut Steps::new(steps / 8)).into_iter().chain(spread);
    // Where links lack, climbing from where every request stays ends elsewhere than from shares by speed.
    let stay = if instance.lacks_links() { staying(instance) } else { None };
    let starts = known.into_iter().chain(groups).chain(stay);
    let climbed = starts.map(|start| restart::to_the_top(instance, start, &mut Steps::new(steps / 64)));
    let best = climbed.min_by(by_bottleneck)?;
    let best = restart::search(instance, best, enough, &mut Steps::new(steps / 4));
    let best = every::search(instance, best, enough, &mut Steps::new(steps));
    best.1.is_served().then_some(best)
}

fn choose(instance: &Instance<'_>, tried: Tried) -> Option<(Solution, Vec<Considered>)> {
    let latency = instance.problem.objective == Objective::Latency;
    let value =
        |evaluation: &Evaluation| if latency { evaluation.latency_s } else { evaluation.bottleneck_s };
    let other =
        |evaluation: &Evaluation| if latency { evaluation.bottleneck_s } else { evaluation.latency_s };
    let equal = if instance.devices() > EXACTING && !latency { HARDLY_WORSE } else { 1e-9 };
    let mut best: Option<&(Draft, Evaluation)> = None;
    for costed in tried.considered.iter().filter_map(|considered| considered.found.as_ref()) {
        let is_better = best.is_none_or(|(_, old)| {
            let (new, old_value) = (value(&costed.1), value(old));
            let is_equal = (new - old_value).abs() <= equal * old_value;
            if is_equal { other(&costed.1) < other(old) * (1.0 - 1e-9) } else { new < old_value }
        });
        if is_better {
            best = Some(costed);
        }
    }
    let (draft, evaluation) = best?.clone();
    let mut bound = lower_bound(instance);
    let mut optimal = !latency && evaluation.bottleneck_s <= bound * (1.0 + 1e-9);
    // What was proven of plans with one stage for each device says nothing of one that gives a device several.
    let is_of_kind = turns::is_small(instance) || !has_turns(&draft);
    if let Some(proven) = tried.proven.filter(|_| is_of_kind) {
        // With one ingress, replicas can raise the rate, but never shorten the way of one request.
        let one_way = latency && entrances(instance).len() < 2;
        if one_way || !instance.problem.replication {
            optimal |= value(&evaluation) <= proven * (1.0 + 1e-9);
        }
        if !latency && !instance.problem.replication {
            bound = bound.max(proven);
        }
    }
    let lower_bound_s = bound.min(evaluation.bottleneck_s);
    let solution = Solution { draft, evaluation, optimal, lower_bound_s, remark: None };
    Some((solution, tried.considered))
}

/// Whether some device has several stages.
fn has_turns(draft: &Draft) -> bool {
    let mut devices: Vec<usize> =
        draft.stages.iter().flat_map(|stage| &stage.replicas).map(|&(device, _)| device).collect();
    devices.sort_unstable();
    devices.windows(2).any(|pair| pair[0] == pair[1])
}

type Costed = (Draft, Evaluation);

fn costed(instance: &Instance<'_>, draft: Draft) -> Option<Costed> {
    let evaluation = evaluate_draft(instance, &draft);
    let is_usable = fits(instance, &draft) && evaluation.is_served();
    is_usable.then_some((draft, evaluation))
}

fn whole(instance: &Instance<'_>, replicas: Vec<(usize, f64)>) -> Draft {
    Draft { stages: vec![DraftStage { first: 0, end: instance.blocks, replicas }] }
}

fn one_device(instance: &Instance<'_>, latency: bool) -> Option<Costed> {
    if instance.stage_limits().0 > 1 {
        return None;
    }
    let value =
        |evaluation: &Evaluation| if latency { evaluation.latency_s } else { evaluation.bottleneck_s };
    let alone =
        instance.usable().into_iter().filter_map(|d| costed(instance, whole(instance, vec![(d, 1.0)])));
    alone.min_by(|a, b| value(&a.1).total_cmp(&value(&b.1)))
}

/// The whole model on every device that holds it and that the requests can reach.
fn everywhere(instance: &Instance<'_>, latency: bool) -> Option<Costed> {
    if instance.stage_limits().0 > 1 || !instance.problem.replication {
        return None;
    }
    let bytes = instance.stage_bytes(0, instance.blocks);
    let mut devices = instance.usable();
    devices.retain(|&device| instance.memory(device) >= bytes);
    // By speed, and as the requests enter: the one is better for slow work, the other for slow links.
    let at_home = entrances(instance).into_iter().filter(|(device, _)| devices.contains(device)).collect();
    let by_speed = |devices: &[usize]| shares::by_speed(instance, devices, 0, instance.blocks);
    let mut starts = vec![by_speed(&devices), at_home];
    devices.retain(|&device| is_reachable(instance, device));
    starts.push(by_speed(&devices));
    starts.retain(|start| (start.iter().map(|(_, share)| share).sum::<f64>() - 1.0).abs() < 1e-9);
    let drafts = starts.into_iter().map(|start| whole(instance, start));
    if latency {
        let found = drafts.filter_map(|draft| costed(instance, draft));
        return found.min_by(|a, b| a.1.latency_s.total_cmp(&b.1.latency_s));
    }
    let polished = drafts.map(|draft| shares::polish(instance, draft, false));
    let best = polished.min_by(|a, b| a.1.bottleneck_s.total_cmp(&b.1.bottleneck_s));
    best.and_then(|(draft, _)| costed(instance, draft))
}

/// The whole model wherever requests enter, each served where it does.
fn staying(instance: &Instance<'_>) -> Option<Costed> {
    if instance.stage_limits().0 > 1 || entrances(instance).is_empty() {
        return None;
    }
    costed(instance, whole(instance, entrances(instance)))
}

/// Requests that enter anywhere else get to this device and back.
fn is_reachable(instance: &Instance<'_>, device: usize) -> bool {
    let mut others =
        (0..instance.devices()).filter(|&other| other != device && instance.ingress[other] > 0.0);
    others.all(|other| instance.link(other, device).0 > 0.0 && instance.link(device, other).0 > 0.0)
}

/// The best chain, and its value when that is proven. A plan that is known already narrows the search.
fn chain(
    instance: &Instance<'_>,
    latency: bool,
    known: Option<&Evaluation>,
    steps: &mut Steps,
) -> (Option<Costed>, Option<f64>) {
    let limit =
        |value: fn(&Evaluation) -> f64| known.map_or(f64::INFINITY, |known| value(known) * (1.0 + 1e-9));
    let goal = if latency {
        Goal { latency, cap_s: f64::INFINITY, longest_s: limit(|known| known.latency_s) }
    } else {
        Goal { latency, cap_s: limit(|known| known.bottleneck_s), longest_s: f64::INFINITY }
    };
    if latency {
        let (goal, likely) = narrowed(instance, goal, steps);
        let (chain, proven) = quickest_chain(instance, goal, steps);
        // What narrowed the search is a chain too: the one to take when nothing better was found in the steps.
        return (chain.or(likely), proven);
    }
    fastest_chain(instance, goal, steps)
}

fn quickest_chain(instance: &Instance<'_>, goal: Goal, steps: &mut Steps) -> (Option<Costed>, Option<f64>) {
    if let Some(exact) = exact_chain(instance, goal, steps) {
        let chain = exact.draft.and_then(|draft| costed(instance, draft));
        return (chain, Some(exact.value.min(limit_of(goal))));
    }
    let mut budget = Steps::new(steps.left() / 2);
    let found = order::search(instance, goal, (None, 0.0), &mut budget);
    *steps = Steps::new(steps.left() / 2 + budget.left());
    (found.and_then(|(draft, _)| costed(instance, draft)), None)
}

fn fastest_chain(instance: &Instance<'_>, goal: Goal, steps: &mut Steps) -> (Option<Costed>, Option<f64>) {
    // The nearer the limit is to the best chain, the less there is to look at.
    let can_prove = exact::is_possible(instance);
    let effort = match instance.problem.replication {
        _ if can_prove => Effort::GLANCE,
        true => Effort::SOME,
        false => Effort::FULL,
    };
    let mut fit = fitted(instance, goal, Fit::new(instance), effort, steps);
    let (narrow, likely) = narrowed(instance, fit.within(goal), steps);
    if let Some((draft, evaluation)) = likely
        && evaluation.bottleneck_s < limit_of(fit.within(goal))
    {
        fit.chain = Some((draft, evaluation.bottleneck_s));
    }
    if can_prove {
        if let Some(exact) = exact_chain(instance, narrow, steps) {
            let value = exact.value.min(limit_of(narrow));
            let quick = exact.draft.map(|draft| quickest(instance, draft, exact.value, steps));
            let chain = quick.or(fit.chain.map(|(draft, _)| draft));
            return (chain.and_then(|draft| costed(instance, draft)), Some(value));
        }
        if !instance.problem.replication {
            fit = fitted(instance, goal, fit, Effort::FULL, steps);
        }
    }
    finely(instance, goal, fit, steps)
}

/// The chain that is proven the best one, in half of the steps.
fn exact_chain(instance: &Instance<'_>, goal: Goal, steps: &mut Steps) -> Option<exact::Exact> {
    let mut budget = Steps::new(steps.left() / 2);
    let exact = exact::best_chain(instance, goal, &mut budget);
    *steps = Steps::new(steps.left() - steps.left() / 2 + budget.left());
    exact
}

/// A chain and a bound by prices, in half of the steps.
fn fitted(instance: &Instance<'_>, goal: Goal, before: Fit, effort: Effort, steps: &mut Steps) -> Fit {
    let mut budget = Steps::new(steps.left() / 2);
    let fit = fit::search(instance, limit_of(before.within(goal)), before, effort, &mut budget);
    *steps = Steps::new(steps.left() - steps.left() / 2 + budget.left());
    fit
}

/// What sets of devices and orders of them can make better of a chain that was fitted.
fn finely(
    instance: &Instance<'_>,
    goal: Goal,
    mut fit: Fit,
    steps: &mut Steps,
) -> (Option<Costed>, Option<f64>) {
    let is_open = |fit: &Fit| fit.bound < limit_of(fit.within(goal)) * (1.0 - 1e-9);
    if is_open(&fit) && !instance.problem.replication {
        let known = limit_of(fit.within(goal));
        if let Some(sets) = subsets::search(instance, (fit.bound, known), steps) {
            fit.bound = fit.bound.max(sets.bound);
            fit.chain = sets.chain.map(|(draft, cost)| (draft, cost.bottleneck_s)).or(fit.chain);
        }
    }
    let bound = Some(fit.bound);
    if fit.chain.is_some() && !is_open(&fit) {
        return (fit.chain.and_then(|(draft, _)| costed(instance, draft)), bound);
    }
    let goal = fit.within(goal);
    let mut budget = Steps::new(steps.left() / 2);
    let found = order::search(instance, goal, (fit.chain, fit.bound), &mut budget);
    *steps = Steps::new(steps.left() - steps.left() / 2 + budget.left());
    (found.and_then(|(draft, _)| costed(instance, draft)), bound)
}

/// The goal with what a likely order of devices reaches as its limit, and the chain that reaches it.
fn narrowed(instance: &Instance<'_>, goal: Goal, steps: &mut Steps) -> (Goal, Option<Costed>) {
    let mut budget = Steps::new(steps.left() / 8);
    let found = order::quick(instance, goal, &mut budget);
    *steps = Steps::new(steps.left() - steps.left() / 8 + budget.left());
    // The draft's own cost: the search leaves some loads of ingress devices out, which only matters here.
    let chain = found.and_then(|(draft, _)| costed(instance, draft));
    let value = chain
        .as_ref()
        .map_or(f64::INFINITY, |(_, cost)| if goal.latency { cost.latency_s } else { cost.bottleneck_s });
    let limit = value * (1.0 + 1e-9);
    let goal = if goal.latency {
        Goal { longest_s: goal.longest_s.min(limit), ..goal }
    } else {
        Goal { cap_s: goal.cap_s.min(limit), ..goal }
    };
    (goal, chain)
}

/// Chains beyond this value were not looked for.
fn limit_of(goal: Goal) -> f64 {
    if goal.latency { goal.longest_s } else { goal.cap_s }
}

/// Among the chains with this bottleneck, one with the least latency: no hops that bring nothing.
fn quickest(instance: &Instance<'_>, draft: Draft, bottleneck_s: f64, steps: &mut Steps) -> Draft {
    let longest_s = evaluate_draft(instance, &draft).latency_s * (1.0 + 1e-9);
    let goal = Goal { latency: true, cap_s: bottleneck_s * (1.0 + 1e-9), longest_s };
    let mut budget = Steps::new(steps.left() / 2);
    let exact = exact::best_chain(instance, goal, &mut budget);
    *steps = Steps::new(steps.left() / 2 + budget.left());
    let quick = exact.and_then(|exact| exact.draft);
    quick.filter(|quick| evaluate_draft(instance, quick).bottleneck_s <= goal.cap_s).unwrap_or(draft)
}

/// The same stages and devices with better shares, every device kept.
pub(crate) fn reshared(instance: &Instance<'_>, draft: Draft) -> Draft {
    let mut by_speed = draft.clone();
    for stage in &mut by_speed.stages {
        let devices: Vec<usize> = stage.replicas.iter().map(|&(device, _)| device).collect();
        stage.replicas = shares::by_speed(instance, &devices, stage.first, stage.end);
    }
    let polished = [draft, by_speed].map(|draft| shares::polish(instance, draft, true));
    let [a, b] = polished;
    if a.1.bottleneck_s <= b.1.bottleneck_s { a.0 } else { b.0 }
}

fn pinned(instance: &Instance<'_>) -> Result<Solution, Infeasible> {
    let index = |id: &String| instance.problem.devices.iter().position(|device| device.id == *id);
    let mut stages = Vec::new();
    for stage in instance.problem.pin.iter().flatten() {
        let devices: Vec<usize> = stage.devices.iter().filter_map(index).collect();
        infeasible::rule_out_unprofiled(instance, &devices)?;
        let end = stage.last_block + 1;
        let replicas = shares::by_speed(instance, &devices, stage.first_block, end);
        stages.push(DraftStage { first: stage.first_block, end, replicas });
    }
    let draft = Draft { stages };
    infeasible::rule_out_draft(instance, &draft)?;
    let (draft, evaluation) = shares::polish(instance, draft, true);
    if !evaluation.is_served() {
        return Err(Infeasible::unlinked(instance));
    }
    let lower_bound_s = lower_bound(instance).min(evaluation.bottleneck_s);
    let remark = Some("The operator gave the stages and their devices.".to_owned());
    Ok(Solution { draft, evaluation, optimal: false, lower_bound_s, remark })
}
