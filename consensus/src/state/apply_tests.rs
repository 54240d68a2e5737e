use mesh_planner::{Bottleneck, BottleneckKind, Objective, Plan};
use proptest::prelude::*;

use super::*;
use crate::ids::ClusterId;

fn device(id: u64) -> DeviceId {
    DeviceId(format!("device-{id}"))
}

fn cluster() -> ClusterState {
    let member = |raft_id: u64| Member {
        raft_id,
        device: device(raft_id),
        storage: StorageId([u8::try_from(raft_id).unwrap(); 16]),
        name: format!("camera-{raft_id}"),
        address: "10.0.0.1:7400".to_owned(),
        draining: false,
    };
    ClusterState::founded(ClusterId([1; 16]), "shop", &[member(1), member(2)])
}

fn plan(rate: f64) -> Plan {
    Plan {
        stages: Vec::new(),
        bottleneck_s: 1.0 / rate,
        bottleneck: Bottleneck { kind: BottleneckKind::Compute, stage: 0, device: "device-1".to_owned() },
        throughput_rps: rate,
        latency_s: 0.1,
        lower_bound_s: 0.1,
        optimal: false,
        why: String::new(),
        unused: Vec::new(),
        alternatives: Vec::new(),
    }
}

fn model(hash: &str) -> Command {
    Command::AddModel(ModelRecord {
        hash: hash.to_owned(),
        source: "net.onnx".to_owned(),
        weight_bytes: 1000,
        nodes: 10,
        blocks: 4,
        added_by: device(1),
        profile_blob: None,
    })
}

fn deploy(name: &str, hash: &str) -> Command {
    Command::Deploy(DeploySpec {
        name: name.to_owned(),
        model: hash.to_owned(),
        objective: Objective::Throughput,
        stages: None,
        pin: None,
        shapes: vec![("x".to_owned(), vec![1, 3])],
    })
}

fn join(id: u64, storage: u8, listed: Listed) -> Command {
    Command::Join {
        device: device(id),
        storage: StorageId([storage; 16]),
        listed,
        name: "n".to_owned(),
        address: "a".to_owned(),
    }
}

fn disk(storage: u8) -> Listed {
    Listed::With(StorageId([storage; 16]))
}

fn prepare(epoch: u64) -> Command {
    Command::PreparePlan { deployment: "net".to_owned(), epoch, plan: plan(10.0) }
}

fn activate(epoch: u64) -> Command {
    Command::ActivatePlan { deployment: "net".to_owned(), epoch }
}

fn abandon(epoch: u64) -> Command {
    Command::AbandonPlan { deployment: "net".to_owned(), epoch, reason: "too little memory".to_owned() }
}

fn undeploy() -> Command {
    Command::Undeploy { name: "net".to_owned() }
}

/// Applies commands under fresh request ids.
struct Script(ClusterState, u64);

impl Script {
    fn new() -> Self {
        Self(cluster(), 0)
    }

    fn run(&mut self, command: Command) -> Outcome {
        self.1 += 1;
        let id = RequestId { proposer: device(1), sequence: self.1 };
        self.0.apply(self.1, Request { id, command })
    }

    fn done(&mut self, command: Command) {
        assert_eq!(self.run(command), Outcome::Done);
    }

    /// Refused with these words, and nothing changed but the memory of it.
    fn refused(&mut self, command: Command, words: &str) {
        let mut before = self.0.clone();
        let outcome = self.run(command.clone());
        assert!(
            matches!(&outcome, Outcome::Rejected { reason } if reason.contains(words)),
            "{command:?} gave {outcome:?}, not {words}"
        );
        before.recent.clone_from(&self.0.recent);
        assert_eq!(before, self.0, "a refused command changed the state");
    }

    fn deployment(&self) -> &Deployment {
        &self.0.deployments["net"]
    }
}

