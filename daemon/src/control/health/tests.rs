use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use mesh_consensus::{ClusterId, ClusterState, DeviceId, Member, StorageId};
use mesh_planner::{Objective, TransferCost};

use super::*;
use crate::{
    control::{
        consensus::Phase,
        peers::Peers,
        report::{NodeReport, StageReport},
    },
    net::PeerId,
};

const EPOCH: u64 = 4;

fn report(stages: Vec<StageReport>) -> NodeReport {
    NodeReport {
        name: String::new(),
        version: String::new(),
        cluster: None,
        memory_budget_bytes: 1,
        memory_used_bytes: 0,
        calibration_s: Some(1.0),
        stages,
        kept: BTreeSet::new(),
        links: BTreeMap::new(),
        card_bytes_per_s: None,
        transfer: TransferCost::default(),
        entering: BTreeMap::new(),
        arriving: BTreeMap::new(),
        under_way: BTreeMap::new(),
        crossing: Vec::new(),
        others_share: 0.0,
    }
}

/// This device "a" and the others "b" and "c", and what each says of its stage: `a:ready b:loading c:failed`. Who is not
/// named is down; `-` says nothing, `old` speaks of the plan before.
struct Room {
    ids: BTreeMap<&'static str, PeerId>,
    facts: Facts,
    view: ClusterView,
}

impl Room {
    /// `seats`: the stage that each device runs or stands by for.
    fn new(told: &str, seats: &[(&str, usize)]) -> Self {
        let ids = BTreeMap::from(["a", "b", "c"].map(|name| (name, PeerId::random())));
        let said = |name: &str| {
            let word = told.split(' ').find_map(|told| told.strip_prefix(name)?.strip_prefix(':'))?;
            let (epoch, state) = match word {
                "ready" => (EPOCH, StageState::Ready),
                "loading" => (EPOCH, StageState::Preparing { done: 0, total: 1 }),
                "failed" => (EPOCH, StageState::Failed { reason: "the blob is damaged".into() }),
                "old" => (EPOCH - 1, StageState::Ready),
                _ => return Some(report(Vec::new())),
            };
            let seats = seats.iter().filter(|(device, _)| *device == name);
            let stage = |&(_, stage): &(&str, usize)| StageReport {
                deployment: "digits".into(),
                epoch,
                stage,
                state: state.clone(),
                compute_s: 0.0,
                runs: 0,
            };
            Some(report(seats.map(stage).collect()))
        };
        let peers = Peers::default();
        let facts = Facts::new(ids["a"], peers.clone(), said("a").unwrap());
        for name in ["b", "c"] {
            if let Some(report) = said(name) {
                peers.up(ids[name], String::new());
                peers.report(ids[name], report, Duration::ZERO);
            }
        }
        let member = |(raft_id, (name, id)): (u64, (&&str, &PeerId))| Member {
            raft_id,
            device: DeviceId(id.to_string()),
            storage: StorageId([0; 16]),
            name: (*name).to_owned(),
            address: String::new(),
            draining: false,
        };
        let members: Vec<Member> = (1..).zip(&ids).map(member).collect();
        let view = ClusterView {
            phase: Phase::Member,
            state: Arc::new(ClusterState::founded(ClusterId([1; 16]), "home", &members)),
            raft_id: 1,
            term: 1,
            leader: None,
            is_leader: true,
            voters: vec![1],
            conflict: None,
            refused: None,
        };
        Self { ids, facts, view }
    }

