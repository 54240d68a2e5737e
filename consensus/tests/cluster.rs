//! Clusters of replicas in one process: founding, joining, losing, coming back.

mod fleet;

use fleet::{CLUSTER, Fleet, device, genesis, member};
use mesh_consensus::{
    Command, FoundError, Listed, MemoryDisk, Node, OpenError, Options, Outcome, ProposeError, RedbStore,
    Role, StorageId,
};

fn rename(fleet: &mut Fleet, id: u64, name: &str) -> Outcome {
    fleet.run(Command::UpdateMember {
        device: device(id),
        name: name.to_owned(),
        address: "10.0.0.9:7400".to_owned(),
    })
}

#[test]
fn three_founders_elect_and_agree() {
    let mut fleet = Fleet::found(3, 3);
    fleet.until_leader();
    assert_eq!(rename(&mut fleet, 2, "door"), Outcome::Done);
    fleet.tick();
    fleet.tick();
    for node in fleet.nodes.values() {
        assert_eq!(node.state().members[&2].name, "door");
        assert!(node.has_quorum() && node.is_member());
    }
    fleet.assert_agreement();
}

#[test]
fn one_founder_leads_at_once_and_grows_to_three_and_five_voters_never_two() {
    let mut fleet = Fleet::found(1, 1);
    fleet.stand(1);
    assert_eq!(fleet.leader(), Some(1));
    for number in 2..=6 {
        assert_eq!(fleet.join(number), number);
        let expected: &[u64] = match number {
            2 => &[1],
            3 | 4 => &[1, 2, 3],
            _ => &[1, 2, 3, 4, 5],
        };
        fleet.until_voters(expected);
        fleet.until("everybody has everything", |fleet| {
            fleet.nodes.values().all(|node| node.applied() == fleet.nodes[&1].applied() && node.is_member())
        });
    }
    assert_eq!(fleet.nodes[&6].role(), Role::Learner);
    fleet.assert_agreement();
}

#[test]
fn devices_are_lost_one_after_another_down_to_the_last() {
    let mut fleet = Fleet::found(6, 5);
    fleet.until_leader();
    let leader = fleet.leader().unwrap();
    let mut losses: Vec<_> = (1..=6).filter(|id| *id != leader).collect();
    losses.sort_by_key(|id| *id == 6);
    for (lost, id) in losses.into_iter().enumerate() {
        fleet.kill(id);
        let left = 5 - lost;
        let voters = match left {
            1 | 2 => 1,
            3 | 4 => 3,
            _ => 5,
        };
        fleet.until(&format!("{voters} voters of {left} devices"), |fleet| {
            let Some(leader) = fleet.leader() else { return false };
            let conf = fleet.nodes[&leader].conf();
            conf.voters.len() == voters
                && !conf.is_joint()
                && conf.voters.iter().all(|id| fleet.nodes.contains_key(id))
        });
        assert_eq!(rename(&mut fleet, leader, &format!("after {lost} losses")), Outcome::Done);
    }
    for id in 1..=6 {
        if id != leader {
            fleet.restart(id);
        }
    }
    fleet.until("five voters again", |fleet| {
        fleet.leader().is_some_and(|leader| fleet.nodes[&leader].conf().voters.len() == 5)
    });
    fleet.assert_agreement();
}

#[test]
fn a_lost_leader_is_followed_by_another_that_carries_on() {
    let mut fleet = Fleet::found(3, 3);
    fleet.until_leader();
    rename(&mut fleet, 1, "before");
    let first = fleet.leader().unwrap();
    fleet.kill(first);
    fleet.until("another leader", |fleet| fleet.leader().is_some());
    let second = fleet.leader().unwrap();
    assert_ne!(first, second);
    assert_eq!(rename(&mut fleet, first, "after"), Outcome::Done);
    fleet.restart(first);
    fleet.until("the lost one has caught up", |fleet| {
        fleet.nodes[&first].state().members[&first].name == "after"
    });
    fleet.assert_agreement();
}

#[test]
fn a_closed_connection_to_the_leader_ends_its_lease_at_once() {
    for voters in [3, 5] {
        let mut fleet = Fleet::found(voters, voters);
        fleet.until_leader();
        let first = fleet.leader().unwrap();
        fleet.kill(first);
        fleet.nodes.values_mut().for_each(|node| node.peer_gone(first));
        let mut ticks = 0;
        while fleet.leader().is_none() {
            fleet.tick();
            ticks += 1;
        }
        assert!(ticks < fleet.options.election_ticks, "{ticks} ticks with {voters} voters");
        fleet.assert_agreement();
    }
}

