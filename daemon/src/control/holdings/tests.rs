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

fn epochs(state: &ClusterState, me: &str, live: &[&str], has: bool) -> Vec<u64> {
    let is_live = |device: &str| live.contains(&device);
    wanted_here(state, me, u64::MAX, is_live, |_| has).keys().map(|key| key.epoch).collect()
}

#[test]
fn a_standby_holds_its_stage_while_that_costs_nothing_or_is_needed() {
    for has in [false, true] {
        let settled = state(false);
        assert_eq!(epochs(&settled, "a", &["a", "b"], has), [1]);
        assert_eq!(epochs(&settled, "b", &["a", "b"], has), [1]);
        assert_eq!(epochs(&settled, "c", &["a", "b"], has), Vec::<u64>::new());
        let moving = state(true);
        assert_eq!(epochs(&moving, "a", &["a", "b"], has), [1, 2]);
        assert_eq!(epochs(&moving, "b", &["b"], has), [1, 2], "nobody else has the stage");
    }
    let moving = state(true);
    let none = Vec::<u64>::new();
    assert_eq!(epochs(&moving, "b", &["a", "b"], false), none, "first what the next plan needs");
    assert_eq!(epochs(&moving, "b", &["a", "b"], true), [1], "the active plan stays insured");
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
    assert_eq!(holdings.look(start, &first, |_| false), [Act::Prepare(session(0))]);
    assert_eq!(holdings.look(start, &first, |_| false), [], "it is being made");
    assert!(holdings.finished(start, &session(0), Ok(())));
    assert_eq!(holdings.look(start, &first, |_| false), [Act::Host(stage(1), session(0))]);
    let next = BTreeMap::from([(stage(2), session(0))]);
    assert_eq!(holdings.look(start, &next, |_| false), [Act::Host(stage(2), session(0))]);
    let later = start + RETIRE + Duration::from_millis(1);
    assert_eq!(holdings.look(later, &next, |_| false), [Act::Unhost(stage(1))]);
    let gone = later + RETIRE + Duration::from_millis(1);
    assert_eq!(
        holdings.look(gone, &BTreeMap::new(), |_| false),
        [Act::Unhost(stage(2)), Act::Drop(session(0))]
    );
    assert!(!holdings.finished(gone, &session(0), Ok(())), "nobody wants it");
}

#[test]
fn a_retired_stage_answers_as_long_as_requests_are_on_its_plan() {
    let (mut holdings, start) = (Holdings::default(), Instant::now());
    let (first, next) = (BTreeMap::from([(stage(1), session(0))]), BTreeMap::from([(stage(2), session(0))]));
    holdings.look(start, &first, |_| false);
    assert!(holdings.finished(start, &session(0), Ok(())));
    holdings.look(start, &first, |_| false);
    holdings.look(start, &next, |_| false);
    let is_first = |key: &StageKey| key.epoch == 1;
    let later = start + 10 * RETIRE;
    assert_eq!(holdings.look(later, &next, is_first), []);
    assert!(holdings.is_hosted(&stage(1)));
    assert_eq!(holdings.look(later, &next, |_| false), [Act::Unhost(stage(1))]);
    holdings.look(later, &first, |_| false);
    let at_last = later + DRAIN + Duration::from_millis(1);
    assert_eq!(
        holdings.look(at_last, &next, is_first),
        [Act::Unhost(stage(1))],
        "a request may hang for ever"
    );
}

#[test]
fn what_cannot_be_made_is_tried_again_after_a_while() {
    let (mut holdings, start) = (Holdings::default(), Instant::now());
    let wanted = BTreeMap::from([(stage(1), session(0))]);
    holdings.look(start, &wanted, |_| false);
    assert!(holdings.finished(start, &session(0), Err("the disk is full".into())));
    assert_eq!(holdings.look(start + RETRY / 2, &wanted, |_| false), []);
    assert!(!holdings.is_settled());
    assert_eq!(holdings.look(start + RETRY, &wanted, |_| false), [Act::Prepare(session(0))]);
}
