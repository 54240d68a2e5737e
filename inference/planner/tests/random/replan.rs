//! Planning anew: what moves, and what it costs to move less.
use mesh_planner::{DEFAULT_STEPS, Objective, Plan, Problem, check, replan, solve};
use proptest::prelude::*;

use crate::problems::problem;

fn value(problem: &Problem, plan: &Plan) -> f64 {
    if problem.objective == Objective::Latency { plan.latency_s } else { plan.bottleneck_s }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn what_is_best_already_stays(problem in problem(6, 5), latency in prop::bool::ANY) {
        let objective = if latency { Objective::Latency } else { Objective::Throughput };
        let problem = Problem { objective, ..problem };
        let Ok(running) = solve(&problem, DEFAULT_STEPS) else { return Ok(()) };
        let next = replan(&problem, &running, DEFAULT_STEPS).unwrap();
        check(&problem, &next.plan).unwrap();
        prop_assert_eq!((next.moved_bytes, next.moved_replicas), (0, 0));
        prop_assert!(next.gain.unwrap().abs() < 0.0201, "{:?}", next.gain);
    }

    #[test]
    fn lost_devices_are_made_up_for(problem in problem(6, 5), lost in 1u32..32) {
        let Ok(running) = solve(&problem, DEFAULT_STEPS) else { return Ok(()) };
        let mut left = Problem { ingress: None, ..problem.clone() };
        // Any number of them, by the bits.
        let is_lost = |id: &str| (0..5).any(|at| lost & (1 << at) != 0 && id == format!("d{at}"));
        left.devices.retain(|device| !is_lost(&device.id));
        left.links.pairs.retain(|pair| !is_lost(&pair.from) && !is_lost(&pair.to));
        if left.devices.is_empty() {
            return Ok(());
        }
        let Ok(best) = solve(&left, DEFAULT_STEPS) else {
            prop_assert!(replan(&left, &running, DEFAULT_STEPS).is_err());
            return Ok(());
        };
        let next = replan(&left, &running, DEFAULT_STEPS).unwrap();
        check(&left, &next.plan).unwrap();
        let tolerance = if next.gain.is_some() { 1.02 } else { 1.25 };
        prop_assert!(value(&left, &next.plan) <= value(&left, &best) * tolerance * 1.000_001);
        prop_assert!(value(&left, &next.plan) <= value(&left, &best) * (1.0 + next.behind) * 1.000_001);
        if next.is_hasty() {
            let calm = replan(&left, &next.plan, DEFAULT_STEPS).unwrap();
            check(&left, &calm.plan).unwrap();
            prop_assert!(value(&left, &calm.plan) <= value(&left, &best) * 1.020_001);
        }
        let fresh = moved_bytes(&left, &running, &best);
        prop_assert!(next.moved_bytes <= fresh, "{} instead of {fresh}", next.moved_bytes);
        prop_assert_eq!(next.moved_bytes, moved_bytes(&left, &running, &next.plan));
        let is_hit = running.stages.iter().any(|stage| stage.replicas.iter().any(|r| is_lost(&r.device)));
        prop_assert!(next.gain.is_none() || !is_hit);
    }
}

/// Weight bytes of blocks that a device runs in `next` and not in `running`.
fn moved_bytes(problem: &Problem, running: &Plan, next: &Plan) -> u64 {
    let runs = |plan: &Plan, device: &str, block: usize| {
        plan.stages.iter().any(|stage| {
            (stage.first_block..=stage.last_block).contains(&block)
                && stage.replicas.iter().any(|replica| replica.device == device)
        })
    };
    let mut bytes = 0;
    for device in &problem.devices {
        for (index, block) in problem.blocks.iter().enumerate() {
            if runs(next, &device.id, index) && !runs(running, &device.id, index) {
                bytes += block.weight_bytes;
            }
        }
    }
    bytes
}
