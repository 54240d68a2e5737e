//! A simulated daemon: the real founding protocol and the real Raft driver on the real store, wired together
//! as the daemon does it.

mod deed;
mod join;
mod serve;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use mesh_consensus::founding::{
    Candidate, Conflict, Effect, Event, Founding, MembershipView, Message, Place, Record,
};
use mesh_consensus::{
    ClusterState, Command, DeviceId, MemoryDisk, Node, Options, RaftId, RedbStore, Request, RequestId, Role,
    StorageId, Store,
};

use mesh_inference::blobs::Hash;

use super::options::Sabotage;
use super::packet::Packet;
use super::serving::Serving;
pub(crate) use deed::Deed;

const FOUNDING_RECORD: &str = "founding";
const STORAGE_RECORD: &str = "storage-id";

/// Raft ticks without a word after which a voter loses its seat.
const GRACE_TICKS: u64 = 30;
/// The leader looks after the membership this often.
const RECONCILE_TICKS: u64 = 5;
/// Requests that wait for their outcome.
const PENDING_MAX: usize = 64;

/// What a device is told when it starts.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) index: usize,
    pub(crate) devices: u32,
    pub(crate) seed: u64,
    pub(crate) snapshot_entries: u64,
    pub(crate) kept_entries: u64,
    /// What its stages may use; `None`: it serves nothing in this run.
    pub(crate) memory: Option<u64>,
    /// Virtual time 0.
    pub(crate) zero: Instant,
    /// The rule that its daemon breaks.
    pub(crate) sabotage: Option<Sabotage>,
    /// Blobs on its disk.
    pub(crate) held: BTreeSet<Hash>,
}

/// The process died: its disk failed or its log cannot be read.
#[derive(Debug)]
pub(crate) struct Death(pub(crate) String);

impl<E: std::error::Error> From<E> for Death {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        Self(text)
    }
}

enum Body {
    /// In no cluster yet.
    Empty(RedbStore),
    Member(Box<Node<RedbStore>>),
    /// Being turned from one into the other; seen outside only when the process died on the way.
    Gone,
}

/// A running daemon.
pub(crate) struct Process {
    setup: Setup,
    me: DeviceId,
    storage: StorageId,
    founding: Founding,
    body: Body,
    ticks: u64,
    /// Join requests that wait to be applied, and who passed them on.
    joins: BTreeMap<RequestId, (usize, usize, StorageId)>,
    /// Requests that were proposed here.
    pending: BTreeSet<RequestId>,
    /// Where a replica's frames came from.
    routes: BTreeMap<RaftId, usize>,
    now_ms: u64,
    serving: Option<Serving>,
    deeds: Vec<Deed>,
}

pub(crate) fn device_id(index: usize) -> DeviceId {
    DeviceId(format!("d{index}"))
}

pub(crate) fn device_index(device: &DeviceId) -> usize {
    device.0[1..].parse().unwrap_or(usize::MAX)
}

/// Makes the store that a device starts with, or is given anew.
fn prepare(disk: &MemoryDisk, storage: StorageId, record: Option<&Record>) -> Result<RedbStore, Death> {
    let mut store = RedbStore::open_with_backend(disk.backend())?;
    if let Some(record) = record {
        store.put_record(FOUNDING_RECORD, &record.to_bytes())?;
    }
    store.put_record(STORAGE_RECORD, &storage.0)?;
    Ok(store)
}

fn storage_from(seed: u64) -> StorageId {
    let mut id = [0; 16];
    id.copy_from_slice(&blake3::hash(&seed.to_le_bytes()).as_bytes()[..16]);
    StorageId(id)
}

impl Process {
    /// Starts the daemon on a disk: empty, or as an earlier one left it.
    pub(crate) fn start(setup: Setup, disk: &MemoryDisk) -> Result<Self, Death> {
        let mut store = RedbStore::open_with_backend(disk.backend())?;
        let storage = match store.get_record(STORAGE_RECORD)? {
            Some(bytes) => StorageId(bytes.try_into().map_err(|_| Death("storage id".to_owned()))?),
            None => {
                let storage = storage_from(setup.seed);
                store.put_record(STORAGE_RECORD, &storage.0)?;
                storage
            }
        };
        let record = match store.get_record(FOUNDING_RECORD)? {
            Some(bytes) => Some(Record::from_bytes(&bytes)?),
            None => None,
        };
        let me = device_id(setup.index);
        let body = match Node::identity_in(&store)? {
            Some(_) => Body::Member(Box::new(Node::open(store, raft_options(&setup))?)),
            None => Body::Empty(store),
        };
        let candidate = Candidate {
            device: me.clone(),
            storage,
            name: format!("device {}", setup.index),
            address: format!("10.0.0.{}:7400", setup.index + 1),
        };
        let view = body.node().map(view_of);
        let serving = setup.memory.map(|memory| {
            let mut serving = Serving::new(setup.index, setup.seed, setup.zero, memory, setup.held.clone());
            serving.is_lax = setup.sabotage == Some(Sabotage::AnyEpoch);
            serving.is_wasteful = setup.sabotage == Some(Sabotage::SweepAll);
            serving
        });
        let founding = Founding::new(candidate, "sim", setup.devices, record, view, setup.seed);
        Ok(Self {
            me,
            storage,
            founding,
            body,
            ticks: 0,
            joins: BTreeMap::new(),
            pending: BTreeSet::new(),
            routes: BTreeMap::new(),
            now_ms: 0,
            serving,
            deeds: Vec::new(),
            setup,
        })
    }

