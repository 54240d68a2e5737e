//! A member that its own cluster does not list, or lists with another store.

use super::*;

const OTHER: StorageId = StorageId([8; 16]);
const LATER: Option<u64> = Some(100);

fn me() -> Candidate {
    Candidate {
        device: "device-1".into(),
        storage: StorageId([1; 16]),
        name: String::new(),
        address: String::new(),
    }
}

fn view(listed: Option<StorageId>, applied: u64) -> MembershipView {
    let mut members = BTreeMap::from([("device-2".into(), StorageId([2; 16]))]);
    members.extend(listed.map(|storage| (me().device, storage)));
    MembershipView {
        cluster_id: ClusterId([9; 16]),
        members,
        in_use: true,
        leader: None,
        votes: false,
        applied,
    }
}

/// A member that is connected to `device-2`.
fn member(view: MembershipView) -> Founding {
    let mut founding = Founding::new(me(), "world", 3, None, Some(view), 1);
    founding.handle(0, Event::PeerUp("device-2".into()));
    founding
}

/// What `device-2` says of this device.
fn says(your_storage: Option<StorageId>, leader: Option<&str>, applied: Option<u64>) -> Event {
    let cluster = ClusterHello {
        id: ClusterId([9; 16]),
        lone: false,
        leader: leader.map(Into::into),
        yours: your_storage.is_some(),
        your_storage,
        applied,
    };
    let hello = Hello { devices: 3, cluster: Some(cluster), answer: false, declined: None };
    Event::Message { from: "device-2".into(), message: Message::Hello(hello) }
}

/// Is told the same for a minute.
fn after_a_minute(mut founding: Founding, said: &Event) -> Option<Unlisted> {
    for now_ms in (0..60_000).step_by(3_000) {
        founding.handle(now_ms, said.clone());
    }
    founding.unlisted()
}

#[test]
fn a_member_that_its_cluster_lists_otherwise_finds_out() {
    for (listed, expected) in [(None, Unlisted::Absent), (Some(OTHER), Unlisted::OtherStore)] {
        let mut founding = member(view(Some(me().storage), 5));
        for now_ms in [10, 3_010] {
            founding.handle(now_ms, says(listed, Some("device-3"), Some(5)));
            assert_eq!(founding.unlisted(), None, "it may be about to hear better");
        }
        let effects = founding.handle(6_020, Event::Tick);
        let asks = |effect: &Effect| {
            matches!(effect, Effect::Send { message: Message::Hello(Hello { answer: true, .. }), .. })
        };
        assert!(effects.iter().any(asks), "it asks again: {effects:?}");
        founding.handle(6_030, says(listed, Some("device-3"), Some(5)));
        assert_eq!(founding.unlisted(), Some(expected));
        founding.handle(9_010, says(Some(me().storage), Some("device-3"), Some(6)));
        assert_eq!(founding.unlisted(), None, "told otherwise");
        let reason = expected.reason("/var/lib/mesh");
        assert!(reason.contains("/var/lib/mesh/cluster.redb") && reason.contains("mesh node remove"));
    }
}

#[test]
fn who_may_be_behind_is_not_believed() {
    let listed = || member(view(Some(me().storage), 5));
    for said in [
        says(None, Some("device-2"), Some(4)),
        says(Some(OTHER), Some("device-2"), Some(4)),
        // A build from before the entry was told.
        says(None, Some("device-2"), None),
        says(None, None, LATER),
        says(Some(me().storage), Some("device-2"), LATER),
    ] {
        assert_eq!(after_a_minute(listed(), &said), None, "{said:?}");
    }
    // It has joined, and its first snapshot has not come, or one from before: only the leader is sure to know.
    for before in [None, Some(OTHER)] {
        let joined = || member(view(before, 5));
        assert_eq!(after_a_minute(joined(), &says(None, Some("device-3"), LATER)), None);
        let leader = says(None, Some("device-2"), LATER);
        assert_eq!(after_a_minute(joined(), &leader), Some(Unlisted::Absent));
    }
}

#[test]
fn what_was_said_is_forgotten_with_its_reason() {
    let denied = || {
        let mut founding = member(view(Some(me().storage), 5));
        for now_ms in [0, 3_000, 6_000] {
            founding.handle(now_ms, says(None, Some("device-3"), Some(5)));
        }
        assert_eq!(founding.unlisted(), Some(Unlisted::Absent));
        founding
    };
    let mut founding = denied();
    founding.handle(7_000, Event::PeerDown("device-2".into()));
    assert_eq!(founding.unlisted(), None);
    let mut founding = denied();
    founding.handle(7_000, Event::MembershipChanged(view(Some(me().storage), 5)));
    assert_eq!(founding.unlisted(), Some(Unlisted::Absent), "no news");
    founding.handle(8_000, Event::MembershipChanged(view(Some(me().storage), 6)));
    assert_eq!(founding.unlisted(), None, "this device knows more");
    let mut founding = denied();
    founding.handle(7_000, says(Some(OTHER), Some("device-3"), Some(5)));
    assert_eq!(founding.unlisted(), None, "something else: for a while, too");
}
