//! Frames that no sound replica sends: none may panic, and the replica goes on.

use std::sync::OnceLock;

use proptest::prelude::*;

use super::*;
use crate::ids::DeviceId;
use crate::node::{FatalError, Node};
use crate::store::{Conf, RedbStore};
use crate::{Command, MemoryDisk, Outcome};

#[path = "../../tests/fleet/mod.rs"]
mod fleet;

use fleet::{CLUSTER, Fleet};

/// The disk of replica 1 of a cluster that has worked for a while, so that its log is compacted.
fn worked() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let mut fleet = Fleet::found(3, 3);
        fleet.until_leader();
        for _ in 0..30 {
            let draining = Command::SetDraining { device: DeviceId("device-2".to_owned()), draining: true };
            assert_eq!(fleet.run(draining), Outcome::Done);
        }
        fleet.tick();
        fleet.disks[&1].image()
    })
}

fn open(disk: &MemoryDisk) -> Node<RedbStore> {
    Node::open(RedbStore::open_with_backend(disk.backend()).unwrap(), crate::Options::default()).unwrap()
}

/// A joiner, a new founder, a follower, a candidate or a leader, as `kind` says. The replica under attack is 1;
/// the attacker says it is 2 or 3, real voters, or 9, which nobody knows.
fn target(kind: u8) -> Node<RedbStore> {
    if kind < 2 {
        let disk = MemoryDisk::new();
        let mut store = RedbStore::open_with_backend(disk.backend()).unwrap();
        match kind {
            0 => Node::join_empty(&mut store, CLUSTER, 1).unwrap(),
            _ => Node::found(&mut store, &fleet::genesis(3, 3), 1).unwrap(),
        }
        drop(store);
        return open(&disk);
    }
    let mut node = open(&MemoryDisk::from_image(worked().to_vec()));
    if kind > 2 {
        node.campaign();
        node.process().unwrap();
        assert_eq!(node.role(), crate::Role::Candidate);
    }
    for pre in [true, false] {
        if kind > 3 {
            let term = node.term() + u64::from(pre);
            let body = Body::VoteAnswer { pre, reject: false, commit: 0, commit_term: 0 };
            node.step(2, &Frame { cluster: CLUSTER, from: 2, to: 1, term, body }.encode()).unwrap();
            node.process().unwrap();
        }
    }
    assert_eq!(node.role() == crate::Role::Leader, kind > 3);
    node
}

/// Numbers around the edges of what the replica knows, and the ends of the world.
#[derive(Debug, Clone)]
struct Number(u8, i8);

impl Number {
    fn of(&self, node: &Node<RedbStore>) -> u64 {
        let log = &node.raw.raft.raft_log;
        let base = match self.0 % 8 {
            0 => 0,
            1 => log.committed,
            2 => log.last_index(),
            3 => node.raw.raft.term,
            4 => node.snapshot_index(),
            5 => log.first_index(),
            6 => LAST_INDEX,
            _ => u64::MAX - 1,
        };
        base.saturating_add_signed(i64::from(self.1))
    }
}

fn number() -> impl Strategy<Value = Number> {
    (any::<u8>(), prop_oneof![4 => -2_i8..3, 1 => any::<i8>()])
        .prop_map(|(base, offset)| Number(base, offset))
}

#[derive(Debug, Clone)]
struct Attack {
    kind: u8,
    from: RaftId,
    term: Number,
    numbers: [Number; 4],
    flags: [bool; 2],
    entries: Vec<(Number, Number, u8)>,
    contiguous: bool,
    conf: [Vec<u64>; 4],
}

fn attack() -> impl Strategy<Value = Attack> {
    let ids = || prop::collection::vec(0_u64..5, 0..4);
    let conf = (ids(), ids(), ids(), ids()).prop_map(|(a, b, c, d)| [a, b, c, d]);
    let entries = prop::collection::vec((number(), number(), any::<u8>()), 0..4);
    let numbers = [number(), number(), number(), number()];
    let from = prop_oneof![6 => Just(2_u64), 2 => Just(3), 1 => Just(9)];
    // Mostly a term that counts: an older one is ignored unread.
    let term = prop_oneof![4 => (0_i8..2).prop_map(|ahead| Number(3, ahead)), 1 => number()];
    (any::<u8>(), from, term, numbers, any::<[bool; 2]>(), entries, any::<bool>(), conf).prop_map(
        |(kind, from, term, numbers, flags, entries, contiguous, conf)| Attack {
            kind,
            from,
            term,
            numbers,
            flags,
            entries,
            contiguous,
            conf,
        },
    )
}

