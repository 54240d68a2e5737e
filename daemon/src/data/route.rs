//! What the data plane knows of a deployment: its stages and where they run.

use std::time::Duration;

use libp2p::PeerId;

/// The active plan of a deployment as requests are routed by it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Route {
    /// Deployment name.
    pub deployment: String,
    /// Number of the plan.
    pub epoch: u64,
    /// The model's inputs in graph order.
    pub inputs: Vec<String>,
    /// The model's outputs in graph order.
    pub outputs: Vec<String>,
    /// Predicted time of one request through the idle pipeline.
    pub latency: Duration,
    /// Requests that are in the pipeline at once when it answers as many as predicted and none of them waits: the longer
    /// the ways between devices, the more.
    pub in_flight: usize,
    /// Stages in pipeline order. Empty for a deployment that is known and not yet active: its requests are told to
    /// come back later.
    pub stages: Vec<RouteStage>,
}

/// A replica counts for at most so many of the slowest of its stage when the window is made.
const FAST_MAX: f64 = 6.0;

impl Route {
    /// Whether a device runs a stage, or stands by for it by the plan: it may be ready, and others know, before this one
    /// has heard so.
    pub(super) fn runs(&self, stage: usize, device: PeerId) -> bool {
        self.stages.get(stage).is_some_and(|stage| {
            let is_replica = stage.replicas.iter().any(|(replica, _)| *replica == device);
            is_replica || stage.standbys.contains(&device) || stage.unready.contains(&device)
        })
    }

    /// The same plan, whoever stands by.
    pub(super) fn is_same_plan(&self, other: &Self) -> bool {
        let stages = self.stages.iter().zip(&other.stages);
        self.deployment == other.deployment
            && self.epoch == other.epoch
            && self.stages.len() == other.stages.len()
            && stages.into_iter().all(|(a, b)| a.replicas == b.replicas && a.inputs == b.inputs)
    }

    /// Predicted time of a request while as many are under way as the window lets through.
    pub(super) fn latency_when_full(&self) -> Duration {
        let window = u32::try_from(self.window()).unwrap_or(u32::MAX);
        let in_flight = u32::try_from(self.in_flight).unwrap_or(u32::MAX).max(1);
        self.latency.saturating_mul(window) / in_flight
    }

    /// Requests that keep every replica at work, with the next at hand and others on their way. A fast replica is given
    /// several before a slow one gets its first, so it counts for several.
    pub(super) fn window(&self) -> usize {
        let of_stage = |stage: &RouteStage| -> usize {
            let slowest = stage.replicas.iter().map(|(_, share)| *share).fold(f64::INFINITY, f64::min);
            let times = |share: f64| (share / slowest).ceil().clamp(1.0, FAST_MAX) as usize;
            stage.replicas.iter().map(|(_, share)| 1 + times(*share)).sum()
        };
        let replicas: usize = self.stages.iter().map(|stage| stage.replicas.len()).sum();
        self.stages.iter().map(of_stage).sum::<usize>().max(self.in_flight.saturating_add(replicas))
    }
}

/// One stage of a route.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RouteStage {
    /// Devices that run the stage, with the fraction of the requests that each takes.
    pub replicas: Vec<(PeerId, f64)>,
    /// Devices that are ready to run the stage and are asked only when no replica is left.
    pub standbys: Vec<PeerId>,
    /// Devices that are to stand by and have not said that they are ready.
    pub unready: Vec<PeerId>,
    /// Names of the tensors that enter: for the first stage those model inputs that are used at all.
    pub inputs: Vec<String>,
}

/// Names one stage of one plan of one deployment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StageKey {
    /// Deployment name.
    pub deployment: String,
    /// Number of the plan.
    pub epoch: u64,
    /// Position of the stage in the pipeline.
    pub stage: usize,
}

impl std::fmt::Display for StageKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "stage {} of {}, epoch {}", self.stage, self.deployment, self.epoch)
    }
}
