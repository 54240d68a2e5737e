//! Deploying a model from this device: import, profile, have it replicated, watch until it serves.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_consensus::{Command, DeploySpec, DeviceId, ModelRecord, Request, RequestId};
use mesh_inference::{
    blobs::{BlobError, Hash},
    import::{self, ImportError, Imported},
    model::Model,
    profile::{self, ProfileError, ProfileOptions},
    runtime::{Engine, SessionOptions},
};
use mesh_planner::{Lift, Plan};
use tokio::sync::mpsc;

mod imports;
mod watch;

pub use imports::{ImportGuard, Imports, Quiet, UploadGuard};
use watch::{Step, Watch};

use super::{
    chain,
    consensus::Consensus,
    explain,
    facts::Facts,
    forecast::Forecasts,
    leader::solve,
    memory::Others,
    models::Models,
    planning::{self, StoredProfile, Wishes},
    propose::{ProposeFailure, Proposer},
    report::StageState,
    rpc, speed,
    transfer::Transfer,
};
use crate::app::{DeployEvent, DeployRequest};

/// Time for a command of a deployment to be applied.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often progress is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Deploys models.
#[derive(Debug, Clone)]
pub struct Deployer {
    /// Replicated state.
    pub consensus: Consensus,
    /// Reports.
    pub facts: Facts,
    /// Manifests.
    pub models: Models,
    /// The blob store and its network side.
    pub transfer: Transfer,
    /// What serving has shown.
    pub forecasts: Forecasts,
    /// Commands.
    pub proposer: Proposer,
    /// ONNX Runtime.
    pub engine: Engine,
    /// How sessions are made.
    pub session: SessionOptions,
    /// Bytes of weights that profiling may hold.
    pub memory: u64,
    /// Imports that are under way.
    pub imports: Imports,
}

/// A model that is imported and profiled on this device.
struct Ready {
    hash: Hash,
    model: Arc<Model>,
    profile_blob: Hash,
    profile: Arc<StoredProfile>,
}

/// How a deployment fails, with the HTTP status that fits.
struct Failure {
    status: u16,
    error: String,
}

impl Failure {
    fn invalid(error: impl Into<String>) -> Self {
        Self { status: 400, error: error.into() }
    }

    fn passing(error: impl Into<String>) -> Self {
        Self { status: 503, error: error.into() }
    }

    /// As `otherwise`, unless it is this device's disk that has no room.
    fn unless_full(store: Option<&BlobError>, otherwise: u16, error: String) -> Self {
        let is_full = store.is_some_and(BlobError::is_full);
        Self { status: if is_full { 507 } else { otherwise }, error }
    }
}

impl From<ProposeFailure> for Failure {
    fn from(failure: ProposeFailure) -> Self {
        match failure {
            ProposeFailure::Rejected(reason) => Self::invalid(reason),
            ProposeFailure::NoQuorum { .. } => Self::passing(failure.to_string()),
        }
    }
}

/// An import's error with the file's name as the client gave it, not where it lies on this device.
fn of_upload(error: &str, folder: &std::path::Path, file: &str) -> String {
    let folder = folder.display().to_string();
    let text = error.replace(&format!("{folder}/"), "").replace(&folder, "the upload");
    if text.contains(file) { text } else { format!("{file}: {text}") }
}

impl Deployer {
    /// Imports the model in `folder`, plans and serves it. The last event tells the end; the first that tells of more
    /// than importing and profiling, that the folder is not needed any more.
    pub async fn deploy(self, folder: PathBuf, request: DeployRequest, events: mpsc::Sender<DeployEvent>) {
        let result = self.run(&folder, &request, &events).await;
        if let Err(Failure { status, error }) = result {
            let _ = events.send(DeployEvent::Failed { status, error }).await;
        }
    }

