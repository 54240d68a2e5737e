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

/// All stages of a deployment's plans, each with its model.
fn stages(deployment: &Deployment) -> impl Iterator<Item = (&str, &Stage)> {
    let plans = deployment.active.iter().chain(&deployment.preparing);
    plans.flat_map(|plan| plan.plan.stages.iter().map(move |stage| (plan.model.as_str(), stage)))
}

#[cfg(test)]
mod tests;
