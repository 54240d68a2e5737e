use proptest::prelude::*;

use super::*;

fn peer(live: bool, ready: bool) -> PeerView {
    PeerView { live, ready, draining: false, leaving: false }
}

/// `r` heard and caught up, `l` live but behind, `d` dead; ids from 1, `-` for one that is no member. Being removed:
/// `x` heard and caught up, `z` dead.
fn members(picture: &str) -> BTreeMap<RaftId, PeerView> {
    let views = picture.chars().zip(1..).filter(|(letter, _)| *letter != '-');
    let view = |letter| PeerView {
        leaving: matches!(letter, 'x' | 'z'),
        ..peer(!matches!(letter, 'd' | 'z'), matches!(letter, 'r' | 'x'))
    };
    views.map(|(letter, id)| (id, view(letter))).collect()
}

fn conf(voters: &[RaftId], learners: &[RaftId]) -> Conf {
    let set = |ids: &[RaftId]| ids.iter().copied().collect();
    Conf { voters: set(voters), learners: set(learners), ..Conf::default() }
}

/// The voters after the next step, or the step in words.
fn decide(voters: &[RaftId], picture: &str) -> String {
    let members = members(picture);
    let learners: Vec<_> = members.keys().copied().filter(|id| !voters.contains(id)).collect();
    let conf = conf(voters, &learners);
    match next_step(1, &conf, &members) {
        None => "rest".to_owned(),
        Some(MembershipStep::LeaveJoint) => "leave".to_owned(),
        Some(MembershipStep::Transfer { to }) => format!("transfer {to}"),
        Some(MembershipStep::Change(change)) => {
            let after: Vec<_> = change.voters_after(&conf).iter().map(ToString::to_string).collect();
            after.join(" ")
        }
    }
}

#[test]
fn decisions() {
    for (voters, picture, expected) in [
        (&[1][..], "r", "rest"),
        (&[1], "rr", "rest"),
        (&[1], "rrl", "rest"),
        (&[1], "rrr", "1 2 3"),
        (&[1], "rrrr", "1 2 3"),
        (&[1], "rrrrr", "1 2 3 4 5"),
        (&[1], "rrrll", "1 2 3"),
        (&[1, 2, 3], "rrrr", "rest"),
        (&[1, 2, 3], "rrrrl", "rest"),
        (&[1, 2, 3], "rrrrr", "1 2 3 4 5"),
        // A voter is lost: its seat goes to a learner that is caught up,
        (&[1, 2, 3], "rdrr", "1 3 4"),
        // or waits for one that is catching up,
        (&[1, 2, 3], "rdrl", "rest"),
        // or there is nobody and the seats become fewer.
        (&[1, 2, 3], "rdr", "1"),
        (&[1, 2, 3], "rdrd", "1"),
        (&[1, 2, 3, 4, 5], "rrrrd", "1 2 3"),
        (&[1, 2, 3, 4, 5], "rrddr", "1 2 5"),
        (&[1, 2, 3, 4, 5], "rrddrr", "1 2 5"),
        (&[1, 2, 3, 4, 5], "rrrrdr", "1 2 3 4 6"),
        // A voter that is behind, but there, keeps its seat.
        (&[1, 2, 3], "rllr", "rest"),
        // No member any more: out, replaced or not.
        (&[1, 2, 3], "r-rr", "1 3 4"),
        (&[1, 2, 3], "r-r", "1"),
        // The leader itself goes: it hands over first, or makes an heir. (Entering a joint configuration takes the
        // heirs' agreement, so that one that is behind has caught up by then.)
        (&[1, 2, 3], "-rr", "transfer 2"),
        (&[1, 2, 3], "-llr", "2 3 4"),
        (&[1, 2, 3], "-ll", "2"),
        (&[1], "-r", "2"),
        (&[1], "-l", "rest"),
        (&[1], "-d", "rest"),
        // The leader is being removed: its seat goes first, and only to those that can take it now.
        (&[1], "xr", "2"),
        (&[1], "xl", "rest"),
        (&[1], "xd", "rest"),
        (&[1], "xdr", "3"),
        (&[1], "xrr", "2"),
        (&[1], "xrrr", "2 3 4"),
        (&[1, 2, 3], "xrr", "transfer 2"),
        (&[1, 2, 3], "xdr", "transfer 3"),
        (&[1, 2, 3], "xdrr", "transfer 3"),
        (&[1, 2, 3], "xll", "rest"),
        (&[1, 2, 3], "xdlr", "rest"),
        // Another voter is being removed: it counts as gone, dead or not.
        (&[1, 2, 3], "rxr", "1"),
        (&[1, 2, 3], "rxd", "1"),
        (&[1, 2, 3], "rzr", "1"),
        (&[1, 2, 3], "rxrr", "1 3 4"),
        (&[1, 2, 3], "rxrl", "rest"),
        (&[1, 2, 3, 4, 5], "rxrrr", "1 3 4"),
        // Of the voters that stay, those that are up to date.
        (&[1, 2, 3, 4, 5], "rxlrr", "1 4 5"),
        (&[1, 2, 3, 4, 5], "rlrrd", "1 3 4"),
        // A learner that is being removed gets no seat.
        (&[1], "rxr", "rest"),
        (&[1], "rxrr", "1 3 4"),
    ] {
        assert_eq!(decide(voters, picture), expected, "voters {voters:?}, members {picture}");
    }
}

