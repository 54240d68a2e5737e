//! The numbers of a plan that runs, under a problem that has become better known.

use crate::bound::lower_bound;
use crate::check::{CheckError, draft_of, evaluate};
use crate::instance::Instance;
use crate::plan::{Objective, Plan};
use crate::problem::Problem;
use crate::solve;

/// The same stages, devices and shares, with the times, the rate, the bottleneck and the bound that `problem` gives
/// them. What was considered when the plan was made (`why`, `unused`, `alternatives`) stays as it is.
///
/// # Errors
/// When the problem is senseless or the plan is none for it.
pub fn restate(problem: &Problem, plan: &Plan) -> Result<Plan, CheckError> {
    let now = evaluate(problem, plan)?;
    let mut plan = plan.clone();
    plan.lower_bound_s = lower_bound(&Instance::new(problem)).min(now.bottleneck_s);
    plan.optimal = now.bottleneck_s <= plan.lower_bound_s * (1.0 + 1e-9);
    (plan.bottleneck_s, plan.bottleneck) = (now.bottleneck_s, now.bottleneck);
    (plan.throughput_rps, plan.latency_s) = (now.throughput_rps, now.latency_s);
    for (stage, cost) in plan.stages.iter_mut().zip(now.stages) {
        (stage.compute_s, stage.hop_s) = (cost.compute_s, cost.hop_s);
        (stage.output_bytes, stage.weight_bytes) = (cost.output_bytes, cost.weight_bytes);
        stage.memory_bytes = cost.memory_bytes;
    }
    Ok(plan)
}

/// The same stages and devices with the shares that give the highest rate: requests go where they are done first, so
/// that a running plan finds these shares by itself, whatever was right when it was made. For the least latency shares
/// are a choice, and stay.
///
/// # Errors
/// When the problem is senseless or the plan is none for it.
pub fn reshare(problem: &Problem, plan: &Plan) -> Result<Plan, CheckError> {
    let mut plan = plan.clone();
    let draft = draft_of(problem, &plan)?;
    if problem.objective == Objective::Latency || draft.stages.iter().all(|stage| stage.replicas.len() == 1) {
        return Ok(plan);
    }
    let instance = Instance::new(problem);
    let shared = solve::reshared(&instance, draft);
    for (stage, shared) in plan.stages.iter_mut().zip(shared.stages) {
        for (replica, (_, share)) in stage.replicas.iter_mut().zip(shared.replicas) {
            replica.share = share;
        }
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{check, solve};

    #[test]
    fn a_plan_is_right_for_the_problem_that_it_is_restated_for() {
        let text = r#"{"blocks": [{"weight_bytes": 1, "peak_bytes": 0, "seconds": {"x": 0.1}},
                                  {"weight_bytes": 1, "peak_bytes": 0, "seconds": {"x": 0.1}}],
            "cuts": [1, 1, 1],
            "devices": [{"id": "a", "class": "x", "speed": 1.0, "memory_bytes": 9},
                        {"id": "b", "class": "x", "speed": 1.0, "memory_bytes": 9}],
            "links": {"default": {"bytes_per_s": 1e9, "latency_s": 0.0}}, "replication": false}"#;
        let mut problem: Problem = serde_json::from_str(text).unwrap();
        let plan = solve(&problem, 10_000).unwrap();
        problem.devices[1].speed = 0.5;
        assert!(check(&problem, &plan).is_err());
        let restated = restate(&problem, &plan).unwrap();
        check(&problem, &restated).unwrap();
        assert!((restated.throughput_rps - 5.0).abs() < 1e-9, "{restated:?}");
        assert_eq!(restated.why, plan.why);
        problem.devices.pop();
        assert!(restate(&problem, &plan).is_err());
    }

    #[test]
    fn shares_follow_the_devices() {
        let text = r#"{"blocks": [{"weight_bytes": 1, "peak_bytes": 0, "seconds": {"x": 0.1}}], "cuts": [1, 1],
            "devices": [{"id": "a", "class": "x", "speed": 1.0, "memory_bytes": 9},
                        {"id": "b", "class": "x", "speed": 1.0, "memory_bytes": 9}],
            "links": {"default": {"bytes_per_s": 1e9, "latency_s": 0.0}}}"#;
        let mut problem: Problem = serde_json::from_str(text).unwrap();
        let plan = solve(&problem, 10_000).unwrap();
        problem.devices[1].speed = 0.25;
        assert!(evaluate(&problem, &plan).unwrap().throughput_rps < 6.0);
        let shared = reshare(&problem, &plan).unwrap();
        let now = evaluate(&problem, &shared).unwrap();
        assert!((now.throughput_rps - 12.5).abs() < 0.01, "{now:?}");
        assert_eq!(shared.stages[0].replicas.len(), 2);
        problem.objective = Objective::Latency;
        assert_eq!(reshare(&problem, &plan).unwrap(), plan);
        problem.devices.pop();
        assert!(reshare(&problem, &plan).is_err());
    }
}
