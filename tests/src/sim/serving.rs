//! The serving half of a simulated daemon: the leader's duties, what a device holds, routes and requests, decided by
//! the daemon's own code. Sessions take virtual time to be made, and a few numbers stand for a model (`model`).

mod blobs;
mod duty;
mod frames;
mod model;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_consensus::{ClusterId, ClusterState, Deployment, Request, RequestId};
use mesh_daemon::{
    app::{AppError, InferRequest},
    control::{
        duties::Duties,
        holdings::{Act, Holdings, Known, Room, Session, Wanted, wanted_here},
        prepare::SessionKey,
        report::{NO_CLUSTER, StageState},
        routing::{self, Names},
    },
    data::{DataLimits, Effect, Gone, Ingress, Reachable, Route, StageKey},
    net::PeerId,
};
use mesh_inference::blobs::Hash;

pub(crate) use blobs::{Call, weights};
pub(crate) use duty::problem;
pub(crate) use frames::Frame;
pub(crate) use model::{BLOCKS, answer};

use super::{
    dice::Dice,
    process::{device_id, device_index},
};
use blobs::Blobs;
use frames::Job;

/// A device tells the others what it holds this often.
const REPORT_MS: u64 = 250;
/// A peer that has not told anything for this long is silent.
const SILENT_MS: u64 = 3_000;
/// Time after its deadline by which a request must have ended: two timers, and rounding.
const LATE_MS: u64 = 500;

/// What a device tells the others.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    cluster: ClusterId,
    stages: Vec<(StageKey, StageState)>,
    kept: BTreeSet<String>,
    memory: u64,
    /// Earlier plans that requests are still on.
    under_way: BTreeSet<(String, u64)>,
}

/// What came of it, for the process.
#[derive(Debug)]
pub(crate) enum ServingDeed {
    Tell {
        to: usize,
        report: Box<Report>,
    },
    Send {
        to: usize,
        frame: Box<Frame>,
    },
    Call {
        to: usize,
        call: Call,
    },
    Propose(Box<Request>),
    Answered {
        deployment: String,
        input: u64,
        answer: Result<(u64, u64), AppError>,
    },
    /// Something that must never happen has happened.
    Broken(String),
    Note(String),
}

/// A request that was accepted.
#[derive(Debug)]
struct Open {
    deployment: String,
    input: u64,
    deadline_ms: u64,
}

/// See the module.
pub(crate) struct Serving {
    index: usize,
    me: PeerId,
    /// Virtual time 0 of this device's clock.
    zero: Instant,
    dice: Dice,
    memory: u64,
    /// As of the last look.
    cluster: ClusterId,
    /// No session can be made any more.
    pub(crate) is_spoilt: bool,
    /// Frames of any epoch are let in: a fault that the checks must find.
    pub(crate) is_lax: bool,
    /// Blobs that models need are swept, too: another one.
    pub(crate) is_wasteful: bool,
    ingress: Ingress,
    stages: Reachable<SessionKey>,
    /// The same, in order.
    reachable: BTreeMap<StageKey, SessionKey>,
    holdings: Holdings,
    /// What the plans want of this device, as of the last look.
    wanted: BTreeMap<StageKey, Wanted>,
    duties: Duties,
    /// Sessions that are being made, until when.
    making: BTreeMap<SessionKey, u64>,
    jobs: Vec<Job>,
    routes: BTreeMap<String, Arc<Route>>,
    reports: BTreeMap<usize, Report>,
    /// Connected peers, and when they were heard last.
    connected: BTreeMap<usize, u64>,
    up: BTreeSet<usize>,
    /// A command of the leader that is not applied yet, and until when it is waited for.
    asked: Option<(RequestId, u64)>,
    open: BTreeMap<u64, Open>,
    blobs: Blobs,
    deeds: Vec<ServingDeed>,
}

/// The peer that stands for a device.
pub(crate) fn peer(index: usize) -> PeerId {
    let mut bytes = vec![0x00, 0x24, 0x08, 0x01, 0x12, 0x20];
    bytes.extend([u8::try_from(index).unwrap_or(u8::MAX); 32]);
    PeerId::from_bytes(&bytes).expect("an identity multihash of a key's length")
}

fn index_of(peer: &PeerId) -> usize {
    peer.to_bytes().last().map_or(usize::MAX, |last| usize::from(*last))
}

