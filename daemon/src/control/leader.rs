//! The leader's duties: plan deployments, activate plans that are ready, plan again after a loss or a gain.
//! Everything follows from replicated state and the newest reports, so that a new leader carries on.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use mesh_consensus::{Command, Deployment, EpochPlan};
use mesh_planner::{Plan, Problem};

use super::{
    better::{self, Improver},
    consensus::{ClusterView, Consensus},
    facts::Facts,
    forecast::Forecasts,
    models::Models,
    planning::{DeviceFacts, Wishes, problem},
    problems::Problems,
    propose::Proposer,
    report::StageState,
};

/// The leader looks at all deployments this often while something is under way...
const LOOK: Duration = Duration::from_millis(200);
/// ...and this often otherwise, besides when replicated state changes and when a device comes or goes.
const LOOK_IDLE: Duration = Duration::from_secs(1);
/// Time for one command of the leader to be applied; what fails is tried again at the next look.
const PATIENCE: Duration = Duration::from_secs(3);
/// A device that failed to prepare a stage is left out for this long.
const EXCLUSION: Duration = Duration::from_secs(30);
/// A deployment that could not be planned is tried again this often while nothing changes.
const RETRY: Duration = Duration::from_secs(5);
/// A first plan whose weights cannot be spread (a full disk) is activated all the same after this long.
const SPREAD_PATIENCE: Duration = Duration::from_secs(120);
/// Live devices that have not measured themselves are waited for this long before a plan is made without them.
const UNMEASURED_PATIENCE: Duration = Duration::from_secs(5);
/// Planner's budget, in steps.
pub const PLANNER_STEPS: u64 = 2_000_000;

/// The leader's task. It runs on every device and acts only while that device leads.
#[derive(Debug)]
pub struct Leader {
    consensus: Consensus,
    facts: Facts,
    models: Models,
    proposer: Proposer,
    problems: Problems,
    forecasts: Forecasts,
    memory: Memory,
}

/// What a leader remembers between looks; losing it costs time, never correctness.
#[derive(Debug, Default)]
struct Memory {
    leading_since: Option<Instant>,
    /// Devices left out of a deployment's plans after they failed, until when.
    excluded: HashMap<(String, String), Instant>,
    /// When a deployment was last planned, and for which devices.
    planned: HashMap<String, Planned>,
    better: Improver,
}

#[derive(Debug)]
struct Planned {
    at: Instant,
    devices: BTreeSet<String>,
    asked_epoch: u64,
}

/// What should be done about a deployment now.
#[derive(Debug, PartialEq)]
enum Need {
    /// Nothing.
    None,
    /// A plan, whatever it costs.
    Plan,
    /// A better plan, if there is one that is worth a move.
    Better,
    /// What was wrong is over: its devices are back.
    Healed,
    /// All stages of the prepared plan are ready.
    Activate(u64),
    /// The prepared plan cannot be had.
    Abandon { epoch: u64, reason: String, culprit: Option<String> },
}

impl Leader {
    /// On this device.
    pub fn new(
        consensus: Consensus,
        facts: Facts,
        models: Models,
        proposer: Proposer,
        problems: Problems,
        forecasts: Forecasts,
    ) -> Self {
        Self { consensus, facts, models, proposer, problems, forecasts, memory: Memory::default() }
    }

