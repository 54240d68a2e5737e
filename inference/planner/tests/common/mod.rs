//! What tests of plans share.

use mesh_planner::{DEFAULT_STEPS, Plan, Problem, check, solve};

/// A plan that holds what it states.
pub(crate) fn solved(problem: &Problem) -> Plan {
    let plan = solve(problem, DEFAULT_STEPS).unwrap();
    check(problem, &plan).unwrap();
    plan
}

pub(crate) fn is_close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 * b
}
