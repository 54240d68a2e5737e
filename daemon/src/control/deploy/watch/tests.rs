use mesh_consensus::{Command, DeviceId, ModelRecord, Outcome, Request};
use mesh_planner::{Objective, Plan};

use super::*;

const CLUSTER: ClusterId = ClusterId([1; 16]);

fn plan() -> Plan {
    let plan = serde_json::json!({
        "stages": [], "bottleneck_s": 0.1, "bottleneck": {"kind": "compute", "stage": 0, "device": "a"},
        "throughput_rps": 10.0, "latency_s": 0.1, "lower_bound_s": 0.1, "optimal": true, "why": "", "unused": [],
        "alternatives": [],
    });
    serde_json::from_value(plan).unwrap()
}

fn spec(model: &str, stages: Option<usize>) -> DeploySpec {
    let (name, model) = ("big".to_owned(), model.to_owned());
    DeploySpec { name, model, objective: Objective::Throughput, stages, pin: None, shapes: Vec::new() }
}

fn model(hash: &str) -> Command {
    Command::AddModel(ModelRecord {
        hash: hash.to_owned(),
        source: format!("{hash}.onnx"),
        weight_bytes: 1,
        nodes: 1,
        blocks: 1,
        added_by: DeviceId("a".to_owned()),
        profile_blob: None,
    })
}

/// A replicated state, and somebody who watches what became of `deploy aa`.
struct Story {
    state: ClusterState,
    index: u64,
    start: Instant,
    watch: Watch,
}

impl Story {
    fn new() -> Self {
        let start = Instant::now();
        let request = RequestId { proposer: DeviceId("a".to_owned()), sequence: 0 };
        let watch = Watch::new(start, CLUSTER, request, spec("aa", None));
        let mut story = Self { state: ClusterState::empty(CLUSTER), index: 0, start, watch };
        story.apply(1, model("aa"));
        story.apply(2, model("bb"));
        story
    }

    fn apply(&mut self, sequence: u64, command: Command) {
        self.index += 1;
        let id = RequestId { proposer: DeviceId("a".to_owned()), sequence };
        let outcome = self.state.apply(self.index, Request { id, command });
        assert_eq!(outcome, Outcome::Done);
    }

    /// What the cluster does, one after the other: `asked` is the command that is watched.
    fn happen(&mut self, words: &str) {
        for word in words.split(", ").filter(|word| !word.is_empty()) {
            let deployment = "big".to_owned();
            let known = self.state.deployments.get("big");
            let next = known.map_or(0, |d| d.next_epoch);
            let epoch = known.and_then(|d| d.preparing.as_ref()).map_or(0, |plan| plan.epoch);
            let command = match word {
                "asked" | "the same again" => Command::Deploy(spec("aa", None)),
                "two stages" => Command::Deploy(spec("aa", Some(2))),
                "another model" => Command::Deploy(spec("bb", None)),
                "undeploy" => Command::Undeploy { name: deployment },
                "prepare" => Command::PreparePlan { deployment, epoch: next, plan: plan() },
                "activate" => Command::ActivatePlan { deployment, epoch },
                "abandon" => Command::AbandonPlan { deployment, epoch, reason: "b is full".to_owned() },
                "fault" => {
                    let reason = Some("no room".to_owned());
                    Command::SetFault { deployment, epoch: Some(next), reason }
                }
                "leave" => {
                    self.state = ClusterState::empty(ClusterId([0; 16]));
                    continue;
                }
                other => panic!("{other}"),
            };
            self.apply(if word == "asked" { 0 } else { 100 + self.index }, command);
        }
    }

    fn look(&mut self, at_s: u64) -> String {
        let new = |is_new| if is_new { " (new)" } else { "" };
        match self.watch.look(self.start + Duration::from_secs(at_s), &self.state) {
            Step::Wait => "wait".to_owned(),
            Step::Preparing { plan, is_new } => format!("preparing {}{}", plan.epoch, new(is_new)),
            Step::Serving { plan, is_new } => format!("serving {}{}", plan.epoch, new(is_new)),
            Step::Faulty(fault) => format!("faulty: {fault}"),
            Step::Over { status, error } => format!("{status} {}", error.split([';', ':']).next().unwrap()),
        }
    }
}

