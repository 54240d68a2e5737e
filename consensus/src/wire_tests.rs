use proptest::prelude::*;

use super::*;
use crate::store::{Conf, EntryKind};

const CLUSTER: ClusterId = ClusterId([3; 16]);

fn entries() -> impl Strategy<Value = Vec<StoredEntry>> {
    let entry = (any::<u64>(), any::<u64>(), any::<bool>(), prop::collection::vec(any::<u8>(), 0..40))
        .prop_map(|(index, term, change, data)| StoredEntry {
            index,
            term,
            kind: if change { EntryKind::ConfChange } else { EntryKind::Request },
            data,
        });
    prop::collection::vec(entry, 0..5)
}

fn bodies() -> impl Strategy<Value = Body> {
    let numbers = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
    prop_oneof![
        (numbers, entries()).prop_map(|((index, log_term, commit, _), entries)| Body::Append {
            index,
            log_term,
            commit,
            entries
        }),
        (numbers, any::<bool>()).prop_map(|((index, log_term, commit, reject_hint), reject)| {
            Body::AppendAnswer { index, log_term, commit, reject, reject_hint }
        }),
        (numbers, any::<bool>(), any::<bool>()).prop_map(
            |((index, log_term, commit, commit_term), pre, transfer)| Body::Vote {
                pre,
                transfer,
                index,
                log_term,
                commit,
                commit_term
            }
        ),
        (numbers, any::<bool>(), any::<bool>()).prop_map(|((commit, commit_term, _, _), pre, reject)| {
            Body::VoteAnswer { pre, reject, commit, commit_term }
        }),
        any::<u64>().prop_map(|commit| Body::Heartbeat { commit }),
        any::<u64>().prop_map(|commit| Body::HeartbeatAnswer { commit }),
        (numbers, prop::collection::btree_set(any::<u64>(), 0..4), prop::collection::vec(any::<u8>(), 0..60))
            .prop_map(|((index, term, _, learner), voters, data)| {
                let conf = Conf { voters, learners: [learner].into(), ..Conf::default() };
                Body::Snapshot(StoredSnapshot { index, term, conf, data })
            }),
        Just(Body::TimeoutNow),
    ]
}

proptest! {
    #[test]
    fn every_frame_survives_bytes_and_raft_messages(
        from in any::<u64>(), to in any::<u64>(), term in any::<u64>(), body in bodies()
    ) {
        let frame = Frame { cluster: CLUSTER, from, to, term, body };
        prop_assert_eq!(&Frame::decode(&frame.encode()).unwrap(), &frame);
        prop_assert_eq!(claimed_sender(&frame.encode()).unwrap(), from);
        let back = Frame::from_message(CLUSTER, &frame.clone().into_message());
        prop_assert_eq!(back, Some(frame));
    }

    #[test]
    fn random_bytes_are_no_frame_and_no_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Frame::decode(&bytes);
        if let Some(first) = bytes.first_mut() {
            *first = FRAME_VERSION;
        }
        let _ = Frame::decode(&bytes);
    }
}

#[test]
fn what_stays_inside_a_replica_has_no_frame() {
    for kind in [
        MessageType::MsgHup,
        MessageType::MsgBeat,
        MessageType::MsgPropose,
        MessageType::MsgUnreachable,
        MessageType::MsgSnapStatus,
        MessageType::MsgCheckQuorum,
        MessageType::MsgTransferLeader,
        MessageType::MsgReadIndex,
        MessageType::MsgReadIndexResp,
    ] {
        let mut message = Message::default();
        message.set_msg_type(kind);
        assert_eq!(Frame::from_message(CLUSTER, &message), None, "{kind:?}");
    }
}

#[test]
fn sizes_and_versions_are_checked_before_anything_else() {
    assert!(matches!(Frame::decode(&[]), Err(FrameError::Empty)));
    assert!(matches!(Frame::decode(&[9, 1, 2]), Err(FrameError::UnknownVersion(9))));
    let data = vec![0; MAX_FRAME_BYTES];
    let entries = vec![StoredEntry { index: 2, term: 1, kind: EntryKind::Request, data: data.clone() }];
    let append = Body::Append { index: 1, log_term: 1, commit: 1, entries };
    let snapshot = Body::Snapshot(StoredSnapshot { index: 1, term: 1, conf: Conf::default(), data });
    let encode = |body| Frame { cluster: CLUSTER, from: 1, to: 2, term: 1, body }.encode();
    assert!(matches!(Frame::decode(&encode(append)), Err(FrameError::TooLarge(_))));
    assert!(Frame::decode(&encode(snapshot)).is_ok());
}
