//! Messages and records as bytes, honest and hostile.

use proptest::collection::vec;

use super::*;

fn member(raft_id: u64) -> crate::Member {
    crate::Member {
        raft_id,
        device: DeviceId(format!("device-{raft_id}")),
        storage: StorageId([7; 16]),
        name: "name".to_owned(),
        address: "10.0.0.1:7400".to_owned(),
        draining: false,
    }
}

fn genesis(voters: u64) -> Genesis {
    Genesis {
        cluster_id: ClusterId([9; 16]),
        cluster_name: "shop-floor".to_owned(),
        members: (1..=voters).map(member).collect(),
        voters: (1..=voters).collect(),
    }
}

fn ballot(round: u64) -> Ballot {
    Ballot { round, device: "device-1".into() }
}

fn honest() -> Vec<Message> {
    let candidate = Candidate {
        device: "device-1".into(),
        storage: StorageId([1; 16]),
        name: "a".to_owned(),
        address: "b".to_owned(),
    };
    let place = Place { cluster_id: ClusterId([8; 16]), storage: StorageId([7; 16]) };
    let cluster = ClusterHello {
        id: ClusterId([3; 16]),
        lone: true,
        leader: Some("device-2".into()),
        yours: true,
        your_storage: Some(StorageId([6; 16])),
        applied: Some(7),
    };
    vec![
        Message::Hello(Hello { devices: 3, cluster: Some(cluster), answer: true, declined: Some(place) }),
        Message::Prepare { ballot: ballot(1), devices: 3 },
        Message::Promise {
            ballot: ballot(2),
            candidate,
            accepted: Some(Box::new((ballot(1), genesis(3)))),
            seen: vec!["x".into()],
        },
        Message::Refuse { ballot: ballot(1), promised: ballot(2) },
        Message::Accept { ballot: ballot(1), genesis: genesis(5) },
        Message::Accepted { ballot: ballot(1) },
        Message::Decided { genesis: genesis(1) },
    ]
}

#[test]
fn messages_and_records_survive_their_encoding() {
    for message in honest() {
        assert_eq!(Message::from_bytes(&message.to_bytes()), Ok(message));
    }
    let record = Record {
        promised: Some(ballot(4)),
        accepted: Some((ballot(3), genesis(3))),
        decided: Some(genesis(3)),
        gave_way_to: None,
        wish: Some(Place { cluster_id: ClusterId([5; 16]), storage: StorageId([4; 16]) }),
    };
    assert_eq!(Record::from_bytes(&record.to_bytes()), Ok(record));
}

#[test]
fn the_largest_genesis_fits() {
    let mut large = genesis(5);
    large.members = (1..=32).map(member).collect();
    for member in &mut large.members {
        member.name = "x".repeat(250);
        member.address = "y".repeat(250);
    }
    let message = Message::Decided { genesis: large };
    assert_eq!(Message::from_bytes(&message.to_bytes()), Ok(message));
}

#[test]
fn what_is_out_of_limits_is_refused() {
    let two_voters = genesis(2);
    let mut unknown_voter = genesis(3);
    unknown_voter.members.pop();
    let mut other_voter = genesis(3);
    other_voter.voters[2] = 4;
    let mut twice = genesis(3);
    twice.members[2].device = twice.members[0].device.clone();
    let mut wrong_id = genesis(3);
    wrong_id.members[2].raft_id = u64::MAX;
    let mut long_name = genesis(1);
    long_name.members[0].name = "x".repeat(300);
    for bad in [genesis(0), genesis(33), two_voters, unknown_voter, other_voter, twice, wrong_id, long_name] {
        assert!(Message::from_bytes(&Message::Decided { genesis: bad }.to_bytes()).is_err());
    }
    for round in [0, u64::MAX] {
        assert!(Message::from_bytes(&Message::Accepted { ballot: ballot(round) }.to_bytes()).is_err());
    }
    assert!(matches!(Message::from_bytes(&[]), Err(FoundingError::Empty { .. })));
    assert!(matches!(Message::from_bytes(&[9, 0]), Err(FoundingError::Version { found: 9, .. })));
    assert!(matches!(
        Message::from_bytes(&vec![1; MESSAGE_BYTES_MAX + 1]),
        Err(FoundingError::TooLong { .. })
    ));
    let nested: Vec<u8> = std::iter::once(1).chain(std::iter::repeat_n(0x81, 60_000)).collect();
    assert!(matches!(Message::from_bytes(&nested), Err(FoundingError::Damaged { .. })));
}

/// An attempt in another device's name is not answered.
#[test]
fn ballots_of_others_are_ignored() {
    let me = Candidate {
        device: "device-0".into(),
        storage: StorageId([0; 16]),
        name: String::new(),
        address: String::new(),
    };
    let mut founding = Founding::new(me, "world", 3, None, None, 1);
    let from = DeviceId::from("device-2");
    founding.handle(0, Event::PeerUp(from.clone()));
    let message = Message::Prepare { ballot: ballot(1), devices: 3 };
    assert_eq!(founding.handle(0, Event::Message { from, message }), vec![]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_without_panic(bytes in vec(any::<u8>(), 0..200)) {
        let _ = Message::from_bytes(&bytes);
        let _ = Record::from_bytes(&bytes);
    }

    /// Honest messages with a few changed bytes, fed to devices in every stage.
    #[test]
    fn damaged_messages_are_harmless(
        which in 0_usize..7,
        changes in vec((any::<usize>(), any::<u8>()), 0..4),
        stage in 0..3,
        cut in any::<usize>(),
    ) {
        let mut bytes = honest()[which].to_bytes();
        for (place, value) in changes {
            let length = bytes.len();
            bytes[place % length] = value;
        }
        if cut % 3 == 0 {
            bytes.truncate(cut % (bytes.len() + 1));
        }
        let Ok(message) = Message::from_bytes(&bytes) else { return Ok(()) };
        let me = Candidate {
            device: "device-1".into(),
            storage: StorageId([7; 16]),
            name: String::new(),
            address: String::new(),
        };
        let view = MembershipView {
            cluster_id: ClusterId([8; 16]),
            members: BTreeMap::from([(me.device.clone(), me.storage)]),
            in_use: stage == 2,
            leader: Some(me.device.clone()),
            votes: true,
            applied: 7,
        };
        let mut founding = Founding::new(me, "world", 2, None, (stage > 0).then_some(view), 3);
        let from = DeviceId::from("device-2");
        founding.handle(0, Event::PeerUp(from.clone()));
        founding.handle(10, Event::Message { from, message });
        for now_ms in [500, 1_000, u64::MAX / 2] {
            founding.handle(now_ms, Event::Tick);
            founding.deadline_ms();
        }
    }
}
