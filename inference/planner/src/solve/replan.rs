//! Plans for a mesh that already runs one: nearly the best rate, with the fewest weights to move.
//!
//! Starts are the best plan and the running one, mended where devices are gone and climbed from. Each is changed step
//! by step into one that moves less, as long as it stays close enough to the best.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use super::chain::Steps;
use super::climb::{Change, changed, changes, cost};
use super::restart::to_the_top;
use super::shares::{by_speed, polish};
use super::{Solution, solved};
use crate::evaluate::{Draft, DraftStage, Evaluation, evaluate_draft, fits};
use crate::explain::{Considered, plan_of};
use crate::instance::Instance;
use crate::plan::{Objective, Plan};
use crate::problem::Problem;
use crate::size::size;
use crate::solve::Infeasible;

/// A plan that is so much worse than the best is chosen if it moves less.
const TOLERANCE: f64 = 0.02;
/// The same where the running plan cannot go on, so that requests wait for what is loaded...
const HASTE: f64 = 0.25;
/// ...if it loads no more than one part in so many.
const WORTH_HASTE: u64 = 2;
/// Rounds of changing a plan into one that moves less.
const ROUNDS: usize = 200;

/// Plans that are changed into ones that move less.
const SETTLED: usize = 8;
/// Devices and blocks that are moved to even out the stages.
const REBALANCES: usize = 24;

/// What to run next, and what it takes to get there.
#[derive(Debug, Clone, PartialEq)]
pub struct Replan {
    /// The plan: of those within 2 % of the best one, the one found that moves the fewest bytes. Where the running plan
    /// cannot go on, one within 25 % if that takes half of the loading at most.
    pub plan: Plan,
    /// How much longer it takes than the best plan found: 0.2 for 20 %.
    pub behind: f64,
    /// Weight bytes that devices need and do not hold for the running plan.
    pub moved_bytes: u64,
    /// Replicas whose stage their device does not run already.
    pub moved_replicas: usize,
    /// Rate (or, for latency, speed) over that of the running plan, minus 1. `None` when the running plan cannot go on.
    pub gain: Option<f64>,
}

impl Replan {
    /// Whether the plan was taken for what it does not load, and a better one is known.
    pub fn is_hasty(&self) -> bool {
        self.behind > TOLERANCE * 1.000_001
    }
}

/// Plans anew, where `running` is what the devices hold. Pure, as `solve` is.
///
/// # Errors
/// When the problem is senseless or no plan can hold the model.
pub fn replan(problem: &Problem, running: &Plan, steps: u64) -> Result<Replan, Infeasible> {
    problem.validate().map_err(|error| Infeasible::senseless(&error))?;
    let instance = Instance::new(problem);
    let (solution, considered) = solved(&instance, steps)?;
    let held = Held::new(&instance, running);
    let latency = problem.objective == Objective::Latency;
    let now = resumed(&instance, running).map(|(_, evaluation)| value(&evaluation, latency));
    let (draft, best) = if problem.pin.is_some() {
        ((solution.draft.clone(), solution.evaluation.clone()), value(&solution.evaluation, latency))
    } else {
        let search = Search { instance: &instance, held: &held, latency, limit: f64::INFINITY };
        let tolerances = if now.is_some() { &[TOLERANCE][..] } else { &[TOLERANCE, HASTE] };
        search.least_moved(&solution, &considered, running, tolerances, &mut Steps::new(steps / 4))
    };
    let moved = held.missing(&draft.0);
    let chosen = value(&draft.1, latency).max(1e-12);
    let gain = now.map(|now| now.max(1e-12) / chosen - 1.0);
    let behind = chosen / best.max(1e-12) - 1.0;
    let plan = finished(&instance, solution, &considered, draft, moved.bytes, &held);
    Ok(Replan { plan, behind, moved_bytes: moved.bytes, moved_replicas: moved.replicas, gain })
}

fn value(evaluation: &Evaluation, latency: bool) -> f64 {
    if latency { evaluation.latency_s } else { evaluation.bottleneck_s }
}

