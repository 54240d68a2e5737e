//! What becomes of a deployment, for the person who asked for it. Pure: it is told the time and the replicated state.

use std::time::{Duration, Instant};

use mesh_consensus::{ClusterId, ClusterState, DeploySpec, Deployment, EpochPlan, RequestId};

/// A plan that was given up (a device could not prepare its stage) is followed by the next one within this time.
const NEXT_PLAN: Duration = Duration::from_secs(3);
/// This device's copy of the state is waited for this long, once the leader has applied the command: longer than a device
/// that comes back takes to catch up.
const LAG: Duration = Duration::from_secs(30);

/// Watches a deployment that was asked for.
#[derive(Debug)]
pub(super) struct Watch {
    since: Instant,
    cluster: ClusterId,
    /// The command that asked for it.
    request: RequestId,
    asked: DeploySpec,
    /// This device has applied the command: what it knows of the deployment is not from before.
    is_applied: bool,
    /// The plan that was told last.
    told: Option<u64>,
    given_up: Option<Instant>,
}

/// What to tell, and whether to go on.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step<'s> {
    /// Nothing yet.
    Wait,
    /// Devices get ready for a plan.
    Preparing {
        /// The plan.
        plan: &'s EpochPlan,
        /// It has not been told yet.
        is_new: bool,
    },
    /// The end: it serves.
    Serving {
        /// The plan.
        plan: &'s EpochPlan,
        /// It has not been told yet.
        is_new: bool,
    },
    /// The end: it cannot be served, for this reason.
    Faulty(&'s str),
    /// The end: there is nothing to be watched any more.
    Over {
        /// HTTP status.
        status: u16,
        /// What happened, and what to do.
        error: String,
    },
}

impl Watch {
    /// For what `request` asked of this cluster, now that the leader has applied it.
    pub(super) fn new(now: Instant, cluster: ClusterId, request: RequestId, asked: DeploySpec) -> Self {
        Self { since: now, cluster, request, asked, is_applied: false, told: None, given_up: None }
    }

    /// The deployment's name.
    pub(super) fn name(&self) -> &str {
        &self.asked.name
    }

    /// What the state says now.
    pub(super) fn look<'s>(&mut self, now: Instant, state: &'s ClusterState) -> Step<'s> {
        let name = &self.asked.name;
        if state.cluster_id != self.cluster {
            let error =
                format!("this device left the cluster while {name} was being deployed: see `mesh status`");
            return Step::Over { status: 503, error };
        }
        // Kept, as outcomes are forgotten after some more requests.
        self.is_applied |= state.outcome(&self.request).is_some();
        if !self.is_applied {
            if now.saturating_duration_since(self.since) <= LAG {
                return Step::Wait;
            }
            let error = format!(
                "{name} is being deployed, but this device is cut off and cannot tell how it goes: see `mesh status` on \
                 another one"
            );
            return Step::Over { status: 503, error };
        }
        let error = match state.deployments.get(name) {
            Some(deployment) if is_as_asked(deployment, &self.asked) => {
                return self.progress(now, deployment);
            }
            None => format!("{name} was undeployed while it was being deployed; deploy it again to use it"),
            Some(other) if other.model != self.asked.model => format!(
                "another model was deployed as {name} meanwhile; deploy this one again, or under another name"
            ),
            Some(_) => format!("{name} was deployed again with other settings meanwhile: see `mesh status`"),
        };
        Step::Over { status: 409, error }
    }

    /// How far it is. Somebody may have asked for the same again: that is as good.
    fn progress<'s>(&mut self, now: Instant, deployment: &'s Deployment) -> Step<'s> {
        let Deployment { active, preparing, fault, asked_epoch, .. } = deployment;
        if let Some(plan) = active.as_ref().filter(|active| active.epoch >= *asked_epoch) {
            return Step::Serving { plan, is_new: self.is_news(plan) };
        }
        if let Some(plan) = preparing {
            self.given_up = None;
            return Step::Preparing { plan, is_new: self.is_news(plan) };
        }
        match fault {
            Some(fault) if self.told.is_none() => Step::Faulty(fault),
            Some(fault) => {
                let since = *self.given_up.get_or_insert(now);
                let is_last = now.saturating_duration_since(since) > NEXT_PLAN;
                if is_last { Step::Faulty(fault) } else { Step::Wait }
            }
            None => Step::Wait,
        }
    }

    fn is_news(&mut self, plan: &EpochPlan) -> bool {
        self.told.replace(plan.epoch) != Some(plan.epoch)
    }
}

/// Whether a deployment is what was asked for, by whomever.
fn is_as_asked(deployment: &Deployment, asked: &DeploySpec) -> bool {
    let DeploySpec { name, model, objective, stages, pin, shapes } = asked;
    deployment.name == *name
        && deployment.model == *model
        && deployment.objective == *objective
        && deployment.stages == *stages
        && deployment.pin == *pin
        && deployment.shapes == *shapes
}

#[cfg(test)]
mod tests;