    /// A deployment with these replicas and standbys of each stage.
    fn deployment(&self, stages: &[(&[&str], &[&str])], fault: Option<&str>) -> Deployment {
        let stage = |(index, (replicas, standbys)): (usize, &(&[&str], &[&str]))| {
            let replica =
                |name: &&str| serde_json::json!({"device": self.ids[*name].to_string(), "share": 1.0});
            serde_json::json!({
                "first_block": index, "last_block": index,
                "replicas": replicas.iter().map(replica).collect::<Vec<_>>(),
                "standbys": standbys.iter().map(|name| self.ids[*name].to_string()).collect::<Vec<_>>(),
            })
        };
        let plan = serde_json::json!({
            "stages": stages.iter().enumerate().map(stage).collect::<Vec<_>>(), "bottleneck_s": 0.1,
            "bottleneck": {"kind": "compute", "stage": 0, "device": "a"}, "throughput_rps": 10.0,
            "latency_s": 0.1, "lower_bound_s": 0.1, "optimal": true, "why": "", "unused": [], "alternatives": [],
        });
        let plan = serde_json::from_value(plan).unwrap();
        Deployment {
            name: "digits".into(),
            model: "m".into(),
            objective: Objective::Throughput,
            stages: None,
            pin: None,
            shapes: Vec::new(),
            active: Some(EpochPlan { epoch: EPOCH, model: "m".into(), plan }),
            preparing: None,
            next_epoch: EPOCH + 1,
            asked_epoch: 1,
            fault: fault.map(str::to_owned),
        }
    }
}

/// Stage 0 on "a", stage 1 on "b", which "c" stands by for.
#[test]
fn a_stage_answers_when_a_live_device_is_ready_for_it() {
    for (told, answers, is, why) in [
        ("a:ready b:ready c:ready", true, "serving", ""),
        ("a:ready b:ready", true, "serving", ""),
        ("a:ready b:ready c:-", true, "serving", ""),
        ("a:loading b:ready c:ready", false, "degraded", "a is loading stage 0"),
        ("a:- b:- c:-", false, "degraded", "a is loading stage 0; b is loading stage 1"),
        ("a:ready b:old c:loading", false, "degraded", "b is loading stage 1"),
        ("a:ready b:failed c:-", false, "degraded", "b cannot load stage 1: the blob is damaged"),
        ("a:ready b:loading c:ready", true, "degraded", "b is loading stage 1; c stands in for stage 1"),
        ("a:ready c:ready", true, "degraded", "b is down; c stands in for stage 1; a new plan is on its way"),
        ("a:ready c:-", false, "degraded", "stage 1 has no live device: b is down; a new plan is on its way"),
        ("a:ready", false, "degraded", "stage 1 has no live device: b is down; a new plan is on its way"),
    ] {
        let room = Room::new(told, &[("a", 0), ("b", 1), ("c", 1)]);
        let deployment = room.deployment(&[(&["a"], &[]), (&["b"], &["c"])], None);
        assert_eq!(super::answers(&room.facts, &deployment), answers, "{told}");
        assert_eq!(state(&room.facts, &room.view, &deployment), (is, why.to_owned()), "{told}");
    }
}

/// One stage on "a" and "b".
#[test]
fn one_ready_replica_is_enough() {
    for (told, answers, is, why) in [
        ("a:ready b:ready", true, "serving", ""),
        ("a:ready b:loading", true, "serving", ""),
        ("a:loading b:ready", true, "serving", ""),
        ("a:ready", true, "degraded", "b is down"),
        ("a:loading", false, "degraded", "b is down; a is loading stage 0"),
    ] {
        let room = Room::new(told, &[("a", 0), ("b", 0)]);
        let deployment = room.deployment(&[(&["a", "b"], &[])], None);
        assert_eq!(super::answers(&room.facts, &deployment), answers, "{told}");
        assert_eq!(state(&room.facts, &room.view, &deployment), (is, why.to_owned()), "{told}");
    }
}

#[test]
fn a_fault_shows_where_there_is_no_plan_or_no_device() {
    let room = Room::new("a:ready", &[("a", 0)]);
    let fault = Some("no device has the memory");
    let serving = room.deployment(&[(&["a"], &[])], fault);
    assert_eq!(state(&room.facts, &room.view, &serving), ("serving", "no device has the memory".to_owned()));
    let gone = room.deployment(&[(&["a"], &[]), (&["b"], &[])], fault);
    let why = "stage 1 has no live device (b is down) and no device has the memory";
    assert_eq!(state(&room.facts, &room.view, &gone), ("failed", why.to_owned()));
    let unplanned = Deployment { active: None, ..serving };
    assert_eq!(state(&room.facts, &room.view, &unplanned), ("failed", "no device has the memory".to_owned()));
    assert!(!answers(&room.facts, &unplanned));
    let first = Deployment { fault: None, ..unplanned };
    assert_eq!(state(&room.facts, &room.view, &first).0, "preparing");
}
