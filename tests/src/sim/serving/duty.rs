//! The leader's part: what the daemon's leader does about what it needs to do.

use std::collections::{BTreeMap, BTreeSet};

use mesh_consensus::{ClusterState, Command, Deployment, DeviceId, Request, RequestId};
use mesh_daemon::control::{
    duties::{Need, Sight},
    memory::{Others, taken_by_others},
    report::StageState,
};
use mesh_daemon::data::StageKey;
use mesh_planner::{
    Block, Device, LinkRate, Links, Plan, Problem, TransferCost, check, replan, solve, with_standbys,
};

use super::{BLOCKS, Serving, ServingDeed};
use crate::sim::process::{device_id, device_index};

/// Time for a command to be applied before the next one is made.
const PATIENCE_MS: u64 = 3_000;
/// Planner's budget: the problems are small.
const STEPS: u64 = 50_000;
/// Bytes of weights of a block; devices hold some tens.
const BLOCK_BYTES: u64 = 10;

/// What the leader sees: its own and the peers' reports.
struct Seen<'a> {
    serving: &'a Serving,
    state: &'a ClusterState,
}

impl Sight for Seen<'_> {
    fn is_live(&self, device: &str) -> bool {
        self.serving.is_live(device)
    }

    fn stage(&self, device: &str, deployment: &str, epoch: u64, stage: usize) -> Option<StageState> {
        self.serving.stage_state(device, &StageKey { deployment: deployment.to_owned(), epoch, stage })
    }

    fn keeps(&self, device: &str, model: &str) -> bool {
        let index = device_index(&DeviceId(device.to_owned()));
        index == self.serving.index
            || self.serving.told(index).is_some_and(|report| report.kept.contains(model))
    }

    fn ready(&self) -> (BTreeSet<String>, usize) {
        let (mut ready, mut unmeasured) = (BTreeSet::new(), 0);
        for member in self.state.members.values().filter(|member| !member.draining) {
            if !self.is_live(&member.device.0) {
                continue;
            }
            match self.serving.memory_of(&member.device.0) {
                Some(_) => {
                    ready.insert(member.device.0.clone());
                }
                None => unmeasured += 1,
            }
        }
        (ready, unmeasured)
    }

    fn name(&self, device: &str) -> String {
        device.to_owned()
    }

    fn budget(&self, device: &str) -> Option<u64> {
        self.serving.memory_of(device)
    }
}

impl Serving {
    /// Bytes for stages on a device, as it has told.
    pub(super) fn memory_of(&self, device: &str) -> Option<u64> {
        let index = device_index(&DeviceId(device.to_owned()));
        if index == self.index { Some(self.memory) } else { self.told(index).map(|told| told.memory) }
    }

    /// One look at all deployments, unless an earlier command is still waited for.
    pub(super) fn lead(&mut self, now_ms: u64, state: &ClusterState) {
        if let Some((id, until_ms)) = &self.asked
            && state.outcome(id).is_none()
            && now_ms < *until_ms
        {
            return;
        }
        self.asked = None;
        let now = self.at(now_ms);
        let mut duties = std::mem::take(&mut self.duties);
        duties.look(now, state, &Seen { serving: self, state });
        self.duties = duties;
        for deployment in state.deployments.values() {
            let need = self.duties.need(now, state, deployment, &Seen { serving: self, state });
            if let Some(command) = self.command(now_ms, state, deployment, need) {
                let id = RequestId { proposer: device_id(self.index), sequence: self.dice.bits() };
                self.asked = Some((id.clone(), now_ms + PATIENCE_MS));
                self.deeds.push(ServingDeed::Propose(Box::new(Request { id, command })));
                return;
            }
        }
    }

