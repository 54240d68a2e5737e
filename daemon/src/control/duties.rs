//! What the leader should do about each deployment. Pure: it is told the time and what is seen of the devices, so that
//! a simulator runs the same decisions. [`super::leader`] carries them out.
//!
//! Everything follows from replicated state and the newest reports, so that a new leader carries on.

mod exclusions;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use mesh_consensus::{ClusterState, Deployment, EpochPlan, state::MAX_TEXT};
use mesh_planner::Plan;

use super::{memory::gives_way, report::StageState};
use exclusions::Exclusions;

/// A deployment that could not be planned is tried again this often while nothing changes.
const RETRY: Duration = Duration::from_secs(5);
/// A first plan whose weights cannot be spread (a full disk) is activated all the same after this long.
const SPREAD_PATIENCE: Duration = Duration::from_secs(120);
/// A device that is there and tells nothing of its stage of a prepared plan is waited for this long. It tells as soon as
/// it knows of the plan, which takes a second; it may never know, when its copy of the replicated state does not grow.
const SILENCE: Duration = Duration::from_secs(20);
/// A stage of the active plan that its device cannot load counts as lost after this long. Loading is tried every five
/// seconds (`holdings`), and what is missing at first may come.
const FAILING: Duration = Duration::from_secs(10);
/// Bytes of a device's words on a failure that are remembered.
const REASON_MAX: usize = 400;
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
    excluded: Exclusions,
    /// The plan that each deployment is served by.
    active: BTreeMap<String, u64>,
    /// When a deployment was last planned, and for which devices.
    planned: BTreeMap<String, Planned>,
    /// The plan that a deployment prepares, and when it was first seen. When it was planned is no measure: making a plan
    /// and having it committed takes its time.
    preparing: BTreeMap<String, (u64, Instant)>,
    /// What active plans want of devices that cannot do it.
    failures: BTreeMap<Held, Failure>,
}

/// A stage of an active plan on one of its devices.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Held {
    deployment: String,
    epoch: u64,
    stage: usize,
    device: String,
}

/// A stage that its device could not load, and has not had since.
#[derive(Debug)]
struct Failure {
    since: Instant,
    /// Why, for people: as told at first, so that it is the same at every look.
    reason: String,
    /// For so long that the deployment has to do without it.
    is_lost: bool,
}

impl Failure {
    fn new(since: Instant, reason: String) -> Self {
        Self { since, reason: short(reason, REASON_MAX), is_lost: false }
    }
}

#[derive(Debug)]
struct Planned {
    at: Instant,
    devices: BTreeSet<String>,
    asked_epoch: u64,
}

impl Duties {
    /// Begins a look at all deployments, as the leader.
    pub fn look(&mut self, now: Instant, state: &ClusterState, sight: &impl Sight) {
        self.leading_since.get_or_insert(now);
        self.planned.retain(|name, _| state.deployments.contains_key(name));
        self.excluded.look(now, |name| state.deployments.contains_key(name));
        self.active.retain(|name, _| state.deployments.contains_key(name));
        for deployment in state.deployments.values() {
            let Some(active) = &deployment.active else { continue };
            if self.active.insert(deployment.name.clone(), active.epoch) != Some(active.epoch) {
                // Its devices have all loaded their stages.
                seats(&active.plan).for_each(|(_, device)| self.excluded.recovered(&deployment.name, device));
            }
        }
        let before = std::mem::take(&mut self.preparing);
        let preparing = state.deployments.values().filter_map(|deployment| {
            let epoch = deployment.preparing.as_ref()?.epoch;
            let known = before.get(&deployment.name).filter(|(known, _)| *known == epoch);
            Some((deployment.name.clone(), (epoch, known.map_or(now, |(_, since)| *since))))
        });
        self.preparing = preparing.collect();
        self.note_failures(now, state, sight);
    }

