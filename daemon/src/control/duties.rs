//! What the leader should do about each deployment. Pure: it is told the time and what is seen of the devices, so that
//! a simulator runs the same decisions. [`super::leader`] carries them out.
//!
//! Everything follows from replicated state and the newest reports, so that a new leader carries on.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use mesh_consensus::{ClusterState, Deployment, EpochPlan};
use mesh_planner::Plan;

use super::{memory::gives_way, report::StageState};

/// A device that failed to prepare a stage is left out for this long.
const EXCLUSION: Duration = Duration::from_secs(30);
/// A deployment that could not be planned is tried again this often while nothing changes.
const RETRY: Duration = Duration::from_secs(5);
/// A first plan whose weights cannot be spread (a full disk) is activated all the same after this long.
const SPREAD_PATIENCE: Duration = Duration::from_secs(120);
/// Live devices that have not measured themselves are waited for this long before a plan is made without them.
const UNMEASURED_PATIENCE: Duration = Duration::from_secs(5);

/// What the leader sees of the devices now.
pub trait Sight {
    /// Whether a device is connected and not silent.
    fn is_live(&self, device: &str) -> bool;

    /// How far a device is with a stage, as it has told.
    fn stage(&self, device: &str, deployment: &str, epoch: u64, stage: usize) -> Option<StageState>;

    /// Whether a device holds its whole share of a model's weights.
    fn keeps(&self, device: &str, model: &str) -> bool;

    /// Members that can take stages now, and how many are live and have not measured themselves yet.
    fn ready(&self) -> (BTreeSet<String>, usize);

    /// A device's name for people.
    fn name(&self, device: &str) -> String;

    /// Bytes that a device has for stages, as it has told.
    fn budget(&self, device: &str) -> Option<u64>;
}

/// What should be done about a deployment now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// Nothing.
    None,
    /// A plan, whatever it costs.
    Plan,
    /// A plan on fewer devices: another deployment has no room beside this one.
    GiveWay,
    /// A better plan, if there is one that is worth a move.
    Better,
    /// What was wrong is over: its devices are back.
    Healed,
    /// All stages of the prepared plan are ready.
    Activate(u64),
    /// The prepared plan cannot be had.
    Abandon {
        /// Its number.
        epoch: u64,
        /// Why, for people.
        reason: String,
        /// The device that failed, to be left out for a while.
        culprit: Option<String>,
    },
}

/// What a leader remembers between looks; losing it costs time, never correctness.
#[derive(Debug, Default)]
pub struct Duties {
    leading_since: Option<Instant>,
    /// Devices left out of a deployment's plans after they failed, until when.
    excluded: BTreeMap<(String, String), Instant>,
    /// When a deployment was last planned, and for which devices.
    planned: BTreeMap<String, Planned>,
}

#[derive(Debug)]
struct Planned {
    at: Instant,
    devices: BTreeSet<String>,
    asked_epoch: u64,
}

impl Duties {
    /// Begins a look at all deployments, as the leader.
    pub fn look(&mut self, now: Instant, state: &ClusterState) {
        self.leading_since.get_or_insert(now);
        self.planned.retain(|name, _| state.deployments.contains_key(name));
        self.excluded.retain(|_, until| *until > now);
    }

    /// This device does not lead any more.
    pub fn resign(&mut self) {
        *self = Self::default();
    }

    /// What a deployment needs.
    pub fn need(
        &self,
        now: Instant,
        state: &ClusterState,
        deployment: &Deployment,
        sight: &impl Sight,
    ) -> Need {
        if let Some(preparing) = &deployment.preparing {
            return self.preparing(now, state, deployment, preparing, sight);
        }
        let Some(active) = &deployment.active else { return self.first_plan(now, deployment, sight) };
        let lost = plan_devices(&active.plan).any(|device| !can_serve(state, device, sight));
        if lost || active.epoch < deployment.asked_epoch {
            return self.unless_tried(now, deployment, sight);
        }
        if deployment.fault.is_some() {
            return Need::Healed;
        }
        if gives_way(state, |device| sight.budget(device)) == Some(deployment.name.as_str()) {
            let is_due = self.unless_tried(now, deployment, sight) == Need::Plan;
            return if is_due { Need::GiveWay } else { Need::None };
        }
        Need::Better
    }