fn finished(
    instance: &Instance<'_>,
    best: Solution,
    considered: &[Considered],
    (draft, evaluation): (Draft, Evaluation),
    moved: u64,
    held: &Held<'_>,
) -> Plan {
    if draft == best.draft {
        return plan_of(instance, best, considered);
    }
    let of_best = held.missing(&best.draft).bytes;
    let remark = format!(
        "It moves {} of weights; the best plan found, with {:.3} requests/s, would move {}.",
        size(moved),
        best.evaluation.throughput_rps,
        size(of_best)
    );
    let lower_bound_s = best.lower_bound_s.min(evaluation.bottleneck_s);
    let solution = Solution { draft, evaluation, optimal: false, lower_bound_s, remark: Some(remark) };
    plan_of(instance, solution, considered)
}

/// What each device holds for the running plan.
struct Held<'a> {
    instance: &'a Instance<'a>,
    blocks: Vec<BTreeSet<usize>>,
    stages: BTreeSet<(usize, usize, usize)>,
}

impl<'a> Held<'a> {
    fn new(instance: &'a Instance<'a>, running: &Plan) -> Self {
        let index = indices(instance);
        let mut blocks = vec![BTreeSet::new(); instance.devices()];
        let mut stages = BTreeSet::new();
        for stage in &running.stages {
            let (first, end) = (stage.first_block, (stage.last_block + 1).min(instance.blocks));
            for replica in &stage.replicas {
                if let Some(&device) = index.get(replica.device.as_str()) {
                    blocks[device].extend(first..end);
                    stages.insert((device, first, end));
                }
            }
            for device in stage.standbys.iter().filter_map(|id| index.get(id.as_str()).copied()) {
                blocks[device].extend(first..end);
                stages.insert((device, first, end));
            }
        }
        Self { instance, blocks, stages }
    }

    /// What a draft takes that is not there yet.
    fn missing(&self, draft: &Draft) -> Missing {
        let mut all = Missing::default();
        for stage in &draft.stages {
            for &(device, _) in &stage.replicas {
                let missing = (stage.first..stage.end).filter(|block| !self.blocks[device].contains(block));
                let weights = missing.map(|block| self.instance.weight(block, block + 1));
                all.bytes = weights.fold(all.bytes, u64::saturating_add);
                if !self.stages.contains(&(device, stage.first, stage.end)) {
                    let loaded = self.instance.weight(stage.first, stage.end);
                    all.loaded = all.loaded.saturating_add(loaded);
                    all.replicas += 1;
                }
            }
        }
        all
    }
}

/// What devices have to get for a draft; compared in this order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Missing {
    /// Weights of blocks that they do not hold.
    bytes: u64,
    /// Weights of stages that they do not run: a stage is loaded as a whole.
    loaded: u64,
    /// Stages that they do not run.
    replicas: usize,
}

impl Missing {
    fn effort(&self) -> u64 {
        self.bytes.saturating_add(self.loaded)
    }
}

fn indices<'a>(instance: &'a Instance<'_>) -> BTreeMap<&'a str, usize> {
    (0..instance.devices()).map(|device| (instance.id(device), device)).collect()
}

/// The running plan as it is, if the devices that are there can go on with it.
fn resumed(instance: &Instance<'_>, running: &Plan) -> Option<(Draft, Evaluation)> {
    let index = indices(instance);
    let (mut next, mut stages) = (0, Vec::new());
    for stage in &running.stages {
        let replicas = stage.replicas.iter().map(|replica| {
            let device = *index.get(replica.device.as_str())?;
            (instance.is_profiled(device) && replica.share > 0.0).then_some((device, replica.share))
        });
        let replicas: Vec<(usize, f64)> = replicas.collect::<Option<_>>()?;
        if stage.first_block != next || stage.last_block < next || replicas.is_empty() {
            return None;
        }
        next = stage.last_block + 1;
        stages.push(DraftStage { first: stage.first_block, end: next, replicas });
    }
    let draft = Draft { stages };
    if next != instance.blocks || !fits(instance, &draft) {
        return None;
    }
    let evaluation = evaluate_draft(instance, &draft);
    evaluation.is_served().then_some((draft, evaluation))
}

