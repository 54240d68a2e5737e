//! What all devices agree on: members, models, deployments, plans. Kilobytes, never weights or activations.

mod apply;
mod snapshot;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mesh_planner::{Objective, Plan};
use serde::{Deserialize, Serialize};

pub(crate) use snapshot::MAX_STATE_BYTES;
pub use snapshot::SnapshotError;

use crate::command::Outcome;
use crate::ids::{ClusterId, DeviceId, RaftId, StorageId};

/// Outcomes remembered per proposer, so that a retry is recognised.
pub const OUTCOMES_KEPT: usize = 64;
/// Proposers remembered; the one that has been silent longest is forgotten first.
pub const PROPOSERS_KEPT: usize = 256;
/// Most members of a cluster.
pub const MAX_MEMBERS: usize = 256;
/// Most models known at once.
pub const MAX_MODELS: usize = 1024;
/// Most deployments at once.
pub const MAX_DEPLOYMENTS: usize = 64;
/// Longest name, address or hash, in bytes.
pub const MAX_TEXT: usize = 1024;

/// A device of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its replica's number.
    pub raft_id: RaftId,
    /// Its identity.
    pub device: DeviceId,
    /// Its disk.
    pub storage: StorageId,
    /// Its name, for people.
    pub name: String,
    /// Where it listens, `ip:port`.
    pub address: String,
    /// Plans avoid it.
    pub draining: bool,
}

/// A model that can be deployed. Its bytes are blobs on the devices; only their manifest's hash is here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// Manifest hash, hex.
    pub hash: String,
    /// Where it came from (a file's name), for people.
    pub source: String,
    /// Bytes of all weights.
    pub weight_bytes: u64,
    /// Graph nodes.
    pub nodes: u64,
    /// Blocks that it can be cut into.
    pub blocks: u64,
    /// The device that imported it.
    pub added_by: DeviceId,
    /// Blob hash (hex) of its profile, once measured.
    pub profile_blob: Option<String>,
}

/// A plan with its number. Epochs of one deployment name only ever grow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochPlan {
    /// Its number; frames of a retired epoch are refused by it.
    pub epoch: u64,
    /// Manifest hash (hex) of the model that the plan cuts; a redeploy may have changed the deployment's model
    /// while the old plan still serves.
    pub model: String,
    /// The plan.
    pub plan: Plan,
}

/// A model that somebody wants served, and how far that is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deployment {
    /// The name that clients use.
    pub name: String,
    /// Manifest hash (hex).
    pub model: String,
    /// What to plan for.
    pub objective: Objective,
    /// Exactly so many stages, if given.
    pub stages: Option<usize>,
    /// Exactly this plan, if given.
    pub pin: Option<Plan>,
    /// Shapes given for inputs: name and dimensions.
    pub shapes: Vec<(String, Vec<i64>)>,
    /// The plan that requests go by.
    pub active: Option<EpochPlan>,
    /// The plan that devices are getting ready for.
    pub preparing: Option<EpochPlan>,
    /// The epoch that the next plan must have.
    pub next_epoch: u64,
    /// The first epoch that was planned for what is asked now: an active plan below it serves an earlier wish.
    pub asked_epoch: u64,
    /// Why it cannot be served as asked, for people.
    pub fault: Option<String>,
}

/// The outcomes of a proposer's last requests.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RecentRequests {
    /// Log index of the newest.
    pub(crate) last_index: u64,
    /// Sequence number and outcome, oldest first, at most [`OUTCOMES_KEPT`].
    pub(crate) outcomes: VecDeque<(u64, Outcome)>,
}

/// The replicated state.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterState {
    /// The cluster, for life.
    pub cluster_id: ClusterId,
    /// Its name, for people.
    pub cluster_name: String,
    /// Members by raft id. Empty on a joiner that has not had its first snapshot.
    pub members: BTreeMap<RaftId, Member>,
    /// Identities that are refused.
    pub removed: BTreeSet<DeviceId>,
    /// The raft id that the next new member gets.
    pub next_raft_id: RaftId,
    /// Models by manifest hash (hex).
    pub models: BTreeMap<String, ModelRecord>,
    /// Deployments by name.
    pub deployments: BTreeMap<String, Deployment>,
    /// No deployment made from now on has an epoch below this, so that a name used again does not repeat one.
    pub(crate) epoch_floor: u64,
    /// What came of the latest requests.
    pub(crate) recent: BTreeMap<DeviceId, RecentRequests>,
}

impl ClusterState {
    /// A state that knows only which cluster it is a copy of.
    pub fn empty(cluster_id: ClusterId) -> Self {
        Self {
            cluster_id,
            cluster_name: String::new(),
            members: BTreeMap::new(),
            removed: BTreeSet::new(),
            next_raft_id: 1,
            models: BTreeMap::new(),
            deployments: BTreeMap::new(),
            epoch_floor: 1,
            recent: BTreeMap::new(),
        }
    }

    /// The state of a cluster at its founding.
    pub fn founded(cluster_id: ClusterId, cluster_name: &str, members: &[Member]) -> Self {
        let members: BTreeMap<_, _> = members.iter().map(|member| (member.raft_id, member.clone())).collect();
        let next_raft_id = members.keys().next_back().map_or(1, |last| last + 1);
        Self { cluster_name: cluster_name.to_owned(), members, next_raft_id, ..Self::empty(cluster_id) }
    }

    /// The member that a device is, if it is one.
    pub fn member(&self, device: &DeviceId) -> Option<&Member> {
        self.members.values().find(|member| &member.device == device)
    }

    /// The outcome of a request, if it was applied lately.
    pub fn outcome(&self, id: &crate::command::RequestId) -> Option<&Outcome> {
        let recent = self.recent.get(&id.proposer)?;
        recent.outcomes.iter().find(|(sequence, _)| *sequence == id.sequence).map(|(_, outcome)| outcome)
    }
}
