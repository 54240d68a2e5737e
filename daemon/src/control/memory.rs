//! What deployments leave each other of a device's memory. Pure: from replicated state alone, so that every device and
//! the simulator reckon alike.

use std::collections::{BTreeMap, BTreeSet};

use mesh_consensus::{ClusterState, Deployment};
use mesh_planner::{Replica, Stage};

use super::prepare::SessionKey;

/// What a plan leaves to other deployments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// All that their stages hold.
    Stay,
    /// One device for each of their stages: who has more gives way (see [`gives_way`]).
    GiveWay,
    /// Nothing: memory is counted twice.
    Ignored,
}

impl Others {
    /// In the order in which a plan is looked for.
    pub const ALL: [Self; 3] = [Self::Stay, Self::GiveWay, Self::Ignored];
}

/// Bytes that a stage takes on each of its devices. Plans that were made before this was told have their weights alone.
pub fn stage_bytes(stage: &Stage) -> u64 {
    stage.memory_bytes.max(stage.weight_bytes)
}

/// The session that serves a stage of a plan for a model.
pub fn session_of(model: &str, stage: &Stage) -> SessionKey {
    SessionKey { model: model.to_owned(), first_block: stage.first_block, last_block: stage.last_block }
}

/// Bytes by device that a plan leaves to the stages of all deployments but one, in active plans and in those that are
/// being prepared. One session serves all plans that want its blocks. Standbys do not count: they give way
/// (`wanted_here`).
pub fn taken_by_others(state: &ClusterState, deployment: &str, others: Others) -> BTreeMap<String, u64> {
    let mut sessions: BTreeSet<(&str, SessionKey)> = BTreeSet::new();
    let mut taken: BTreeMap<String, u64> = BTreeMap::new();
    if others == Others::Ignored {
        return taken;
    }
    for other in state.deployments.values().filter(|other| other.name != deployment) {
        let thin = others == Others::GiveWay && has_surplus(other);
        for (model, stage) in stages(other) {
            let stays = if thin { mainstay(stage) } else { None };
            let replicas = stage.replicas.iter().map(|replica| replica.device.as_str());
            for device in replicas.filter(|device| stays.is_none_or(|stays| stays == *device)) {
                if sessions.insert((device, session_of(model, stage))) {
                    let bytes = taken.entry(device.to_owned()).or_default();
                    *bytes = bytes.saturating_add(stage_bytes(stage));
                }
            }
        }
    }
    taken
}

/// Whether a deployment could go on with fewer devices: some stage has several, which the operator has not named, and
/// its plan is not about to change.
fn has_surplus(deployment: &Deployment) -> bool {
    let plan =
        deployment.active.as_ref().filter(|_| deployment.pin.is_none() && deployment.preparing.is_none());
    plan.is_some_and(|plan| plan.plan.stages.iter().any(|stage| stage.replicas.len() > 1))
}

/// The device that keeps a stage when the others give way: the one that takes most requests.
fn mainstay(stage: &Stage) -> Option<&str> {
    let by_share = |a: &&Replica, b: &&Replica| a.share.total_cmp(&b.share).then(b.device.cmp(&a.device));
    stage.replicas.iter().max_by(by_share).map(|replica| replica.device.as_str())
}

/// The deployment whose turn it is to be planned anew beside the others, because a device holds too much and it has
/// surplus devices: the one with most of them.
pub fn gives_way(state: &ClusterState, budget: impl Fn(&str) -> Option<u64>) -> Option<&str> {
    let crowded = crowded(state, budget);
    let is_crowded = |device: &str| crowded.iter().any(|crowded| crowded.device == device);
    let surplus = |deployment: &Deployment| -> usize {
        stages(deployment).map(|(_, stage)| stage.replicas.len().saturating_sub(1)).sum()
    };
    let would_help = |deployment: &&Deployment| {
        let mut several = stages(deployment).filter(|(_, stage)| stage.replicas.len() > 1);
        has_surplus(deployment)
            && several.any(|(_, stage)| stage.replicas.iter().any(|replica| is_crowded(&replica.device)))
    };
    let candidates = state.deployments.values().filter(would_help);
    candidates.max_by_key(|deployment| surplus(deployment)).map(|deployment| deployment.name.as_str())
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
/// change nothing is said.
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
    let held = taken_by_others(state, "", Others::Stay);
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
