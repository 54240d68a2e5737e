//! The loop of the consensus thread. See [`super`] for the handle.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use mesh_consensus::{
    Applied, ClusterId, ClusterState, DeviceId, Effects, FoundError, Genesis, Node, Options, Outcome,
    ProposeError, RaftId, RedbStore, Request, RequestId, Role, StorageId, Store,
    founding::{Candidate, Effect, Event, Founding, MembershipView, Message, Place, Record, Unlisted},
};
use tokio::sync::{oneshot, watch};

use super::{
    ClusterView, ConsensusError, ELECTION_TICKS, FOUNDING_RECORD, GRACE_TICKS, HEARTBEAT_TICKS, Input, Join,
    SNAPSHOT_TICKS, STORAGE_RECORD, TICK, TICKS_CATCH_UP, ThreadStart, WAITERS_MAX,
};
use crate::{
    control::rpc::{JoinReply, ProposeReply},
    net::{Net, PeerId, Topic},
};

/// Inputs taken before the next write to disk.
const BATCH: usize = 128;

pub(super) const REMOVED: &str =
    "it was removed from the cluster; to let it join anew, move its data directory away and restart it";

/// Outside any cluster, or a member of one.
pub(super) enum Stage {
    Outside(RedbStore),
    Member(Box<Node<RedbStore>>),
}

pub(super) struct Thread {
    me: Candidate,
    devices: u32,
    cluster_name: String,
    path: PathBuf,
    pub(super) data_dir: String,
    pub(super) net: Net,
    join: Join,
    pub(super) publish: watch::Sender<ClusterView>,
    pub(super) stage: Option<Stage>,
    pub(super) founding: Founding,
    waiters: HashMap<RequestId, oneshot::Sender<ProposeReply>>,
    /// Which device a replica's frames came from: a fresh learner must answer before it knows the members.
    routes: HashMap<RaftId, PeerId>,
    /// Which device each member of the replicated state is.
    addresses: HashMap<RaftId, PeerId>,
    /// The replicated state as it was last published.
    pub(super) shared: Arc<ClusterState>,
    pub(super) refused: Option<String>,
    /// A member has said that this device was removed, which this device has not seen in its log.
    pub(super) told_removed: bool,
    /// Members say that this device's cluster does not list it as it is.
    pub(super) unlisted: Option<Unlisted>,
    told: Option<MembershipView>,
    started: Instant,
    tick_due: Instant,
}

impl Thread {
    pub(super) fn new(
        start: ThreadStart,
        publish: watch::Sender<ClusterView>,
    ) -> Result<Self, ConsensusError> {
        let store = open_store(&start.path)?;
        let mut thread = Self {
            founding: Founding::new(
                start.me.clone(),
                &start.cluster_name,
                start.devices,
                None,
                None,
                start.seed,
            ),
            me: start.me,
            devices: start.devices,
            cluster_name: start.cluster_name,
            path: start.path,
            data_dir: start.data_dir,
            net: start.net,
            join: start.join,
            publish,
            stage: None,
            waiters: HashMap::new(),
            routes: HashMap::new(),
            addresses: HashMap::new(),
            shared: Arc::new(ClusterState::empty(ClusterId([0; 16]))),
            refused: None,
            told_removed: false,
            unlisted: None,
            told: None,
            started: Instant::now(),
            tick_due: Instant::now() + TICK,
        };
        thread.begin(store)?;
        thread.publish_view();
        Ok(thread)
    }

