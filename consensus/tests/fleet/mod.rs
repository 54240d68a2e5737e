//! Replicas in one process, joined by a network that delivers at once, each on a simulated disk.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    dead_code,
    reason = "a test's helper may panic, and not every test uses all"
)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mesh_consensus::{
    Applied, ClusterId, Command, DeviceId, FatalError, Genesis, Listed, Member, MemoryDisk, Node, Options,
    Outcome, RaftId, RedbStore, Request, RequestId, Role, StorageId,
};

/// Ticks after which a silent voter is replaced.
pub(crate) const GRACE: u64 = 40;

pub(crate) const CLUSTER: ClusterId = ClusterId([7; 16]);

pub(crate) struct Fleet {
    pub(crate) nodes: BTreeMap<RaftId, Node<RedbStore>>,
    pub(crate) disks: BTreeMap<RaftId, MemoryDisk>,
    pub(crate) applied: BTreeMap<RaftId, Vec<Applied>>,
    /// Is no member any more, and left at once.
    pub(crate) removed: BTreeSet<RaftId>,
    /// Requests that a leader gave up.
    pub(crate) refused: Vec<RequestId>,
    pub(crate) options: Options,
    /// Snapshots handed to the network.
    pub(crate) snapshots_sent: usize,
    /// Its disk fails at some point: it loses its power and comes back.
    pub(crate) faulty: Option<RaftId>,
    failed: bool,
    /// For each piece that was not synced when the power went: did it reach the disk?
    pub(crate) kept: Vec<bool>,
    sequence: u64,
}

pub(crate) fn device(id: RaftId) -> DeviceId {
    DeviceId(format!("device-{id}"))
}

pub(crate) fn member(id: RaftId) -> Member {
    Member {
        raft_id: id,
        device: device(id),
        storage: StorageId([u8::try_from(id).unwrap(); 16]),
        name: format!("camera-{id}"),
        address: format!("10.0.0.{id}:7400"),
        draining: false,
    }
}

pub(crate) fn genesis(members: u64, voters: u64) -> Genesis {
    Genesis {
        cluster_id: CLUSTER,
        cluster_name: "shop".to_owned(),
        members: (1..=members).map(member).collect(),
        voters: (1..=voters).collect(),
    }
}

impl Fleet {
    pub(crate) fn found(members: u64, voters: u64) -> Self {
        Self::found_with(
            members,
            voters,
            Options { snapshot_entries: 20, kept_entries: 5, ..Options::default() },
        )
    }

    pub(crate) fn found_with(members: u64, voters: u64, options: Options) -> Self {
        let mut fleet = Self {
            nodes: BTreeMap::new(),
            disks: BTreeMap::new(),
            applied: BTreeMap::new(),
            removed: BTreeSet::new(),
            refused: Vec::new(),
            options,
            snapshots_sent: 0,
            faulty: None,
            failed: false,
            kept: vec![false],
            sequence: 0,
        };
        for id in 1..=members {
            let disk = MemoryDisk::new();
            let mut store = RedbStore::open_with_backend(disk.backend()).unwrap();
            Node::found(&mut store, &genesis(members, voters), id).unwrap();
            fleet.disks.insert(id, disk);
            fleet.start_on(id, store);
        }
        fleet
    }

    fn start_on(&mut self, id: RaftId, store: RedbStore) {
        let node = Node::open(store, Options { seed: id, ..self.options.clone() }).unwrap();
        self.nodes.insert(id, node);
    }

    /// Power off; what was not synced is lost.
    pub(crate) fn kill(&mut self, id: RaftId) {
        self.disks[&id].crash(|| false);
        self.nodes.remove(&id);
    }

    pub(crate) fn restart(&mut self, id: RaftId) {
        let store = RedbStore::open_with_backend(self.disks[&id].backend()).unwrap();
        self.start_on(id, store);
    }

    /// A new device asks to join; returns its raft id.
    pub(crate) fn join(&mut self, device_number: u64) -> RaftId {
        let who = member(device_number);
        let outcome = self.run(Command::Join {
            device: who.device,
            storage: who.storage,
            listed: Listed::Not,
            name: who.name,
            address: who.address,
        });
        let Outcome::Joined { raft_id } = outcome else { panic!("{outcome:?}") };
        assert!(!self.disks.contains_key(&raft_id), "{raft_id} is in use");
        let disk = MemoryDisk::new();
        let mut store = RedbStore::open_with_backend(disk.backend()).unwrap();
        Node::join_empty(&mut store, CLUSTER, raft_id).unwrap();
        self.disks.insert(raft_id, disk);
        self.start_on(raft_id, store);
        raft_id
    }

    pub(crate) fn leader(&self) -> Option<RaftId> {
        let leaders = self.nodes.values().filter(|node| node.role() == Role::Leader);
        leaders.max_by_key(|node| node.term()).map(Node::id)
    }

