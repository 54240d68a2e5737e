//! What the running plans can do by what serving has shown: every device learns it from the reports of all, so that
//! each can say it and a new leader knows it at once.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use mesh_consensus::{Deployment, EpochPlan};
use mesh_planner::{Evaluation, Plan, Problem};

use super::{
    consensus::{ClusterView, Consensus},
    correction::{Corrections, Seen, is_trusted},
    crossing,
    entering::{expected, shares},
    facts::Facts,
    leader::wishes,
    models::Models,
    planning::{self, DeviceFacts, StoredProfile},
    report::{NodeReport, StageReport},
};

/// Reports are learnt from this often.
const LOOK: Duration = Duration::from_secs(2);
/// What is forecast for a plan stands for at least this long: to share requests well takes a slow device milliseconds.
const STANDS: Duration = Duration::from_secs(6);

/// The newest forecasts. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Forecasts(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    corrections: Corrections,
    current: BTreeMap<String, Arc<Forecast>>,
}

/// What a running plan can do.
#[derive(Debug)]
pub struct Forecast {
    /// Number of the plan.
    pub epoch: u64,
    /// The problem, corrected by what was measured, for requests that enter where they are expected to.
    pub problem: Problem,
    /// The plan's costs in it.
    pub evaluation: Evaluation,
    /// The same for the requests as they have entered: a plan is made with some doubt, but who brings all of them to one
    /// device has to know what that can do; and for their frames as they are on the wire.
    pub served: Served,
    /// All stages on all devices have been measured.
    pub is_measured: bool,
    made: Instant,
}

/// What a plan can do for the requests that have come lately.
#[derive(Debug)]
pub struct Served {
    /// With the requests entering where they have entered.
    problem: Problem,
    /// With the shares that requests take of themselves.
    plan: Plan,
    /// The plan's costs in the problem.
    pub evaluation: Evaluation,
}

impl Forecasts {
    /// For a deployment's running plan, where some of its model has been measured.
    pub fn get(&self, deployment: &str, epoch: u64) -> Option<Arc<Forecast>> {
        self.lock().current.get(deployment).filter(|forecast| forecast.epoch == epoch).cloned()
    }

    /// A running plan with the numbers that are true now.
    pub fn restated(&self, deployment: &str, epoch: u64, plan: &Plan) -> Option<Plan> {
        let forecast = self.get(deployment, epoch)?;
        let mut restated = mesh_planner::restate(&forecast.served.problem, &forecast.served.plan).ok()?;
        if (restated.throughput_rps / plan.throughput_rps - 1.0).abs() > 0.01 {
            let note = format!(" When it was made, {:.3} requests/s were predicted.", plan.throughput_rps);
            restated.why.push_str(&note);
        }
        Some(restated)
    }

    /// Corrects a problem for a model that was made from its profile.
    pub fn correct(&self, model: &str, problem: &mut Problem) {
        self.lock().corrections.apply(model, problem);
    }

    /// Learns until the consensus thread ends.
    pub async fn run(self, consensus: Consensus, facts: Facts, models: Models) {
        let changes = consensus.view();
        while changes.has_changed().is_ok() {
            let view = changes.borrow().clone();
            self.look(&view, &facts, &models).await;
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn look(&self, view: &ClusterView, facts: &Facts, models: &Models) {
        let mut stored = Vec::new();
        for deployment in view.state.deployments.values() {
            let Some(active) = &deployment.active else { continue };
            let blob = view.state.models.get(&active.model).and_then(|record| record.profile_blob.as_ref());
            let Some(blob) = blob else { continue };
            match models.profile(blob).await {
                Ok(profile) => stored.push((deployment, active, profile)),
                Err(error) => tracing::debug!(%error, "a profile is not here yet"),
            }
        }
        let (devices, _) = facts.devices(view);
        let report = |device: &str, stage: &StageKey<'_>| {
            facts.stage(device, stage.deployment, stage.epoch, stage.index).map(Reported::from)
        };
        let now = Instant::now();
        let mut state = self.lock();
        state.corrections.retain(|model| view.state.models.contains_key(model));
        // Deployments of one model are learnt from together.
        for hash in view.state.models.keys() {
            let of_model: Vec<_> = stored.iter().filter(|(_, active, _)| active.model == *hash).collect();
            let Some((_, _, profile)) = of_model.first() else { continue };
            let plans = of_model.iter().map(|(deployment, active, _)| (deployment.name.as_str(), *active));
            let plans: Vec<(&str, &EpochPlan)> = plans.collect();
            let seen = seen(&plans, &devices, profile, &report);
            state.corrections.learn(hash, &profile.profile.block_seconds, &seen, now);
        }
        let mut current = BTreeMap::new();
        for (deployment, active, profile) in &stored {
            let before = state.current.get(&deployment.name).filter(|f| f.epoch == active.epoch);
            if let Some(before) = before.filter(|f| now.saturating_duration_since(f.made) < STANDS) {
                current.insert(deployment.name.clone(), Arc::clone(before));
                continue;
            }
            let enters = |problem: &mut Problem| set_ingress(problem, &deployment.name, facts);
            let served = |problem: &Problem| served(problem, deployment, active, facts, &devices);
            let of = (*deployment, *active);
            if let Some(forecast) =
                forecast(&state.corrections, of, profile, &devices, &report, (enters, served))
            {
                current.insert(deployment.name.clone(), Arc::new(forecast));
            }
        }
        state.current = current;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stage of a running plan.
struct StageKey<'a> {
    deployment: &'a str,
    epoch: u64,
    index: usize,
}

/// What a device says of a stage.
#[derive(Debug, Clone, Copy)]
struct Reported {
    seconds: f64,
    runs: u64,
}

impl From<StageReport> for Reported {
    fn from(report: StageReport) -> Self {
        Self { seconds: report.compute_s, runs: report.runs }
    }
}

/// A device's word on a stage.
type Report<'a> = dyn Fn(&str, &StageKey<'_>) -> Option<Reported> + 'a;

/// What devices report of the stages of these plans, all for one model.
fn seen<'a>(
    plans: &[(&str, &EpochPlan)],
    devices: &'a [DeviceFacts],
    profile: &StoredProfile,
    report: &Report<'_>,
) -> Vec<Seen<'a>> {
    let mut seen = Vec::new();
    for (deployment, active) in plans {
        for (index, stage) in active.plan.stages.iter().enumerate() {
            let key = StageKey { deployment, epoch: active.epoch, index };
            for replica in &stage.replicas {
                let Some(device) = devices.iter().find(|device| device.id == replica.device) else {
                    continue;
                };
                let Some(reported) = report(&device.id, &key) else { continue };
                seen.push(Seen {
                    device: &device.id,
                    first_block: stage.first_block,
                    last_block: stage.last_block,
                    seconds: reported.seconds,
                    runs: reported.runs,
                    speed: profile.calibration_s / device.calibration_s,
                });
            }
        }
    }
    seen
}

