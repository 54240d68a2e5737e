//! The status document: what `mesh status --json` and `/api/status` print. The shape is a promise.

use serde::{Deserialize, Serialize};

/// Everything a person or a program asks about a cluster, as one device sees it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Status {
    /// The cluster as a whole.
    pub cluster: ClusterStatus,
    /// Id of the device that answered.
    pub this_node: String,
    /// All members, and this device while it joins.
    pub nodes: Vec<NodeStatus>,
    /// All deployments.
    pub deployments: Vec<DeploymentStatus>,
    /// What needs a person, each with its remedy.
    pub warnings: Vec<Warning>,
}

/// Consensus as this device sees it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Configured name.
    pub name: String,
    /// The cluster's id; empty until founded or joined.
    pub id: String,
    /// Raft term.
    pub term: u64,
    /// Id of the leading device; empty when none is known.
    pub leader: String,
    /// Whether a leader with a quorum is known.
    pub quorum: bool,
}

/// One device.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct NodeStatus {
    /// PeerId as text.
    pub id: String,
    /// Configured name.
    pub name: String,
    /// `up`, `down`, `draining` or `joining`.
    pub state: String,
    /// `leader`, `voter` or `learner`.
    pub role: String,
    /// `ip:port` that peers reach it at.
    pub address: String,
    /// What stages may use on it.
    pub memory_budget_bytes: u64,
    /// What its stages use by the planner's account.
    pub memory_used_bytes: u64,
    /// Calibrated speed relative to the reference device.
    pub speed: f64,
}

/// One deployment.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct DeploymentStatus {
    /// Name given at deploy.
    pub name: String,
    /// `preparing`, `serving`, `degraded` or `failed`.
    pub state: String,
    /// `throughput` or `latency`.
    pub objective: String,
    /// Epoch of the active plan (0: none yet).
    pub epoch: u64,
    /// Epoch of the plan that is being prepared (0: none).
    #[serde(default)]
    pub preparing_epoch: u64,
    /// Why it is not `serving`; empty when it is.
    pub reason: String,
    /// Whether every stage has a live device that is ready: requests are answered, whatever else is wrong.
    #[serde(default)]
    pub answers: bool,
    /// The active plan's stages.
    pub stages: Vec<StageStatus>,
    /// What limits the rate; absent without a plan.
    pub bottleneck: Option<BottleneckStatus>,
    /// Planner's prediction, requests per second.
    pub predicted_rps: f64,
    /// Answered per second over the last 10 s, at this ingress.
    pub measured_rps: f64,
    /// Median latency of recent requests at this ingress, milliseconds.
    pub p50_ms: f64,
    /// 99th percentile, milliseconds.
    pub p99_ms: f64,
    /// Requests accepted at this ingress.
    pub requests: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Times a request was sent again on another route.
    pub retries: u64,
    /// Requests accepted and not answered yet.
    pub in_flight: u64,
}

/// One stage of the active plan.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct StageStatus {
    /// Position in the pipeline.
    pub index: usize,
    /// First block (inclusive).
    pub first_block: usize,
    /// Last block (inclusive).
    pub last_block: usize,
    /// Weight bytes per replica.
    pub weight_bytes: u64,
    /// Devices that run it.
    pub replicas: Vec<ReplicaStatus>,
    /// Devices that hold the stage and can take it over at once when all replicas are lost, by id.
    #[serde(default)]
    pub standbys: Vec<String>,
    /// Measured compute time (predicted until measured), milliseconds.
    pub compute_ms: f64,
    /// Bytes leaving the stage per request.
    pub output_bytes: u64,
    /// Time to hand them on, milliseconds.
    pub hop_ms: f64,
}

/// One replica of a stage.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// Device id.
    pub node: String,
    /// Fraction of requests.
    pub share: f64,
}

/// What limits the rate.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct BottleneckStatus {
    /// `compute`, `link` or `card`.
    pub kind: String,
    /// Stage index.
    pub stage: usize,
    /// Device id.
    pub node: String,
}

/// Something that needs a person.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Warning {
    /// What is wrong.
    pub what: String,
    /// The command or action that mends it.
    pub remedy: String,
}
