//! What a device tells all others with every heartbeat. Level-triggered: a newer report replaces an older one,
//! so a new leader knows all it needs after one heartbeat from each device.

use std::collections::{BTreeMap, BTreeSet};

use mesh_consensus::ClusterId;
use mesh_planner::TransferCost;
use serde::{Deserialize, Serialize};

use super::crossing::CrossingReport;

/// Largest report that is decoded, in bytes.
const REPORT_BYTES_MAX: usize = 256 * 1024;
/// Stands for the cluster of a device that is in none yet, as in its own view.
pub const NO_CLUSTER: ClusterId = ClusterId([0; 16]);

/// A device's account of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeReport {
    /// Configured name.
    pub name: String,
    /// Version of the binary.
    pub version: String,
    /// The cluster that it is in, or [`NO_CLUSTER`]: two clusters that meet may have deployments of one name, with plans of
    /// one number. `None`: a build from before this was said.
    #[serde(default)]
    pub cluster: Option<ClusterId>,
    /// What stages may use on this device, in bytes.
    pub memory_budget_bytes: u64,
    /// What the loaded stages use by the planner's account, in bytes.
    pub memory_used_bytes: u64,
    /// Seconds of the calibration run; `None` until it has been made.
    pub calibration_s: Option<f64>,
    /// Every stage that this device holds or prepares.
    pub stages: Vec<StageReport>,
    /// Models (manifest hashes) of which the device holds its whole share of blobs.
    pub kept: BTreeSet<String>,
    /// Measured bandwidth to peers, bytes per second, by PeerId.
    pub links: BTreeMap<String, LinkReport>,
    /// What its network card carries in all, each direction, bytes per second, where its links share it; `None` where
    /// they do not, and until that has been found out.
    #[serde(default)]
    pub card_bytes_per_s: Option<f64>,
    /// What moving data costs this device; zeros until measured.
    #[serde(default)]
    pub transfer: TransferCost,
    /// Requests per second that clients have lately brought to this device, by deployment.
    #[serde(default)]
    pub entering: BTreeMap<String, f64>,
    /// Those of them whose clients are on other machines.
    #[serde(default)]
    pub arriving: BTreeMap<String, f64>,
    /// Numbers of the plans, by deployment, that requests which entered by this device are on, or would be sent on: it may
    /// not have heard of the newest.
    #[serde(default)]
    pub under_way: BTreeMap<String, BTreeSet<u64>>,
    /// How large the activations are that it sends.
    #[serde(default)]
    pub crossing: Vec<CrossingReport>,
    /// The part of its processors that other programs use, so that stages do not get it; it is in `transfer.rest_share`, too.
    #[serde(default)]
    pub others_share: f64,
}

/// A measured link from the reporting device to a peer.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct LinkReport {
    /// Bytes per second.
    pub bytes_per_s: f64,
    /// Half of the round trip, seconds.
    pub latency_s: f64,
}

/// One stage of one plan on the reporting device.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StageReport {
    /// Deployment name.
    pub deployment: String,
    /// Epoch of the plan.
    pub epoch: u64,
    /// Stage index.
    pub stage: usize,
    /// How far it is.
    pub state: StageState,
    /// What a run costs the device, measured, in seconds; 0 until measured.
    pub compute_s: f64,
    /// Runs since the stage started, as of some seconds ago.
    #[serde(default)]
    pub runs: u64,
}

/// How far a device is with a stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StageState {
    /// Fetching weights or loading the session.
    Preparing {
        /// Bytes of weights here.
        done: u64,
        /// Bytes of weights needed.
        total: u64,
    },
    /// Answers requests.
    Ready,
    /// Cannot be prepared here.
    Failed {
        /// Why, for people.
        reason: String,
    },
}

impl NodeReport {
    /// As bytes for the heartbeat.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(512);
        ciborium::into_writer(self, &mut bytes).expect("a report is plain data and a Vec takes all bytes");
        bytes
    }

    /// From a peer's bytes; `None` when they are no report.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > REPORT_BYTES_MAX {
            return None;
        }
        ciborium::de::from_reader_with_recursion_limit(bytes, 16).ok()
    }

    /// The state of one stage, if the device has it.
    pub fn stage(&self, deployment: &str, epoch: u64, stage: usize) -> Option<&StageReport> {
        self.stages.iter().find(|s| s.deployment == deployment && s.epoch == epoch && s.stage == stage)
    }
}

#[cfg(test)]
mod tests;