    /// Has a replica stand for election at once.
    pub(crate) fn stand(&mut self, id: RaftId) {
        self.nodes.get_mut(&id).unwrap().campaign();
        self.settle();
    }

    pub(crate) fn leader_node(&mut self) -> &mut Node<RedbStore> {
        let id = self.leader().expect("a leader");
        self.nodes.get_mut(&id).unwrap()
    }

    fn restart_the_failed(&mut self) {
        if let Some(id) = self.faulty.filter(|_| self.failed) {
            let mut kept = self.kept.iter().cycle();
            self.disks[&id].crash(|| kept.next().is_some_and(|kept| *kept));
            self.nodes.remove(&id);
            self.restart(id);
            self.failed = false;
        }
    }

    /// Delivers until nothing is under way.
    pub(crate) fn settle(&mut self) {
        let mut queue = VecDeque::new();
        for _ in 0..10_000 {
            self.restart_the_failed();
            let ids: Vec<_> = self.nodes.keys().copied().collect();
            for id in ids {
                let Some(node) = self.nodes.get_mut(&id) else { continue };
                let effects = match node.process() {
                    Ok(effects) => effects,
                    Err(FatalError::Store(_)) if self.faulty == Some(id) => {
                        self.failed = true;
                        continue;
                    }
                    Err(error) => panic!("replica {id}: {error}: {error:?}"),
                };
                queue.extend(effects.messages.into_iter().map(|message| (id, message)));
                self.applied.entry(id).or_default().extend(effects.applied);
                self.refused.extend(effects.refused.into_iter().map(|(request, _)| request));
                if effects.removed_self {
                    self.removed.insert(id);
                    self.kill(id);
                }
            }
            let Some((from, message)) = queue.pop_front() else { return };
            let delivered = match self.nodes.get_mut(&message.to) {
                Some(node) => node.step(from, &message.frame).is_ok(),
                None => false,
            };
            let Some(sender) = self.nodes.get_mut(&from) else { continue };
            if message.snapshot {
                self.snapshots_sent += 1;
                sender.report_snapshot(message.to, delivered);
            } else if !delivered {
                sender.report_unreachable(message.to);
            }
        }
        panic!("the network does not come to rest");
    }

    pub(crate) fn tick(&mut self) {
        for node in self.nodes.values_mut() {
            node.tick();
            node.reconcile_membership(GRACE);
        }
        self.settle();
    }

    /// Ticks until it holds; panics with a picture when it does not.
    pub(crate) fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        for _ in 0..2000 {
            if holds(self) {
                return;
            }
            self.tick();
        }
        let picture: Vec<_> = self
            .nodes
            .values()
            .map(|node| format!("{node:?} {:?} leader {:?}", node.conf(), node.leader()))
            .collect();
        panic!("never: {what}\n{}", picture.join("\n"));
    }

    pub(crate) fn until_leader(&mut self) {
        self.until("a leader that is followed", |fleet| {
            fleet
                .leader()
                .is_some_and(|leader| fleet.nodes.values().all(|node| node.leader() == Some(leader)))
        });
    }

    pub(crate) fn until_voters(&mut self, wanted: &[RaftId]) {
        let wanted: BTreeSet<_> = wanted.iter().copied().collect();
        self.until(&format!("voters {wanted:?}"), |fleet| {
            let Some(leader) = fleet.leader() else { return false };
            let conf = fleet.nodes[&leader].conf();
            conf.voters == wanted && !conf.is_joint()
        });
    }

    pub(crate) fn request(&mut self, command: Command) -> Request {
        self.sequence += 1;
        Request { id: RequestId { proposer: device(1), sequence: self.sequence }, command }
    }

    /// Has a command applied by the leader, and returns its outcome.
    pub(crate) fn run(&mut self, command: Command) -> Outcome {
        let request = self.request(command);
        self.run_request(&request)
    }

    pub(crate) fn run_request(&mut self, request: &Request) -> Outcome {
        for _ in 0..200 {
            if self.leader().is_some() && self.leader_node().propose(request).is_ok() {
                self.settle();
                let leader = self.leader().map(|id| &self.nodes[&id]);
                if let Some(outcome) = leader.and_then(|node| node.state().outcome(&request.id)) {
                    return outcome.clone();
                }
            }
            self.tick();
        }
        panic!("request {request:?} was never applied");
    }

    /// Equal state at equal index, everywhere.
    pub(crate) fn assert_agreement(&self) {
        let mut seen = BTreeMap::new();
        for (id, node) in &self.nodes {
            let digest = node.state().digest();
            let (other, expected) = *seen.entry(node.applied()).or_insert((*id, digest));
            assert_eq!(digest, expected, "replicas {id} and {other} differ at {}", node.applied());
        }
    }
}