#[test]
fn members_join_once_per_disk_and_never_reuse_a_raft_id() {
    let mut script = Script::new();
    assert_eq!(script.run(join(3, 3, Listed::Not)), Outcome::Joined { raft_id: 3 });
    assert_eq!(script.run(join(3, 3, Listed::Not)), Outcome::Joined { raft_id: 3 });
    assert_eq!(script.run(join(3, 77, disk(3))), Outcome::Joined { raft_id: 4 });
    assert!(!script.0.members.contains_key(&3));
    script.done(Command::RemoveMember { device: device(3) });
    script.refused(join(3, 77, disk(77)), "was removed from this cluster");
    assert_eq!(script.run(join(5, 5, Listed::Not)), Outcome::Joined { raft_id: 5 });
}

/// Every order in which the requests of a device for three disks, each made when it had heard of the last one, and
/// each of them perhaps repeated, can arrive: what is listed only ever moves on.
#[test]
fn a_late_join_replaces_no_later_one() {
    let requests = [join(3, 1, Listed::Not), join(3, 2, disk(1)), join(3, 3, disk(2))];
    for order in 0..3_usize.pow(6) {
        let mut script = Script::new();
        let mut newest = 0;
        for step in 0..6 {
            let which = order / 3_usize.pow(step) % 3;
            let outcome = script.run(requests[which].clone());
            let joined = matches!(outcome, Outcome::Joined { .. });
            assert_eq!(joined, which == newest || which + 1 == newest, "{order} at {step}");
            assert!(joined || outcome == Outcome::ListedOtherwise);
            newest = newest.max(if joined { which + 1 } else { 0 });
            let listed = script.0.member(&device(3)).map(|member| member.storage.0[0]);
            assert_eq!(usize::from(listed.unwrap_or(0)), newest);
        }
    }
}

/// A log from before requests said how their device is listed gives the state that it gave then.
#[test]
fn a_join_that_does_not_say_how_it_is_listed_replaces_whatever_is() {
    let mut script = Script::new();
    assert_eq!(script.run(join(3, 3, Listed::Not)), Outcome::Joined { raft_id: 3 });
    assert_eq!(script.run(join(3, 4, Listed::Not)), Outcome::ListedOtherwise);
    assert_eq!(script.run(join(3, 4, Listed::Unsaid)), Outcome::Joined { raft_id: 4 });
}

#[test]
fn a_join_brings_the_new_address() {
    let mut script = Script::new();
    let again = Command::Join {
        device: device(2),
        storage: StorageId([2; 16]),
        listed: Listed::Not,
        name: "door".to_owned(),
        address: "10.0.0.2:9".to_owned(),
    };
    assert_eq!(script.run(again), Outcome::Joined { raft_id: 2 });
    let member = script.0.member(&device(2)).unwrap();
    assert_eq!((member.name.as_str(), member.address.as_str()), ("door", "10.0.0.2:9"));
}

#[test]
fn strangers_and_the_last_member_are_refused() {
    let mut script = Script::new();
    script.refused(Command::SetDraining { device: device(9), draining: true }, "is not a member");
    script.refused(Command::RemoveMember { device: device(9) }, "is not a member");
    script.done(Command::SetDraining { device: device(2), draining: true });
    assert!(script.0.members[&2].draining);
    script.done(Command::RemoveMember { device: device(2) });
    script.done(Command::RemoveMember { device: device(2) });
    script.refused(Command::RemoveMember { device: device(1) }, "last member");
}

#[test]
fn a_model_in_use_stays() {
    let mut script = Script::new();
    script.refused(deploy("net", "aa"), "is not known");
    script.done(model("aa"));
    script.done(model("bb"));
    script.done(deploy("net", "aa"));
    script.done(prepare(1));
    script.done(activate(1));
    script.done(deploy("net", "bb"));
    script.refused(Command::RemoveModel { hash: "aa".to_owned() }, "is used by deployment net");
    script.refused(Command::RemoveModel { hash: "bb".to_owned() }, "is used by deployment net");
    script.done(undeploy());
    script.done(Command::RemoveModel { hash: "aa".to_owned() });
    script.refused(Command::RemoveModel { hash: "aa".to_owned() }, "is not known");
}