    /// Runs until the consensus thread ends.
    pub async fn run(mut self) {
        let mut changes = self.consensus.view();
        let mut turns = self.facts.peers().turns();
        loop {
            let view = changes.borrow_and_update().clone();
            turns.mark_unchanged();
            if view.is_leader {
                self.memory.leading_since.get_or_insert_with(Instant::now);
                self.look(&view).await;
            } else {
                self.memory = Memory::default();
            }
            let settled = |d: &Deployment| d.active.is_some() && d.preparing.is_none() && d.fault.is_none();
            let idle = !view.is_leader || view.state.deployments.values().all(settled);
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                // The sender lives as long as the table, which `self` holds.
                Ok(()) = turns.changed(), if view.is_leader => {}
                () = tokio::time::sleep(if idle { LOOK_IDLE } else { LOOK }) => {}
            }
        }
    }

    async fn look(&mut self, view: &ClusterView) {
        self.memory.planned.retain(|name, _| view.state.deployments.contains_key(name));
        self.memory.better.retain(|name| view.state.deployments.contains_key(name));
        self.problems.retain(|name| view.state.deployments.contains_key(name));
        let now = Instant::now();
        self.memory.excluded.retain(|_, until| *until > now);
        for deployment in view.state.deployments.values() {
            let need = self.need(view, deployment);
            self.meet(view, deployment, need).await;
        }
    }

    fn need(&self, view: &ClusterView, deployment: &Deployment) -> Need {
        if let Some(preparing) = &deployment.preparing {
            return self.preparing(view, deployment, preparing);
        }
        let Some(active) = &deployment.active else { return self.first_plan(deployment, view) };
        let lost = plan_devices(&active.plan).any(|d| !self.can_serve(view, d));
        if lost || active.epoch < deployment.asked_epoch {
            return self.unless_tried(deployment, view, Need::Plan);
        }
        if deployment.fault.is_some() {
            return Need::Healed;
        }
        Need::Better
    }

    /// A device serves while it is live, a member, and not draining.
    fn can_serve(&self, view: &ClusterView, device: &str) -> bool {
        self.facts.is_live(device) && view.state.members.values().any(|m| m.device.0 == device && !m.draining)
    }

    fn preparing(&self, view: &ClusterView, deployment: &Deployment, preparing: &EpochPlan) -> Need {
        let mut ready = true;
        for (index, stage) in preparing.plan.stages.iter().enumerate() {
            for replica in &stage.replicas {
                if !self.can_serve(view, &replica.device) {
                    let name = self.facts.name(view, &replica.device);
                    let reason = format!("{name} went away while it prepared stage {index}");
                    return Need::Abandon { epoch: preparing.epoch, reason, culprit: None };
                }
                let report = self.facts.stage(&replica.device, &deployment.name, preparing.epoch, index);
                match report.map(|r| r.state) {
                    Some(StageState::Ready) => {}
                    Some(StageState::Failed { reason }) => {
                        let name = self.facts.name(view, &replica.device);
                        return Need::Abandon {
                            epoch: preparing.epoch,
                            reason: format!("{name} cannot prepare stage {index}: {reason}"),
                            culprit: Some(replica.device.clone()),
                        };
                    }
                    Some(StageState::Preparing { .. }) | None => ready = false,
                }
            }
        }
        if ready && self.is_safe(view, deployment) { Need::Activate(preparing.epoch) } else { Need::None }
    }

    /// Whether the loss of one device would lose no weights: a deployment's first plan waits for that, so that a
    /// model that serves can be served again.
    fn is_safe(&self, view: &ClusterView, deployment: &Deployment) -> bool {
        let waited =
            self.memory.planned.get(&deployment.name).is_none_or(|p| p.at.elapsed() > SPREAD_PATIENCE);
        let mut live = view.state.members.values().filter(|m| self.facts.is_live(&m.device.0));
        let kept =
            |device: &str| self.facts.report(device).is_some_and(|r| r.kept.contains(&deployment.model));
        deployment.active.is_some() || waited || live.all(|m| kept(&m.device.0))
    }

    fn first_plan(&self, deployment: &Deployment, view: &ClusterView) -> Need {
        let (_, unmeasured) = self.facts.devices(view);
        let waited = self.memory.leading_since.is_none_or(|since| since.elapsed() > UNMEASURED_PATIENCE);
        if !unmeasured.is_empty() && !waited {
            return Need::None;
        }
        self.unless_tried(deployment, view, Need::Plan)
    }

    /// Plans again only when something has changed since the last try, or some time has passed.
    fn unless_tried(&self, deployment: &Deployment, view: &ClusterView, need: Need) -> Need {
        let Some(last) = self.memory.planned.get(&deployment.name) else { return need };
        let unchanged =
            last.devices == self.usable(deployment, view) && last.asked_epoch == deployment.asked_epoch;
        if unchanged && last.at.elapsed() < RETRY { Need::None } else { need }
    }

    fn usable(&self, deployment: &Deployment, view: &ClusterView) -> BTreeSet<String> {
        let (devices, _) = self.facts.devices(view);
        devices.into_iter().map(|d| d.id).filter(|id| !self.excluded(deployment, id)).collect()
    }

    fn excluded(&self, deployment: &Deployment, device: &str) -> bool {
        self.memory.excluded.contains_key(&(deployment.name.clone(), device.to_owned()))
    }

    async fn meet(&mut self, view: &ClusterView, deployment: &Deployment, need: Need) {
        let name = deployment.name.clone();
        match need {
            Need::None => {}
            Need::Healed => self.set_fault(deployment, None).await,
            Need::Activate(epoch) => {
                tracing::info!(deployment = %name, epoch, "all stages are ready");
                self.command(Command::ActivatePlan { deployment: name, epoch }).await;
            }
            Need::Abandon { epoch, reason, culprit } => {
                tracing::warn!(deployment = %name, epoch, %reason, "the prepared plan is given up");
                if let Some(device) = culprit {
                    self.memory.excluded.insert((name.clone(), device), Instant::now() + EXCLUSION);
                }
                self.memory.planned.remove(&name);
                self.command(Command::AbandonPlan { deployment: name, epoch, reason }).await;
            }
            Need::Plan => self.plan(view, deployment).await,
            Need::Better => {
                if let Some(active) = &deployment.active {
                    self.improve(view, deployment, active).await;
                }
            }
        }
    }

    /// Plans a deployment and has the plan prepared.
    async fn plan(&mut self, view: &ClusterView, deployment: &Deployment) {
        let devices = self.usable(deployment, view);
        let planned = Planned { at: Instant::now(), devices, asked_epoch: deployment.asked_epoch };
        let result = match self.problem(view, deployment).await {
            Ok(problem) => {
                // After a loss what runs stays where it can; what somebody asks for anew is planned anew.
                let kept = deployment.active.as_ref().filter(|active| {
                    active.epoch >= deployment.asked_epoch && active.model == deployment.model
                });
                let running = kept.map(|active| active.plan.clone());
                let solved = tokio::task::spawn_blocking(move || match running {
                    Some(running) => resolve(problem, &running),
                    None => solve(problem),
                });
                let solved = solved.await;
                solved.unwrap_or_else(|e| Err(format!("the planner failed: {e}")))
            }
            Err(reason) => Err(reason),
        };
        self.memory.planned.insert(deployment.name.clone(), planned);
        match result {
            Ok(solved) => {
                self.memory.better.planned(&deployment.name, &solved.problem, Instant::now());
                self.prepare(deployment, solved).await;
            }
            Err(reason) => {
                if deployment.fault.as_ref() != Some(&reason) {
                    tracing::warn!(deployment = %deployment.name, %reason, "cannot be served as asked");
                    self.set_fault(deployment, Some(reason)).await;
                }
            }
        }
    }

    async fn prepare(&self, deployment: &Deployment, Solved { plan, problem }: Solved) {
        let (name, epoch) = (deployment.name.clone(), deployment.next_epoch);
        self.problems.remember(&name, epoch, problem);
        tracing::info!(deployment = %name, epoch, stages = plan.stages.len(), why = %plan.why, "new plan");
        self.command(Command::PreparePlan { deployment: name, epoch, plan }).await;
    }

    /// What a plan for a deployment would be made from now, corrected by what was measured.
    async fn problem(&self, view: &ClusterView, deployment: &Deployment) -> Result<Problem, String> {
        let record = view.state.models.get(&deployment.model).ok_or("its model has been removed")?;
        let profile = record.profile_blob.as_ref().ok_or("its model has not been profiled")?;
        let profile = self.models.profile(profile).await.map_err(|e| super::chain(&e))?;
        let usable = self.usable(deployment, view);
        let (devices, _) = self.facts.devices(view);
        let devices: Vec<DeviceFacts> = devices.into_iter().filter(|d| usable.contains(&d.id)).collect();
        let mut problem = problem(&profile, &devices, &wishes(deployment));
        self.forecasts.correct(&deployment.model, &mut problem);
        Ok(problem)
    }

    /// Looks for a plan that is worth a move, and moves to it.
    async fn improve(&mut self, view: &ClusterView, deployment: &Deployment, active: &EpochPlan) {
        let (name, now) = (&deployment.name, Instant::now());
        if let Some(found) = self.memory.better.found(name, active.epoch, now).await {
            let devices = self.usable(deployment, view);
            let asked_epoch = deployment.asked_epoch;
            self.memory.planned.insert(name.clone(), Planned { at: now, devices, asked_epoch });
            tracing::info!(deployment = %name, gain = found.gain, "a better plan is worth a move");
            self.prepare(deployment, found.solved).await;
            return;
        }
        if !self.memory.better.is_due(name, now) {
            return;
        }
        if let Some(forecast) = self.forecasts.get(name, active.epoch).filter(|f| f.is_measured) {
            let speed = better::speed(&forecast.evaluation, deployment.objective);
            self.memory.better.judge(name, active.epoch, speed, now);
        }
        match self.problem(view, deployment).await {
            Ok(problem) => self.memory.better.look(name, active, problem, now),
            Err(reason) => tracing::debug!(deployment = %name, %reason, "no better plan"),
        }
    }

    async fn set_fault(&self, deployment: &Deployment, reason: Option<String>) {
        let (name, epoch) = (deployment.name.clone(), Some(deployment.next_epoch));
        self.command(Command::SetFault { deployment: name, epoch, reason }).await;
    }

    async fn command(&self, command: Command) {
        if let Err(error) = self.proposer.propose(command, PATIENCE).await {
            tracing::debug!(%error, "a command of the leader was not applied");
        }
    }
}

