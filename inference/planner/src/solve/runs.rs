//! Many blocks on few devices: devices in turns over runs of blocks, then with cuts wherever they are best.
//!
//! Weights and work lie in different parts of a model: the last quarter of ResNet-50's blocks has two thirds of its weights
//! and a quarter of its work. Where memory is short, the device that holds that quarter has no room for a stage as long as
//! the others' - but for a second one before it, with much work and few weights. Interleaved pipeline stages (Narayanan et al., 2021) give each device
//! several in the same way, there for a shorter start.

use super::chain::Steps;
use super::climb::cost;
use super::{Costed, costed, turns};
use crate::bound::lower_bound;
use crate::evaluate::{Draft, DraftStage, evaluate_draft, fits};
use crate::instance::Instance;
use crate::problem::{Block, Problem};

/// Where a plan is known that is so near to the bound there is little to be found.
const NEAR: f64 = 1.03;
/// What is so much slower over runs may be faster over blocks.
const COARSE: f64 = 1.1;
/// What a stage more must bring, as a part of the bottleneck: each is a session and a hop more.
const WORTH: f64 = 0.02;
/// So many runs.
const RUNS: usize = 14;
/// So many stages more than devices at most.
const MORE: usize = 3;
/// How far cuts are moved at a time.
const FARTHEST: usize = 8;

/// A plan with a bottleneck of less than `limit`, if one turns up.
pub(super) fn search(instance: &Instance<'_>, limit: f64, steps: &mut Steps) -> Option<Costed> {
    let devices = instance.usable().len();
    let is_for = (2..=turns::DEVICES_MAX).contains(&devices) && instance.blocks > RUNS;
    let is_short = |device: usize| instance.memory(device) < instance.stage_bytes(0, instance.blocks);
    let is_worth_it = || limit > lower_bound(instance) * NEAR;
    if !(is_for && instance.usable().into_iter().any(is_short) && is_worth_it()) {
        return None;
    }
    let ends = ends(instance);
    let joined = joined(instance.problem, &ends);
    let most = (devices + MORE).min(instance.stage_limits().1);
    let mut best: Option<Costed> = None;
    for stages in 3..=most {
        let known = best.as_ref().map_or(limit, |(_, cost)| cost.bottleneck_s) * (1.0 - WORTH);
        let problem = Problem { max_stages: Some(stages), ..joined.clone() };
        let mut budget = Steps::new(steps.left() / 2);
        let found = turns::search(&Instance::new(&problem), false, known * COARSE, &mut budget);
        *steps = Steps::new(steps.left() / 2 + budget.left());
        let start = found.better.and_then(|(draft, _)| costed(instance, over_blocks(draft, &ends)));
        let cut = start.map(|start| cut_better(instance, start, steps));
        best = cut.filter(|(_, cost)| cost.bottleneck_s < known).or(best);
    }
    best
}

fn over_blocks(draft: Draft, ends: &[usize]) -> Draft {
    let place = |run: usize| if run == 0 { 0 } else { ends[run - 1] };
    let stage = |stage: DraftStage| DraftStage { first: place(stage.first), end: place(stage.end), ..stage };
    Draft { stages: draft.stages.into_iter().map(stage).collect() }
}

/// Where runs end: each has about an equal part of work and weights, and what crosses there is the least nearby.
fn ends(instance: &Instance<'_>) -> Vec<usize> {
    let (devices, blocks) = (instance.usable(), instance.blocks);
    let work = |block: usize| devices.iter().map(|&device| instance.seconds(device, 0, block)).sum::<f64>();
    let part = |at: f64, all: f64| if all > 0.0 { at / all } else { 0.0 };
    let (all_s, all_bytes) = (work(blocks), instance.held(0, blocks) as f64);
    let done: Vec<f64> = (0..=blocks)
        .map(|at| (part(work(at), all_s) + part(instance.held(0, at) as f64, all_bytes)) / 2.0)
        .collect();
    let mut ends = Vec::with_capacity(RUNS);
    for run in 1..RUNS {
        let is_near = |at: &usize| (done[*at] * RUNS as f64 - run as f64).abs() <= 0.5;
        let after = ends.last().map_or(1, |last| last + 1);
        let lightest = (after..blocks)
            .filter(is_near)
            .min_by(|a, b| instance.cut(*a).total_cmp(&instance.cut(*b)).then(a.cmp(b)));
        ends.extend(lightest);
    }
    ends.push(blocks);
    ends
}

/// The problem with the blocks up to each end as one.
fn joined(problem: &Problem, ends: &[usize]) -> Problem {
    let mut cuts = vec![problem.cuts[0]];
    let mut blocks = Vec::with_capacity(ends.len());
    let mut first = 0;
    for &end in ends {
        let run = &problem.blocks[first..end];
        let sum = |bytes: fn(&Block) -> u64| run.iter().map(bytes).fold(0, u64::saturating_add);
        let classes =
            run[0].seconds.keys().filter(|class| run.iter().all(|b| b.seconds.contains_key(*class)));
        let seconds = |class: &String| run.iter().filter_map(|block| block.seconds.get(class)).sum();
        blocks.push(Block {
            weight_bytes: sum(|block| block.weight_bytes),
            overhead_bytes: sum(|block| block.overhead_bytes),
            peak_bytes: run.iter().map(|block| block.peak_bytes).max().unwrap_or(0),
            seconds: classes.map(|class| (class.clone(), seconds(class))).collect(),
        });
        cuts.push(problem.cuts[end]);
        first = end;
    }
    Problem { blocks, cuts, ..problem.clone() }
}

/// Moves cuts as long as that makes the bottleneck shorter.
fn cut_better(instance: &Instance<'_>, start: Costed, steps: &mut Steps) -> Costed {
    let mut best = start;
    loop {
        let before = best.1.bottleneck_s;
        for stage in 1..best.0.stages.len() {
            let (low, cut) = (best.0.stages[stage - 1].first + 1, best.0.stages[stage].first);
            let high = best.0.stages[stage].end - 1;
            for to in cut.saturating_sub(FARTHEST).max(low)..=(cut + FARTHEST).min(high) {
                let mut draft = best.0.clone();
                (draft.stages[stage - 1].end, draft.stages[stage].first) = (to, to);
                if !steps.pay(cost(&draft)) {
                    return best;
                }
                let evaluation = evaluate_draft(instance, &draft);
                if evaluation.bottleneck_s < best.1.bottleneck_s * (1.0 - 1e-9) && fits(instance, &draft) {
                    best = (draft, evaluation);
                }
            }
        }
        if best.1.bottleneck_s >= before {
            return best;
        }
    }
}