    /// Starts from what the store holds: a member goes on, everybody else looks for a cluster.
    fn begin(&mut self, mut store: RedbStore) -> Result<(), ConsensusError> {
        let at = |source| ConsensusError::Store { path: self.path.clone(), source };
        self.me.storage = match store.get_record(STORAGE_RECORD).map_err(at)?.and_then(|b| b.try_into().ok())
        {
            Some(bytes) => StorageId(bytes),
            None => {
                let fresh = rand::random::<[u8; 16]>();
                store.put_record(STORAGE_RECORD, &fresh).map_err(at)?;
                StorageId(fresh)
            }
        };
        let record = match store.get_record(FOUNDING_RECORD).map_err(at)? {
            Some(bytes) => Some(Record::from_bytes(&bytes).map_err(ConsensusError::Record)?),
            None => None,
        };
        let member = Node::<RedbStore>::identity_in(&store).map_err(at)?.is_some();
        let seed = rand::random();
        self.stage = Some(if member { self.open_node(store)? } else { Stage::Outside(store) });
        self.refresh();
        let membership = self.membership();
        self.told = membership.clone();
        self.founding =
            Founding::new(self.me.clone(), &self.cluster_name, self.devices, record, membership, seed);
        Ok(())
    }

    fn open_node(&self, store: RedbStore) -> Result<Stage, ConsensusError> {
        let options = Options {
            election_ticks: ELECTION_TICKS,
            heartbeat_ticks: HEARTBEAT_TICKS,
            snapshot_ticks: SNAPSHOT_TICKS,
            seed: rand::random(),
            ..Options::default()
        };
        let node = Node::open(store, options)
            .map_err(|source| ConsensusError::Open { path: self.path.clone(), source })?;
        Ok(Stage::Member(Box::new(node)))
    }