impl Serving {
    pub(crate) fn new(index: usize, seed: u64, zero: Instant, memory: u64, held: BTreeSet<Hash>) -> Self {
        let mut dice = Dice::new(seed ^ 0x0005_e4f1_46d0);
        let me = peer(index);
        let boot = dice.bits() as u32;
        Self {
            index,
            me,
            zero,
            dice,
            memory,
            cluster: NO_CLUSTER,
            is_spoilt: false,
            is_lax: false,
            is_wasteful: false,
            ingress: Ingress::new(me, boot, DataLimits::default()),
            stages: Reachable::default(),
            reachable: BTreeMap::new(),
            holdings: Holdings::default(),
            wanted: BTreeMap::new(),
            duties: Duties::default(),
            making: BTreeMap::new(),
            jobs: Vec::new(),
            routes: BTreeMap::new(),
            reports: BTreeMap::new(),
            connected: BTreeMap::new(),
            up: BTreeSet::new(),
            asked: None,
            open: BTreeMap::new(),
            blobs: Blobs::on_disk(held),
            deeds: Vec::new(),
        }
    }

    pub(crate) fn take_deeds(&mut self) -> Vec<ServingDeed> {
        std::mem::take(&mut self.deeds)
    }

    fn at(&self, ms: u64) -> Instant {
        self.zero + Duration::from_millis(ms)
    }

    fn is_live(&self, device: &str) -> bool {
        let index = device_index(&mesh_consensus::DeviceId(device.to_owned()));
        // Devices tell nothing before they are members: who is in no cluster is not known to be in another one.
        let is_here = self.reports.get(&index).is_none_or(|report| report.cluster == self.cluster);
        self.is_up(index) && is_here
    }

    /// What a peer that is up and in this cluster has told.
    fn told(&self, index: usize) -> Option<&Report> {
        let report = self.reports.get(&index).filter(|_| self.up.contains(&index))?;
        (report.cluster == self.cluster).then_some(report)
    }

    pub(crate) fn is_up(&self, index: usize) -> bool {
        index == self.index || self.up.contains(&index)
    }

    pub(crate) fn peer_up(&mut self, now_ms: u64, device: usize) {
        self.connected.insert(device, now_ms);
        self.heard(now_ms, device);
    }

    pub(crate) fn peer_down(&mut self, now_ms: u64, device: usize) {
        self.connected.remove(&device);
        self.lose(now_ms, device, Gone::Closed);
    }

    fn heard(&mut self, now_ms: u64, device: usize) {
        let now = self.at(now_ms);
        if self.up.insert(device) {
            self.ingress.peer_up(now, peer(device));
        }
        self.carry_out(now_ms);
    }

    fn lose(&mut self, now_ms: u64, device: usize, gone: Gone) {
        let now = self.at(now_ms);
        if self.up.remove(&device) {
            self.reports.remove(&device);
            self.ingress.peer_down(now, peer(device), gone);
        }
        self.carry_out(now_ms);
    }

    pub(crate) fn report(&mut self, now_ms: u64, from: usize, report: Report) {
        if !self.connected.contains_key(&from) {
            return;
        }
        self.connected.insert(from, now_ms);
        self.heard(now_ms, from);
        self.reports.insert(from, report);
    }

    /// What is due, on a device that is a member; `leads`: it is the leader; `is_led`: it knows one.
    pub(crate) fn tick(&mut self, now_ms: u64, state: &ClusterState, leads: bool, is_led: bool) {
        self.cluster = state.cluster_id;
        let silent = |(device, heard): (&usize, &u64)| (now_ms > heard + SILENT_MS).then_some(*device);
        let silent: Vec<usize> = self.connected.iter().filter_map(silent).collect();
        for device in silent {
            self.lose(now_ms, device, Gone::Silent);
        }
        self.look_at_blobs(now_ms, state, is_led);
        self.make_sessions(now_ms);
        self.hold(now_ms, state);
        self.publish_routes(now_ms, state);
        self.run_jobs(now_ms);
        let now = self.at(now_ms);
        self.ingress.tick(now);
        self.carry_out(now_ms);
        if now_ms % REPORT_MS < 100 {
            self.tell(now_ms);
        }
        if leads {
            self.lead(now_ms, state);
        } else {
            self.duties.resign();
            self.asked = None;
        }
        for (id, open) in &self.open {
            if now_ms > open.deadline_ms + LATE_MS {
                let what = format!("request {id} to {} was not answered by its deadline", open.deployment);
                self.deeds.push(ServingDeed::Broken(what));
            }
        }
    }

