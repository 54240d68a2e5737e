//! The leader's duties: plan deployments, activate plans that are ready, plan again after a loss or a gain.
//! Everything follows from replicated state and the newest reports, so that a new leader carries on.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use mesh_consensus::{Command, Deployment, EpochPlan};
use mesh_planner::{Plan, Problem};

use super::{
    better::{self, Improver},
    consensus::{ClusterView, Consensus},
    duties::{Duties, Need, Sight},
    facts::Facts,
    forecast::{Forecasts, set_ingress},
    memory::{Others, taken_by_others},
    models::Models,
    planning::{Wishes, problem},
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
/// Planner's budget, in steps.
pub const PLANNER_STEPS: u64 = 2_000_000;
/// Of two new plans whose rates differ by less than this part, the one that sends less is taken.
const HARDLY_SLOWER: f64 = 0.01;

/// The leader's task. It runs on every device and acts only while that device leads.
#[derive(Debug)]
pub struct Leader {
    consensus: Consensus,
    facts: Facts,
    models: Models,
    proposer: Proposer,
    problems: Problems,
    forecasts: Forecasts,
    duties: Duties,
    better: Improver,
}

/// What the reports say, with the members that they are about.
struct Seen<'a> {
    facts: &'a Facts,
    view: &'a ClusterView,
}