struct Search<'a> {
    instance: &'a Instance<'a>,
    held: &'a Held<'a>,
    latency: bool,
    /// No plan may take longer.
    limit: f64,
}

type Costed = (Draft, Evaluation);

impl Search<'_> {
    /// The plan that moves least, and the value of the best one. A greater tolerance, after the first, has to be worth it.
    fn least_moved(
        mut self,
        best: &Solution,
        considered: &[Considered],
        running: &Plan,
        tolerances: &[f64],
        steps: &mut Steps,
    ) -> (Costed, f64) {
        let mut best = (best.draft.clone(), best.evaluation.clone());
        let starts = self.starts(considered, running, steps);
        for start in &starts {
            if value(&start.1, self.latency) < value(&best.1, self.latency) {
                best = start.clone();
            }
        }
        let least = value(&best.1, self.latency);
        let mut chosen: Option<Costed> = None;
        for tolerance in tolerances {
            self.limit = least * (1.0 + tolerance);
            let costed = self.closest(&best, &starts, steps.left() / tolerances.len() as u64);
            let effort = |costed: &Costed| self.held.missing(&costed.0).effort();
            let pays =
                |other| effort(&costed) < effort(other) && effort(&costed) <= effort(other) / WORTH_HASTE;
            if chosen.as_ref().is_none_or(pays) {
                chosen = Some(costed);
            }
        }
        (chosen.unwrap_or(best), least)
    }

    /// Plans to change into others: what the solver has found, and the running plan, mended.
    fn starts(&self, considered: &[Considered], running: &Plan, steps: &mut Steps) -> Vec<Costed> {
        let mut starts: Vec<Costed> = considered.iter().filter_map(|other| other.found.clone()).collect();
        for mended in self.mended(running) {
            let evaluation = evaluate_draft(self.instance, &mended);
            starts.push((mended.clone(), evaluation));
            if !self.latency {
                let (mended, evaluation) = polish(self.instance, mended, false);
                starts.push((mended.clone(), evaluation.clone()));
                starts.extend(self.rebalanced((mended.clone(), evaluation.clone()), steps));
                starts.push(to_the_top(
                    self.instance,
                    (mended, evaluation),
                    &mut Steps::new(steps.left() / 8),
                ));
            }
        }
        starts.retain(|(draft, evaluation)| self.is_allowed(draft) && evaluation.is_served());
        starts
    }

    /// Of the plans within the limit the one that moves least.
    fn closest(&self, best: &Costed, starts: &[Costed], steps: u64) -> Costed {
        let mut near: Vec<Costed> = starts.iter().chain([best]).cloned().collect();
        near.retain(|start| value(&start.1, self.latency) <= self.limit);
        near.sort_by(|a, b| self.by_move(a, b));
        near.truncate(SETTLED);
        let budget = steps / near.len().max(1) as u64;
        let settled = near.into_iter().map(|start| self.settled(start, &mut Steps::new(budget)));
        settled.min_by(|a, b| self.by_move(a, b)).unwrap_or_else(|| best.clone())
    }

    /// By what has to be moved, then by value.
    fn by_move(&self, a: &Costed, b: &Costed) -> Ordering {
        let missing = |costed: &Costed| self.held.missing(&costed.0);
        let value = |costed: &Costed| value(&costed.1, self.latency);
        missing(a).cmp(&missing(b)).then_with(|| value(a).total_cmp(&value(b)))
    }

    fn is_allowed(&self, draft: &Draft) -> bool {
        let (min, max) = self.instance.stage_limits();
        let is_single = draft.stages.iter().all(|stage| stage.replicas.len() == 1);
        (min..=max).contains(&draft.stages.len())
            && (is_single || self.instance.problem.replication)
            && fits(self.instance, draft)
    }

    /// The running plan on the devices that are left. A stage that lost all of its own goes to one of the others.
    fn mended(&self, running: &Plan) -> Vec<Draft> {
        let index = indices(self.instance);
        let mut stages = Vec::new();
        for stage in &running.stages {
            let left =
                stage.replicas.iter().filter_map(|replica| index.get(replica.device.as_str()).copied());
            let left: Vec<usize> = left.filter(|&device| self.instance.is_profiled(device)).collect();
            let end = (stage.last_block + 1).min(self.instance.blocks);
            let kept = stage.replicas.len() == left.len();
            let replicas = if kept {
                left.iter().zip(&stage.replicas).map(|(&device, replica)| (device, replica.share)).collect()
            } else {
                by_speed(self.instance, &left, stage.first_block, end)
            };
            stages.push(DraftStage { first: stage.first_block, end, replicas });
        }
        let covers = stages.last().is_some_and(|stage| stage.end == self.instance.blocks)
            && stages.windows(2).all(|pair| pair[0].end == pair[1].first)
            && stages.iter().all(|stage| stage.first < stage.end);
        if !covers || stages[0].first != 0 {
            return Vec::new();
        }
        let mut drafts = vec![Draft { stages }];
        // Where a stage was merged with the next, the others have moved up: every draft has an empty stage of its own.
        let empty = |draft: &Draft| draft.stages.iter().position(|stage| stage.replicas.is_empty());
        while drafts.iter().any(|draft| empty(draft).is_some()) {
            let filled = |draft: &Draft| match empty(draft) {
                Some(empty) => self.filled(draft, empty),
                None => vec![draft.clone()],
            };
            drafts = drafts.iter().flat_map(filled).take(64).collect();
        }
        drafts.retain(|draft| fits(self.instance, draft));
        let nanoseconds = |draft: &Draft| (evaluate_draft(self.instance, draft).bottleneck_s * 1e9) as u64;
        drafts.sort_by_cached_key(nanoseconds);
        let least = drafts.iter().min_by_key(|draft| self.held.missing(draft)).cloned();
        drafts.truncate(4);
        drafts.extend(least.filter(|least| !drafts.contains(least)));
        drafts
    }

    /// Helps the stage that is busiest, by one device or one block at a time, as long as that evens out the stages.
    /// Quick where a full climb is not. Returns every draft on the way: each moves a little more than the one before.
    fn rebalanced(&self, start: Costed, steps: &mut Steps) -> Vec<Costed> {
        let mut way = Vec::new();
        let mut best = start;
        for _ in 0..REBALANCES {
            let loads = stage_loads(&best);
            let Some(short) = (0..loads.len()).max_by(|&a, &b| loads[a].total_cmp(&loads[b])) else { break };
            let mut better: Option<(f64, Costed)> = None;
            for change in changes(self.instance, &best.0) {
                let helps = match change {
                    Change::Regroup { to, .. } => to == Some(short),
                    Change::Shift { boundary, .. } => boundary == short || boundary == short + 1,
                };
                let draft = changed(self.instance, &best.0, change);
                if !helps || !self.is_allowed(&draft) {
                    continue;
                }
                if !steps.pay(cost(&draft) / 50) {
                    return way;
                }
                let evaluation = evaluate_draft(self.instance, &draft);
                let costed = (draft, evaluation);
                let strain = strain(&costed);
                if better.as_ref().is_none_or(|(least, _)| strain < *least) {
                    better = Some((strain, costed));
                }
            }
            match better.filter(|(new, _)| *new < strain(&best) * (1.0 - 1e-9)) {
                Some((_, costed)) => best = costed,
                None => break,
            }
            way.push(polish(self.instance, best.0.clone(), false));
        }
        way
    }

    /// Ways to make up for an empty stage: another device, one of a group, or a neighbour's devices run both.
    fn filled(&self, draft: &Draft, empty: usize) -> Vec<Draft> {
        let mut drafts = Vec::new();
        let stage_of = |device: usize| {
            let runs = |stage: &DraftStage| stage.replicas.iter().any(|&(other, _)| other == device);
            draft.stages.iter().position(runs)
        };
        for device in self.instance.usable() {
            let home = stage_of(device);
            if home.is_none_or(|home| draft.stages[home].replicas.len() > 1) {
                let change = Change::Regroup { device, from: home, to: Some(empty) };
                drafts.push(changed(self.instance, draft, change));
            }
        }
        for neighbour in [empty.wrapping_sub(1), empty + 1] {
            if draft.stages.get(neighbour).is_some_and(|stage| !stage.replicas.is_empty()) {
                let mut merged = draft.clone();
                let (front, back) = (empty.min(neighbour), empty.max(neighbour));
                merged.stages[front].end = draft.stages[back].end;
                merged.stages[front].replicas = draft.stages[neighbour].replicas.clone();
                merged.stages.remove(back);
                drafts.push(merged);
            }
        }
        drafts
    }

    /// Changes a draft as long as it then moves less and stays within the limit.
    fn settled(&self, start: Costed, steps: &mut Steps) -> Costed {
        let mut best = start;
        for _ in 0..ROUNDS {
            let mut better: Option<Costed> = None;
            let from = best.0.clone();
            for draft in self.neighbours(&from) {
                let least = self.held.missing(&better.as_ref().unwrap_or(&best).0);
                if !steps.pay(cost(&draft)) {
                    return better.unwrap_or(best);
                }
                if self.held.missing(&draft) >= least || !self.is_allowed(&draft) {
                    continue;
                }
                let evaluation = evaluate_draft(self.instance, &draft);
                let mut costed = (draft, evaluation);
                if value(&costed.1, self.latency) > self.limit && !self.latency {
                    costed = polish(self.instance, costed.0, false);
                }
                if value(&costed.1, self.latency) <= self.limit && costed.1.is_served() {
                    better = Some(costed);
                }
            }
            match better {
                Some(costed) => best = costed,
                None => break,
            }
        }
        best
    }

    /// Two devices change places so that one is back where its weights are, a boundary goes back to where it was, or a
    /// single change of any kind is made.
    fn neighbours<'b>(&'b self, draft: &'b Draft) -> impl Iterator<Item = Draft> + 'b {
        let instance = self.instance;
        let home = |device: usize| {
            let held = |stage: &DraftStage| self.held.blocks[device].range(stage.first..stage.end).count();
            let fullest = draft.stages.iter().max_by_key(|stage| held(stage));
            fullest.filter(|stage| held(stage) > 0)
        };
        let swaps = (0..instance.devices()).flat_map(move |one| {
            let mates = home(one).map_or(&[][..], |stage| &stage.replicas);
            mates.iter().filter_map(move |&(other, _)| swapped(draft, one, other))
        });
        let old: BTreeSet<usize> = self.held.stages.iter().map(|&(_, first, _)| first).collect();
        let back = (1..draft.stages.len()).flat_map(move |boundary| {
            let (low, high) = (draft.stages[boundary - 1].first + 1, draft.stages[boundary].end);
            let positions: Vec<usize> = old.range(low..high).copied().collect();
            positions.into_iter().map(move |position| Change::Shift { boundary, position })
        });
        let single = back.chain(changes(instance, draft));
        swaps.chain(single.map(move |change| changed(instance, draft, change)))
    }
}

