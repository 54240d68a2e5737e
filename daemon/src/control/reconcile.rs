//! Every device's loop that makes replicated state true here: fetch weights, load the stages that a plan gives to
//! this device, make them reachable, and let go of what no plan needs any more.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_consensus::{ClusterState, Deployment, EpochPlan};
use mesh_planner::{Evaluation, TransferCost};
use tokio::{sync::mpsc, task::AbortHandle};

use super::{
    consensus::Consensus,
    correction::is_trusted,
    crossing::Crossing,
    entering::Entering,
    facts::Facts,
    forecast::Forecasts,
    holdings::{Act, Holdings, Known, Room, Session, Wanted, wanted_here},
    models::Models,
    moving::{Sample, Watch, processor_s},
    others::{Others, Used},
    prepare::{Preparer, SessionKey},
    report::{StageReport, StageState},
    routing::{self, Expected, Names},
    sessions::{Progress, Sessions, Step},
    spread::Spread,
};
use crate::{
    data::{DataPlane, DeploymentMetrics, HostedStage, Route, StageKey},
    net::Net,
};

/// The loop looks this often while something is under way...
const LOOK: Duration = Duration::from_millis(200);
/// ...and this often otherwise, even when nothing has told it to.
const LOOK_IDLE: Duration = Duration::from_secs(1);
/// A stage's measured time is told again when it has changed by more than this part: every report goes to all devices.
const NEWS: f64 = 0.05;
/// The number of a stage's runs is told again after this long, while it grows.
const RUNS_NEWS: Duration = Duration::from_secs(10);
/// A device that does nothing but other things still has this much left for stages, less than 1.
const TAKEN_MAX: f64 = 0.9;
/// A byte of a client's request is assumed to cost this part of a byte from a peer until serving has shown it: it is
/// neither encrypted nor framed.
const ENTRY_SHARE: f64 = 0.5;
/// Pause after a manifest could not be fetched.
const MANIFEST_RETRY: Duration = Duration::from_secs(1);

/// The reconcile loop of this device.
pub struct Reconciler {
    net: Net,
    consensus: Consensus,
    facts: Facts,
    models: Models,
    data: DataPlane,
    forecasts: Forecasts,
    spread: Spread,
    holdings: Holdings,
    sessions: Sessions,
    progress: mpsc::Receiver<(SessionKey, Progress)>,
    routes: BTreeMap<String, (u64, Arc<Route>)>,
    wanted_models: HashMap<String, AbortHandle>,
    told: HashMap<StageKey, Told>,
    moving: Watch,
    others: Others,
    entering: Entering,
    /// Of the same, the requests of clients on other machines.
    arriving: Entering,
    crossing: Crossing,
}

impl std::fmt::Debug for Reconciler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reconciler").field("holdings", &self.holdings).finish_non_exhaustive()
    }
}

/// The cost of a stage and the number of its runs, as the report has them.
#[derive(Debug, Clone, Copy)]
struct Told {
    compute_s: f64,
    runs: u64,
    at: Instant,
}

impl Told {
    /// What to tell now: the same again, unless there is news.
    fn next(before: Option<Self>, compute_s: f64, runs: u64, at: Instant) -> Self {
        let now = Self { compute_s, runs, at };
        let Some(told) = before else { return now };
        let moved = (compute_s - told.compute_s).abs() > NEWS * told.compute_s;
        let enough = !is_trusted(told.runs, told.compute_s) && is_trusted(runs, compute_s);
        let later = runs != told.runs && at.saturating_duration_since(told.at) >= RUNS_NEWS;
        if moved || enough || later { now } else { told }
    }
}

/// What the parts of the loop share.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The network.
    pub net: Net,
    /// Replicated state.
    pub consensus: Consensus,
    /// Reports.
    pub facts: Facts,
    /// Manifests.
    pub models: Models,
    /// Where stages answer.
    pub data: DataPlane,
    /// Loads sessions.
    pub preparer: Preparer,
    /// What running plans can do.
    pub forecasts: Forecasts,
}