    fn preparing(
        &self,
        now: Instant,
        state: &ClusterState,
        deployment: &Deployment,
        preparing: &EpochPlan,
        sight: &impl Sight,
    ) -> Need {
        let mut ready = true;
        let epoch = preparing.epoch;
        for (index, stage) in preparing.plan.stages.iter().enumerate() {
            for replica in &stage.replicas {
                let device = &replica.device;
                if !can_serve(state, device, sight) {
                    let reason = format!("{} went away while it prepared stage {index}", sight.name(device));
                    return Need::Abandon { epoch, reason, culprit: None };
                }
                match sight.stage(device, &deployment.name, epoch, index) {
                    Some(StageState::Ready) => {}
                    Some(StageState::Failed { reason }) => {
                        let reason = format!("{} cannot prepare stage {index}: {reason}", sight.name(device));
                        return Need::Abandon { epoch, reason, culprit: Some(device.clone()) };
                    }
                    Some(StageState::Preparing { .. }) | None => ready = false,
                }
            }
        }
        if ready && self.is_safe(now, state, deployment, sight) { Need::Activate(epoch) } else { Need::None }
    }

    /// Whether the loss of one device would lose no weights: a deployment's first plan waits for that, so that a
    /// model that serves can be served again.
    fn is_safe(
        &self,
        now: Instant,
        state: &ClusterState,
        deployment: &Deployment,
        sight: &impl Sight,
    ) -> bool {
        let waited = self
            .planned
            .get(&deployment.name)
            .is_none_or(|planned| now.saturating_duration_since(planned.at) > SPREAD_PATIENCE);
        let mut live = state.members.values().filter(|member| sight.is_live(&member.device.0));
        deployment.active.is_some()
            || waited
            || live.all(|member| sight.keeps(&member.device.0, &deployment.model))
    }

    fn first_plan(&self, now: Instant, deployment: &Deployment, sight: &impl Sight) -> Need {
        let (_, unmeasured) = sight.ready();
        let waited =
            self.leading_since.is_none_or(|since| now.saturating_duration_since(since) > UNMEASURED_PATIENCE);
        if unmeasured > 0 && !waited {
            return Need::None;
        }
        self.unless_tried(now, deployment, sight)
    }

    /// Plans again only when something has changed since the last try, or some time has passed.
    fn unless_tried(&self, now: Instant, deployment: &Deployment, sight: &impl Sight) -> Need {
        let Some(last) = self.planned.get(&deployment.name) else { return Need::Plan };
        let unchanged = last.devices == self.usable(&deployment.name, sight)
            && last.asked_epoch == deployment.asked_epoch;
        if unchanged && now.saturating_duration_since(last.at) < RETRY { Need::None } else { Need::Plan }
    }

    /// Devices that a plan for a deployment may use.
    pub fn usable(&self, deployment: &str, sight: &impl Sight) -> BTreeSet<String> {
        let (mut devices, _) = sight.ready();
        devices.retain(|device| !self.excluded.contains_key(&(deployment.to_owned(), device.clone())));
        devices
    }

    /// A deployment is planned now, for these devices.
    pub fn planned(&mut self, now: Instant, deployment: &Deployment, devices: BTreeSet<String>) {
        let planned = Planned { at: now, devices, asked_epoch: deployment.asked_epoch };
        self.planned.insert(deployment.name.clone(), planned);
    }

    /// A prepared plan is given up: the next is made at once, without the device that failed.
    pub fn abandoned(&mut self, now: Instant, deployment: &str, culprit: Option<String>) {
        if let Some(device) = culprit {
            self.excluded.insert((deployment.to_owned(), device), now + EXCLUSION);
        }
        self.planned.remove(deployment);
    }
}

/// A device serves while it is live, a member, and not draining.
fn can_serve(state: &ClusterState, device: &str, sight: &impl Sight) -> bool {
    sight.is_live(device)
        && state.members.values().any(|member| member.device.0 == device && !member.draining)
}

/// All devices of a plan, some more than once.
fn plan_devices(plan: &Plan) -> impl Iterator<Item = &str> {
    plan.stages.iter().flat_map(|s| s.replicas.iter().map(|r| r.device.as_str()))
}