    fn make_sessions(&mut self, now_ms: u64) {
        let due: Vec<SessionKey> =
            self.making.iter().filter(|(_, at)| **at <= now_ms).map(|(key, _)| key.clone()).collect();
        for key in due {
            self.making.remove(&key);
            if self.holdings.session(&key) == Some(&Session::Fetching) {
                self.holdings.fetched(&key);
                continue;
            }
            let is_had = !self.dice.permille(30) && !self.is_spoilt;
            let result = if is_had { Ok(()) } else { Err("its weights could not be fetched".to_owned()) };
            self.holdings.finished(self.at(now_ms), &key, result);
        }
    }

    fn hold(&mut self, now_ms: u64, state: &ClusterState) {
        let me = device_id(self.index).0;
        let budget = self.memory_of(&me).unwrap_or(0);
        let has_weights = |device: &str, key: &StageKey| match self.stage_state(device, key) {
            Some(StageState::Ready) => true,
            Some(StageState::Preparing { done, total }) => total > 0 && done >= total,
            Some(StageState::Failed { .. }) | None => false,
        };
        let known = Known {
            me: &me,
            budget,
            is_live: &|device: &str| self.is_live(device),
            has: &|key: &SessionKey| self.holdings.has(key),
            has_weights: &has_weights,
        };
        let wanted = wanted_here(state, &known);
        let own = self.under_way(now_ms);
        let told = self.up.iter().filter_map(|device| self.told(*device));
        let under_way: BTreeSet<(String, u64)> =
            told.flat_map(|report| report.under_way.iter().cloned()).chain(own).collect();
        let is_under_way = |key: &StageKey| under_way.contains(&(key.deployment.clone(), key.epoch));
        // Some devices have memory beyond what stages may take, others not.
        let spare = if self.index.is_multiple_of(2) { 0 } else { u64::MAX };
        let room = Room { budget, spare: &|| spare };
        for act in self.holdings.look(self.at(now_ms), &wanted, &room, is_under_way) {
            match act {
                Act::Fetch(session) => {
                    let takes_ms = self.dice.between(50, 2_500);
                    self.making.insert(session, now_ms + takes_ms);
                }
                Act::Load(session) => {
                    let takes_ms = self.dice.between(50, 500);
                    self.making.insert(session, now_ms + takes_ms);
                }
                Act::Host(key, session) => {
                    self.reachable.insert(key.clone(), session.clone());
                    drop(self.stages.host(key, session));
                }
                Act::Unhost(key) => {
                    self.reachable.remove(&key);
                    drop(self.stages.unhost(&key));
                }
                Act::Drop(session) => {
                    self.making.remove(&session);
                }
            }
        }
        self.wanted = wanted;
    }

    fn publish_routes(&mut self, now_ms: u64, state: &ClusterState) {
        let mut routes = BTreeMap::new();
        for deployment in state.deployments.values() {
            let name = deployment.name.clone();
            let empty = || Route { deployment: name.clone(), ..Route::default() };
            let route = match &deployment.active {
                None => empty(),
                Some(active) => {
                    let entering = |block: usize| (block < BLOCKS).then(|| vec![model::tensor_before(block)]);
                    let names = Names { inputs: vec!["x"], outputs: vec!["y"], entering };
                    let ready = |device: &str, stage: usize| {
                        let key = StageKey { deployment: name.clone(), epoch: active.epoch, stage };
                        self.stage_state(device, &key) == Some(StageState::Ready)
                    };
                    let peer_of =
                        |device: &str| Some(peer(device_index(&mesh_consensus::DeviceId(device.to_owned()))));
                    routing::route(&name, active, None, &names, peer_of, ready).unwrap_or_else(empty)
                }
            };
            routes.insert(name, Arc::new(route));
        }
        if routes != self.routes {
            self.stages.forget(|deployment| routes.contains_key(deployment));
            self.ingress.set_routes(self.at(now_ms), routes.clone());
            self.routes = routes;
            self.carry_out(now_ms);
        }
    }