/// A plan and what it was made from.
#[derive(Debug)]
pub struct Solved {
    /// Verified.
    pub plan: Plan,
    /// What the planner was asked.
    pub problem: Problem,
}

/// A verified plan that leaves the running one's stages where they are as long as that costs next to nothing.
fn resolve(problem: Problem, running: &Plan) -> Result<Solved, String> {
    if problem.devices.is_empty() {
        return solve(problem);
    }
    let replan = mesh_planner::replan(&problem, running, PLANNER_STEPS).map_err(|e| e.to_string())?;
    tracing::info!(bytes = replan.moved_bytes, replicas = replan.moved_replicas, "what has to be moved");
    verified(problem, replan.plan)
}

/// A verified plan.
pub fn solve(problem: Problem) -> Result<Solved, String> {
    if problem.devices.is_empty() {
        return Err("no device is ready to take stages".into());
    }
    let plan = mesh_planner::solve(&problem, PLANNER_STEPS).map_err(|e| e.to_string())?;
    verified(problem, plan)
}

/// A plan with standbys where memory is to spare, which has passed the independent check.
pub fn verified(problem: Problem, plan: Plan) -> Result<Solved, String> {
    let plan = mesh_planner::with_standbys(&problem, plan);
    mesh_planner::check(&problem, &plan)
        .map_err(|e| format!("the planner made a plan that is wrong: {e}"))?;
    Ok(Solved { plan, problem })
}

/// What a deployment asks of its plan.
pub fn wishes(deployment: &Deployment) -> Wishes {
    Wishes { objective: deployment.objective, stages: deployment.stages, pin: deployment.pin.clone() }
}

/// All devices of a plan, some more than once.
fn plan_devices(plan: &Plan) -> impl Iterator<Item = &str> {
    plan.stages.iter().flat_map(|s| s.replicas.iter().map(|r| r.device.as_str()))
}

/// Stages of a plan by device, for messages.
pub fn stages_by_device(plan: &Plan) -> BTreeMap<&str, Vec<usize>> {
    let mut by_device: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, stage) in plan.stages.iter().enumerate() {
        for replica in &stage.replicas {
            by_device.entry(&replica.device).or_default().push(index);
        }
    }
    by_device
}