    fn command(
        &mut self,
        now_ms: u64,
        state: &ClusterState,
        deployment: &Deployment,
        need: Need,
    ) -> Option<Command> {
        let name = deployment.name.clone();
        match need {
            Need::None | Need::Better => None,
            Need::Healed => Some(fault(deployment, None)),
            Need::Activate(epoch) => Some(Command::ActivatePlan { deployment: name, epoch }),
            Need::Abandon { epoch, reason, culprit } => {
                self.duties.abandoned(self.at(now_ms), &name, culprit);
                Some(Command::AbandonPlan { deployment: name, epoch, reason })
            }
            Need::GiveWay => {
                let devices = self.duties.usable(&name, &Seen { serving: self, state });
                let taken = taken_by_others(state, &name, Others::Stay);
                let result = self.plan_with(deployment, &devices, &taken);
                self.duties.planned(self.at(now_ms), deployment, devices);
                let plan = result.ok()?;
                self.deeds.push(ServingDeed::Note(format!("{name} gives way")));
                Some(Command::PreparePlan { deployment: name, epoch: deployment.next_epoch, plan })
            }
            Need::Plan => {
                let devices = self.duties.usable(&name, &Seen { serving: self, state });
                let result = self
                    .plan(state, deployment, &devices)
                    .map_err(|reason| self.duties.explained(&name, &reason, &Seen { serving: self, state }));
                self.duties.planned(self.at(now_ms), deployment, devices);
                match result {
                    Ok(plan) => {
                        self.deeds.push(ServingDeed::Note(format!(
                            "plans {name}, epoch {}, {} stages",
                            deployment.next_epoch,
                            plan.stages.len()
                        )));
                        Some(Command::PreparePlan { deployment: name, epoch: deployment.next_epoch, plan })
                    }
                    Err(reason) if deployment.fault.as_ref() != Some(&reason) => {
                        Some(fault(deployment, Some(reason)))
                    }
                    Err(_) => None,
                }
            }
        }
    }

    fn plan(
        &self,
        state: &ClusterState,
        deployment: &Deployment,
        devices: &BTreeSet<String>,
    ) -> Result<Plan, String> {
        if devices.is_empty() {
            return Err("no device is ready to take stages".to_owned());
        }
        // As the leader's task does: beside the others, else beside what they need, else in memory that is counted twice.
        let plan =
            |others| self.plan_with(deployment, devices, &taken_by_others(state, &deployment.name, others));
        plan(Others::Stay).or_else(|_| plan(Others::GiveWay)).or_else(|_| plan(Others::Ignored))
    }

    fn plan_with(
        &self,
        deployment: &Deployment,
        devices: &BTreeSet<String>,
        taken: &BTreeMap<String, u64>,
    ) -> Result<Plan, String> {
        let memory = |id: &String| {
            let others = taken.get(id).copied().unwrap_or(0);
            Some((id.clone(), self.memory_of(id)?.saturating_sub(others)))
        };
        let problem = problem(deployment, &devices.iter().filter_map(memory).collect());
        let running = deployment
            .active
            .as_ref()
            .filter(|active| active.epoch >= deployment.asked_epoch && active.model == deployment.model);
        let plan = match running {
            Some(running) => replan(&problem, &running.plan, STEPS).map(|replan| replan.plan),
            None => solve(&problem, STEPS),
        };
        let running = running.map(|running| &running.plan);
        let plan = with_standbys(&problem, plan.map_err(|error| error.to_string())?, running);
        check(&problem, &plan).map_err(|error| format!("the planner made a plan that is wrong: {error}"))?;
        Ok(plan)
    }
}

fn fault(deployment: &Deployment, reason: Option<String>) -> Command {
    Command::SetFault { deployment: deployment.name.clone(), epoch: Some(deployment.next_epoch), reason }
}

/// The planning problem for devices with so much memory.
pub(crate) fn problem(deployment: &Deployment, devices: &BTreeMap<String, u64>) -> Problem {
    let block = Block {
        weight_bytes: BLOCK_BYTES,
        overhead_bytes: 0,
        peak_bytes: 1,
        seconds: BTreeMap::from([("sim".to_owned(), 0.02)]),
    };
    let device = |(id, memory): (&String, &u64)| Device {
        id: id.clone(),
        class: "sim".to_owned(),
        speed: 1.0,
        memory_bytes: *memory,
        card_bytes_per_s: None,
        transfer: TransferCost::default(),
    };
    let share = 1.0 / devices.len().max(1) as f64;
    Problem {
        blocks: vec![block; BLOCKS],
        cuts: vec![1; BLOCKS + 1],
        devices: devices.iter().map(device).collect(),
        links: Links { default: LinkRate { bytes_per_s: 1e3, latency_s: 1e-3 }, pairs: Vec::new() },
        ingress: Some(devices.keys().map(|id| (id.clone(), share)).collect()),
        arriving: BTreeMap::new(),
        objective: deployment.objective,
        replication: deployment.stages.is_none(),
        min_stages: deployment.stages,
        max_stages: deployment.stages,
        pin: None,
    }
}
