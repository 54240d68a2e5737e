//! A majority is lost for good: one replica's copy becomes the cluster.

mod fleet;

use fleet::{CLUSTER, Fleet, device};
use mesh_consensus::{
    Command, DeploySpec, MemoryDisk, ModelRecord, Node, Outcome, Recovery, RecoveryError, RedbStore,
};
use mesh_planner::{Bottleneck, BottleneckKind, Objective, Plan};

fn rename(fleet: &mut Fleet, id: u64, name: &str) -> Outcome {
    fleet.run(Command::UpdateMember {
        device: device(id),
        name: name.to_owned(),
        address: "10.0.0.9:7400".to_owned(),
    })
}

#[test]
fn after_a_majority_is_lost_for_good_one_copy_becomes_the_cluster() {
    let mut fleet = Fleet::found(5, 5);
    fleet.until_leader();
    assert_eq!(rename(&mut fleet, 4, "kept"), Outcome::Done);
    fleet.until("everybody has it", |fleet| {
        fleet.nodes.values().all(|node| node.state().members[&4].name == "kept")
    });
    for lost in [1, 2, 3] {
        fleet.kill(lost);
    }
    fleet.until("nobody leads", |fleet| fleet.leader().is_none());
    fleet.kill(4);
    let mut store = RedbStore::open_with_backend(fleet.disks[&4].backend()).unwrap();
    let recovery = Recovery::of(&store).unwrap();
    assert_eq!((recovery.me.name.as_str(), recovery.others().count()), ("kept", 4));
    assert_eq!(recovery.voters, (1..=5).collect());
    recovery.carry_out(&mut store).unwrap();
    drop(store);
    fleet.restart(4);
    fleet.until_voters(&[4]);
    assert_eq!(fleet.leader(), Some(4));
    // The other survivor follows; the lost ones are removed, and a new device makes it three voters.
    for lost in [1, 2, 3] {
        assert_eq!(fleet.run(Command::RemoveMember { device: device(lost) }), Outcome::Done);
    }
    fleet.until("the other survivor follows", |fleet| {
        fleet.nodes[&5].state().members.len() == 2 && fleet.nodes[&5].leader() == Some(4)
    });
    let sixth = fleet.join(6);
    fleet.until_voters(&[4, 5, sixth]);
    // One of the lost turns up with its old data: it is no member and unseats nobody.
    fleet.restart(1);
    (0..200).for_each(|_| fleet.tick());
    assert_eq!(rename(&mut fleet, 5, "still here"), Outcome::Done);
    assert_eq!(fleet.leader(), Some(4));
}

fn model() -> Command {
    Command::AddModel(ModelRecord {
        hash: "m1".to_owned(),
        source: "net.onnx".to_owned(),
        weight_bytes: 1000,
        nodes: 10,
        blocks: 4,
        added_by: device(1),
        profile_blob: None,
    })
}

fn deploy(name: &str) -> Command {
    Command::Deploy(DeploySpec {
        name: name.to_owned(),
        model: "m1".to_owned(),
        objective: Objective::Throughput,
        stages: None,
        pin: None,
        shapes: Vec::new(),
    })
}

fn prepare(epoch: u64) -> Command {
    let plan = Plan {
        stages: Vec::new(),
        bottleneck_s: 0.1,
        bottleneck: Bottleneck { kind: BottleneckKind::Compute, stage: 0, device: "device-1".to_owned() },
        throughput_rps: 10.0,
        latency_s: 0.1,
        lower_bound_s: 0.1,
        optimal: false,
        why: String::new(),
        unused: Vec::new(),
        alternatives: Vec::new(),
    };
    Command::PreparePlan { deployment: "net".to_owned(), epoch, plan }
}

/// The lost majority may have made plans and taken devices in that the copy never heard of. One of its devices may live
/// and still serve such a plan.
#[test]
fn a_recovered_copy_gives_no_number_out_a_second_time() {
    const MANY: u64 = 100_000;
    let mut fleet = Fleet::found(3, 3);
    fleet.until_leader();
    let activate = Command::ActivatePlan { deployment: "net".to_owned(), epoch: 1 };
    for command in [model(), deploy("net"), prepare(1), activate, prepare(2)] {
        assert_eq!(fleet.run(command), Outcome::Done);
    }
    fleet.until("all know what is being prepared", |fleet| {
        fleet.nodes.values().all(|node| node.state().deployments["net"].preparing.is_some())
    });
    let before = fleet.nodes[&3].state().clone();
    (1..=3).for_each(|id| fleet.kill(id));
    let mut store = RedbStore::open_with_backend(fleet.disks[&3].backend()).unwrap();
    let recovery = Recovery::of(&store).unwrap();
    assert!(recovery.last_index > 5 && recovery.last_term > 0 && recovery.committed <= recovery.last_index);
    recovery.carry_out(&mut store).unwrap();
    drop(store);
    fleet.restart(3);
    fleet.until_voters(&[3]);

    let (old, new) = (&before.deployments["net"], fleet.nodes[&3].state().deployments["net"].clone());
    assert_eq!((&new.active, new.asked_epoch), (&old.active, old.asked_epoch), "what serves goes on");
    assert_eq!(new.preparing, None, "its epoch may be another plan's");
    assert!(new.next_epoch > old.next_epoch + MANY);
    assert!(matches!(fleet.run(prepare(old.next_epoch)), Outcome::Rejected { .. }));
    assert_eq!(fleet.run(prepare(new.next_epoch)), Outcome::Done);
    assert_eq!(fleet.run(deploy("other")), Outcome::Done);
    assert!(fleet.nodes[&3].state().deployments["other"].next_epoch > old.next_epoch + MANY);
    assert!(fleet.join(7) > before.next_raft_id + MANY);
}

#[test]
fn only_a_member_with_a_copy_can_recover() {
    let store = RedbStore::open_with_backend(MemoryDisk::new().backend()).unwrap();
    assert!(matches!(Recovery::of(&store), Err(RecoveryError::NoCluster)));
    let mut store = store;
    Node::join_empty(&mut store, CLUSTER, 3).unwrap();
    assert!(matches!(Recovery::of(&store), Err(RecoveryError::Empty)));
}