    async fn run(
        &self,
        folder: &std::path::Path,
        request: &DeployRequest,
        events: &mpsc::Sender<DeployEvent>,
    ) -> Result<(), Failure> {
        if !request.dry_run {
            self.leader().await?;
        }
        let calibration_s = self.calibration().await?;
        let mut importing = self.imports.begin();
        let imported = self.import(folder, request, events).await?;
        let ready = self.profile(imported, request, calibration_s, events).await?;
        if request.dry_run {
            let (plan, lifts) = self.dry_run(&ready, request).await?;
            let _ = events.send(DeployEvent::Planned { plan: Box::new(plan), lifts }).await;
            let _ = events.send(DeployEvent::DryRun).await;
            return Ok(());
        }
        self.models.put(&ready.hash.to_string(), Arc::clone(&ready.model));
        let watch = self.commit(&ready, request, &mut importing).await?;
        self.until_known(&ready.hash.to_string()).await;
        drop(importing);
        // From here on nothing of the upload is needed.
        let step = "planning".to_owned();
        let _ = events.send(DeployEvent::Progress { step, done: 0, total: 0 }).await;
        self.follow(watch, events).await
    }

    /// Waits for a leader, so that nobody imports for minutes what cannot be deployed then.
    async fn leader(&self) -> Result<(), Failure> {
        let mut view = self.consensus.view();
        let known = view.wait_for(|v| v.leader.is_some_and(|l| self.facts.is_live(&l.to_string())));
        match tokio::time::timeout(PATIENCE, known).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(ProposeFailure::NoQuorum { seconds: PATIENCE.as_secs() }.into()),
        }
    }

    /// Waits until this device's own state has the model: a sweep goes by that, and it may be behind the leader's.
    async fn until_known(&self, model: &str) {
        let mut view = self.consensus.view();
        let known = view.wait_for(|view| view.state.models.contains_key(model));
        if tokio::time::timeout(PATIENCE, known).await.is_err() {
            tracing::warn!(model, "the model is deployed, and this device has not heard of it");
        }
    }

    /// This device's calibration time; waited for when the daemon has only just started.
    async fn calibration(&self) -> Result<f64, Failure> {
        for _ in 0..300 {
            if let Some(seconds) = self.facts.own().calibration_s {
                return Ok(seconds);
            }
            tokio::time::sleep(LOOK).await;
        }
        Err(Failure::passing("this device is still measuring its speed; try again in a moment"))
    }

    async fn import(
        &self,
        folder: &std::path::Path,
        request: &DeployRequest,
        events: &mpsc::Sender<DeployEvent>,
    ) -> Result<Imported, Failure> {
        let file = folder.join(&request.file);
        let (store, engine, events) = (self.transfer.store().clone(), self.engine.clone(), events.clone());
        let source = folder.to_path_buf();
        let work = crate::background::spawn(move || {
            let mut progress = |now: import::Progress| {
                let step = "importing".to_owned();
                let (done, total) = (now.done_bytes, now.total_bytes);
                let _ = events.try_send(DeployEvent::Progress { step, done, total });
            };
            let imported = import::import(&file, &source, &store, &engine, &mut progress);
            mesh_inference::memory::give_back();
            imported
        });
        let result: Result<Imported, ImportError> =
            work.await.map_err(|e| Failure { status: 500, error: format!("the import failed: {e}") })?;
        result.map_err(|e| {
            let store = if let ImportError::Blob(error) = &e { Some(error) } else { None };
            Failure::unless_full(store, 400, of_upload(&chain(&e), folder, &request.file))
        })
    }

    async fn profile(
        &self,
        imported: Imported,
        request: &DeployRequest,
        calibration_s: f64,
        events: &mpsc::Sender<DeployEvent>,
    ) -> Result<Ready, Failure> {
        if let Some(known) = self.known(&imported, request).await {
            tracing::info!(model = %known.hash, "this model has been profiled before");
            return Ok(known);
        }
        let model = imported.model;
        let (store, engine, events) = (self.transfer.store().clone(), self.engine.clone(), events.clone());
        let options = ProfileOptions {
            shapes: request.shapes.iter().cloned().collect(),
            session: self.session.clone(),
            memory: self.memory,
            ..ProfileOptions::default()
        };
        let (measured, facts) = (Arc::clone(&model), self.facts.clone());
        let work = crate::background::spawn(move || {
            let mut progress = |now: profile::Progress| {
                let step = "profiling".to_owned();
                let (done, total) = (now.done as u64, now.total as u64);
                let _ = events.try_send(DeployEvent::Progress { step, done, total });
            };
            let gone = || events.is_closed();
            let profile = profile::profile(&measured, &store, &engine, &options, &mut progress, &gone)?;
            let threads = options.session.threads;
            let calibration_s = speed::beside_a_profile(&facts, &engine, threads, calibration_s);
            let stored = StoredProfile { calibration_s, profile };
            let put = store.put(rpc::encode(&stored).as_ref());
            Ok::<_, ProfileError>((stored, put))
        });
        let (stored, put) = work
            .await
            .map_err(|e| Failure { status: 500, error: format!("profiling failed: {e}") })?
            .map_err(|e| Failure::invalid(format!("{} cannot be run: {}", request.file, chain(&e))))?;
        let (profile_blob, _) = put.map_err(|e| {
            Failure::unless_full(Some(&e), 503, format!("the profile cannot be kept: {}", chain(&e)))
        })?;
        Ok(Ready { hash: imported.hash, model, profile_blob, profile: Arc::new(stored) })
    }

    /// What an earlier deployment of the same model measured, if it was for the same shapes, threads and runtime. What
    /// has changed since, serving corrects.
    async fn known(&self, imported: &Imported, request: &DeployRequest) -> Option<Ready> {
        let blob = {
            let view = self.consensus.view();
            let view = view.borrow();
            view.state.models.get(&imported.hash.to_string())?.profile_blob.clone()?
        };
        let stored = self.models.profile(&blob).await.ok()?;
        let wanted = request.shapes.iter().cloned().collect();
        let profile = &stored.profile;
        let same = profile::shapes(&imported.model, &wanted).is_ok_and(|shapes| shapes == profile.shapes)
            && profile.threads == self.session.threads
            && profile.runtime == self.engine.version();
        let model = Arc::clone(&imported.model);
        let profile_blob = blob.parse().ok().filter(|_| same)?;
        Some(Ready { hash: imported.hash, model, profile_blob, profile: Arc::clone(&stored) })
    }

    async fn dry_run(&self, ready: &Ready, request: &DeployRequest) -> Result<(Plan, Vec<Lift>), Failure> {
        let view = self.consensus.view().borrow().clone();
        let wishes =
            Wishes { objective: request.objective, stages: request.stages, pin: request.pin.clone() };
        // As the leader plans: beside what other deployments hold, else beside what they need, else in the whole memory.
        let [stay, give_way, ignored] = Others::ALL.map(|others| {
            let devices = self.facts.devices_for(&view, &request.name, others);
            let mut problem = planning::problem(&ready.profile, &devices, &wishes);
            self.forecasts.correct(&ready.hash.to_string(), &mut problem);
            problem
        });
        let solved = crate::background::spawn(move || {
            solve(stay).or_else(|_| solve(give_way)).or_else(|_| solve(ignored))
        });
        let solved = solved.await.map_err(|e| Failure { status: 500, error: e.to_string() })?;
        let solved = solved.map_err(|e| Failure::invalid(self.facts.named(&view, &e)))?;
        let lifts = explain::lifts(solved.problem, solved.plan.clone()).await;
        Ok((solved.plan, lifts))
    }

    /// Has the model and the deployment replicated. Gives what is to be watched then.
    async fn commit(
        &self,
        ready: &Ready,
        request: &DeployRequest,
        importing: &mut ImportGuard,
    ) -> Result<Watch, Failure> {
        let me = DeviceId(self.facts.me().to_string());
        let record = ModelRecord {
            hash: ready.hash.to_string(),
            source: request.file.clone(),
            weight_bytes: ready.model.blobs().iter().map(|b| b.bytes).sum(),
            nodes: ready.model.node_count() as u64,
            blocks: ready.model.blocks().len() as u64,
            added_by: me.clone(),
            profile_blob: Some(ready.profile_blob.to_string()),
        };
        let added = self.proposer.propose(Command::AddModel(record), PATIENCE).await;
        // Without an answer it may still be added. Refused for good, its blobs are nobody's.
        if !matches!(added, Err(ProposeFailure::Rejected(_))) {
            importing.was_not_in_vain();
        }
        added?;
        let spec = DeploySpec {
            name: request.name.clone(),
            model: ready.hash.to_string(),
            objective: request.objective,
            stages: request.stages,
            pin: request.pin.clone(),
            shapes: request.shapes.clone(),
        };
        let id = RequestId { proposer: me, sequence: rand::random() };
        let cluster = self.consensus.view().borrow().state.cluster_id;
        let command = Request { id: id.clone(), command: Command::Deploy(spec.clone()) };
        self.proposer.submit(command, PATIENCE).await?;
        Ok(Watch::new(Instant::now(), cluster, id, spec))
    }

    /// Reports progress until the deployment serves or cannot, or nobody listens any more.
    async fn follow(&self, mut watch: Watch, events: &mpsc::Sender<DeployEvent>) -> Result<(), Failure> {
        let mut changes = self.consensus.view();
        while !events.is_closed() {
            let view = changes.borrow_and_update().clone();
            let (step, name) = (watch.look(Instant::now(), &view.state), watch.name());
            if let Step::Preparing { plan, is_new: true } | Step::Serving { plan, is_new: true } = step {
                let plan = Box::new(plan.plan.clone());
                let _ = events.send(DeployEvent::Planned { plan, lifts: Vec::new() }).await;
            }
            match step {
                Step::Wait => {}
                Step::Preparing { plan, .. } => {
                    let (done, total) = self.preparing(name, plan);
                    let step = "preparing".to_owned();
                    let _ = events.try_send(DeployEvent::Progress { step, done, total });
                }
                Step::Serving { plan, .. } => {
                    let _ = events.send(DeployEvent::Serving { epoch: plan.epoch }).await;
                    return Ok(());
                }
                Step::Faulty(fault) => {
                    let why = self.facts.named(&view, fault);
                    return Err(Failure::invalid(format!(
                        "{why}. {name} stays as failed and is planned again when the devices change; `mesh undeploy {name}` removes it"
                    )));
                }
                Step::Over { status, error } => return Err(Failure { status, error }),
            }
            let _ = tokio::time::timeout(LOOK, changes.changed()).await;
        }
        Ok(())
    }

    /// Bytes of weights that are where the plan wants them, and all.
    fn preparing(&self, name: &str, preparing: &mesh_consensus::EpochPlan) -> (u64, u64) {
        let (mut done, mut total) = (0, 0);
        for (index, stage) in preparing.plan.stages.iter().enumerate() {
            for replica in &stage.replicas {
                total += stage.weight_bytes;
                match self.facts.stage(&replica.device, name, preparing.epoch, index).map(|s| s.state) {
                    Some(StageState::Ready) => done += stage.weight_bytes,
                    Some(StageState::Preparing { done: here, .. }) => done += here.min(stage.weight_bytes),
                    Some(StageState::Failed { .. }) | None => {}
                }
            }
        }
        (done, total)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn errors_name_the_file_as_the_client_does() {
        let of = |error| super::of_upload(error, Path::new("/var/lib/mesh/uploads/a1"), "m.onnx");
        assert_eq!(of("/var/lib/mesh/uploads/a1/m.onnx is truncated"), "m.onnx is truncated");
        assert_eq!(of("tensor 't' is damaged"), "m.onnx: tensor 't' is damaged");
        assert_eq!(
            of("'w.bin' is not in /var/lib/mesh/uploads/a1: put it there"),
            "m.onnx: 'w.bin' is not in the upload: put it there"
        );
    }
}