#[test]
fn plans_are_prepared_then_activated_and_old_leaders_are_fenced() {
    let mut script = Script::new();
    script.done(model("aa"));
    script.done(deploy("net", "aa"));
    script.refused(prepare(2), "takes epoch 1 next");
    script.refused(activate(1), "not preparing epoch 1");
    script.done(prepare(1));
    script.refused(prepare(1), "takes epoch 2 next");
    script.done(activate(1));
    assert_eq!(script.deployment().active.as_ref().map(|plan| plan.epoch), Some(1));
    script.refused(activate(1), "not preparing");
    script.done(prepare(2));
    script.done(prepare(3));
    script.refused(activate(2), "not preparing epoch 2");
    script.refused(abandon(2), "not preparing epoch 2");
    script.done(abandon(3));
    assert_eq!(script.deployment().fault.as_deref(), Some("too little memory"));
    assert_eq!(script.deployment().active.as_ref().map(|plan| plan.epoch), Some(1));
    script.done(prepare(4));
    script.done(activate(4));
    assert_eq!(script.deployment().fault, None);
}

#[test]
fn what_was_at_fault_before_is_not_held_against_what_is_asked_now() {
    let mut script = Script::new();
    script.done(model("aa"));
    script.done(deploy("net", "aa"));
    let fault = |epoch| {
        let reason = Some("its device is away".to_owned());
        Command::SetFault { deployment: "net".to_owned(), epoch, reason }
    };
    script.done(fault(Some(1)));
    script.done(deploy("net", "aa"));
    assert_eq!(script.deployment().fault, None);
    script.refused(fault(Some(1)), "takes epoch 2 next");
    script.done(fault(Some(2)));
    script.done(fault(None));
}

#[test]
fn a_new_spec_keeps_the_old_plan_serving_and_spends_an_epoch() {
    let mut script = Script::new();
    script.done(model("aa"));
    script.done(model("bb"));
    script.done(deploy("net", "aa"));
    script.done(prepare(1));
    script.done(activate(1));
    script.done(prepare(2));
    script.done(deploy("net", "bb"));
    assert_eq!(script.deployment().active.as_ref().map(|plan| plan.model.as_str()), Some("aa"));
    assert_eq!(script.deployment().preparing, None);
    script.refused(prepare(3), "takes epoch 4 next");
    script.done(prepare(4));
    script.done(activate(4));
    assert_eq!(script.deployment().active.as_ref().map(|plan| plan.model.as_str()), Some("bb"));
}

#[test]
fn a_name_used_again_repeats_no_epoch() {
    let mut script = Script::new();
    script.done(model("aa"));
    script.done(deploy("net", "aa"));
    script.done(prepare(1));
    script.done(undeploy());
    script.refused(undeploy(), "there is no deployment");
    script.done(deploy("net", "aa"));
    script.refused(prepare(1), "takes epoch 2 next");
    script.done(prepare(2));
}

#[test]
fn long_texts_and_too_many_things_are_refused() {
    let mut script = Script::new();
    let long = "x".repeat(MAX_TEXT + 1);
    script.refused(
        Command::UpdateMember { device: device(1), name: long.clone(), address: String::new() },
        "use a shorter one",
    );
    script.refused(model(&long), "use a shorter one");
    script.refused(model(""), "is empty");
    script.done(model("aa"));
    for number in 0..MAX_DEPLOYMENTS {
        script.done(deploy(&format!("net-{number}"), "aa"));
    }
    script.refused(deploy("one more", "aa"), "the most that can be");
    script.done(deploy("net-3", "aa"));
    for id in 3..=MAX_MEMBERS as u64 {
        assert!(matches!(script.run(join(id, 1, Listed::Not)), Outcome::Joined { .. }));
    }
    script.refused(join(9999, 1, Listed::Not), "the most it can");
}