    pub(crate) fn node(&self) -> Option<&Node<RedbStore>> {
        self.body.node()
    }

    pub(crate) fn storage(&self) -> StorageId {
        self.storage
    }

    /// `mesh status` would ask a person to choose between two clusters.
    pub(crate) fn reports_two_clusters(&self) -> bool {
        self.founding.conflicts().iter().any(|conflict| matches!(conflict, Conflict::TwoClusters { .. }))
    }

    /// Takes what was done since the last call.
    pub(crate) fn take_deeds(&mut self) -> Vec<Deed> {
        std::mem::take(&mut self.deeds)
    }

    /// The founding protocol's next deadline on this process' own clock.
    pub(crate) fn founding_due(&self, now_ms: u64) -> bool {
        self.founding.deadline_ms().is_some_and(|due_ms| due_ms <= now_ms)
    }

    pub(crate) fn founding_event(&mut self, now_ms: u64, event: Event) -> Result<(), Death> {
        self.now_ms = now_ms;
        if let Some(serving) = &mut self.serving {
            match &event {
                Event::PeerUp(device) => serving.peer_up(now_ms, device_index(device)),
                Event::PeerDown(device) => serving.peer_down(now_ms, device_index(device)),
                Event::Message { .. }
                | Event::MembershipChanged(_)
                | Event::Admitted(_)
                | Event::Removed
                | Event::Tick => {}
            }
        }
        let mut effects: VecDeque<Effect> = self.founding.handle(now_ms, event).into();
        while let Some(effect) = effects.pop_front() {
            let more = self.carry_out(effect)?;
            effects.extend(more);
        }
        self.serve()
    }

    fn carry_out(&mut self, effect: Effect) -> Result<Vec<Effect>, Death> {
        match effect {
            Effect::Persist(record) => self.store()?.put_record(FOUNDING_RECORD, &record.to_bytes())?,
            Effect::Send { to, message } => {
                self.send(device_index(&to), Packet::Founding(message.to_bytes()));
            }
            Effect::Found { genesis, raft_id, campaign } => {
                self.become_member(|store| Node::found(store, &genesis, raft_id))?;
                self.deeds.push(Deed::Founded(genesis.cluster_id));
                if campaign {
                    self.campaign();
                }
                return self.pump();
            }
            Effect::Campaign => {
                self.campaign();
                return self.pump();
            }
            Effect::Join { place, listed, via } => {
                for member in via.iter().take(2) {
                    let packet = Packet::JoinRequest {
                        origin: self.setup.index,
                        storage: place.storage,
                        listed,
                        relayed: false,
                    };
                    self.send(device_index(member), packet);
                }
            }
            Effect::GiveWay { to, record } => return self.give_way(to, &record),
            Effect::Conflict(conflict) => self.deeds.push(Deed::Note(conflict.what())),
        }
        Ok(Vec::new())
    }

    fn campaign(&mut self) {
        if let Body::Member(node) = &mut self.body {
            node.campaign();
        }
    }

    fn store(&mut self) -> Result<&mut RedbStore, Death> {
        match &mut self.body {
            Body::Empty(store) => Ok(store),
            Body::Member(node) => Ok(node.store_mut()),
            Body::Gone => Err(Death("no store".to_owned())),
        }
    }

    fn become_member<E: std::error::Error>(
        &mut self,
        install: impl FnOnce(&mut RedbStore) -> Result<(), E>,
    ) -> Result<(), Death> {
        let Body::Empty(mut store) = std::mem::replace(&mut self.body, Body::Gone) else {
            return Err(Death("a member was to become a member".to_owned()));
        };
        install(&mut store)?;
        self.body = Body::Member(Box::new(Node::open(store, raft_options(&self.setup))?));
        Ok(())
    }

