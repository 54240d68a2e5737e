use mesh_consensus::{ClusterId, Deployment, EpochPlan};
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
    wanted_here(state, me, u64::MAX, |device| live.contains(&device)).keys().map(|key| key.epoch).collect()
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

fn session(first_block: usize) -> SessionKey {
    SessionKey { model: "m".into(), first_block, last_block: 3 }
}

fn stage(epoch: u64) -> StageKey {
    StageKey { deployment: "digits".into(), epoch, stage: 0 }
}

#[test]
fn a_session_serves_the_next_plan_too_and_goes_when_the_last_stage_is_out_of_reach() {
    let (mut holdings, start) = (Holdings::default(), Instant::now());
    let first = BTreeMap::from([(stage(1), session(0))]);
    assert_eq!(holdings.look(start, &first), [Act::Prepare(session(0))]);
    assert_eq!(holdings.look(start, &first), [], "it is being made");
    assert!(holdings.finished(start, &session(0), Ok(())));
    assert_eq!(holdings.look(start, &first), [Act::Host(stage(1), session(0))]);
    let next = BTreeMap::from([(stage(2), session(0))]);
    assert_eq!(holdings.look(start, &next), [Act::Host(stage(2), session(0))]);
    let later = start + RETIRE + Duration::from_millis(1);
    assert_eq!(holdings.look(later, &next), [Act::Unhost(stage(1))]);
    let gone = later + RETIRE + Duration::from_millis(1);
    assert_eq!(holdings.look(gone, &BTreeMap::new()), [Act::Unhost(stage(2)), Act::Drop(session(0))]);
    assert!(!holdings.finished(gone, &session(0), Ok(())), "nobody wants it");
}

#[test]
fn what_cannot_be_made_is_tried_again_after_a_while() {
    let (mut holdings, start) = (Holdings::default(), Instant::now());
    let wanted = BTreeMap::from([(stage(1), session(0))]);
    holdings.look(start, &wanted);
    assert!(holdings.finished(start, &session(0), Err("the disk is full".into())));
    assert_eq!(holdings.look(start + RETRY / 2, &wanted), []);
    assert!(!holdings.is_settled());
    assert_eq!(holdings.look(start + RETRY, &wanted), [Act::Prepare(session(0))]);
}
