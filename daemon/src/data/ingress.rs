//! The ingress: every accepted request from its first send to its answer.
//!
//! Pure. The caller brings events and the time, then takes the effects. A request leaves in exactly one way: one
//! [`Effect::Finish`], or [`Ingress::cancel`] by the client that went away.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use libp2p::PeerId;

use super::{
    balance::Here,
    frame::{Address, Failure, FailureKind, Named},
    limits::DataLimits,
    metrics::DeploymentMetrics,
};
use crate::app::{AppError, InferResponse};
use deployment::Deployment;
use doubts::Doubts;
use request::{Request, Sent, State};

mod admit;
mod deployment;
mod doubts;
mod elsewhere;
mod patience;
mod peers;
mod request;
mod routes;
mod words;

/// Runs on different devices that may fail before the request is given up.
const RUN_FAILURES_MAX: usize = 3;
/// First pause after a refusal that another device or a moment may cure; doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// Pause when a device has another epoch than this one: long enough for the news to arrive.
const PAUSE_EPOCH: Duration = Duration::from_millis(25);
/// While the only device of a stage loads it, a request is sent again after this part of the time that it has waited: the
/// stages before would run it in vain, and the device may load over the same link.
const UNREADY_PART: u32 = 8;
const UNREADY_MAX: Duration = Duration::from_secs(2);

/// What the caller is to do.
#[derive(Debug)]
pub enum Effect {
    /// Send the inputs to the first device of the route.
    Send(Dispatch),
    /// Give the client its answer.
    Finish {
        /// As [`Ingress::begin`] gave it.
        id: u64,
        /// The answer, or why there is none.
        result: Result<InferResponse, AppError>,
    },
}

/// An attempt to send.
#[derive(Debug)]
pub struct Dispatch {
    /// Where it goes.
    pub address: Address,
    /// Inputs of the first stage.
    pub inputs: Vec<Named>,
    /// When the request must be answered.
    pub deadline: Instant,
}

/// How a device went down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// Its connection closed, as it does when the process ends.
    Closed,
    /// Nothing came from it for too long: it is frozen, cut off or without power.
    Silent,
}

/// Requests that this device has taken in.
#[derive(Debug)]
pub struct Ingress {
    me: PeerId,
    limits: DataLimits,
    names: BTreeMap<PeerId, String>,
    /// Peers that are up; always holds `me`.
    up: BTreeSet<PeerId>,
    /// Those of them that nothing has come from for a while.
    late: Vec<PeerId>,
    /// Those that were, or that requests have waited for in vain.
    doubts: Doubts,
    deployments: BTreeMap<Arc<str>, Deployment>,
    requests: HashMap<u64, Request>,
    /// Jobs that wait or run in the stages of this device.
    own_jobs: u32,
    /// Input bytes of all requests.
    held_bytes: usize,
    /// One per request: whatever is due first.
    timers: BTreeSet<(Instant, u64)>,
    next_id: u64,
    effects: Vec<Effect>,
}

impl Ingress {
    /// `boot` is random per start, so that no answer to an earlier life is taken for one of this.
    pub fn new(me: PeerId, boot: u32, limits: DataLimits) -> Self {
        Self {
            me,
            limits,
            names: BTreeMap::new(),
            up: BTreeSet::from([me]),
            late: Vec::new(),
            doubts: Doubts::default(),
            deployments: BTreeMap::new(),
            requests: HashMap::new(),
            own_jobs: 0,
            held_bytes: 0,
            timers: BTreeSet::new(),
            next_id: u64::from(boot) << 32,
            effects: Vec::new(),
        }
    }

