//! What the ingress keeps per deployment.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use libp2p::PeerId;

use super::patience::Patience;
use crate::data::{
    balance::{Avoid, Balancer, Detour, Here},
    latency::{Rate, Recent},
    limits::DataLimits,
    metrics::DeploymentMetrics,
    route::Route,
};

/// The window is halved no more often than this: refusals come in flocks.
const NARROWED_MIN: Duration = Duration::from_millis(500);
/// After a refusal by a full queue a request waits for this part of the usual time of an answer.
const BUSY_PART: u32 = 4;
/// Answers of which the latencies are told.
const LATENCIES: usize = 512;
/// Fewest requests in the pipeline at a time, however short the pipeline is.
const WINDOW_MIN: usize = 4;

/// The window that a route allows.
fn window_full(route: &Route, limits: &DataLimits) -> usize {
    route.window().max(WINDOW_MIN).min(limits.window_max).max(1)
}

/// Route, window and numbers of one deployment.
#[derive(Debug)]
pub(super) struct Deployment {
    /// `None` once it was undeployed.
    pub(super) route: Option<Arc<Route>>,
    balancer: Option<Balancer>,
    pub(super) window: usize,
    /// The window that the route allows; it is smaller after devices were busy, and grows back with answers.
    window_full: usize,
    /// Answers since the window has grown.
    answered: usize,
    narrowed: Option<Instant>,
    /// Requests that hold a slot of the window.
    pub(super) in_flight: usize,
    /// Requests that wait for a slot, in order.
    pub(super) line: VecDeque<u64>,
    pub(super) requests: u64,
    /// Those of them whose client is on another machine.
    pub(super) arrived: u64,
    pub(super) errors: u64,
    pub(super) retries: u64,
    answers: Rate,
    latency: Recent,
    /// How long answers are waited for.
    pub(super) patience: Patience,
}

impl Deployment {
    pub(super) fn new(now: Instant, limits: &DataLimits) -> Self {
        Self {
            route: None,
            balancer: None,
            window: WINDOW_MIN.min(limits.window_max),
            window_full: WINDOW_MIN.min(limits.window_max),
            answered: 0,
            narrowed: None,
            in_flight: 0,
            line: VecDeque::new(),
            requests: 0,
            arrived: 0,
            errors: 0,
            retries: 0,
            answers: Rate::new(now),
            latency: Recent::last(LATENCIES),
            patience: Patience::default(),
        }
    }

    pub(super) fn set_route(&mut self, route: Option<Arc<Route>>, limits: &DataLimits) {
        if self.route == route {
            return;
        }
        if let (Some(old), Some(new), Some(balancer)) = (&self.route, &route, &mut self.balancer)
            && old.is_same_plan(new)
        {
            balancer.set_standbys(new);
            let full = window_full(new, limits);
            self.window = if self.window == self.window_full { full } else { self.window.min(full) };
            self.window_full = full;
            self.route = route;
            return;
        }
        if let Some(route) = &route {
            self.window_full = window_full(route, limits);
            (self.window, self.answered) = (self.window_full, 0);
        }
        self.balancer = route.as_deref().map(Balancer::new);
        self.patience.set_plan(self.route.as_deref(), route.as_deref(), limits);
        self.route = route;
    }

    /// A device per stage. `Err` names the stage that has no live device; `Err(None)`: there is no active plan.
    pub(super) fn pick(
        &mut self,
        now: Instant,
        here: Here,
        up: &BTreeSet<PeerId>,
        avoid: Avoid<'_>,
    ) -> Result<Vec<PeerId>, Option<usize>> {
        match (&self.route, &mut self.balancer) {
            (Some(route), Some(balancer)) if !route.stages.is_empty() => {
                balancer.pick(now, here, up, avoid).map_err(Some)
            }
            (Some(_) | None, Some(_) | None) => Err(None),
        }
    }

    /// See [`Balancer::detour`]; for requests on the newest plan only, of others nothing is known.
    pub(super) fn detour(
        &mut self,
        now: Instant,
        here: Here,
        up: &BTreeSet<PeerId>,
        (epoch, stage, picked): (u64, usize, PeerId),
        by: &Detour<'_>,
    ) -> Option<PeerId> {
        self.route.as_ref().filter(|route| route.epoch == epoch)?;
        self.balancer.as_mut()?.detour(now, here, up, (stage, picked), by)
    }

    /// A request has gone to another device than was picked.
    pub(super) fn moved(&mut self, epoch: u64, stage: usize, from: PeerId, to: PeerId) {
        if let Some(balancer) = &mut self.balancer {
            balancer.moved(epoch, stage, from, to);
        }
    }

    pub(super) fn heard(&mut self, now: Instant, device: PeerId, jobs: u32) {
        if let Some(balancer) = &mut self.balancer {
            balancer.heard(now, device, jobs);
        }
    }

    pub(super) fn release(&mut self, epoch: u64, devices: &[PeerId]) {
        if let Some(balancer) = &mut self.balancer {
            balancer.release(epoch, devices);
        }
    }

    /// Whether a stage has a device that is up and that a request has no reason to avoid.
    pub(super) fn has_other(&self, stage: usize, up: &BTreeSet<PeerId>, avoid: &[PeerId]) -> bool {
        self.balancer.as_ref().is_some_and(|balancer| balancer.has_other(stage, up, avoid))
    }

    /// The queues of all devices of a stage are full: too much is under way, from here and from other ingresses. The
    /// window is halved, as TCP does it; what comes back is the least time to wait before the request is sent again.
    /// Inputs that are sent in vain cost a busy device the time that it is short of.
    pub(super) fn busy(&mut self, now: Instant) -> Duration {
        if self.narrowed.is_none_or(|at| now.saturating_duration_since(at) >= NARROWED_MIN) {
            (self.window, self.answered) = ((self.window / 2).max(1), 0);
            self.narrowed = Some(now);
        }
        let predicted = self.route.as_ref().map_or(Duration::ZERO, |route| route.latency);
        self.patience.median().unwrap_or(predicted) / BUSY_PART
    }

    pub(super) fn record_answer(&mut self, now: Instant, latency: Duration) {
        if self.window < self.window_full {
            self.answered += 1;
            if self.answered >= self.window {
                (self.window, self.answered) = (self.window + 1, 0);
            }
        }
        self.answers.record(now);
        self.latency.record(latency);
    }

    /// Whether requests wait, or were answered in the last seconds.
    pub(super) fn is_asked(&self, now: Instant) -> bool {
        self.in_flight > 0 || !self.line.is_empty() || self.answers.per_second(now) > 0.0
    }

    pub(super) fn metrics(&self, now: Instant) -> DeploymentMetrics {
        DeploymentMetrics {
            requests: self.requests,
            arrived: self.arrived,
            errors: self.errors,
            retries: self.retries,
            in_flight: self.in_flight,
            epochs: BTreeSet::new(),
            waiting: self.line.len(),
            rps: self.answers.per_second(now),
            p50: self.latency.quantile(0.5),
            p99: self.latency.quantile(0.99),
        }
    }
    /// Nothing is counted as being on a route.
    #[cfg(test)]
    pub(super) fn balanced(&self) -> bool {
        self.balancer.as_ref().is_none_or(|balancer| balancer.outstanding() == 0)
    }
}
