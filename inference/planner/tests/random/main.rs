//! The solver against naive searches on small random problems.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod naive;
mod problems;
mod replan;

use mesh_planner::{DEFAULT_STEPS, Objective, Plan, Problem, Stage, check, solve, solve_lighter};
use naive::{NaiveStage, best_bottleneck, cost};
use problems::{best_of_all_chains, problem};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

fn is_close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1e-9)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn chains_are_optimal(problem in problem(6, 4)) {
        let problem = Problem { replication: false, ..problem };
        let best = best_of_all_chains(&problem);
        let plan = solve(&problem, DEFAULT_STEPS);
        match (best, plan) {
            (Some((bottleneck, _)), Ok(plan)) => {
                check(&problem, &plan).unwrap();
                prop_assert!(is_close(plan.bottleneck_s, bottleneck), "{} instead of {bottleneck}", plan.bottleneck_s);
                prop_assert!(plan.optimal);
            }
            (None, Err(_)) => {}
            (best, plan) => prop_assert!(false, "{best:?} against {plan:?}"),
        }
    }

    #[test]
    fn latency_is_optimal(problem in problem(6, 4)) {
        let problem = Problem { objective: Objective::Latency, replication: false, ..problem };
        let best = best_of_all_chains(&problem);
        let plan = solve(&problem, DEFAULT_STEPS);
        match (best, plan) {
            (Some((_, latency)), Ok(plan)) => {
                check(&problem, &plan).unwrap();
                prop_assert!(is_close(plan.latency_s, latency), "{} instead of {latency}", plan.latency_s);
                prop_assert!(plan.optimal);
            }
            (None, Err(_)) => {}
            (best, plan) => prop_assert!(false, "{best:?} against {plan:?}"),
        }
    }

}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn replication_never_loses_to_a_chain(problem in problem(6, 4)) {
        let problem = Problem { replication: true, ..problem };
        let best = best_of_all_chains(&problem);
        let plan = solve(&problem, DEFAULT_STEPS);
        match (best, plan) {
            (Some((bottleneck, _)), Ok(plan)) => {
                check(&problem, &plan).unwrap();
                prop_assert!(plan.bottleneck_s <= bottleneck * (1.0 + 1e-9));
            }
            // Without some links, requests can still be served where they enter.
            (None, Ok(plan)) => check(&problem, &plan).unwrap(),
            (None, Err(_)) => {}
            (best, plan) => prop_assert!(false, "{best:?} against {plan:?}"),
        }
    }

    #[test]
    fn a_lighter_plan_sends_no_more_and_is_hardly_slower(problem in problem(8, 4), part in 0.0..0.2) {
        let problem = Problem { objective: Objective::Throughput, ..problem };
        if let Ok(fastest) = solve(&problem, DEFAULT_STEPS) {
            let plan = solve_lighter(&problem, DEFAULT_STEPS, part).unwrap();
            check(&problem, &plan).unwrap();
            let sent = |plan: &Plan| plan.stages.iter().map(|stage| stage.output_bytes).sum::<u64>();
            prop_assert!(sent(&plan) <= sent(&fastest), "{plan:?} instead of {fastest:?}");
            prop_assert!(plan.throughput_rps >= fastest.throughput_rps * (1.0 - part - 1e-9));
            prop_assert!(plan.latency_s <= fastest.latency_s * (1.0 + 1e-6));
            prop_assert!(!plan.optimal || is_close(plan.bottleneck_s, fastest.bottleneck_s));
        }
    }

    /// Few steps leave no room for the exact tables, so other bounds have to do.
    #[test]
    fn bounds_hold_when_steps_run_out(problem in problem(6, 4), steps in 1u64..40_000) {
        let problem = Problem { replication: false, ..problem };
        if let (Some((best, _)), Ok(plan)) = (best_of_all_chains(&problem), solve(&problem, steps)) {
            prop_assert!(plan.lower_bound_s <= best * (1.0 + 1e-9), "{best} below {}", plan.lower_bound_s);
            prop_assert!(!plan.optimal || is_close(plan.bottleneck_s, best), "{best} is better than {plan:?}");
        }
    }

    #[test]
    fn few_steps_still_give_a_sound_plan(problem in problem(8, 5), steps in 1u64..20_000) {
        if let Ok(plan) = solve(&problem, steps) {
            check(&problem, &plan).unwrap();
            prop_assert_eq!(&plan, &solve(&problem, steps).unwrap());
        }
    }
}

/// How a run over many random problems went.
#[derive(Debug, Default)]
struct Tally {
    solved: usize,
    optimal: usize,
    beaten: usize,
    worst: f64,
    losses: Vec<String>,
}

impl Tally {
    /// The plan's numbers hold in the naive model, its bound holds, and what it calls optimal is not beaten.
    fn compare(&mut self, problem: &Problem) {
        let best = best_bottleneck(problem);
        let plan = match (solve(problem, DEFAULT_STEPS), &best) {
            (Ok(plan), _) => plan,
            (Err(_), None) => return,
            (Err(error), Some(best)) => panic!("{error}, but {best:?} fits {problem:?}"),
        };
        check(problem, &plan).unwrap();
        let stages: Vec<NaiveStage> = plan.stages.iter().map(|stage| naive_stage(problem, stage)).collect();
        let Some((bottleneck, latency)) = cost(problem, &stages) else {
            panic!("{plan:?} cannot work: {problem:?}");
        };
        assert!(
            is_close(plan.bottleneck_s, bottleneck),
            "{} is {bottleneck}: {problem:?}",
            plan.bottleneck_s
        );
        assert!(is_close(plan.latency_s, latency), "{} is {latency}: {problem:?}", plan.latency_s);
        let Some((best, stages)) = best else { return };
        assert!(plan.lower_bound_s <= best * (1.0 + 1e-9), "{best} below the bound of {plan:?}: {problem:?}");
        let is_beaten = plan.bottleneck_s > best * (1.0 + 1e-9);
        assert!(!(plan.optimal && is_beaten), "{best} {stages:?} is better than {plan:?}: {problem:?}");
        let factor = plan.bottleneck_s / best.max(1e-9);
        if is_beaten {
            let (got, why) = (plan.bottleneck_s, &plan.why);
            self.losses.push(format!("{got} instead of {best}: {why}\nbetter: {stages:?}\nof {problem:?}"));
        }
        self.solved += 1;
        self.optimal += usize::from(plan.optimal);
        self.beaten += usize::from(is_beaten);
        self.worst = self.worst.max(factor);
    }
}

fn naive_stage(problem: &Problem, stage: &Stage) -> NaiveStage {
    let index = |id: &String| problem.devices.iter().position(|device| device.id == *id).unwrap();
    let replicas = stage.replicas.iter().map(|replica| (index(&replica.device), replica.share)).collect();
    (stage.first_block, stage.last_block, replicas)
}

/// Mixtures are searched, not enumerated: what counts is that the bound holds, that "optimal" is never beaten, and
/// that losses stay rare (none in 10,000 cases). The cases are the same in every run; MESH_PLANNER_CASES asks for more.
#[test]
fn nothing_that_is_called_optimal_is_beaten() {
    let cases = std::env::var("MESH_PLANNER_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(200);
    let mut runner = TestRunner::deterministic();
    let mut tally = Tally::default();
    for _ in 0..cases {
        let problem = problem(8, 6).new_tree(&mut runner).unwrap().current();
        tally.compare(&problem);
    }
    println!("{tally:?}");
    assert!(tally.beaten * 1000 <= tally.solved.max(1000) && tally.worst < 1.01, "{tally:?}");
}
