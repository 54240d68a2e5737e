use mesh_consensus::ClusterId;
use mesh_planner::{Objective, Plan};

use super::*;

/// One stage of blocks 0 to 3 on "a", with "b" standing by.
fn plan() -> Plan {
    let plan = serde_json::json!({
        "stages": [{"first_block": 0, "last_block": 3, "replicas": [{"device": "a", "share": 1.0}], "standbys": ["b"]}],
        "bottleneck_s": 0.1, "bottleneck": {"kind": "compute", "stage": 0, "device": "a"}, "throughput_rps": 10.0,
        "latency_s": 0.1, "lower_bound_s": 0.1, "optimal": true, "why": "", "unused": [], "alternatives": [],
    });
    serde_json::from_value(plan).unwrap()
}

fn state(preparing: bool) -> ClusterState {
    let plan = |epoch| EpochPlan { epoch, model: "m".into(), plan: plan() };
    let deployment = Deployment {
        name: "digits".into(),
        model: "m".into(),
        objective: Objective::Throughput,
        stages: None,
        pin: None,
        shapes: Vec::new(),
        active: Some(plan(1)),
        preparing: preparing.then(|| plan(2)),
        next_epoch: 3,
        asked_epoch: 1,
        fault: None,
    };
    let mut state = ClusterState::empty(ClusterId([0; 16]));
    state.deployments.insert("digits".into(), deployment);
    state
}

fn epochs(state: &ClusterState, me: &str, live: &[&str]) -> Vec<u64> {
    wanted_here(state, me, |device| live.contains(&device)).keys().map(|key| key.epoch).collect()
}

#[test]
fn a_standby_holds_its_stage_while_that_costs_nothing_or_is_needed() {
    let settled = state(false);
    assert_eq!(epochs(&settled, "a", &["a", "b"]), [1]);
    assert_eq!(epochs(&settled, "b", &["a", "b"]), [1]);
    assert_eq!(epochs(&settled, "c", &["a", "b"]), Vec::<u64>::new());
    let moving = state(true);
    assert_eq!(epochs(&moving, "a", &["a", "b"]), [1, 2]);
    assert_eq!(
        epochs(&moving, "b", &["a", "b"]),
        Vec::<u64>::new(),
        "its memory may be needed for the next plan"
    );
    assert_eq!(epochs(&moving, "b", &["b"]), [1, 2], "nobody else has the stage");
}