#[test]
fn one_follower_that_lost_its_connection_unseats_nobody() {
    let mut fleet = Fleet::found(3, 3);
    fleet.until_leader();
    let (leader, term) = (fleet.leader().unwrap(), fleet.leader_node().term());
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    for _ in 0..5 {
        fleet.nodes.get_mut(&follower).unwrap().peer_gone(leader);
        (0..10).for_each(|_| fleet.tick());
    }
    assert_eq!((fleet.leader(), fleet.leader_node().term()), (Some(leader), term));
    assert_eq!(fleet.nodes[&follower].leader(), Some(leader));
}

#[test]
fn without_a_quorum_nothing_is_accepted_and_the_leader_steps_down() {
    let mut fleet = Fleet::found(3, 3);
    fleet.until_leader();
    let leader = fleet.leader().unwrap();
    for id in 1..=3 {
        if id != leader {
            fleet.kill(id);
        }
    }
    fleet.until("the leader has stepped down", |fleet| fleet.leader().is_none());
    assert!(!fleet.nodes[&leader].has_quorum());
    let request = fleet.request(Command::SetDraining { device: device(1), draining: true });
    let node = fleet.nodes.get_mut(&leader).unwrap();
    assert_eq!(node.propose(&request), Err(ProposeError::NotLeader { leader: None }));
}

#[test]
fn one_that_was_away_for_long_gets_a_snapshot_and_the_log_stays_short() {
    let mut fleet = Fleet::found(3, 3);
    fleet.until_leader();
    let away = (1..=3).find(|id| Some(*id) != fleet.leader()).unwrap();
    fleet.kill(away);
    for number in 0..100 {
        rename(&mut fleet, 1, &format!("name {number}"));
    }
    let before = fleet.snapshots_sent;
    assert!(fleet.leader_node().snapshot_index() > 80);
    fleet.restart(away);
    fleet.until("it has caught up", |fleet| fleet.nodes[&away].state().members[&1].name == "name 99");
    assert!(fleet.snapshots_sent > before);
    fleet.assert_agreement();
}

#[test]
fn all_restart_and_come_back_with_what_was_committed() {
    let mut fleet = Fleet::found(4, 3);
    fleet.until_leader();
    for number in 0..30 {
        rename(&mut fleet, 1, &format!("name {number}"));
    }
    for id in 1..=4 {
        fleet.kill(id);
    }
    for id in 1..=4 {
        fleet.restart(id);
    }
    fleet.until("the newest name is back everywhere", |fleet| {
        fleet.nodes.values().all(|node| node.state().members[&1].name == "name 29")
    });
    fleet.assert_agreement();
}

#[test]
fn a_restarted_replica_knows_after_a_while_what_is_committed_even_alone() {
    let mut fleet = Fleet::found(3, 3);
    fleet.until_leader();
    rename(&mut fleet, 1, "known");
    for _ in 0..30 {
        fleet.tick();
    }
    for id in 1..=3 {
        fleet.kill(id);
    }
    fleet.restart(2);
    fleet.settle();
    assert_eq!(fleet.nodes[&2].state().members[&1].name, "known");
}

/// What comes after it and is never committed must not keep it off the disk.
#[test]
fn a_leader_that_lost_its_quorum_at_once_knows_what_was_committed_after_a_restart() {
    let mut fleet = Fleet::found(3, 3);
    fleet.until_leader();
    let leader = fleet.leader().unwrap();
    rename(&mut fleet, 1, "known");
    for id in (1..=3).filter(|id| *id != leader) {
        fleet.kill(id);
    }
    let command =
        Command::UpdateMember { device: device(1), name: "never".into(), address: "10.0.0.9:7400".into() };
    let request = fleet.request(command);
    fleet.leader_node().propose(&request).unwrap();
    fleet.settle();
    fleet.kill(leader);
    fleet.restart(leader);
    fleet.settle();
    assert_eq!(fleet.nodes[&leader].state().members[&1].name, "known");
}