#[test]
fn learners_come_and_go_one_at_a_time() {
    let step = |conf: &Conf, picture: &str| match next_step(1, conf, &members(picture)) {
        Some(MembershipStep::Change(change)) => change,
        other => panic!("{other:?}"),
    };
    assert_eq!(step(&conf(&[1], &[]), "rdd").add, [2].into());
    assert_eq!(step(&conf(&[1], &[2]), "rrr").add, [3].into());
    assert_eq!(step(&conf(&[1], &[2, 3]), "r").remove, [2].into());
    let removed_voter = step(&conf(&[1, 2, 3], &[4]), "rr-r");
    assert_eq!((removed_voter.promote, removed_voter.remove), ([4].into(), [3].into()));
}

#[test]
fn draining_devices_vote_only_when_there_are_not_enough_others() {
    let mut view = members("rrrr");
    view.get_mut(&2).unwrap().draining = true;
    let change = next_step(1, &conf(&[1], &[2, 3, 4]), &view);
    assert!(matches!(change, Some(MembershipStep::Change(change)) if change.promote == [3, 4].into()));
}

#[test]
fn a_joint_configuration_is_left_by_a_leader_that_stays() {
    let mut joint = conf(&[2], &[]);
    joint.outgoing = [1].into();
    assert_eq!(next_step(1, &joint, &members("-r")), Some(MembershipStep::Transfer { to: 2 }));
    assert_eq!(next_step(1, &joint, &members("-l")), None);
    assert_eq!(next_step(2, &joint, &members("-r")), Some(MembershipStep::LeaveJoint));
}

/// A group whose devices die and come back; changes take effect as Raft makes them.
fn follow(conf: &mut Conf, leader: &mut RaftId, step: MembershipStep) {
    match step {
        MembershipStep::Transfer { to } => *leader = to,
        MembershipStep::LeaveJoint => {
            conf.learners.append(&mut conf.learners_next);
            conf.outgoing.clear();
        }
        MembershipStep::Change(change) => {
            let voters = change.voters_after(conf);
            if change.is_joint(conf) {
                conf.outgoing = std::mem::replace(&mut conf.voters, voters);
                conf.learners_next = change.demote;
                conf.learners.retain(|id| !change.promote.contains(id));
            } else {
                conf.learners.extend(&change.add);
                conf.learners.retain(|id| !change.remove.contains(id));
            }
        }
    }
}

fn view_strategy() -> impl Strategy<Value = Vec<(bool, bool, bool, bool)>> {
    prop::collection::vec(
        (prop::bool::weighted(0.9), prop::bool::weighted(0.7), any::<bool>(), any::<bool>()),
        1..9,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// From any sound configuration and any view: never an even number of voters, the leader never demotes
    /// itself unless it was or is removed, and a fixed point within a few steps, with only members in it. Whoever is
    /// being removed gets no seat, and loses the one it has as soon as another can be had for it.
    #[test]
    fn always_comes_to_rest_and_never_at_two_voters(
        view in view_strategy(),
        start in prop_oneof![Just(1_usize), Just(3), Just(5)],
        leaving in prop::option::of(1..9_u64),
    ) {
        let members: BTreeMap<RaftId, PeerView> = (1..)
            .zip(&view)
            .filter(|(_, (member, ..))| *member)
            .map(|(id, (_, live, ready, draining))| {
                let (live, ready) = (*live, *live && *ready);
                (id, PeerView { live, ready, draining: *draining, leaving: leaving == Some(id) })
            })
            .collect();
        let voters: BTreeSet<RaftId> = (1..=8).take(start).collect();
        let mut conf = Conf { voters, learners: [8].into(), ..Conf::default() };
        let mut leader = 1;
        let mut members = members;
        if let Some(view) = members.get_mut(&leader) {
            *view = PeerView { live: true, ready: true, ..*view };
        }
        let goes = |id: &RaftId| members.get(id).is_none_or(|view| view.leaving);
        let mut rested = false;
        for _ in 0..40 {
            let Some(step) = next_step(leader, &conf, &members) else { rested = true; break };
            if let MembershipStep::Change(change) = &step {
                let after = change.voters_after(&conf);
                prop_assert!(matches!(after.len(), 1 | 3 | 5), "{change:?}");
                prop_assert!(after.contains(&leader) || goes(&leader));
                prop_assert!(after.iter().all(|id| !goes(id) || !change.is_joint(&conf)));
                for id in &change.promote {
                    prop_assert!(members[id].ready && conf.learners.contains(id));
                }
            }
            follow(&mut conf, &mut leader, step);
            prop_assert!(conf.is_valid(), "{conf:?}");
        }
        prop_assert!(rested, "no rest at {conf:?}");
        if conf.is_joint() {
            prop_assert!(!conf.voters.contains(&leader), "only an heir that is not ready is waited for");
            return Ok(());
        }
        prop_assert!(members.keys().all(|id| conf.contains(*id)));
        prop_assert!(conf.learners.iter().all(|id| members.contains_key(id)));
        let seated = |id: &RaftId| conf.voters.contains(id) && members.contains_key(id);
        if let Some(id) = leaving.filter(|id| seated(id) && seated(&leader)) {
            let others = || members.iter().filter(|(other, _)| **other != id);
            prop_assert!(if id != leader {
                others().any(|(other, view)| conf.learners.contains(other) && view.live && !view.ready)
            } else if conf.voters.len() > 1 {
                others().all(|(other, view)| !conf.voters.contains(other) || !view.ready)
            } else {
                others().all(|(_, view)| !view.ready)
            }, "{id} keeps its seat in {conf:?}");
        }
    }
}