#[test]
fn outcomes_are_kept_for_the_latest_requests_of_the_latest_proposers() {
    let mut state = cluster();
    let request = |proposer: u64, sequence| Request {
        id: RequestId { proposer: device(proposer), sequence },
        command: Command::SetDraining { device: device(1), draining: false },
    };
    let mut index = 0;
    for sequence in 0..(OUTCOMES_KEPT as u64 + 10) {
        index += 1;
        state.apply(index, request(1, sequence));
    }
    assert_eq!(state.recent[&device(1)].outcomes.len(), OUTCOMES_KEPT);
    assert!(state.outcome(&request(1, 9).id).is_none());
    assert!(state.outcome(&request(1, 10).id).is_some());
    for proposer in 2..(PROPOSERS_KEPT as u64 + 2) {
        index += 1;
        state.apply(index, request(proposer, 0));
    }
    assert_eq!(state.recent.len(), PROPOSERS_KEPT);
    assert!(!state.recent.contains_key(&device(1)), "the one that was silent longest is forgotten");
}

fn commands() -> impl Strategy<Value = Command> {
    let names = prop_oneof![Just("net"), Just("other")];
    let hashes = prop_oneof![Just("aa"), Just("bb"), Just("cc")];
    let listed = prop_oneof![Just(Listed::Unsaid), Just(Listed::Not), (1_u8..4).prop_map(disk)];
    prop_oneof![
        (1_u64..6, 1_u8..4, listed).prop_map(|(id, storage, listed)| join(id, storage, listed)),
        (1_u64..6).prop_map(|id| Command::RemoveMember { device: device(id) }),
        hashes.clone().prop_map(model),
        hashes.clone().prop_map(|hash| Command::RemoveModel { hash: hash.to_owned() }),
        (names.clone(), hashes).prop_map(|(name, hash)| deploy(name, hash)),
        names.prop_map(|name| Command::Undeploy { name: name.to_owned() }),
        (1_u64..8).prop_map(prepare),
        (1_u64..8).prop_map(activate),
        (1_u64..8).prop_map(abandon),
        prop::option::of(0..6u64).prop_map(|epoch| Command::SetFault {
            deployment: "net".to_owned(),
            epoch,
            reason: Some("why".to_owned())
        }),
    ]
}

proptest! {
    /// Whatever is asked: requests and state survive their encoding, a retry changes nothing, ids and epochs
    /// only grow, and the state stays whole.
    #[test]
    fn any_history_keeps_the_state_whole(
        history in prop::collection::vec((commands(), 0_u64..30), 1..60)
    ) {
        let mut state = cluster();
        let mut newest_epoch = 0;
        let mut newest_raft_id = state.next_raft_id;
        for (index, (command, sequence)) in (1..).zip(history) {
            let request = Request { id: RequestId { proposer: device(1), sequence }, command };
            prop_assert_eq!(&Request::decode(&request.encode()).unwrap(), &request);
            let first = state.apply(index, request.clone());
            let before_retry = state.clone();
            prop_assert_eq!(state.apply(index + 1, request), first);
            prop_assert_eq!(&state, &before_retry);

            let copy = ClusterState::decode(&state.encode()).unwrap();
            prop_assert_eq!(copy.digest(), state.digest());
            prop_assert_eq!(&copy, &state);

            prop_assert!(state.next_raft_id >= newest_raft_id);
            newest_raft_id = state.next_raft_id;
            prop_assert!(state.members.keys().all(|id| *id < newest_raft_id && *id > 0));
            prop_assert!(state.members.values().all(|member| !state.removed.contains(&member.device)));
            prop_assert!(!state.members.is_empty());
            if let Some(net) = state.deployments.get("net") {
                prop_assert!(state.models.contains_key(&net.model));
                for plan in net.active.iter().chain(&net.preparing) {
                    prop_assert!(plan.epoch < net.next_epoch && state.models.contains_key(&plan.model));
                }
                let epoch = net.active.as_ref().map_or(newest_epoch, |plan| plan.epoch);
                prop_assert!(epoch >= newest_epoch);
                newest_epoch = epoch;
            }
        }
    }

    #[test]
    fn random_bytes_are_neither_request_nor_state(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = (Request::decode(&bytes), ClusterState::decode(&bytes));
        if let Some(first) = bytes.first_mut() {
            *first = 1;
        }
        let _ = (Request::decode(&bytes), ClusterState::decode(&bytes));
    }
}
