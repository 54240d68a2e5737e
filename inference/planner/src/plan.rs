//! Plain plan types: what the planner returns, consensus replicates and the data plane routes by.

use serde::{Deserialize, Serialize};

/// A way to serve a model: stages in order, with the devices that run each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Stages in pipeline order; their block ranges are contiguous and cover the model.
    pub stages: Vec<Stage>,
    /// Seconds that the slowest resource needs per request.
    pub bottleneck_s: f64,
    /// What the slowest resource is.
    pub bottleneck: Bottleneck,
    /// Predicted steady rate in requests per second, `1 / bottleneck_s`.
    pub throughput_rps: f64,
    /// Predicted time of one request through an idle pipeline, in seconds.
    pub latency_s: f64,
    /// No plan can have a bottleneck below this many seconds.
    pub lower_bound_s: f64,
    /// True when no better plan exists in the planner's model.
    pub optimal: bool,
    /// Why this plan, in a sentence or two.
    pub why: String,
    /// Devices that the plan leaves out, each with the reason.
    pub unused: Vec<Unused>,
    /// Other shapes of plan that were considered, with their numbers.
    pub alternatives: Vec<Alternative>,
}

/// Consecutive blocks run by one ONNX Runtime session on each of its replicas.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// First block of the stage (inclusive).
    pub first_block: usize,
    /// Last block of the stage (inclusive).
    pub last_block: usize,
    /// Devices that run the stage. Shares sum to 1.
    pub replicas: Vec<Replica>,
    /// Devices that hold the stage and take it over when all its replicas are lost, until there is a new plan.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub standbys: Vec<String>,
    /// Predicted compute time of one request on the slowest replica, in seconds.
    #[serde(default)]
    pub compute_s: f64,
    /// Predicted time to hand one request's activations to the next stage (or outputs to the ingress), in seconds.
    #[serde(default)]
    pub hop_s: f64,
    /// Bytes that leave the stage per request.
    #[serde(default)]
    pub output_bytes: u64,
    /// Weight bytes that each replica holds.
    #[serde(default)]
    pub weight_bytes: u64,
    /// Bytes that each replica and standby needs for the stage: weights, the largest peak, what crosses its cuts.
    #[serde(default)]
    pub memory_bytes: u64,
}

/// One of several devices serving the same stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Replica {
    /// The device's id (a libp2p PeerId as text, in the daemon).
    pub device: String,
    /// Fraction of the requests that this replica takes, 0 < share <= 1.
    pub share: f64,
}

/// What kind of resource limits the rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BottleneckKind {
    /// A device's processor.
    Compute,
    /// The path between two devices.
    Link,
    /// A device's network card, shared by all its links.
    Card,
}

/// The resource that sets the throughput.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bottleneck {
    /// Compute, link or card.
    pub kind: BottleneckKind,
    /// The stage that it belongs to; for a link, the stage that sends.
    pub stage: usize,
    /// The device; for a link, the sender.
    pub device: String,
}

/// A device that the plan does not use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Unused {
    /// The device's id.
    pub device: String,
    /// Why it is not used, for people.
    pub reason: String,
}

/// A shape of plan that was considered and not chosen, or chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alternative {
    /// "one device", "replicate everywhere", "chain", …
    pub what: String,
    /// Predicted requests per second; 0 when infeasible.
    pub throughput_rps: f64,
    /// Predicted latency in seconds; 0 when infeasible.
    pub latency_s: f64,
    /// Why it was not possible, if it was not.
    pub infeasible: Option<String>,
}

/// What a deployment is planned for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// The highest steady rate.
    #[default]
    Throughput,
    /// The shortest time of one request.
    Latency,
}
