//! The planning problem: profile, devices, links and wishes. Its JSON form is what `planner solve` reads.

mod validate;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::plan::Objective;
pub use validate::ProblemError;

/// Everything the planner knows about one model and the devices it may use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Problem {
    /// Blocks in execution order.
    pub blocks: Vec<Block>,
    /// Bytes that cross before the first block (the inputs), after each block, and at the end (the outputs).
    /// One entry more than `blocks`.
    pub cuts: Vec<u64>,
    /// Devices that may be used.
    pub devices: Vec<Device>,
    /// Links between the devices.
    pub links: Links,
    /// Fraction of the requests that enters at each device. `None`: end transfers cost nothing.
    #[serde(default)]
    pub ingress: Option<BTreeMap<String, f64>>,
    /// Fraction of the requests whose client is elsewhere in the network, by device at which they enter: inputs come over
    /// that device's network card, and answers leave by it. It counts in what a plan is evaluated to, not in the search
    /// for one: no plan changes it.
    #[serde(default)]
    pub arriving: BTreeMap<String, f64>,
    /// Rate or latency.
    #[serde(default)]
    pub objective: Objective,
    /// May a stage run on several devices?
    #[serde(default = "yes")]
    pub replication: bool,
    /// The plan has at least so many stages.
    #[serde(default)]
    pub min_stages: Option<usize>,
    /// The plan has at most so many stages.
    #[serde(default)]
    pub max_stages: Option<usize>,
    /// The stages and their devices are given; only the shares are chosen.
    #[serde(default)]
    pub pin: Option<Vec<PinnedStage>>,
}

/// A run of graph nodes that is never divided.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Block {
    /// Bytes of the block's weights.
    pub weight_bytes: u64,
    /// Bytes of memory that they take beyond their own: other layouts, copies while they are loaded.
    #[serde(default)]
    pub overhead_bytes: u64,
    /// Peak bytes of activations while the block runs.
    pub peak_bytes: u64,
    /// Seconds per request on a device of each class with speed 1.
    pub seconds: BTreeMap<String, f64>,
}

/// A device that may run stages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// Unique id.
    pub id: String,
    /// Hardware class: a key of `Block::seconds`.
    pub class: String,
    /// Divides the class's seconds: 0.5 takes twice as long.
    pub speed: f64,
    /// Bytes that stages may use here.
    pub memory_bytes: u64,
    /// Bytes per second of the network card, in and out each. `None`: no limit beside the links.
    #[serde(default)]
    pub card_bytes_per_s: Option<f64>,
    /// What moving data costs the device's processors.
    #[serde(default)]
    pub transfer: TransferCost,
}

/// What moving data costs a device's processors: encryption, the network stack, copies. Seconds are seconds of the
/// whole device: the work of one core divided by the number of cores.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TransferCost {
    /// Seconds per byte sent to another device.
    pub send_s_per_byte: f64,
    /// Seconds per byte received from another device.
    pub receive_s_per_byte: f64,
    /// Seconds per message sent or received, whatever its size.
    pub request_s: f64,
    /// Seconds per byte of a request that a client brings here, and of its answer: the work of an ingress.
    pub entry_s_per_byte: f64,
    /// The part of the processors that is always in use, whatever is served, other programs included: 0 for none. It is
    /// not there for the rest.
    pub rest_share: f64,
    /// The part of the processors that a running stage keeps busy: 1 for all, 0.5 for one thread on two cores.
    pub compute_share: f64,
}

impl Default for TransferCost {
    fn default() -> Self {
        Self {
            send_s_per_byte: 0.0,
            receive_s_per_byte: 0.0,
            request_s: 0.0,
            entry_s_per_byte: 0.0,
            rest_share: 0.0,
            compute_share: 1.0,
        }
    }
}

/// Links between devices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Links {
    /// A pair that is not listed.
    pub default: LinkRate,
    /// Pairs that differ from the default. Each holds for its direction only.
    #[serde(default)]
    pub pairs: Vec<PairLink>,
}

/// What a link can do.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LinkRate {
    /// Bytes per second; 0 means that there is no link.
    pub bytes_per_s: f64,
    /// One-way latency in seconds.
    pub latency_s: f64,
}

/// The link from one device to another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PairLink {
    /// Sender's id.
    pub from: String,
    /// Receiver's id.
    pub to: String,
    /// Bytes per second; 0 means that there is no link.
    pub bytes_per_s: f64,
    /// One-way latency in seconds.
    pub latency_s: f64,
}

/// A stage that the operator wants as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PinnedStage {
    /// First block (inclusive).
    pub first_block: usize,
    /// Last block (inclusive).
    pub last_block: usize,
    /// Devices that run the stage.
    pub devices: Vec<String>,
}

fn yes() -> bool {
    true
}