fn forecast(
    corrections: &Corrections,
    (deployment, active): (&Deployment, &EpochPlan),
    profile: &StoredProfile,
    devices: &[DeviceFacts],
    report: &Report<'_>,
    (enters, served): (impl FnOnce(&mut Problem), impl FnOnce(&Problem) -> Option<Served>),
) -> Option<Forecast> {
    if !corrections.knows(&active.model) {
        return None;
    }
    let mut problem = planning::problem(profile, devices, &wishes(deployment));
    corrections.apply_to(&active.model, &active.plan, &mut problem);
    enters(&mut problem);
    let plan = mesh_planner::reshare(&problem, &active.plan).ok()?;
    let evaluation = mesh_planner::evaluate(&problem, &plan).ok()?;
    let is_measured = active.plan.stages.iter().enumerate().all(|(index, stage)| {
        let key = StageKey { deployment: &deployment.name, epoch: active.epoch, index };
        let trusted = |device: &str| report(device, &key).is_some_and(|r| is_trusted(r.runs, r.seconds));
        stage.replicas.iter().all(|replica| trusted(&replica.device))
    });
    let served = served(&problem)?;
    Some(Forecast { epoch: active.epoch, problem, evaluation, served, is_measured, made: Instant::now() })
}

/// Has requests enter a problem for a deployment where they are expected to.
pub fn set_ingress(problem: &mut Problem, deployment: &str, facts: &Facts) {
    let ids = || problem.devices.iter().map(|device| device.id.as_str());
    let rate = |id: &str| {
        let rate = facts.report(id)?.entering.get(deployment).copied()?;
        Some((id.to_owned(), rate))
    };
    problem.ingress = Some(expected(ids().filter_map(rate), ids()));
}

/// What a plan does for the requests that come, in the bytes that they have.
fn served(
    problem: &Problem,
    deployment: &Deployment,
    active: &EpochPlan,
    facts: &Facts,
    devices: &[DeviceFacts],
) -> Option<Served> {
    let reports: Vec<_> =
        devices.iter().filter_map(|device| Some((&device.id, facts.report(&device.id)?))).collect();
    let mut problem = problem.clone();
    let told = reports.iter().flat_map(|(_, report)| &report.crossing);
    crossing::apply(told, &deployment.name, active, &mut problem.cuts);
    let rates = |of: fn(&NodeReport) -> &BTreeMap<String, f64>| {
        let rate = move |report: &NodeReport| of(report).get(&deployment.name).copied();
        reports.iter().filter_map(move |(device, report)| Some(((*device).clone(), rate(report)?)))
    };
    if let Some((entering, arriving)) = shares(rates(|r| &r.entering), rates(|r| &r.arriving)) {
        problem.ingress = Some(entering);
        problem.arriving = arriving;
        planning::assume_cards(&mut problem);
    }
    let plan = mesh_planner::reshare(&problem, &active.plan).ok()?;
    let evaluation = mesh_planner::evaluate(&problem, &plan).ok()?;
    Some(Served { problem, plan, evaluation })
}