    fn stage_state(&self, device: &str, key: &StageKey) -> Option<StageState> {
        let index = device_index(&mesh_consensus::DeviceId(device.to_owned()));
        if index == self.index {
            return self.own_stages().into_iter().find(|(own, _)| own == key).map(|(_, state)| state);
        }
        let report = self.told(index)?;
        report.stages.iter().find(|(told, _)| told == key).map(|(_, state)| state.clone())
    }

    /// All stages of the plan that a deployment prepares are ready on their devices.
    pub(crate) fn sees_ready(&self, deployment: &Deployment) -> bool {
        let Some(plan) = &deployment.preparing else { return false };
        let is_ready = |stage: usize, device: &str| {
            let key = StageKey { deployment: deployment.name.as_str().into(), epoch: plan.epoch, stage };
            self.stage_state(device, &key) == Some(StageState::Ready)
        };
        plan.plan
            .stages
            .iter()
            .enumerate()
            .all(|(index, stage)| stage.replicas.iter().all(|replica| is_ready(index, &replica.device)))
    }

    /// Every stage that the plans want of this device.
    fn own_stages(&self) -> Vec<(StageKey, StageState)> {
        let state = |(key, wanted): (&StageKey, &Wanted)| {
            let state = match self.holdings.session(&wanted.session) {
                Some(Session::Ready) if self.holdings.is_hosted(key) => StageState::Ready,
                Some(Session::Failed { reason, .. }) => StageState::Failed { reason: reason.clone() },
                Some(Session::Waiting | Session::Loading) => StageState::Preparing { done: 1, total: 1 },
                Some(Session::Ready | Session::Fetching) | None => {
                    StageState::Preparing { done: 0, total: 0 }
                }
            };
            (key.clone(), state)
        };
        self.wanted.iter().map(state).collect()
    }

    /// Plans that requests which enter here are on, or would be sent on.
    fn under_way(&self, now_ms: u64) -> BTreeSet<(String, u64)> {
        let in_use = self.ingress.in_use(self.at(now_ms));
        let each = |(name, epochs): (Arc<str>, BTreeSet<u64>)| {
            epochs.into_iter().map(move |epoch| (name.to_string(), epoch))
        };
        in_use.into_iter().flat_map(each).collect()
    }

    fn tell(&mut self, now_ms: u64) {
        let report = Report {
            cluster: self.cluster,
            stages: self.own_stages(),
            kept: self.blobs.kept.clone(),
            memory: self.memory,
            under_way: self.under_way(now_ms),
        };
        for &to in self.connected.keys() {
            self.deeds.push(ServingDeed::Tell { to, report: Box::new(report.clone()) });
        }
    }

    /// A client asks. What is refused at the door is no promise.
    pub(crate) fn ask(&mut self, now_ms: u64, deployment: &str, input: u64, timeout_ms: u64) -> bool {
        let request = InferRequest {
            model: deployment.to_owned(),
            inputs: vec![("x".to_owned(), model::tensor(input))],
            outputs: Vec::new(),
            timeout: Duration::from_millis(timeout_ms),
            from_elsewhere: false,
        };
        let Ok(id) = self.ingress.begin(self.at(now_ms), request) else { return false };
        let deadline_ms = now_ms + timeout_ms;
        self.open.insert(id, Open { deployment: deployment.to_owned(), input, deadline_ms });
        self.carry_out(now_ms);
        true
    }

    /// Does what the ingress says.
    fn carry_out(&mut self, now_ms: u64) {
        loop {
            let effects = self.ingress.take_effects();
            if effects.is_empty() {
                return;
            }
            for effect in effects {
                match effect {
                    Effect::Send(dispatch) => self.dispatch(now_ms, dispatch),
                    Effect::Finish { id, result } => self.finish(id, result),
                }
            }
        }
    }

    fn finish(&mut self, id: u64, result: Result<mesh_daemon::app::InferResponse, AppError>) {
        let Some(open) = self.open.remove(&id) else {
            self.deeds.push(ServingDeed::Broken(format!("request {id} was answered twice")));
            return;
        };
        let answer = result.and_then(|response| {
            let output = response.outputs.first().and_then(|(_, tensor)| model::number(tensor));
            let output = output.ok_or_else(|| AppError::Internal("an answer without a number".to_owned()))?;
            Ok((output, response.epoch))
        });
        let Open { deployment, input, .. } = open;
        self.deeds.push(ServingDeed::Answered { deployment, input, answer });
    }
}