const UNDEPLOYED: &str = "409 big was undeployed while it was being deployed";
const REPLACED: &str = "409 another model was deployed as big meanwhile";
const CHANGED: &str = "409 big was deployed again with other settings meanwhile";
const LEFT: &str = "503 this device left the cluster while big was being deployed";
const CUT_OFF: &str = "503 big is being deployed, but this device is cut off and cannot tell how it goes";

#[test]
fn every_deployment_comes_to_an_end() {
    // When, what has happened until then, what is seen.
    let cases: &[&[(u64, &str, &str)]] = &[
        &[
            (0, "asked", "wait"),
            (1, "prepare", "preparing 1 (new)"),
            (2, "", "preparing 1"),
            (3, "activate", "serving 1"),
        ],
        &[(0, "asked, prepare, activate", "serving 1 (new)")],
        &[(0, "asked", "wait"), (99, "", "wait"), (100, "fault", "faulty: no room")],
        // A plan that is given up is followed by another one, or not.
        &[
            (0, "asked, prepare", "preparing 1 (new)"),
            (1, "abandon", "wait"),
            (4, "", "wait"),
            (5, "prepare", "preparing 2 (new)"),
            (6, "abandon", "wait"),
            (9, "", "wait"),
            (10, "", "faulty: b is full"),
        ],
        // Somebody changes it.
        &[(0, "asked, prepare", "preparing 1 (new)"), (1, "undeploy", UNDEPLOYED)],
        &[(0, "asked", "wait"), (1, "undeploy", UNDEPLOYED)],
        &[(0, "asked, undeploy", UNDEPLOYED)],
        &[(0, "asked, prepare", "preparing 1 (new)"), (1, "another model", REPLACED)],
        &[
            (0, "asked, prepare", "preparing 1 (new)"),
            (1, "undeploy, another model, prepare, activate", REPLACED),
        ],
        &[(0, "asked, prepare", "preparing 1 (new)"), (1, "two stages, prepare, activate", CHANGED)],
        &[(0, "asked", "wait"), (1, "leave", LEFT)],
        // The same, asked for once more, will do.
        &[
            (0, "asked, prepare", "preparing 1 (new)"),
            (1, "the same again", "wait"),
            (2, "prepare", "preparing 3 (new)"),
            (3, "activate", "serving 3"),
        ],
        &[(0, "asked", "wait"), (1, "undeploy, the same again, prepare, activate", "serving 1 (new)")],
        // What was there before is not what was asked for, whether this device knows so already or not.
        &[
            (0, "another model, prepare, activate", "wait"),
            (29, "", "wait"),
            (30, "asked", "wait"),
            (31, "prepare", "preparing 3 (new)"),
            (32, "activate", "serving 3"),
        ],
        &[
            (0, "the same again, prepare, activate", "wait"),
            (1, "asked", "wait"),
            (2, "prepare, activate", "serving 3 (new)"),
        ],
        &[(0, "two stages, fault", "wait"), (1, "asked", "wait"), (2, "fault", "faulty: no room")],
        &[(0, "", "wait"), (30, "", "wait"), (31, "", CUT_OFF)],
        &[(0, "another model, prepare, activate", "wait"), (31, "", CUT_OFF)],
    ];
    for case in cases {
        let mut story = Story::new();
        for (at_s, words, expected) in *case {
            story.happen(words);
            assert_eq!(story.look(*at_s), *expected, "at {at_s} s of {case:?}");
        }
    }
}

#[test]
fn what_was_seen_once_is_remembered_when_its_outcome_is_forgotten() {
    let mut story = Story::new();
    story.happen("asked");
    assert_eq!(story.look(0), "wait");
    for _ in 0..mesh_consensus::state::OUTCOMES_KEPT {
        story.happen("prepare");
    }
    assert!(story.state.outcome(&story.watch.request).is_none());
    story.happen("undeploy");
    assert_eq!(story.look(99), UNDEPLOYED);
}
