//! A disk that fails at any of its writes, with any part of what was not synced: the replica comes back with
//! what it had promised, and the cluster goes on.

mod fleet;

use std::collections::BTreeMap;

use fleet::{Fleet, device};
use mesh_consensus::{Command, Outcome, RaftId};

/// A cluster's day: requests, a device that joins, snapshots, a change of voters.
fn day(fleet: &mut Fleet) {
    for number in 0..12 {
        let name = format!("name {number}");
        let rename = Command::UpdateMember { device: device(1), name, address: "10.0.0.9:7400".to_owned() };
        assert_eq!(fleet.run(rename), Outcome::Done);
    }
    let joined = fleet.join(4);
    fleet.until("the new device has everything", |fleet| {
        fleet.nodes[&joined].is_member() && fleet.nodes[&joined].state().members[&1].name == "name 11"
    });
    let removed = Command::RemoveMember { device: device(3) };
    assert_eq!(fleet.run(removed), Outcome::Done);
    fleet.until_voters(&[1, 2, 4]);
}

/// Terms must not fall: a vote that was given twice in one term makes two leaders.
fn terms(fleet: &Fleet) -> BTreeMap<RaftId, u64> {
    fleet.nodes.iter().map(|(id, node)| (*id, node.term())).collect()
}

fn with_a_fault(faulty: RaftId, operation: u64, kept: &[bool]) -> bool {
    let mut fleet = Fleet::found(3, 3);
    fleet.stand(1);
    assert_eq!(fleet.leader(), Some(1));
    fleet.kept = kept.to_vec();
    fleet.faulty = Some(faulty);
    let disk = fleet.disks[&faulty].clone();
    let last = disk.operations() + operation;
    disk.fail_from(last);
    let before = terms(&fleet);
    day(&mut fleet);
    for (id, term) in terms(&fleet) {
        assert!(term >= before.get(&id).copied().unwrap_or(0), "the term of {id} fell");
    }
    fleet.assert_agreement();
    disk.operations() > last
}

fn at_every_write(faulty: RaftId) {
    for kept in [&[false][..], &[true], &[true, false, false], &[false, true]] {
        let reached =
            (0..200).step_by(5).take_while(|operation| with_a_fault(faulty, *operation, kept)).count();
        assert!(reached > 12, "only {reached} faults were met");
    }
}

#[test]
fn a_follower_fails_at_any_write() {
    at_every_write(2);
}

#[test]
fn the_leader_fails_at_any_write() {
    at_every_write(1);
}