    /// Gives the own cluster up, if it is still nothing worth keeping.
    fn give_way(&mut self, to: Place, record: &Record) -> Result<Vec<Effect>, Death> {
        let Some(node) = self.body.node() else { return Ok(Vec::new()) };
        let view = view_of(node);
        if !self.founding.may_give_way(&view) {
            return Ok(self.founding.handle(self.now_ms, Event::MembershipChanged(view)));
        }
        self.deeds.push(Deed::Note(format!("gives way to {}", to.cluster_id)));
        let disk = MemoryDisk::new();
        drop(prepare(&disk, to.storage, Some(record))?);
        self.deeds.push(Deed::Replaced(disk));
        Ok(Vec::new())
    }

    /// Whether it has heard that all stages of the plan that a deployment prepares are ready.
    pub(crate) fn sees_ready(&self, deployment: &mesh_consensus::Deployment) -> bool {
        self.serving.as_ref().is_some_and(|serving| serving.sees_ready(deployment))
    }

    /// One Raft tick, and what the serving half has to do.
    pub(crate) fn tick(&mut self, now_ms: u64) -> Result<(), Death> {
        self.ticks += 1;
        if let Body::Member(node) = &mut self.body {
            node.tick();
            if self.ticks.is_multiple_of(RECONCILE_TICKS)
                && let Some(step) = node.reconcile_membership(GRACE_TICKS)
            {
                self.deeds.push(Deed::Note(format!("membership: {step:?}")));
            }
        }
        self.pump_all()?;
        if let (Some(serving), Body::Member(node)) = (&mut self.serving, &self.body)
            && node.is_member()
        {
            let (leads, is_led) = (node.role() == Role::Leader, node.leader().is_some());
            serving.tick(now_ms, node.state(), leads, is_led);
        }
        self.serve()
    }

    pub(crate) fn receive(&mut self, now_ms: u64, from: usize, packet: Packet) -> Result<(), Death> {
        match packet {
            Packet::Founding(bytes) => {
                let message = Message::from_bytes(&bytes)?;
                self.founding_event(now_ms, Event::Message { from: device_id(from), message })
            }
            Packet::Raft { from: claimed, to: _, snapshot: _, frame } => self.step(from, claimed, &frame),
            Packet::JoinRequest { origin, storage, listed, relayed } => {
                self.join_request(from, origin, (storage, listed), relayed)
            }
            Packet::JoinReply { origin, storage, cluster, outcome } => {
                self.join_reply(now_ms, origin, storage, cluster, outcome)
            }
            Packet::Forward(request) => self.propose(&request).map(|_| ()),
            Packet::Report(report) => {
                if let Some(serving) = &mut self.serving {
                    serving.report(now_ms, from, *report);
                }
                self.serve()
            }
            Packet::Blobs(call) => {
                if let Some(serving) = &mut self.serving {
                    serving.call(now_ms, from, call);
                }
                self.serve()
            }
            Packet::Frame(frame) => {
                if let Some(serving) = &mut self.serving {
                    serving.frame(now_ms, from, *frame);
                }
                self.serve()
            }
        }
    }

    fn step(&mut self, from: usize, claimed: RaftId, frame: &[u8]) -> Result<(), Death> {
        let Body::Member(node) = &mut self.body else { return Ok(()) };
        // The connection proves the device; a replica's number is taken on trust only while nobody else has it.
        let other =
            node.state().members.get(&claimed).is_some_and(|member| device_index(&member.device) != from);
        if other {
            return Ok(());
        }
        match node.step(claimed, frame) {
            Ok(()) => {
                self.routes.insert(claimed, from);
            }
            Err(error) => self.deeds.push(Deed::Note(format!("refused: {error}"))),
        }
        self.pump_all()
    }

    /// A client's request: proposed here or sent on to the leader.
    pub(crate) fn submit(&mut self, now_ms: u64, request: &Request) -> Result<(), Death> {
        let Body::Member(node) = &self.body else { return Ok(()) };
        if let (Command::AddModel(record), Some(serving)) = (&request.command, &mut self.serving) {
            serving.import(now_ms, &record.hash);
        }
        if node.role() == Role::Leader {
            return self.propose(request).map(|_| ());
        }
        if let Some(leader) = node.leader().and_then(|id| self.route(id)) {
            self.send(leader, Packet::Forward(Box::new(request.clone())));
        }
        Ok(())
    }

    fn propose(&mut self, request: &Request) -> Result<bool, Death> {
        let Body::Member(node) = &mut self.body else { return Ok(false) };
        let taken = node.propose(request).is_ok();
        if taken && self.pending.len() < PENDING_MAX {
            self.pending.insert(request.id.clone());
        }
        self.pump_all()?;
        Ok(taken)
    }