impl Sight for Seen<'_> {
    fn is_live(&self, device: &str) -> bool {
        self.facts.is_live(device)
    }

    fn stage(&self, device: &str, deployment: &str, epoch: u64, stage: usize) -> Option<StageState> {
        self.facts.stage(device, deployment, epoch, stage).map(|report| report.state)
    }

    fn keeps(&self, device: &str, model: &str) -> bool {
        self.facts.report(device).is_some_and(|report| report.kept.contains(model))
    }

    fn ready(&self) -> (BTreeSet<String>, usize) {
        let (devices, unmeasured) = self.facts.devices(self.view);
        (devices.into_iter().map(|device| device.id).collect(), unmeasured.len())
    }

    fn name(&self, device: &str) -> String {
        self.facts.name(self.view, device)
    }

    fn budget(&self, device: &str) -> Option<u64> {
        self.facts.report(device).map(|report| report.memory_budget_bytes)
    }
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
        Self {
            consensus,
            facts,
            models,
            proposer,
            problems,
            forecasts,
            duties: Duties::default(),
            better: Improver::default(),
        }
    }

    /// Runs until the consensus thread ends.
    pub async fn run(mut self) {
        let mut changes = self.consensus.view();
        let mut turns = self.facts.peers().turns();
        loop {
            let view = changes.borrow_and_update().clone();
            turns.mark_unchanged();
            if view.is_leader {
                self.look(&view).await;
            } else {
                self.duties.resign();
                self.better = Improver::default();
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
        let seen = Seen { facts: &self.facts, view };
        self.duties.look(Instant::now(), &view.state, &seen);
        self.better.retain(|name| view.state.deployments.contains_key(name));
        self.problems.retain(|name| view.state.deployments.contains_key(name));
        for deployment in view.state.deployments.values() {
            let need = self.duties.need(Instant::now(), &view.state, deployment, &self.seen(view));
            self.meet(view, deployment, need).await;
        }
    }

    fn seen<'a>(&'a self, view: &'a ClusterView) -> Seen<'a> {
        Seen { facts: &self.facts, view }
    }

    fn usable(&self, view: &ClusterView, deployment: &Deployment) -> BTreeSet<String> {
        self.duties.usable(&deployment.name, &self.seen(view))
    }

    async fn meet(&mut self, view: &ClusterView, deployment: &Deployment, need: Need) {
        let name = deployment.name.clone();
        match need {
            Need::None => self.reconsider(view, deployment).await,
            Need::Healed => self.set_fault(deployment, None).await,
            Need::Activate(epoch) => {
                tracing::info!(deployment = %name, epoch, "all stages are ready");
                self.command(Command::ActivatePlan { deployment: name, epoch }).await;
            }
            Need::Abandon { epoch, reason, culprit } => {
                self.abandon(name, epoch, reason, culprit).await;
            }
            Need::Plan => self.plan(view, deployment).await,
            Need::GiveWay => self.give_way(view, deployment).await,
            Need::Better => {
                if let Some(active) = &deployment.active {
                    self.improve(view, deployment, active).await;
                }
            }
        }
    }

    /// Plans a deployment and has the plan prepared.
    async fn plan(&mut self, view: &ClusterView, deployment: &Deployment) {
        let (begun, devices) = (Instant::now(), self.usable(view, deployment));
        let mut result = self.solved(view, deployment, Others::Stay).await;
        if result.is_err() && !taken_by_others(&view.state, &deployment.name, Others::Stay).is_empty() {
            // Beside the others there is no room: those that have devices to spare give way.
            result = self.solved(view, deployment, Others::GiveWay).await;
            if result.is_err() {
                // All are served, in memory that is counted twice.
                result = self.solved(view, deployment, Others::Ignored).await;
            }
        }
        self.duties.planned(begun, deployment, devices);
        match result {
            Ok(solved) => {
                self.better.planned(&deployment.name, &solved, Instant::now());
                self.prepare(deployment, solved).await;
            }
            Err(reason) => {
                let reason = self.duties.explained(&deployment.name, &reason, &self.seen(view));
                if deployment.fault.as_ref() != Some(&reason) {
                    tracing::warn!(deployment = %deployment.name, %reason, "cannot be served as asked");
                    self.set_fault(deployment, Some(reason)).await;
                }
            }
        }
    }

    /// Plans a deployment anew in what the others leave, which is less than it has: they need it more.
    async fn give_way(&mut self, view: &ClusterView, deployment: &Deployment) {
        let (begun, devices) = (Instant::now(), self.usable(view, deployment));
        let result = self.solved(view, deployment, Others::Stay).await;
        self.duties.planned(begun, deployment, devices);
        match result {
            Ok(solved) => {
                tracing::info!(deployment = %deployment.name, "gives way to other deployments");
                self.better.planned(&deployment.name, &solved, Instant::now());
                self.prepare(deployment, solved).await;
            }
            Err(reason) => tracing::debug!(deployment = %deployment.name, %reason, "cannot give way"),
        }
    }

    /// A plan for a deployment. After a loss what runs stays where it can; what somebody asks for anew is planned anew.
    async fn solved(
        &self,
        view: &ClusterView,
        deployment: &Deployment,
        others: Others,
    ) -> Result<Solved, String> {
        let problem = self.problem(view, deployment, others).await?;
        let kept = deployment
            .active
            .as_ref()
            .filter(|active| active.epoch >= deployment.asked_epoch && active.model == deployment.model);
        let running = kept.map(|active| active.plan.clone());
        let solved = crate::background::spawn(move || match running {
            Some(running) => resolve(problem, &running),
            None => solve(problem),
        });
        solved.await.unwrap_or_else(|e| Err(format!("the planner failed: {e}")))
    }

    async fn prepare(&self, deployment: &Deployment, Solved { plan, problem, .. }: Solved) {
        let (name, epoch) = (deployment.name.clone(), deployment.next_epoch);
        self.problems.remember(&name, epoch, problem);
        tracing::info!(deployment = %name, epoch, stages = plan.stages.len(), why = %plan.why, "new plan");
        self.command(Command::PreparePlan { deployment: name, epoch, plan }).await;
    }

    /// What a plan for a deployment would be made from now, corrected by what was measured.
    async fn problem(
        &self,
        view: &ClusterView,
        deployment: &Deployment,
        others: Others,
    ) -> Result<Problem, String> {
        let record = view.state.models.get(&deployment.model).ok_or("its model has been removed")?;
        let profile = record.profile_blob.as_ref().ok_or("its model has not been profiled")?;
        let profile = self.models.profile(profile).await.map_err(|e| super::chain(&e))?;
        let usable = self.usable(view, deployment);
        // Of now: another deployment may have been given its plan since this look began.
        let now = self.consensus.view().borrow().clone();
        let mut devices = self.facts.devices_for(&now, &deployment.name, others);
        devices.retain(|device| usable.contains(&device.id));
        let mut problem = problem(&profile, &devices, &wishes(deployment));
        self.forecasts.correct(&deployment.model, &mut problem);
        set_ingress(&mut problem, &deployment.name, &self.facts);
        Ok(problem)
    }

    /// Looks for a plan that is worth a move, and moves to it.
    async fn improve(&mut self, view: &ClusterView, deployment: &Deployment, active: &EpochPlan) {
        let (name, now) = (&deployment.name, Instant::now());
        if let Some(found) = self.better.found(name, active.epoch, now).await {
            let devices = self.usable(view, deployment);
            self.duties.planned(now, deployment, devices);
            tracing::info!(deployment = %name, gain = found.gain, "a better plan is worth a move");
            self.prepare(deployment, found.solved).await;
            return;
        }
        if !self.better.is_due(name, now) {
            return;
        }
        if let Some(forecast) = self.forecasts.get(name, active.epoch).filter(|f| f.is_measured) {
            let speed = better::speed(&forecast.evaluation, deployment.objective);
            self.better.judge(name, active.epoch, speed, now);
        }
        match self.problem(view, deployment, Others::Stay).await {
            Ok(problem) => self.better.look(name, active, problem, now),
            Err(reason) => tracing::debug!(deployment = %name, %reason, "no better plan"),
        }
    }

    /// A better plan that is being prepared is given up when links have become too slow for it.
    async fn reconsider(&mut self, view: &ClusterView, deployment: &Deployment) {
        let (Some(active), Some(preparing)) = (&deployment.active, &deployment.preparing) else { return };
        let (name, now) = (&deployment.name, Instant::now());
        if !self.better.may_regret(name, now) {
            return;
        }
        let Ok(problem) = self.problem(view, deployment, Others::Stay).await else { return };
        if let Some(reason) = self.better.regrets(name, active, preparing, &problem, now) {
            self.abandon(name.clone(), preparing.epoch, reason, None).await;
        }
    }

    async fn abandon(&mut self, name: String, epoch: u64, reason: String, culprit: Option<String>) {
        tracing::warn!(deployment = %name, epoch, %reason, "the prepared plan is given up");
        self.duties.abandoned(Instant::now(), &name, culprit);
        self.command(Command::AbandonPlan { deployment: name, epoch, reason }).await;
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
    /// A better plan is known, which would have taken more loading.
    pub is_hasty: bool,
}

/// A verified plan that leaves the running one's stages where they are as long as that costs next to nothing; or not
/// much, where requests wait for it.
fn resolve(problem: Problem, running: &Plan) -> Result<Solved, String> {
    if problem.devices.is_empty() {
        return solve(problem);
    }
    let replan = mesh_planner::replan(&problem, running, PLANNER_STEPS).map_err(|e| e.to_string())?;
    let (bytes, replicas, behind) = (replan.moved_bytes, replan.moved_replicas, replan.behind);
    tracing::info!(bytes, replicas, behind, "what has to be moved");
    let is_hasty = replan.is_hasty();
    Ok(Solved { is_hasty, ..verified(problem, replan.plan, Some(running))? })
}

/// A verified plan.
pub fn solve(problem: Problem) -> Result<Solved, String> {
    if problem.devices.is_empty() {
        return Err("no device is ready to take stages".into());
    }
    let plan =
        mesh_planner::solve_lighter(&problem, PLANNER_STEPS, HARDLY_SLOWER).map_err(|e| e.to_string())?;
    verified(problem, plan, None)
}

/// A plan with standbys where memory is to spare, which has passed the independent check.
/// `running` is what devices hold now.
pub fn verified(problem: Problem, plan: Plan, running: Option<&Plan>) -> Result<Solved, String> {
    let plan = mesh_planner::with_standbys(&problem, plan, running);
    mesh_planner::check(&problem, &plan)
        .map_err(|e| format!("the planner made a plan that is wrong: {e}"))?;
    Ok(Solved { plan, problem, is_hasty: false })
}

/// What a deployment asks of its plan.
pub fn wishes(deployment: &Deployment) -> Wishes {
    Wishes { objective: deployment.objective, stages: deployment.stages, pin: deployment.pin.clone() }
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
