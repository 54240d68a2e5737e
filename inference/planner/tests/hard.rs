//! Problems on which an earlier search lost to brute force, each with what it missed.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use mesh_planner::{DEFAULT_STEPS, Problem, check, solve};

fn read(text: &str) -> Problem {
    serde_json::from_str(text).unwrap()
}

/// Nothing gets to d2 from d0 and d1, which both are senders by any shares that speed suggests. Five devices share the
/// model when d2 takes exactly what enters there; the search left d2 out or the others idle.
#[test]
fn a_replica_that_others_cannot_reach_takes_what_enters_there() {
    let problem = read(include_str!("data/few_links_to_one.json"));
    let plan = solve(&problem, DEFAULT_STEPS).unwrap();
    check(&problem, &plan).unwrap();
    assert!(plan.bottleneck_s < 0.94, "{plan:?}");
    assert_eq!(plan.stages[0].replicas.len(), 5, "{plan:?}");
}