impl Attack {
    fn entries(&self, node: &Node<RedbStore>, index: u64) -> Vec<StoredEntry> {
        let change = |id: u64, kind: u8| {
            use raft::eraftpb::{ConfChangeSingle, ConfChangeType};
            let mut single = ConfChangeSingle::default();
            single.set_node_id(id);
            single.set_change_type(match kind % 3 {
                0 => ConfChangeType::AddNode,
                1 => ConfChangeType::AddLearnerNode,
                _ => ConfChangeType::RemoveNode,
            });
            let mut change = ConfChangeV2::default();
            change.set_changes(vec![single].into());
            protobuf::Message::write_to_bytes(&change).unwrap()
        };
        let entry = |(place, (own_index, term, what)): (u64, &(Number, Number, u8))| {
            let (kind, data) = match what % 4 {
                0 => (EntryKind::Request, Vec::new()),
                1 => (EntryKind::ConfChange, change(u64::from(what % 7), *what)),
                2 => (EntryKind::ConfChange, vec![*what; 5]),
                _ => (EntryKind::Request, vec![*what; 9]),
            };
            let index = if self.contiguous { index.wrapping_add(place) } else { own_index.of(node) };
            StoredEntry { index, term: term.of(node), kind, data }
        };
        (1..).zip(&self.entries).map(entry).collect()
    }

    fn body(&self, node: &Node<RedbStore>) -> Body {
        let [mut index, mut log_term, commit, other] = self.numbers.each_ref().map(|number| number.of(node));
        let [flag, second] = self.flags;
        if flag && self.kind.is_multiple_of(8) {
            // Fits the log, so that what comes with it is looked at.
            index = node.raw.raft.raft_log.last_index();
            log_term = node.raw.raft.raft_log.last_term();
        }
        match self.kind % 8 {
            0 => Body::Append { index, log_term, commit, entries: self.entries(node, index) },
            1 => Body::AppendAnswer { index, log_term, commit, reject: flag, reject_hint: other },
            2 => Body::Vote { pre: flag, transfer: second, index, log_term, commit, commit_term: other },
            3 => Body::VoteAnswer { pre: flag, reject: second, commit, commit_term: other },
            4 => Body::Heartbeat { commit },
            5 => Body::HeartbeatAnswer { commit },
            6 => {
                let set = |ids: &Vec<u64>| ids.iter().copied().collect();
                let conf = Conf {
                    voters: set(&self.conf[0]),
                    learners: set(&self.conf[1]),
                    outgoing: set(&self.conf[2]),
                    learners_next: set(&self.conf[3]),
                };
                let data = if flag { node.state().encode() } else { vec![1; 9] };
                Body::Snapshot(StoredSnapshot { index, term: log_term, conf, data })
            }
            _ => Body::TimeoutNow,
        }
    }
}

/// A replica may stop for good only over a request that it cannot read: that is no panic and has its remedy.
fn goes_on(node: &mut Node<RedbStore>) -> bool {
    match node.process() {
        Ok(_) => true,
        Err(FatalError::Request { .. }) => false,
        Err(error) => panic!("{error}: {error:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn impossible_frames_are_refused_without_harm(
        kind in 0_u8..5,
        attacks in prop::collection::vec((attack(), any::<bool>(), any::<bool>()), 1..25),
    ) {
        let mut node = target(kind);
        for (attack, process, tick) in attacks {
            let term = attack.term.of(&node);
            let body = attack.body(&node);
            let frame = Frame { cluster: CLUSTER, from: attack.from, to: 1, term, body };
            let _ = node.step(attack.from, &frame.encode());
            if tick {
                node.tick();
                node.reconcile_membership(5);
            }
            if process && !goes_on(&mut node) {
                return Ok(());
            }
        }
        for _ in 0..30 {
            if !goes_on(&mut node) {
                return Ok(());
            }
            node.tick();
        }
    }

    #[test]
    fn damaged_frames_are_refused_without_harm(
        attack in attack(), place in any::<prop::sample::Index>(), flip in 1_u8..
    ) {
        let mut node = target(1);
        let term = node.term() + 1;
        let body = attack.body(&node);
        let mut bytes = Frame { cluster: CLUSTER, from: 2, to: 1, term, body }.encode();
        let place = place.index(bytes.len());
        bytes[place] ^= flip;
        let _ = node.step(2, &bytes);
        goes_on(&mut node);
    }
}

#[test]
fn frames_of_others_are_refused_by_name() {
    let mut node = target(2);
    let term = node.term();
    let frame =
        |cluster, from, to| Frame { cluster, from, to, term, body: Body::Heartbeat { commit: 1 } }.encode();
    let other = ClusterId([9; 16]);
    assert!(matches!(node.step(2, &frame(other, 2, 1)), Err(StepError::OtherCluster(id)) if id == other));
    assert!(matches!(node.step(2, &frame(CLUSTER, 2, 7)), Err(StepError::NotForMe(7))));
    assert!(matches!(
        node.step(2, &frame(CLUSTER, 3, 1)),
        Err(StepError::WrongSender { from: 2, claimed: 3 })
    ));
    assert!(matches!(node.step(1, &frame(CLUSTER, 1, 1)), Err(StepError::WrongSender { .. })));
    assert!(matches!(node.step(2, &[]), Err(StepError::Frame(FrameError::Empty))));
}

#[test]
fn a_lost_disk_is_noticed_by_the_first_heartbeat() {
    let mut node = target(0);
    let frame = Frame { cluster: CLUSTER, from: 2, to: 1, term: 5, body: Body::Heartbeat { commit: 40 } };
    let refused = node.step(2, &frame.encode()).unwrap_err();
    assert!(refused.to_string().contains("was its disk replaced"), "{refused}");
    assert!(node.process().unwrap().is_empty());
}