#[test]
fn a_removed_leader_hands_over_and_is_out() {
    for (members, voters) in [(3, 3), (2, 1), (4, 3)] {
        let mut fleet = Fleet::found(members, voters);
        fleet.until_leader();
        let leader = fleet.leader().unwrap();
        assert_eq!(fleet.run(Command::RemoveMember { device: device(leader) }), Outcome::Done);
        assert!(fleet.removed.contains(&leader));
        fleet.until("it is out of the configuration", |fleet| {
            fleet.leader().is_some_and(|new| new != leader && !fleet.nodes[&new].conf().contains(leader))
        });
        let again = member(leader);
        let outcome = fleet.run(Command::Join {
            device: again.device,
            storage: again.storage,
            listed: Listed::Not,
            name: again.name,
            address: again.address,
        });
        assert!(matches!(outcome, Outcome::Rejected { reason } if reason.contains("was removed")));
        let conf = fleet.leader_node().conf().clone();
        assert!(matches!(conf.voters.len(), 1 | 3), "{conf:?}");
    }
}

/// Removes a device and expects the others to go on without it.
fn remove_and_go_on(fleet: &mut Fleet, id: u64) {
    let what = format!("{id} of {:?} removed", fleet.leader_node().conf());
    assert_eq!(fleet.run(Command::RemoveMember { device: device(id) }), Outcome::Done, "{what}");
    assert!(fleet.removed.contains(&id), "{what}");
    fleet.until(&format!("others lead after {what}"), |fleet| {
        fleet.leader().is_some_and(|new| new != id && !fleet.nodes[&new].conf().contains(id))
    });
    let Some(new) = fleet.leader() else { panic!("nobody leads after {what}") };
    assert_eq!(rename(fleet, new, "after"), Outcome::Done, "{what}");
    assert!(matches!(fleet.leader_node().conf().voters.len(), 1 | 3), "{what}");
    fleet.assert_agreement();
}

#[test]
fn a_removed_sole_voter_gives_its_vote_to_a_learner_first() {
    for members in [2, 3, 4] {
        let mut fleet = Fleet::found(members, 1);
        fleet.stand(1);
        fleet.tick();
        remove_and_go_on(&mut fleet, 1);
    }
}

#[test]
fn removing_a_voter_while_another_is_dead_leaves_a_quorum() {
    for remove_leader in [true, false] {
        for dead in [0, 1] {
            let mut fleet = Fleet::found(3, 3);
            fleet.until_leader();
            let leader = fleet.leader().unwrap();
            let mut followers: Vec<_> = (1..=3).filter(|id| *id != leader).collect();
            fleet.kill(followers.remove(dead));
            remove_and_go_on(&mut fleet, if remove_leader { leader } else { followers[0] });
        }
    }
}

#[test]
fn the_dead_voter_itself_is_removed() {
    for (members, voters) in [(3, 3), (5, 5)] {
        let mut fleet = Fleet::found(members, voters);
        fleet.until_leader();
        let dead = (1..=3).find(|id| Some(*id) != fleet.leader()).unwrap();
        fleet.kill(dead);
        assert_eq!(fleet.run(Command::RemoveMember { device: device(dead) }), Outcome::Done);
        fleet.until("it is out", |fleet| {
            fleet.leader().is_some_and(|leader| !fleet.nodes[&leader].conf().contains(dead))
        });
    }
}

#[test]
fn a_removal_that_cannot_go_on_is_given_up_and_the_cluster_goes_on() {
    let mut fleet = Fleet::found(2, 1);
    fleet.stand(1);
    fleet.kill(2);
    (0..10).for_each(|_| fleet.tick());
    let removal = fleet.request(Command::RemoveMember { device: device(1) });
    let another = fleet.request(Command::RemoveMember { device: device(2) });
    assert_eq!(fleet.leader_node().propose(&removal), Ok(()));
    assert_eq!(fleet.leader_node().propose(&removal), Ok(()), "asking again is no second removal");
    assert_eq!(fleet.leader_node().propose(&another), Err(ProposeError::Busy), "one at a time");
    assert_eq!(rename(&mut fleet, 1, "meanwhile"), Outcome::Done);
    fleet.until("it is given up", |fleet| fleet.refused == [removal.id.clone()]);
    let again = fleet.leader_node().propose(&removal);
    assert!(matches!(again, Err(ProposeError::Refused(reason)) if reason.contains("too few others")));
    assert!(fleet.leader_node().is_member());
    assert_eq!(rename(&mut fleet, 1, "after"), Outcome::Done);
    fleet.restart(2);
    remove_and_go_on(&mut fleet, 1);
}