/// Seconds of the busiest replica of each stage.
fn stage_loads((draft, evaluation): &Costed) -> Vec<f64> {
    let busiest = |stage: &DraftStage| {
        let busy = stage.replicas.iter().map(|&(device, _)| evaluation.processors[device].busy_s);
        busy.fold(0.0, f64::max)
    };
    draft.stages.iter().map(busiest).collect()
}

/// A soft maximum of what sets the rate, so that helping one of several busy stages counts.
fn strain(costed: &Costed) -> f64 {
    let most = costed.1.bottleneck_s.max(1e-12);
    let sum: f64 = stage_loads(costed).iter().map(|load| (load / most).powi(16)).sum();
    most * (1.0 + sum).powf(1.0 / 16.0)
}

/// The draft with two devices in each other's place; nothing when that changes nothing.
fn swapped(draft: &Draft, one: usize, other: usize) -> Option<Draft> {
    let mut draft = draft.clone();
    let mut moved = 0;
    for stage in &mut draft.stages {
        let before = moved;
        for (device, _) in &mut stage.replicas {
            let next = if *device == one {
                other
            } else if *device == other {
                one
            } else {
                *device
            };
            moved += usize::from(next != *device);
            *device = next;
        }
        if moved == before + 2 {
            return None;
        }
    }
    (moved > 0).then_some(draft)
}