    /// What has to be done since the last call.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// When [`Ingress::tick`] is due.
    pub fn next_timer(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Names of devices, for messages.
    pub fn set_names(&mut self, names: BTreeMap<PeerId, String>) {
        self.names = names;
    }

    /// Jobs that wait or run in the stages of this device now, whoever sent them.
    pub fn set_own_jobs(&mut self, jobs: u32) {
        self.own_jobs = jobs;
    }

    /// A peer has told how many jobs wait or run in its stages.
    pub fn on_backlog(&mut self, now: Instant, peer: PeerId, jobs: u32) {
        if peer == self.me {
            return;
        }
        for deployment in self.deployments.values_mut() {
            deployment.heard(now, peer, jobs);
        }
    }

    /// Newest epoch known of a deployment.
    pub fn epoch(&self, deployment: &str) -> Option<u64> {
        self.deployments.get(deployment).and_then(|d| d.route.as_ref()).map(|route| route.epoch)
    }

    /// Outputs have come in from `from`. Those of an older attempt are as good: stages are pure.
    pub fn on_result(&mut self, now: Instant, from: PeerId, address: &Address, tensors: Vec<Named>) {
        let Some(request) = self.requests.get(&address.request) else { return };
        let Some(attempt) = request.attempts.iter().find(|a| a.address.attempt == address.attempt) else {
            return;
        };
        // It may have gone to another device of its last stage, and that be told later.
        let last = attempt.outputs.stages.len().saturating_sub(1);
        let is_last = attempt.address.devices.last() == Some(&from) || attempt.outputs.runs(last, from);
        if !is_last || attempt.address.epoch != address.epoch {
            return;
        }
        let route = Arc::clone(&attempt.outputs);
        let (epoch, retries) = (address.epoch, request.retries());
        let (sent_at, devices) = (attempt.at, Arc::clone(&attempt.address.devices));
        let name = request.deployment.clone();
        let selected = request.select_outputs(&route, tensors);
        // Before the next request is sent on what is known; of devices that run these stages only.
        for (stage, (device, jobs)) in address.devices.iter().zip(&address.backlog).enumerate() {
            if route.runs(stage, *device) {
                self.on_backlog(now, *device, *jobs);
            }
        }
        match selected {
            Ok(outputs) => {
                if let Some(deployment) = self.deployments.get_mut(&name) {
                    deployment.patience.answered(now, sent_at, &devices);
                }
                devices.iter().for_each(|device| self.doubts.answered(now, *device, sent_at));
                self.suspect(now, address.request, address.attempt);
                self.finish(now, address.request, Ok(InferResponse { outputs, epoch, retries }));
            }
            Err(missing) => {
                let error = AppError::Internal(format!(
                    "the last stage of {name} did not return output {missing:?}; undeploy and deploy the model again"
                ));
                self.finish(now, address.request, Err(error));
            }
        }
    }

    /// A device of the current attempt has refused or failed. Errors of older attempts say nothing new.
    pub fn on_failure(&mut self, now: Instant, from: PeerId, address: &Address, failure: Failure) {
        let blamed = self.name(&failure.blame);
        let Some(request) = self.requests.get_mut(&address.request) else { return };
        let State::Sent(sent) = &request.state else { return };
        let runs = || (0..sent.outputs.stages.len()).any(|stage| sent.outputs.runs(stage, from));
        if !sent.is_at(address) || !(from == self.me || sent.address.devices.contains(&from) || runs()) {
            return;
        }
        request.last_error = Some(format!("stage {} on {blamed}: {}", failure.stage, failure.message));
        match failure.kind {
            FailureKind::Run | FailureKind::Inputs => self.run_failed(now, address.request, failure),
            FailureKind::Busy | FailureKind::Closed | FailureKind::Unreachable => {
                request.avoid(failure.blame);
                let mut pause = request.next_pause();
                if failure.kind == FailureKind::Busy
                    && let Some(deployment) = self.deployments.get_mut(&request.deployment)
                    && !deployment.has_other(failure.stage, &self.up, &request.avoided)
                {
                    pause = pause.max(deployment.busy(now));
                }
                self.hold(now, address.request, Some(now + pause));
            }
            FailureKind::StaleEpoch | FailureKind::UnknownStage => {
                request.avoid(failure.blame);
                let mut pause = request.next_pause();
                let deployment = self.deployments.get(&request.deployment);
                let newest = deployment.and_then(|d| d.route.as_ref());
                if newest.is_none_or(|route| route.epoch == address.epoch) {
                    pause = pause.max(PAUSE_EPOCH);
                    let others = deployment.map(|d| d.has_other(failure.stage, &self.up, &request.avoided));
                    if others == Some(false) {
                        let waited = now.saturating_duration_since(request.accepted);
                        pause = pause.max((waited / UNREADY_PART).min(UNREADY_MAX));
                    }
                }
                self.hold(now, address.request, Some(now + pause));
            }
        }
    }

    /// A request has gone to another device of a stage than this ingress had picked, as `from`, which ran the stage
    /// before, tells.
    pub fn on_moved(&mut self, now: Instant, from: PeerId, address: &Address, stage: usize) {
        let Some(request) = self.requests.get_mut(&address.request) else { return };
        let Some(to) = address.devices.get(stage).copied() else { return };
        let State::Sent(sent) = &request.state else { return };
        let knows = stage.checked_sub(1).is_some_and(|before| sent.outputs.runs(before, from));
        if !knows || !sent.is_at(address) || !sent.outputs.runs(stage, to) {
            return;
        }
        let Some(picked) = request.set_device(stage, to) else { return };
        tracing::debug!(request = address.request, stage, %picked, %to, by = %from, "went another way");
        if let Some(deployment) = self.deployments.get_mut(&request.deployment) {
            deployment.moved(address.epoch, stage, picked, to);
        }
        if !self.up.contains(&to) {
            // The answer may come all the same, but nobody would tell of its loss.
            request.avoid(to);
            let pause = request.next_pause();
            self.hold(now, address.request, Some(now + pause));
        }
    }

    /// The client has gone away.
    pub fn cancel(&mut self, now: Instant, id: u64) {
        if let Some(request) = self.remove(id) {
            self.admit_waiting(now, &request.deployment);
        }
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant) {
        while let Some((at, id)) = self.timers.first().copied()
            && at <= now
        {
            self.timers.pop_first();
            let Some(request) = self.requests.get_mut(&id) else { continue };
            if request.deadline <= now {
                self.expire(now, id);
                continue;
            }
            match &request.state {
                State::Sent(sent) if sent.until <= now => self.try_elsewhere(now, id),
                State::Held { until: Some(until), .. } if *until <= now => self.resend(now, id),
                State::Sent(_) | State::Held { .. } | State::InLine => self.set_timer(id),
            }
        }
    }

    /// Numbers of every deployment.
    pub fn metrics(&self, now: Instant) -> BTreeMap<String, DeploymentMetrics> {
        let metrics = |(name, d): (&Arc<str>, &Deployment)| (name.to_string(), d.metrics(now));
        let mut metrics: BTreeMap<String, DeploymentMetrics> = self.deployments.iter().map(metrics).collect();
        for (name, epochs) in self.in_use(now) {
            if let Some(metrics) = metrics.get_mut(&*name) {
                metrics.epochs = epochs;
            }
        }
        metrics
    }

    /// Numbers of the plans that requests are on now or would be sent on, by deployment; of a deployment that nobody has
    /// asked lately only those that they are on.
    pub fn in_use(&self, now: Instant) -> BTreeMap<Arc<str>, BTreeSet<u64>> {
        let mut found: BTreeMap<Arc<str>, BTreeSet<u64>> = BTreeMap::new();
        for request in self.requests.values() {
            if let State::Sent(sent) = &request.state {
                found.entry(request.deployment.clone()).or_default().insert(sent.address.epoch);
            }
        }
        for (name, deployment) in self.deployments.iter().filter(|(_, deployment)| deployment.is_asked(now)) {
            if let Some(route) = &deployment.route {
                found.entry(name.clone()).or_default().insert(route.epoch);
            }
        }
        found
    }

    fn name(&self, peer: &PeerId) -> String {
        self.names.get(peer).cloned().unwrap_or_else(|| peer.to_string())
    }

    fn ids(&self, keep: impl Fn(&Request) -> bool) -> Vec<u64> {
        let mut ids: Vec<u64> = self.requests.iter().filter(|(_, r)| keep(r)).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    /// A run failed: on another device it may not. The same words twice mean that the request is at fault.
    fn run_failed(&mut self, now: Instant, id: u64, failure: Failure) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        let again = request.run_failures.contains(&failure.message);
        request.run_failures.push(failure.message.clone());
        if again || request.run_failures.len() >= RUN_FAILURES_MAX {
            let error = words::run_failed(&request.deployment, &failure, again);
            self.finish(now, id, Err(error));
            return;
        }
        request.avoid(failure.blame);
        let pause = request.next_pause();
        self.hold(now, id, Some(now + pause));
    }

    /// Takes the request off its route; it keeps its slot.
    fn hold(&mut self, now: Instant, id: u64, until: Option<Instant>) {
        debug_assert!(until.is_none_or(|until| until >= now), "a pause ends in the future");
        self.release_route(id);
        if let Some(request) = self.requests.get_mut(&id) {
            request.state = State::Held { until, missing: None };
        }
        self.set_timer(id);
    }

    /// Sends the request on a route of now, or holds it until there is one.
    fn resend(&mut self, now: Instant, id: u64) {
        self.release_route(id);
        let Some(request) = self.requests.get_mut(&id) else { return };
        let Some(deployment) = self.deployments.get_mut(&request.deployment) else { return };
        if request.deadline <= now {
            // Its timer is due: the next tick ends it, so that nothing here calls itself.
            request.state = State::Held { until: None, missing: None };
            self.set_timer(id);
            return;
        }
        let Some(route) = deployment.route.clone() else {
            let error = words::undeployed(&request.deployment);
            self.finish(now, id, Err(error));
            return;
        };
        if !request.fits(&route) {
            let error = words::replaced(&request.deployment);
            self.finish(now, id, Err(error));
            return;
        }
        let here = Here { device: self.me, jobs: self.own_jobs };
        let (late, doubted) = (&self.late[..], self.doubts.list(now));
        match deployment.pick(now, here, &self.up, request.avoid_also(late, doubted)) {
            Err(missing) => request.state = State::Held { until: None, missing },
            Ok(devices) => {
                devices.iter().for_each(|device| self.doubts.tried(now, *device));
                let attempt = request.attempts_made;
                request.attempts_made += 1;
                if attempt > 0 {
                    deployment.retries += 1;
                }
                let address = Address {
                    request: id,
                    attempt,
                    ingress: self.me,
                    deployment: request.deployment.clone(),
                    epoch: route.epoch,
                    devices: devices.into(),
                    backlog: Vec::new(),
                };
                let (patience, before) = (&deployment.patience, request.timeouts);
                let gives_up = now + patience.timeout(Some(&*route), before, &self.limits);
                let copy = patience.copy_after(&route, &address.devices, before, &self.limits);
                let until = copy.map_or(gives_up, |after| gives_up.min(now + after));
                let inputs = request.inputs_of(&route);
                tracing::debug!(
                    request = id,
                    attempt,
                    epoch = address.epoch,
                    devices = ?address.devices,
                    patience_ms = until.saturating_duration_since(now).as_millis(),
                    after = request.last_error.as_deref(),
                    "sent"
                );
                request.set_sent(Sent { address: address.clone(), at: now, until, gives_up, outputs: route });
                let deadline = request.deadline;
                self.effects.push(Effect::Send(Dispatch { address, inputs, deadline }));
            }
        }
        self.set_timer(id);
    }

    /// Gives the route's replicas back to the balancer.
    fn release_route(&mut self, id: u64) {
        let Some(request) = self.requests.get(&id) else { return };
        if let State::Sent(sent) = &request.state
            && let Some(deployment) = self.deployments.get_mut(&request.deployment)
        {
            deployment.release(sent.address.epoch, &sent.address.devices);
        }
    }

    /// One timer per request: whatever comes first.
    fn set_timer(&mut self, id: u64) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        self.timers.remove(&(request.timer, id));
        request.timer = match &request.state {
            State::InLine | State::Held { until: None, .. } => request.deadline,
            State::Held { until: Some(until), .. } => request.deadline.min(*until),
            State::Sent(sent) => request.deadline.min(sent.until),
        };
        self.timers.insert((request.timer, id));
    }

    fn expire(&mut self, now: Instant, id: u64) {
        let Some(request) = self.requests.get(&id) else { return };
        let error = AppError::DeadlineExceeded(self.why_late(now, request));
        self.finish(now, id, Err(error));
    }

    fn finish(&mut self, now: Instant, id: u64, result: Result<InferResponse, AppError>) {
        let Some(request) = self.remove(id) else { return };
        if let Some(deployment) = self.deployments.get_mut(&request.deployment) {
            match &result {
                Ok(_) => deployment.record_answer(now, now.saturating_duration_since(request.accepted)),
                Err(_) => deployment.errors += 1,
            }
        }
        self.effects.push(Effect::Finish { id, result });
        self.admit_waiting(now, &request.deployment);
    }
}

#[cfg(test)]
mod tests;