#[test]
fn the_last_member_is_not_removed() {
    let mut fleet = Fleet::found(1, 1);
    fleet.stand(1);
    let removal = fleet.request(Command::RemoveMember { device: device(1) });
    let refused = fleet.leader_node().propose(&removal);
    assert!(matches!(refused, Err(ProposeError::Refused(reason)) if reason.contains("last member")));
}

#[test]
fn a_wiped_disk_is_a_new_member_and_the_old_one_leaves() {
    let mut fleet = Fleet::found(3, 3);
    fleet.until_leader();
    let wiped = (1..=3).find(|id| Some(*id) != fleet.leader()).unwrap();
    fleet.kill(wiped);
    let outcome = fleet.run(Command::Join {
        device: device(wiped),
        storage: StorageId([99; 16]),
        listed: Listed::With(member(wiped).storage),
        name: "wiped".to_owned(),
        address: "10.0.0.7:7400".to_owned(),
    });
    assert_eq!(outcome, Outcome::Joined { raft_id: 4 });
    let disk = MemoryDisk::new();
    let mut store = RedbStore::open_with_backend(disk.backend()).unwrap();
    Node::join_empty(&mut store, CLUSTER, 4).unwrap();
    fleet.disks.insert(4, disk);
    drop(store);
    fleet.restart(4);
    let voters: Vec<_> = (1..=4).filter(|id| *id != wiped).collect();
    fleet.until_voters(&voters);
    assert!(!fleet.leader_node().conf().contains(wiped));
    fleet.assert_agreement();
}

#[test]
fn a_request_is_applied_once_however_often_it_is_proposed() {
    let mut fleet = Fleet::found(3, 3);
    fleet.until_leader();
    let join = fleet.request(Command::Join {
        device: device(8),
        storage: StorageId([8; 16]),
        listed: Listed::Not,
        name: String::new(),
        address: String::new(),
    });
    let first = fleet.run_request(&join);
    fleet.run(Command::RemoveMember { device: device(8) });
    assert_eq!(fleet.run_request(&join), first, "a retry gets the first answer");
    assert!(fleet.leader_node().state().member(&device(8)).is_none(), "and changes nothing");
}

#[test]
fn a_sole_voter_leads_again_right_after_its_restart() {
    let mut fleet = Fleet::found(2, 1);
    fleet.until_leader();
    let term = fleet.nodes[&1].term();
    fleet.kill(1);
    fleet.restart(1);
    fleet.tick();
    assert_eq!(fleet.leader(), Some(1));
    assert!(fleet.nodes[&1].term() > term);
}

#[test]
fn a_change_of_role_is_told_once() {
    let mut fleet = Fleet::found(1, 1);
    let node = fleet.nodes.get_mut(&1).unwrap();
    node.campaign();
    assert_eq!(node.process().unwrap().role_changed, Some(Role::Leader));
    assert_eq!(node.process().unwrap().role_changed, None);
}

#[test]
fn a_replica_can_live_on_a_thread_of_its_own() {
    fn is_send<T: Send>() {}
    is_send::<Node<RedbStore>>();
}

#[test]
fn a_store_is_given_to_one_cluster_once() {
    let disk = MemoryDisk::new();
    let mut store = RedbStore::open_with_backend(disk.backend()).unwrap();
    assert!(matches!(Node::identity_in(&store), Ok(None)));
    Node::found(&mut store, &genesis(3, 3), 2).unwrap();
    let again = Node::found(&mut store, &genesis(3, 3), 2);
    assert!(matches!(again, Err(FoundError::NotEmpty(identity)) if identity.raft_id == 2));
    assert!(matches!(Node::join_empty(&mut store, CLUSTER, 5), Err(FoundError::NotEmpty(_))));
    drop(store);
    let empty = RedbStore::open_with_backend(MemoryDisk::new().backend()).unwrap();
    assert!(matches!(Node::open(empty, Options::default()), Err(OpenError::NoCluster)));
}

#[test]
fn impossible_beginnings_are_refused() {
    let mut two = genesis(3, 3);
    two.voters = vec![1, 2];
    let mut stranger = genesis(3, 3);
    stranger.voters = vec![1, 2, 9];
    let mut twin = genesis(3, 3);
    twin.members[1].device = device(1);
    for (genesis, me) in [(two, 1), (stranger, 1), (twin, 1), (genesis(3, 3), 7)] {
        let mut store = RedbStore::open_with_backend(MemoryDisk::new().backend()).unwrap();
        assert!(matches!(Node::found(&mut store, &genesis, me), Err(FoundError::Genesis(_))));
    }
}
