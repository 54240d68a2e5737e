//! What deployments leave each other of a device's memory. Pure: from replicated state alone, so that every device and
//! the simulator reckon alike.

use std::collections::{BTreeMap, BTreeSet};

use mesh_consensus::{ClusterState, Deployment};
use mesh_planner::Stage;

use super::prepare::SessionKey;

/// Bytes that a stage takes on each of its devices. Plans that were made before this was told have their weights alone.
pub fn stage_bytes(stage: &Stage) -> u64 {
    stage.memory_bytes.max(stage.weight_bytes)
}

/// The session that serves a stage of a plan for a model.
pub fn session_of(model: &str, stage: &Stage) -> SessionKey {
    SessionKey { model: model.to_owned(), first_block: stage.first_block, last_block: stage.last_block }
}

/// Bytes by device that the stages of all deployments but one take, in active plans and in those that are being
/// prepared. One session serves all plans that want its blocks. Standbys do not count: they give way (`wanted_here`).
pub fn taken_by_others(state: &ClusterState, deployment: &str) -> BTreeMap<String, u64> {
    let mut sessions: BTreeSet<(&str, SessionKey)> = BTreeSet::new();
    let mut taken: BTreeMap<String, u64> = BTreeMap::new();
    for other in state.deployments.values().filter(|other| other.name != deployment) {
        for (model, stage) in stages(other) {
            for replica in &stage.replicas {
                if sessions.insert((replica.device.as_str(), session_of(model, stage))) {
                    let bytes = taken.entry(replica.device.clone()).or_default();
                    *bytes = bytes.saturating_add(stage_bytes(stage));
                }
            }
        }
    }
    taken
}

/// A device that holds more for several deployments than it has for stages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crowded {
    /// The device.
    pub device: String,
    /// Bytes that its stages take.
    pub held: u64,
    /// Bytes that it has for stages.
    pub budget: u64,
    /// Names of the deployments.
    pub deployments: Vec<String>,
}

/// Devices that hold more than they have for stages because deployments did not fit beside each other. While plans
/// change nothing is said: both are held then.
pub fn crowded(state: &ClusterState, budget: impl Fn(&str) -> Option<u64>) -> Vec<Crowded> {
    if state.deployments.values().any(|deployment| deployment.preparing.is_some()) {
        return Vec::new();
    }
    let mut users: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for deployment in state.deployments.values() {
        for replica in stages(deployment).flat_map(|(_, stage)| &stage.replicas) {
            users.entry(&replica.device).or_default().insert(&deployment.name);
        }
    }
    // No deployment has this name.
    let held = taken_by_others(state, "");
    let several = users.into_iter().filter(|(_, deployments)| deployments.len() > 1);
    let crowded = several.filter_map(|(device, deployments)| {
        let (held, budget) = (*held.get(device)?, budget(device)?);
        let deployments = deployments.into_iter().map(str::to_owned).collect();
        (held > budget).then(|| Crowded { device: device.to_owned(), held, budget, deployments })
    });
    crowded.collect()
}

/// All stages of a deployment's plans, each with its model.
fn stages(deployment: &Deployment) -> impl Iterator<Item = (&str, &Stage)> {
    let plans = deployment.active.iter().chain(&deployment.preparing);
    plans.flat_map(|plan| plan.plan.stages.iter().map(move |stage| (plan.model.as_str(), stage)))
}

#[cfg(test)]
mod tests;
