//! A naive search over all plans whose stages run on groups of devices.

use mesh_planner::{Plan, Problem, Replica, evaluate};

use super::bare_plan;

/// Every division into stages with every assignment of devices, shares by speed and equal ones.
/// Returns the least bottleneck.
pub(crate) fn best_of_all_groups(problem: &Problem) -> Option<f64> {
    let mut best: Option<f64> = None;
    let blocks = problem.blocks.len();
    for cuts in 0..1u32 << (blocks - 1) {
        let ends: Vec<usize> =
            (1..=blocks).filter(|&end| end == blocks || cuts >> (end - 1) & 1 == 1).collect();
        let (min, max) = (problem.min_stages.unwrap_or(1), problem.max_stages.unwrap_or(usize::MAX));
        if (min..=max).contains(&ends.len()) {
            assign(problem, &ends, &mut vec![None; problem.devices.len()], 0, &mut best);
        }
    }
    best
}

fn assign(
    problem: &Problem,
    ends: &[usize],
    stages: &mut Vec<Option<usize>>,
    device: usize,
    best: &mut Option<f64>,
) {
    if device < stages.len() {
        for stage in std::iter::once(None).chain((0..ends.len()).map(Some)) {
            stages[device] = stage;
            assign(problem, ends, stages, device + 1, best);
        }
        return;
    }
    if (0..ends.len()).any(|stage| !stages.contains(&Some(stage))) {
        return;
    }
    for by_speed in [true, false] {
        let plan = plan(problem, ends, stages, by_speed);
        let evaluation = evaluate(problem, &plan).unwrap();
        let held =
            evaluation.memory_bytes.iter().zip(&problem.devices).all(|(bytes, d)| *bytes <= d.memory_bytes);
        if held && evaluation.bottleneck_s.is_finite() && evaluation.latency_s.is_finite() {
            *best = Some(best.map_or(evaluation.bottleneck_s, |old: f64| old.min(evaluation.bottleneck_s)));
        }
    }
}

fn plan(problem: &Problem, ends: &[usize], stages: &[Option<usize>], by_speed: bool) -> Plan {
    let firsts = std::iter::once(0).chain(ends.iter().copied());
    let chain: Vec<(usize, usize, usize)> =
        firsts.zip(ends).map(|(first, &end)| (0, first, end - 1)).collect();
    let mut plan = bare_plan(problem, &chain);
    for (index, stage) in plan.stages.iter_mut().enumerate() {
        let rate = |device: usize| {
            let device = &problem.devices[device];
            let blocks = &problem.blocks[stage.first_block..=stage.last_block];
            let seconds: f64 = blocks.iter().map(|block| block.seconds[&device.class] / device.speed).sum();
            if by_speed { 1.0 / seconds.max(1e-12) } else { 1.0 }
        };
        let members: Vec<usize> = (0..stages.len()).filter(|&device| stages[device] == Some(index)).collect();
        let total: f64 = members.iter().map(|&device| rate(device)).sum();
        let replica = |&device: &usize| Replica {
            device: problem.devices[device].id.clone(),
            share: rate(device) / total,
        };
        stage.replicas = members.iter().map(replica).collect();
    }
    plan
}