    pub(super) fn run(&mut self, inputs: &Receiver<Input>) -> Result<(), ConsensusError> {
        self.found(Event::Tick)?;
        loop {
            let wait = self.next_due().saturating_duration_since(Instant::now());
            match inputs.recv_timeout(wait) {
                Ok(Input::Shutdown) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Ok(input) => {
                    self.take(input)?;
                    for input in inputs.try_iter().take(BATCH) {
                        if matches!(input, Input::Shutdown) {
                            return Ok(());
                        }
                        self.take(input)?;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.pass_time()?;
            self.process()?;
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn next_due(&self) -> Instant {
        let founding = self.founding.deadline_ms().map(|ms| self.started + Duration::from_millis(ms));
        founding.map_or(self.tick_due, |due| due.min(self.tick_due))
    }

    /// Ticks Raft for the time that has passed; after a stall only for a part of it.
    fn pass_time(&mut self) -> Result<(), ConsensusError> {
        let now = Instant::now();
        if now >= self.tick_due {
            let late = now.duration_since(self.tick_due).as_millis() / TICK.as_millis();
            let ticks = u32::try_from(late).unwrap_or(u32::MAX).saturating_add(1).min(TICKS_CATCH_UP);
            self.tick_due = now + TICK;
            if let Some(Stage::Member(node)) = &mut self.stage {
                for _ in 0..ticks {
                    node.tick();
                }
            }
            self.reconcile_membership();
        }
        if self.founding.deadline_ms().is_some_and(|due| self.now_ms() >= due) {
            self.found(Event::Tick)?;
        }
        Ok(())
    }

    fn take(&mut self, input: Input) -> Result<(), ConsensusError> {
        match input {
            Input::Raft(peer, body) => self.raft_frame(peer, &body),
            Input::Founding(peer, body) => match Message::from_bytes(&body) {
                Ok(message) => {
                    return self.found(Event::Message { from: DeviceId(peer.to_string()), message });
                }
                Err(error) => tracing::warn!(%peer, %error, "founding message refused"),
            },
            Input::RemovedBy(peer) => {
                let teller = peer.to_string();
                self.told_removed |= self.shared.members.values().any(|m| m.device.0 == teller);
                self.publish_view();
            }
            Input::PeerUp(peer) => {
                return self.found(Event::PeerUp(DeviceId(peer.to_string())));
            }
            Input::PeerDown(peer) => {
                self.peer_gone(peer);
                return self.found(Event::PeerDown(DeviceId(peer.to_string())));
            }
            Input::Propose(request, reply) => self.propose(request, reply),
            Input::JoinAnswer(storage, answer) if storage == self.me.storage => {
                return self.join_answered(answer);
            }
            Input::JoinAnswer(storage, JoinReply::Joined { cluster, raft_id: _ }) => {
                return self.found(Event::Admitted(Place { cluster_id: cluster, storage }));
            }
            Input::JoinAnswer(_, answer) => tracing::debug!(?answer, "no place in another cluster"),
            Input::Shutdown => {}
        }
        Ok(())
    }

    // ---- Raft

    fn raft_frame(&mut self, peer: PeerId, body: &Bytes) {
        let Some(Stage::Member(node)) = &mut self.stage else { return };
        let Ok(from) = mesh_consensus::wire::claimed_sender(body) else { return };
        // The peer is admitted, its word is taken for a replica that is not known here yet (a device that joins knows
        // none, and a device that joined anew has a new id); nobody speaks for another device's replica.
        let of_other = node.state().members.get(&from).is_some_and(|m| m.device.0 != peer.to_string());
        if of_other {
            tracing::warn!(%peer, from, "raft frame in the name of another device");
            return;
        }
        self.routes.insert(from, peer);
        if let Err(error) = node.step(from, body) {
            tracing::debug!(%peer, %error, "raft frame refused");
        }
    }

    fn peer_gone(&mut self, peer: PeerId) {
        if let Some(Stage::Member(node)) = &mut self.stage
            && let Some(id) = node.state().member(&DeviceId(peer.to_string())).map(|m| m.raft_id)
        {
            node.peer_gone(id);
        }
    }

    fn reconcile_membership(&mut self) {
        if let Some(Stage::Member(node)) = &mut self.stage
            && let Some(step) = node.reconcile_membership(GRACE_TICKS)
        {
            tracing::info!(?step, "membership changes");
        }
    }

    fn propose(&mut self, request: Request, reply: oneshot::Sender<ProposeReply>) {
        let Some(Stage::Member(node)) = &mut self.stage else {
            let _ = reply.send(ProposeReply::NotLeader(None));
            return;
        };
        if let Some(outcome) = node.state().outcome(&request.id) {
            let _ = reply.send(ProposeReply::Applied(outcome.clone()));
            return;
        }
        if self.waiters.len() >= WAITERS_MAX {
            let _ = reply.send(ProposeReply::Busy);
            return;
        }
        let id = request.id.clone();
        let answer = match node.propose(&request) {
            Ok(()) => {
                self.waiters.insert(id, reply);
                return;
            }
            Err(ProposeError::NotLeader { leader }) => {
                let leader = leader.and_then(|id| node.state().members.get(&id)).map(|m| m.device.0.clone());
                ProposeReply::NotLeader(leader)
            }
            Err(ProposeError::Busy) => ProposeReply::Busy,
            Err(error @ (ProposeError::TooLarge { .. } | ProposeError::Refused(_))) => {
                ProposeReply::Applied(Outcome::Rejected { reason: error.to_string() })
            }
        };
        let _ = reply.send(answer);
    }

    /// Runs all that Raft has ready, hands messages to the network and outcomes to their waiters.
    fn process(&mut self) -> Result<(), ConsensusError> {
        self.note_unlisted();
        let Some(Stage::Member(node)) = &mut self.stage else {
            self.publish_view();
            return Ok(());
        };
        let effects: Effects = node.process().map_err(ConsensusError::Fatal)?;
        if effects.state_changed {
            self.shared = Arc::new(node.state().clone());
        }
        if effects.state_changed || self.addresses.is_empty() {
            let members = node.state().members.values();
            self.addresses = members.filter_map(|m| Some((m.raft_id, m.device.0.parse().ok()?))).collect();
        }
        for message in effects.messages {
            let Some(peer) = self.addresses.get(&message.to).or_else(|| self.routes.get(&message.to)) else {
                continue;
            };
            if self.net.send(*peer, Topic::Raft, message.frame.into()).is_err() {
                node.report_unreachable(message.to);
                if message.snapshot {
                    node.report_snapshot(message.to, false);
                }
            }
        }
        self.settle_waiters(effects.applied, effects.refused);
        if effects.removed_self {
            return self.leave();
        }
        self.tell_founding()?;
        self.publish_view();
        Ok(())
    }

    fn settle_waiters(&mut self, applied: Vec<Applied>, refused: Vec<(RequestId, ProposeError)>) {
        for (request, error) in refused {
            if let Some(reply) = self.waiters.remove(&request) {
                let _ = reply.send(ProposeReply::Applied(Outcome::Rejected { reason: error.to_string() }));
            }
        }
        for entry in applied {
            if let Some(reply) = self.waiters.remove(&entry.request) {
                let _ = reply.send(ProposeReply::Applied(entry.outcome));
            }
        }
        let Some(Stage::Member(node)) = &self.stage else { return };
        // Proposals accepted by a leader that lost its office may be lost: their owners ask again, with the same id.
        if node.role() != Role::Leader && !self.waiters.is_empty() {
            let leader =
                node.leader().and_then(|id| node.state().members.get(&id)).map(|m| m.device.0.clone());
            for (_, reply) in self.waiters.drain() {
                let _ = reply.send(ProposeReply::NotLeader(leader.clone()));
            }
        }
    }

    // ---- Founding

    fn found(&mut self, event: Event) -> Result<(), ConsensusError> {
        for effect in self.founding.handle(self.now_ms(), event) {
            match effect {
                Effect::Persist(record) => self.persist(&record)?,
                Effect::Send { to, message } => {
                    if let Ok(peer) = to.0.parse() {
                        let _ = self.net.send(peer, Topic::Founding, message.to_bytes().into());
                    }
                }
                Effect::Found { genesis, raft_id, campaign } => self.install(&genesis, raft_id, campaign)?,
                Effect::Campaign => {
                    if let Some(Stage::Member(node)) = &mut self.stage {
                        node.campaign();
                    }
                }
                Effect::Join { place, listed, via } => {
                    tracing::info!(cluster = %place.cluster_id, "asking to join");
                    let via = via.iter().filter_map(|d| d.0.parse().ok()).collect();
                    (self.join)(place.storage, listed, via);
                }
                Effect::GiveWay { to, record } => {
                    // Something may have been deployed since the protocol last looked.
                    return match self.membership() {
                        Some(view) if self.founding.may_give_way(&view) => self.give_way(to, &record),
                        Some(view) => self.found(Event::MembershipChanged(view)),
                        None => Ok(()),
                    };
                }
                Effect::Conflict(conflict) => tracing::warn!(what = %conflict.what(), "needs a person"),
            }
        }
        Ok(())
    }

    fn persist(&mut self, record: &Record) -> Result<(), ConsensusError> {
        let bytes = record.to_bytes();
        let done = match &mut self.stage {
            Some(Stage::Outside(store)) => store.put_record(FOUNDING_RECORD, &bytes),
            Some(Stage::Member(node)) => node.store_mut().put_record(FOUNDING_RECORD, &bytes),
            None => Ok(()),
        };
        done.map_err(|source| ConsensusError::Store { path: self.path.clone(), source })
    }

    fn install(&mut self, genesis: &Genesis, raft_id: RaftId, campaign: bool) -> Result<(), ConsensusError> {
        tracing::info!(cluster = %genesis.cluster_id, raft_id, "the cluster is founded");
        self.become_member(|store| Node::found(store, genesis, raft_id))?;
        if campaign && let Some(Stage::Member(node)) = &mut self.stage {
            node.campaign();
        }
        self.process()
    }

    fn join_answered(&mut self, answer: JoinReply) -> Result<(), ConsensusError> {
        match answer {
            JoinReply::Joined { cluster, raft_id } => {
                if matches!(self.stage, Some(Stage::Outside(_))) {
                    tracing::info!(%cluster, raft_id, "joined");
                    self.become_member(|store| Node::join_empty(store, cluster, raft_id))?;
                }
            }
            // Two members may have been asked: one lets it in, and the other does not know yet.
            JoinReply::Refused(reason) if matches!(self.stage, Some(Stage::Member(_))) => {
                tracing::debug!(%reason, "a join was refused after it was done");
            }
            JoinReply::Refused(reason) => {
                if self.refused.as_ref() != Some(&reason) {
                    tracing::warn!(%reason, "the cluster refuses this device");
                }
                self.refused = Some(reason);
            }
            JoinReply::TryLater => {}
        }
        Ok(())
    }

    fn become_member(
        &mut self,
        write: impl FnOnce(&mut RedbStore) -> Result<(), FoundError>,
    ) -> Result<(), ConsensusError> {
        match self.stage.take() {
            Some(Stage::Outside(mut store)) => {
                write(&mut store)
                    .map_err(|source| ConsensusError::Found { path: self.path.clone(), source })?;
                // Another cluster's replicas may have had the same numbers, and what was refused before is over.
                self.addresses.clear();
                self.refused = None;
                self.stage = Some(self.open_node(store)?);
                self.refresh();
                self.tell_founding()
            }
            other => {
                self.stage = other;
                Ok(())
            }
        }
    }

    /// Gives up a lone cluster in favour of another one: empties the store and starts over, which takes the place
    /// that this device has in the other one.
    fn give_way(&mut self, to: Place, record: &Record) -> Result<(), ConsensusError> {
        tracing::info!(cluster = %to.cluster_id, "this lone cluster gives way to another one");
        self.stage = None;
        let at = |source| ConsensusError::Store { path: self.path.clone(), source };
        let records = [(FOUNDING_RECORD, record.to_bytes()), (STORAGE_RECORD, to.storage.0.to_vec())];
        let records: Vec<(&str, &[u8])> = records.iter().map(|(name, bytes)| (*name, &bytes[..])).collect();
        let store = RedbStore::replace(&self.path, &records).map_err(at)?;
        self.waiters.clear();
        self.routes.clear();
        // The protocol's time counts from its start: for a while it waits for the cluster that it gives way to.
        self.started = Instant::now();
        self.begin(store)?;
        for peer in self.net.peers().borrow().iter() {
            self.found(Event::PeerUp(DeviceId(peer.to_string())))?;
        }
        self.publish_view();
        Ok(())
    }

    /// This device was removed, or another disk has taken its place: it stops taking part.
    fn leave(&mut self) -> Result<(), ConsensusError> {
        tracing::warn!(reason = REMOVED, "this device is no longer a member");
        self.refused = Some(REMOVED.to_owned());
        self.stage = None;
        self.waiters.clear();
        self.refresh();
        self.told = None;
        self.found(Event::Removed)?;
        self.publish_view();
        Ok(())
    }

    fn refresh(&mut self) {
        self.shared = Arc::new(match &self.stage {
            Some(Stage::Member(node)) => node.state().clone(),
            Some(Stage::Outside(_)) | None => ClusterState::empty(ClusterId([0; 16])),
        });
    }

    /// Tells the founding protocol when membership has changed.
    fn tell_founding(&mut self) -> Result<(), ConsensusError> {
        let view = self.membership();
        let is_known = match (&view, &self.told) {
            (Some(view), Some(told)) => view.tells_the_same(told),
            (view, told) => view.is_none() && told.is_none(),
        };
        if is_known {
            return Ok(());
        }
        self.told = view.clone();
        match view {
            Some(view) => self.found(Event::MembershipChanged(view)),
            None => Ok(()),
        }
    }
}

fn open_store(path: &Path) -> Result<RedbStore, ConsensusError> {
    RedbStore::open(path).map_err(|source| ConsensusError::Store { path: path.to_path_buf(), source })
}