    /// Keeps account of the stages of active plans that their devices cannot load, and leaves out those that are lost.
    fn note_failures(&mut self, now: Instant, state: &ClusterState, sight: &impl Sight) {
        let mut before = std::mem::take(&mut self.failures);
        for deployment in state.deployments.values() {
            let Some(active) = &deployment.active else { continue };
            for (stage, device) in seats(&active.plan) {
                let (name, device) = (deployment.name.clone(), device.to_owned());
                let told = sight.stage(&device, &name, active.epoch, stage);
                let told = told.filter(|_| sight.is_live(&device));
                let held = Held { deployment: name, epoch: active.epoch, stage, device };
                let failure = match (told, before.remove(&held)) {
                    (Some(StageState::Failed { reason }), known) => {
                        let known = known.unwrap_or_else(|| Failure::new(now, reason));
                        let is_lost = known.is_lost || now.saturating_duration_since(known.since) >= FAILING;
                        Failure { is_lost, ..known }
                    }
                    // It tries once more: that alone is no recovery.
                    (Some(StageState::Preparing { .. }), Some(known)) => known,
                    (Some(StageState::Ready), Some(Failure { is_lost: true, .. })) => {
                        self.excluded.recovered(&held.deployment, &held.device);
                        continue;
                    }
                    (Some(StageState::Preparing { .. }), None) | (Some(StageState::Ready) | None, _) => {
                        continue;
                    }
                };
                self.failures.insert(held, failure);
            }
        }
        for (held, _) in self.failures.iter().filter(|(_, failure)| failure.is_lost) {
            self.excluded.lost(now, &held.deployment, held.device.clone());
        }
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
        let is_away = seats(&active.plan).any(|(_, device)| !can_serve(state, device, sight));
        let has_failed = self.lost(&deployment.name).any(|(held, _)| held.epoch == active.epoch);
        if is_away || has_failed || active.epoch < deployment.asked_epoch {
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
        for (index, device) in seats(&preparing.plan) {
            let name = || sight.name(device);
            if !can_serve(state, device, sight) {
                let reason = format!("{} went away while it prepared stage {index}", name());
                return Need::Abandon { epoch, reason, culprit: None };
            }
            let reason = match sight.stage(device, &deployment.name, epoch, index) {
                Some(StageState::Ready) => continue,
                Some(StageState::Failed { reason }) => {
                    format!("{} cannot prepare stage {index}: {reason}", name())
                }
                None if self.is_waited_for_in_vain(now, deployment, epoch) => {
                    format!("{} says nothing about stage {index}", name())
                }
                Some(StageState::Preparing { .. }) | None => {
                    ready = false;
                    continue;
                }
            };
            let reason = short(reason, MAX_TEXT);
            return Need::Abandon { epoch, reason, culprit: Some(device.to_owned()) };
        }
        if ready && self.is_safe(now, state, deployment, sight) { Need::Activate(epoch) } else { Need::None }
    }

    /// Whether devices have had time enough to tell of a prepared plan.
    fn is_waited_for_in_vain(&self, now: Instant, deployment: &Deployment, epoch: u64) -> bool {
        let seen = self.preparing.get(&deployment.name).filter(|(seen, _)| *seen == epoch);
        seen.is_some_and(|(_, since)| now.saturating_duration_since(*since) > SILENCE)
    }

    /// Stages of a deployment's active plan that their devices have been unable to load for too long.
    fn lost(&self, deployment: &str) -> impl Iterator<Item = (&Held, &Failure)> {
        self.failures.iter().filter(move |(held, failure)| failure.is_lost && held.deployment == deployment)
    }

    /// Why a deployment cannot be planned, for people: with the failure that it has to be planned for, if there is one,
    /// as its device seems to be well.
    pub fn explained(&self, deployment: &str, reason: &str, sight: &impl Sight) -> String {
        let text = match self.lost(deployment).next() {
            None => reason.to_owned(),
            Some((Held { stage, device, .. }, Failure { reason: why, .. })) => {
                format!("{} cannot load stage {stage}: {why}; without it: {reason}", sight.name(device))
            }
        };
        short(text, MAX_TEXT)
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
        devices.retain(|device| !self.excluded.is_out(deployment, device));
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
            self.excluded.failed(now, deployment, device);
        }
        self.planned.remove(deployment);
    }
}

/// A device serves while it is live, a member, and not draining.
fn can_serve(state: &ClusterState, device: &str, sight: &impl Sight) -> bool {
    sight.is_live(device)
        && state.members.values().any(|member| member.device.0 == device && !member.draining)
}

/// Every stage of a plan on each of its devices.
fn seats(plan: &Plan) -> impl Iterator<Item = (usize, &str)> {
    let stages = plan.stages.iter().enumerate();
    stages.flat_map(|(index, stage)| stage.replicas.iter().map(move |r| (index, r.device.as_str())))
}

/// The beginning of a text: what libraries say of a failure may be longer than replicated state takes.
fn short(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        let room = bytes_max.saturating_sub('…'.len_utf8());
        let end = (0..=room).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or(0));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests;