impl Reconciler {
    /// On this device.
    pub fn new(parts: Parts, spread: Spread) -> Self {
        let Parts { net, consensus, facts, models, data, preparer, forecasts } = parts;
        let (sessions, progress) = Sessions::new(preparer);
        Self {
            net,
            consensus,
            facts,
            models,
            data,
            forecasts,
            spread,
            holdings: Holdings::default(),
            sessions,
            progress,
            routes: BTreeMap::new(),
            wanted_models: HashMap::new(),
            told: HashMap::new(),
            moving: Watch::default(),
            others: Others::default(),
            entering: Entering::default(),
            arriving: Entering::default(),
            crossing: Crossing::default(),
        }
    }

    /// Runs until the consensus thread ends.
    pub async fn run(mut self) {
        let mut changes = self.consensus.view();
        loop {
            let view = changes.borrow_and_update().clone();
            let state = Arc::clone(&view.state);
            self.spread.look(&state, &self.models, view.leader.is_some());
            self.reconcile(&state);
            let pause = self.pause(&state);
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                Some((key, progress)) = self.progress.recv() => self.advance(key, progress),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Time to the next look.
    fn pause(&self, state: &ClusterState) -> Duration {
        let settled = |d: &Deployment| d.active.is_some() && d.preparing.is_none();
        let idle = state.deployments.values().all(settled) && self.is_settled(state);
        if idle { LOOK_IDLE } else { LOOK }
    }

    /// Whether all that this device should hold is here and loaded.
    fn is_settled(&self, state: &ClusterState) -> bool {
        let is_here = |hash: &String| self.models.get(hash).is_some() && self.spread.kept().contains(hash);
        self.holdings.is_settled() && state.models.keys().all(is_here)
    }

    fn reconcile(&mut self, state: &ClusterState) {
        let wanted = self.wanted(state);
        let under_way = self.facts.under_way();
        let is_under_way = |key: &StageKey| under_way.contains(&(key.deployment.clone(), key.epoch));
        let now = Instant::now();
        let budget = self.facts.own().memory_budget_bytes;
        let room = Room { budget, spare: &mesh_inference::profile::spare_memory };
        for act in self.holdings.look(now, &wanted, &room, is_under_way) {
            match act {
                Act::Fetch(session) => self.sessions.fetch(session),
                Act::Load(session) => self.sessions.let_load(&session),
                Act::Host(key, session) => self.host(key, &session),
                Act::Unhost(key) => self.data.unhost(&key),
                Act::Drop(session) => self.sessions.let_go(&session, now),
            }
        }
        self.sessions.load(now);
        self.publish_routes(state);
        let has_started = self.facts.own().calibration_s.is_some();
        let is_settled = has_started && self.is_settled(state) && !self.spread.is_importing();
        self.report(&wanted, is_settled);
    }

    fn wanted(&self, state: &ClusterState) -> BTreeMap<StageKey, Wanted> {
        let has_weights = |device: &str, key: &StageKey| {
            let report = self.facts.stage(device, &key.deployment, key.epoch, key.stage);
            report.is_some_and(|report| match report.state {
                StageState::Ready => true,
                StageState::Preparing { done, total } => total > 0 && done >= total,
                StageState::Failed { .. } => false,
            })
        };
        let known = Known {
            me: &self.facts.me().to_string(),
            budget: self.facts.own().memory_budget_bytes,
            is_live: &|id: &str| self.facts.is_live(id),
            has: &|key: &SessionKey| self.holdings.has(key),
            has_weights: &has_weights,
        };
        wanted_here(state, &known)
    }

    fn host(&self, key: StageKey, session: &SessionKey) {
        if let Some(prepared) = self.sessions.ready(session) {
            let (runner, passthrough) = (prepared.runner.clone(), prepared.passthrough.clone());
            self.data.host(key, HostedStage { runner, passthrough });
        }
    }

    fn advance(&mut self, key: SessionKey, progress: Progress) {
        if !self.sessions.is_current(&key, &progress) {
            return;
        }
        match progress.step {
            Step::Fetched => self.holdings.fetched(&key),
            Step::Ended(result) => {
                let told = result.as_ref().map(|_| ()).map_err(Clone::clone);
                if self.holdings.finished(Instant::now(), &key, told) {
                    self.sessions.ended(key, result);
                }
            }
        }
    }

    /// Gives the data plane the route of every active plan whose model is known here.
    fn publish_routes(&mut self, state: &ClusterState) {
        let mut routes = BTreeMap::new();
        for hash in state.models.keys() {
            self.want_model(hash);
        }
        for deployment in state.deployments.values() {
            let Some(active) = &deployment.active else {
                let empty = Route { deployment: deployment.name.clone(), ..Route::default() };
                routes.insert(deployment.name.clone(), (0, Arc::new(empty)));
                continue;
            };
            let known = self.routes.get(&deployment.name).filter(|(epoch, _)| *epoch == active.epoch);
            let fresh = self.route(&deployment.name, active).map(Arc::new);
            // A model's manifest may go while its plan serves; the route that is known stays.
            let route = match (known, fresh) {
                (Some((_, known)), Some(fresh)) if **known != *fresh => fresh,
                (Some((_, known)), _) => Arc::clone(known),
                (None, Some(fresh)) => fresh,
                (None, None) => continue,
            };
            routes.insert(deployment.name.clone(), (active.epoch, route));
        }
        if routes != self.routes {
            let table = routes.iter().map(|(name, (_, route))| (name.clone(), Arc::clone(route))).collect();
            self.data.set_routes(table);
            let name = |m: &mesh_consensus::Member| Some((m.device.0.parse().ok()?, m.name.clone()));
            self.data.set_names(state.members.values().filter_map(name).collect());
        }
        self.routes = routes;
        self.wanted_models.retain(|hash, task| {
            let known = state.models.contains_key(hash);
            if !known {
                task.abort();
            }
            known
        });
        self.models.retain(&|hash| state.models.contains_key(hash));
    }

    /// Sees to it that a model's manifest comes here: one attempt at a time, with a pause after a failure.
    fn want_model(&mut self, hash: &str) {
        let trying = self.wanted_models.get(hash).is_some_and(|task| !task.is_finished());
        if trying || self.models.get(hash).is_some() {
            return;
        }
        let (models, wanted) = (self.models.clone(), hash.to_owned());
        let task = tokio::spawn(async move {
            if let Err(error) = models.ensure(&wanted).await {
                tracing::debug!(%error, "a manifest is not here yet");
                tokio::time::sleep(MANIFEST_RETRY).await;
            }
        });
        self.wanted_models.insert(hash.to_owned(), task.abort_handle());
    }

    fn route(&self, name: &str, active: &EpochPlan) -> Option<Route> {
        let model = self.models.get(&active.model)?;
        let names = Names {
            inputs: model.inputs.iter().map(|value| value.name.as_str()).collect(),
            outputs: model.outputs.iter().map(|value| value.name.as_str()).collect(),
            entering: |block: usize| Some(model.cuts().get(block)?.tensors.clone()),
        };
        let is_ready = |device: &str, stage: usize| {
            let report = self.facts.stage(device, name, active.epoch, stage);
            report.is_some_and(|report| report.state == StageState::Ready)
        };
        let forecast = self.forecasts.get(name, active.epoch);
        let expected = forecast.map(|forecast| {
            let Evaluation { throughput_rps, latency_s, .. } = forecast.served.evaluation;
            Expected { rps: throughput_rps, latency_s }
        });
        routing::route(name, active, expected, &names, |device| device.parse().ok(), is_ready)
    }

    /// Puts what is held and prepared here into this device's report.
    fn report(&mut self, wanted: &BTreeMap<StageKey, Wanted>, is_settled: bool) {
        let metrics = self.data.metrics();
        let now = Instant::now();
        self.told.retain(|key, _| wanted.contains_key(key));
        for key in wanted.keys() {
            let stage = metrics.stages.iter().find(|s| s.key == *key);
            let (compute_s, runs) = stage.map_or((0.0, 0), |s| (s.compute_s, s.runs));
            let told = Told::next(self.told.get(key).copied(), compute_s, runs, now);
            self.told.insert(key.clone(), told);
        }
        let told = |key: &StageKey| self.told.get(key).map_or((0.0, 0), |told| (told.compute_s, told.runs));
        let stages: Vec<StageReport> = wanted
            .iter()
            .map(|(key, Wanted { session, .. })| StageReport {
                deployment: key.deployment.clone(),
                epoch: key.epoch,
                stage: key.stage,
                state: self.state(key, session),
                compute_s: told(key).0,
                runs: told(key).1,
            })
            .collect();
        let used = self.holdings.taken();
        let probed = costs(self.facts.own().transfer, &self.net);
        let cores = mesh_inference::profile::cores();
        let sample = Sample::new(now, processor_s(), &metrics, self.net.chores(), is_settled);
        if self.others.is_due(now) {
            let all_s = mesh_inference::profile::processors_used();
            self.others.look(Used { at: now, all_s, own_s: sample.processor_s, jobs: sample.jobs }, cores);
        }
        let mut transfer = self.moving.look(sample, probed, cores);
        transfer.rest_share = (transfer.rest_share + self.others.told()).min(TAKEN_MAX);
        self.net.set_rest(self.moving.rest_told());
        let requests = metrics.deployments.iter().map(|(name, d)| (name.as_str(), d.requests));
        let entering = self.entering.look(now, requests);
        let arrived = metrics.deployments.iter().map(|(name, d)| (name.as_str(), d.arrived));
        let arriving = self.arriving.look(now, arrived);
        let in_use = |(name, of): (&String, &DeploymentMetrics)| {
            (!of.epochs.is_empty()).then(|| (name.clone(), of.epochs.clone()))
        };
        let under_way = metrics.deployments.iter().filter_map(in_use).collect();
        let running = wanted.keys().map(|key| (key.deployment.as_str(), key.epoch));
        let entered = self.routes.iter().map(|(name, (epoch, _))| (name.as_str(), *epoch));
        let crossing = self.crossing.look(&metrics.links, &running.chain(entered).collect());
        self.facts.update_own(&self.net, |own| {
            own.entering = entering;
            own.arriving = arriving;
            own.under_way = under_way;
            own.crossing = crossing;
            own.others_share = self.others.told();
            own.stages = stages;
            own.memory_used_bytes = used;
            own.kept.clone_from(self.spread.kept());
            own.transfer = transfer;
        });
        for (peer, cost) in self.facts.moving_costs() {
            self.data.set_moving_cost(peer, cost * cores);
        }
    }

    fn state(&self, key: &StageKey, session: &SessionKey) -> StageState {
        match self.holdings.session(session) {
            Some(Session::Ready) if self.holdings.is_hosted(key) => StageState::Ready,
            Some(Session::Failed { reason, .. }) => StageState::Failed { reason: reason.clone() },
            Some(Session::Fetching | Session::Waiting | Session::Loading | Session::Ready) | None => {
                let (done, total) = self.sessions.fetched(session).unwrap_or_default();
                StageState::Preparing { done, total }
            }
        }
    }
}

/// What moving data costs, as probes have shown it by now: seconds of the whole device.
fn costs(known: TransferCost, net: &Net) -> TransferCost {
    let cores = mesh_inference::profile::cores();
    let (sent, received) = net.costs_per_byte();
    let received = received.map(|s| s / cores);
    TransferCost {
        entry_s_per_byte: received.map_or(known.entry_s_per_byte, |s| s * ENTRY_SHARE),
        send_s_per_byte: sent.map_or(known.send_s_per_byte, |s| s / cores),
        receive_s_per_byte: received.unwrap_or(known.receive_s_per_byte),
        ..known
    }
}
