//! Whether a deployment's requests can be answered, by what devices have told of the stages of its active plan.
//!
//! A stage's device tells all others at once when it is ready, before the leader can have heard of it and activated the
//! plan: who knows of a new plan knows that its devices are ready. After a restart they load their stages anew.

use mesh_consensus::{Deployment, EpochPlan};

use super::{consensus::ClusterView, facts::Facts, report::StageState};

/// A stage of an active plan, with devices by their ids.
#[derive(Debug, Default, PartialEq, Eq)]
struct StageHealth<'a> {
    /// Replicas that are gone.
    down: Vec<&'a str>,
    /// Replicas that are there and have not told that they are ready.
    loading: Vec<&'a str>,
    /// A replica is there and ready.
    is_ready: bool,
    /// A device that stands by and is ready.
    standby: Option<&'a str>,
}

impl StageHealth<'_> {
    fn answers(&self) -> bool {
        self.is_ready || self.standby.is_some()
    }
}

fn stages<'a>(facts: &Facts, name: &str, active: &'a EpochPlan) -> Vec<StageHealth<'a>> {
    let stages = active.plan.stages.iter().enumerate();
    let health = stages.map(|(index, stage)| {
        let is_ready = |device: &str| facts.is_ready(device, name, active.epoch, index);
        let mut health = StageHealth {
            standby: stage.standbys.iter().map(String::as_str).find(|id| is_ready(id)),
            ..StageHealth::default()
        };
        for replica in &stage.replicas {
            match facts.is_live(&replica.device) {
                false => health.down.push(&replica.device),
                true if is_ready(&replica.device) => health.is_ready = true,
                true => health.loading.push(&replica.device),
            }
        }
        health
    });
    health.collect()
}

/// Whether every stage of the active plan has a live device that has told that it is ready.
pub fn answers(facts: &Facts, deployment: &Deployment) -> bool {
    let Some(active) = &deployment.active else { return false };
    stages(facts, &deployment.name, active).iter().all(StageHealth::answers)
}

/// `preparing`, `serving`, `degraded` or `failed`, with the reason where it is not `serving`.
pub fn state(facts: &Facts, view: &ClusterView, deployment: &Deployment) -> (&'static str, String) {
    let fault = deployment.fault.as_ref().map(|fault| facts.named(view, fault));
    let Some(active) = &deployment.active else {
        return match fault {
            Some(fault) if deployment.preparing.is_none() => ("failed", fault),
            Some(_) | None => ("preparing", "stages are being prepared".into()),
        };
    };
    let stages = stages(facts, &deployment.name, active);
    let names = |ids: &[&str]| ids.iter().map(|id| facts.name(view, id)).collect::<Vec<_>>().join(", ");
    let is_gone = |stage: &StageHealth<'_>| !stage.answers() && stage.loading.is_empty();
    if let Some((index, stage)) = stages.iter().enumerate().find(|(_, stage)| is_gone(stage)) {
        let what = format!("stage {index} has no live device");
        let down = names(&stage.down);
        return match fault {
            Some(fault) if deployment.preparing.is_none() => {
                ("failed", format!("{what} ({down} is down) and {fault}"))
            }
            Some(_) | None => ("degraded", format!("{what}: {down} is down; a new plan is on its way")),
        };
    }
    let lost: Vec<&str> = stages.iter().flat_map(|stage| stage.down.iter().copied()).collect();
    let mut reasons = Vec::new();
    if !lost.is_empty() {
        reasons.push(format!("{} is down", names(&lost)));
    }
    for (index, stage) in stages.iter().enumerate().filter(|(_, stage)| !stage.is_ready) {
        let told = |device: &&str| loading(facts, view, &deployment.name, active.epoch, index, device);
        reasons.extend(stage.loading.iter().map(told));
        reasons.extend(stage.standby.map(|id| format!("{} stands in for stage {index}", names(&[id]))));
    }
    if stages.iter().any(|stage| !stage.is_ready && stage.loading.is_empty()) {
        reasons.push("a new plan is on its way".into());
    }
    match reasons.is_empty() {
        true => ("serving", fault.unwrap_or_default()),
        false => ("degraded", reasons.join("; ")),
    }
}

/// What keeps a live device from running a stage.
fn loading(
    facts: &Facts,
    view: &ClusterView,
    deployment: &str,
    epoch: u64,
    stage: usize,
    device: &str,
) -> String {
    let name = facts.name(view, device);
    match facts.stage(device, deployment, epoch, stage).map(|report| report.state) {
        Some(StageState::Failed { reason }) => format!("{name} cannot load stage {stage}: {reason}"),
        Some(StageState::Preparing { .. } | StageState::Ready) | None => {
            format!("{name} is loading stage {stage}")
        }
    }
}

#[cfg(test)]
mod tests;
