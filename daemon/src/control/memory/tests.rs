use mesh_consensus::{ClusterId, EpochPlan};
use mesh_planner::{Objective, Plan};

use super::*;
use crate::control::holdings::{Known, wanted_here};

/// A stage of blocks 0 to 3 that takes so much, on these devices, with these standing by.
fn plan(bytes: u64, replicas: &[&str], standbys: &[&str]) -> Plan {
    let share = 1.0 / replicas.len() as f64;
    let replicas: Vec<_> =
        replicas.iter().map(|device| serde_json::json!({"device": device, "share": share})).collect();
    let plan = serde_json::json!({
        "stages": [{"first_block": 0, "last_block": 3, "replicas": replicas, "standbys": standbys,
                    "weight_bytes": 1, "memory_bytes": bytes}],
        "bottleneck_s": 0.1, "bottleneck": {"kind": "compute", "stage": 0, "device": "a"}, "throughput_rps": 10.0,
        "latency_s": 0.1, "lower_bound_s": 0.1, "optimal": true, "why": "", "unused": [], "alternatives": [],
    });
    serde_json::from_value(plan).unwrap()
}

fn deployment(name: &str, model: &str, active: Option<Plan>, preparing: Option<Plan>) -> Deployment {
    let epoch = |epoch, plan| EpochPlan { epoch, model: model.to_owned(), plan };
    Deployment {
        name: name.to_owned(),
        model: model.to_owned(),
        objective: Objective::Throughput,
        stages: None,
        pin: None,
        shapes: Vec::new(),
        active: active.map(|plan| epoch(1, plan)),
        preparing: preparing.map(|plan| epoch(2, plan)),
        next_epoch: 3,
        asked_epoch: 1,
        fault: None,
    }
}

fn state(deployments: Vec<Deployment>) -> ClusterState {
    let mut state = ClusterState::empty(ClusterId([0; 16]));
    state.deployments =
        deployments.into_iter().map(|deployment| (deployment.name.clone(), deployment)).collect();
    state
}

#[test]
fn what_other_deployments_hold_is_counted_once_for_each_session() {
    let state = state(vec![
        deployment("one", "m", Some(plan(100, &["a", "b"], &["c"])), None),
        // The same blocks of the same model: the same session.
        deployment("two", "m", Some(plan(100, &["a"], &[])), Some(plan(100, &["a"], &[]))),
        deployment("three", "n", None, Some(plan(7, &["a", "d"], &[]))),
    ]);
    let bytes = |of: &str| taken_by_others(&state, of, Others::Stay).into_iter().collect::<Vec<_>>();
    let told = |list: &[(&str, u64)]| list.iter().map(|(id, n)| ((*id).to_owned(), *n)).collect::<Vec<_>>();
    assert_eq!(bytes("three"), told(&[("a", 100), ("b", 100)]));
    assert_eq!(bytes("one"), told(&[("a", 107), ("d", 7)]));
    assert_eq!(bytes("new"), told(&[("a", 107), ("b", 100), ("d", 7)]));
}

/// On "b".
fn all_is_well(budget: u64) -> Known<'static> {
    Known { me: "b", budget, is_live: &|_| true, has: &|_| true, has_weights: &|_, _| true }
}

#[test]
fn a_standby_gives_way_to_what_another_deployment_runs() {
    let mut state = state(vec![deployment("one", "m", Some(plan(60, &["a"], &["b"])), None)]);
    let held = |state: &ClusterState, budget| {
        let wanted = wanted_here(state, &all_is_well(budget));
        wanted.into_keys().map(|key| key.deployment).collect::<Vec<_>>()
    };
    assert_eq!(held(&state, 100), ["one"]);
    assert_eq!(held(&state, 59), Vec::<String>::new());
    state.deployments.insert("two".into(), deployment("two", "n", None, Some(plan(50, &["b"], &[]))));
    assert_eq!(held(&state, 100), ["two"], "110 bytes are more than it has");
    assert_eq!(held(&state, 110), ["one", "two"]);
    let mut next = plan(50, &["b"], &[]);
    next.stages[0].first_block = 1;
    let moving = deployment("one", "m", Some(plan(60, &["a"], &["b"])), Some(next));
    state.deployments = [("one".to_owned(), moving)].into();
    let epochs = |budget| {
        let wanted = wanted_here(&state, &all_is_well(budget));
        wanted.into_keys().map(|key| key.epoch).collect::<Vec<_>>()
    };
    assert_eq!(epochs(109), [2], "and to the next plan of its own");
    assert_eq!(epochs(110), [1, 2]);
}

#[test]
fn a_device_that_holds_too_much_for_several_deployments_is_told_of() {
    let mut state = state(vec![
        deployment("one", "m", Some(plan(60, &["a", "b"], &[])), None),
        deployment("two", "n", Some(plan(50, &["b"], &[])), None),
    ]);
    let found = |state: &ClusterState, budget| {
        crowded(state, |_| Some(budget))
            .into_iter()
            .map(|c| (c.device, c.held, c.deployments))
            .collect::<Vec<_>>()
    };
    assert_eq!(found(&state, 110), []);
    assert_eq!(found(&state, 109), [("b".to_owned(), 110, vec!["one".to_owned(), "two".to_owned()])]);
    assert_eq!(found(&state, 10).len(), 1, "what one deployment alone was given is its plan's matter");
    state.deployments.insert("three".into(), deployment("three", "o", None, Some(plan(1, &["a"], &[]))));
    assert_eq!(found(&state, 10), [], "plans change");
}

#[test]
fn who_has_devices_to_spare_gives_way() {
    let mut state = state(vec![
        deployment("one", "m", Some(plan(60, &["a", "b", "c"], &[])), None),
        deployment("two", "n", Some(plan(50, &["b", "c"], &[])), None),
    ]);
    let left = |state: &ClusterState, others| {
        taken_by_others(state, "new", others).into_iter().collect::<Vec<(String, u64)>>()
    };
    let told = |list: &[(&str, u64)]| list.iter().map(|(id, n)| ((*id).to_owned(), *n)).collect::<Vec<_>>();
    assert_eq!(left(&state, Others::Stay), told(&[("a", 60), ("b", 110), ("c", 110)]));
    // Shares are equal: the first device stays.
    assert_eq!(left(&state, Others::GiveWay), told(&[("a", 60), ("b", 50)]));
    assert_eq!(left(&state, Others::Ignored), []);
    let turn = |state: &ClusterState, budget| gives_way(state, |_| Some(budget)).map(str::to_owned);
    assert_eq!(turn(&state, 110), None, "there is room for all");
    assert_eq!(turn(&state, 100).as_deref(), Some("one"), "it has most to spare");
    // What the operator has named stays.
    let pinned = state.deployments["one"].active.as_ref().map(|active| active.plan.clone());
    state.deployments.get_mut("one").unwrap().pin = pinned;
    assert_eq!(turn(&state, 100).as_deref(), Some("two"));
    assert_eq!(left(&state, Others::GiveWay), told(&[("a", 60), ("b", 110), ("c", 60)]));
    // Who has one device for each stage has nothing to give.
    state.deployments.insert("two".into(), deployment("two", "n", Some(plan(50, &["b"], &[])), None));
    assert_eq!(turn(&state, 100), None);
}