    pub(crate) fn report(&mut self, to: RaftId, delivered: bool) -> Result<(), Death> {
        if let Body::Member(node) = &mut self.body {
            node.report_snapshot(to, delivered);
        }
        self.pump_all()
    }

    /// The connection to another device was closed.
    pub(crate) fn peer_gone(&mut self, now_ms: u64, device: usize) -> Result<(), Death> {
        if let Body::Member(node) = &mut self.body
            && let Some(id) = node.state().member(&device_id(device)).map(|m| m.raft_id)
        {
            node.peer_gone(id);
        }
        self.founding_event(now_ms, Event::PeerDown(device_id(device)))
    }

    pub(crate) fn unreachable(&mut self, to: RaftId) {
        if let Body::Member(node) = &mut self.body {
            node.report_unreachable(to);
        }
    }

    fn route(&self, id: RaftId) -> Option<usize> {
        let member = self.body.node()?.state().members.get(&id);
        member.map(|member| device_index(&member.device)).or_else(|| self.routes.get(&id).copied())
    }

    /// Does what the Raft driver says, and what follows from it in the founding protocol.
    fn pump_all(&mut self) -> Result<(), Death> {
        let mut effects: VecDeque<Effect> = self.pump()?.into();
        while let Some(effect) = effects.pop_front() {
            let more = self.carry_out(effect)?;
            effects.extend(more);
        }
        Ok(())
    }

    fn pump(&mut self) -> Result<Vec<Effect>, Death> {
        let Body::Member(node) = &mut self.body else { return Ok(Vec::new()) };
        let effects = node.process()?;
        let (cluster, me) = (node.cluster_id(), node.id());
        for outbound in effects.messages {
            match self.route(outbound.to) {
                Some(to) if to != self.setup.index => {
                    let (to_id, snapshot, frame) = (outbound.to, outbound.snapshot, outbound.frame);
                    self.send(to, Packet::Raft { from: me, to: to_id, snapshot, frame });
                }
                Some(_) | None => self.unreachable(outbound.to),
            }
        }
        if effects.role_changed.is_some_and(|role| role != Role::Leader) {
            self.pending.clear();
            self.joins.clear();
        }
        for (request, error) in effects.refused {
            self.pending.remove(&request);
            self.deeds
                .push(Deed::Note(format!("gives up {}:{}: {error}", request.proposer, request.sequence)));
        }
        for applied in effects.applied {
            if self.pending.remove(&applied.request) {
                self.deeds.push(Deed::Acknowledged { cluster, index: applied.index });
            }
            if let Some((from, origin, storage)) = self.joins.remove(&applied.request) {
                let outcome = applied.outcome.clone();
                self.send(from, Packet::JoinReply { origin, storage, cluster, outcome });
            }
            self.deeds.push(Deed::Applied { cluster, index: applied.index, request: applied.request });
        }
        if effects.removed_self {
            self.deeds.push(Deed::Removed(cluster));
        }
        if effects.state_changed || effects.leader_changed.is_some() {
            let Some(node) = self.body.node() else { return Ok(Vec::new()) };
            let view = view_of(node);
            return Ok(self.founding.handle(self.now_ms, Event::MembershipChanged(view)));
        }
        Ok(Vec::new())
    }

    fn send(&mut self, to: usize, packet: Packet) {
        self.deeds.push(Deed::Send { to, packet });
    }

    pub(crate) fn device(&self) -> &DeviceId {
        &self.me
    }
}

impl Body {
    fn node(&self) -> Option<&Node<RedbStore>> {
        match self {
            Self::Member(node) => Some(node),
            Self::Empty(_) | Self::Gone => None,
        }
    }
}

fn raft_options(setup: &Setup) -> Options {
    Options {
        seed: setup.seed,
        snapshot_entries: setup.snapshot_entries,
        kept_entries: setup.kept_entries,
        snapshot_ticks: 50,
        ..Options::default()
    }
}

fn view_of(node: &Node<RedbStore>) -> MembershipView {
    let state: &ClusterState = node.state();
    MembershipView {
        cluster_id: node.cluster_id(),
        members: state.members.values().map(|member| (member.device.clone(), member.storage)).collect(),
        in_use: !state.deployments.is_empty() || !state.models.is_empty(),
        leader: node.leader().and_then(|id| state.members.get(&id)).map(|member| member.device.clone()),
        votes: node.conf().voters.contains(&node.id()),
        applied: node.applied(),
    }
}
