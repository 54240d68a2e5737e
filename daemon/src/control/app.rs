//! What the HTTP API asks of the daemon, answered from its parts.

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use mesh_consensus::{Command, Deployment, DeviceId, EpochPlan};
use mesh_inference::model::ValueType;
use mesh_planner::{Lift, Plan};
use tokio::sync::mpsc;

use super::{
    consensus::{ClusterView, Consensus, Phase},
    deploy::Deployer,
    document::Sources,
    events::Refusals,
    explain,
    facts::Facts,
    forecast::Forecasts,
    health,
    metrics::prometheus,
    models::Models,
    problems::{self, Problems},
    propose::{ProposeFailure, Proposer},
    select,
};
use crate::{
    app::{
        App, AppError, DeployEvent, DeployRequest, InferRequest, InferResponse, ModelMetadata, ModelSummary,
        ProblemDocument, TensorSpec,
    },
    data::DataPlane,
    net::Net,
    status::Status,
};

/// Time for a command of a person to be applied.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same for removing a device: its vote is given to others first, and the leader takes up to 20 s to find that
/// nobody can have it, after a leader that had to hand over before.
const REMOVE_PATIENCE: Duration = Duration::from_secs(45);

/// The daemon as the API sees it.
#[derive(Debug, Clone)]
pub struct DaemonApp {
    /// Configured cluster name.
    pub cluster_name: String,
    /// `devices` of the config.
    pub devices: u32,
    /// `ip:port` of this device.
    pub address: String,
    /// Folder for uploads.
    pub uploads: PathBuf,
    /// Replicated state.
    pub consensus: Consensus,
    /// Reports.
    pub facts: Facts,
    /// Manifests.
    pub models: Models,
    /// Requests.
    pub data: DataPlane,
    /// Commands.
    pub proposer: Proposer,
    /// Deployments.
    pub deployer: Deployer,
    /// What plans were made from.
    pub problems: Problems,
    /// What running plans can do by what was measured.
    pub forecasts: Forecasts,
    /// The network.
    pub net: Net,
    /// Refused at the door.
    pub refusals: Refusals,
}

impl DaemonApp {
    fn view(&self) -> ClusterView {
        self.consensus.view().borrow().clone()
    }

    /// The device that a person means.
    fn find_device(&self, text: &str) -> Result<DeviceId, AppError> {
        select::member(&self.view().state, text).map(|member| member.device.clone())
    }

    fn command(&self, command: Command) -> BoxFuture<'static, Result<(), AppError>> {
        self.patient_command(command, PATIENCE)
    }

    fn patient_command(
        &self,
        command: Command,
        patience: Duration,
    ) -> BoxFuture<'static, Result<(), AppError>> {
        let proposer = self.proposer.clone();
        async move { proposer.propose(command, patience).await.map(|_| ()).map_err(app_error) }.boxed()
    }
}

/// The deployment of this name, as this device knows it.
fn known<'v>(view: &'v ClusterView, name: &str) -> Result<&'v Deployment, AppError> {
    let missing = || format!("no deployment `{name}`; `mesh status` shows all, `mesh deploy` makes one");
    check_inside(view, name)?;
    view.state.deployments.get(name).ok_or_else(|| AppError::NotFound(missing()))
}

/// A device outside the cluster cannot know of a deployment, and what one that was removed still knows is old.
fn check_inside(view: &ClusterView, name: &str) -> Result<(), AppError> {
    if is_inside(view) {
        return Ok(());
    }
    Err(AppError::Unavailable {
        message: format!("this device is not in the cluster and does not serve `{name}`: see `mesh status`"),
        retry_after_s: 5,
    })
}

fn is_inside(view: &ClusterView) -> bool {
    view.phase == Phase::Member && view.refused.is_none()
}

/// The data plane knows no deployment of this name; a device that has just started may know one all the same.
fn not_served(view: &ClusterView, name: &str, message: String) -> AppError {
    if let Err(outside) = check_inside(view, name) {
        return outside;
    }
    if view.state.deployments.contains_key(name) {
        return AppError::Unavailable {
            message: format!("`{name}` is being set up on this device: try again in a moment"),
            retry_after_s: 1,
        };
    }
    AppError::NotFound(message)
}

fn app_error(failure: ProposeFailure) -> AppError {
    match failure {
        ProposeFailure::Rejected(reason) => AppError::Conflict(reason),
        ProposeFailure::NoQuorum { .. } => {
            AppError::Unavailable { message: failure.to_string(), retry_after_s: 5 }
        }
    }
}

fn spec(value: &ValueType) -> TensorSpec {
    TensorSpec { name: value.name.clone(), dtype: value.dtype, shape: value.shape.clone() }
}

fn failed(error: AppError) -> BoxFuture<'static, Result<(), AppError>> {
    async move { Err(error) }.boxed()
}

impl App for DaemonApp {
    fn status(&self) -> Status {
        let (view, metrics) = (self.view(), self.data.metrics());
        Sources {
            cluster_name: &self.cluster_name,
            devices: self.devices,
            view: &view,
            facts: &self.facts,
            forecasts: &self.forecasts,
            metrics: &metrics,
            refusals: &self.refusals,
            address: self.address.clone(),
        }
        .status()
    }

    fn metrics(&self) -> String {
        prometheus(&self.status(), &self.data.metrics())
    }

    fn plan(&self, name: &str) -> Result<(u64, Plan), AppError> {
        let view = self.view();
        let deployment = known(&view, name)?;
        let plan = deployment.active.as_ref().or(deployment.preparing.as_ref());
        let now =
            |p: &EpochPlan| self.forecasts.restated(name, p.epoch, &p.plan).unwrap_or_else(|| p.plan.clone());
        plan.map(|p| (p.epoch, now(p))).ok_or_else(|| AppError::Unavailable {
            message: match &deployment.fault {
                Some(fault) => format!("`{name}` has no plan: {}", self.facts.named(&view, fault)),
                None => format!("`{name}` has no plan yet"),
            },
            retry_after_s: 2,
        })
    }

    fn problem(&self, name: &str) -> BoxFuture<'static, Result<ProblemDocument, AppError>> {
        let (this, name) = (self.clone(), name.to_owned());
        async move {
            let (epoch, _) = this.plan(&name)?;
            if let Some(forecast) = this.forecasts.get(&name, epoch) {
                let problem = forecast.problem.clone();
                return Ok(ProblemDocument { name, epoch, rebuilt: false, corrected: true, problem });
            }
            let view = this.view();
            if let Some(problem) = this.problems.find(&this.net, &this.facts, &view, &name, epoch).await {
                return Ok(ProblemDocument { name, epoch, rebuilt: false, corrected: false, problem });
            }
            let rebuilt = problems::rebuild(&this.facts, &this.models, &view, &name).await;
            let problem = rebuilt.map_err(|message| AppError::Unavailable { message, retry_after_s: 5 })?;
            Ok(ProblemDocument { name, epoch, rebuilt: true, corrected: false, problem })
        }
        .boxed()
    }

    fn lifts(&self, name: &str) -> BoxFuture<'static, Result<Vec<Lift>, AppError>> {
        let (this, name) = (self.clone(), name.to_owned());
        async move {
            let (_, plan) = this.plan(&name)?;
            let problem = this.problem(&name).await?.problem;
            Ok(explain::lifts(problem, plan).await)
        }
        .boxed()
    }

    fn metadata(&self, name: &str) -> Result<ModelMetadata, AppError> {
        let view = self.view();
        let deployment = known(&view, name)?;
        let hash = deployment.active.as_ref().map_or(&deployment.model, |a| &a.model);
        let model = self.models.get(hash).ok_or_else(|| AppError::Unavailable {
            message: format!("the description of `{name}` is on its way to this device"),
            retry_after_s: 1,
        })?;
        Ok(ModelMetadata {
            name: name.to_owned(),
            inputs: model.inputs.iter().map(spec).collect(),
            outputs: model.outputs.iter().map(spec).collect(),
        })
    }

    fn model_ready(&self, name: &str) -> Result<bool, AppError> {
        let view = self.view();
        let deployment = known(&view, name)?;
        let is_described = deployment.active.as_ref().is_some_and(|a| self.models.get(&a.model).is_some());
        Ok(self.data.serves(name) && is_described && health::answers(&self.facts, deployment))
    }

    fn ready(&self) -> bool {
        is_inside(&self.consensus.view().borrow())
    }

    fn infer(&self, request: InferRequest) -> BoxFuture<'static, Result<InferResponse, AppError>> {
        let (data, view, name) = (self.data.clone(), self.consensus.view(), request.model.clone());
        async move {
            check_inside(&view.borrow(), &name)?;
            match data.infer(request).await {
                Err(AppError::NotFound(message)) => Err(not_served(&view.borrow(), &name, message)),
                answer => answer,
            }
        }
        .boxed()
    }

    fn uploading(&self) -> Box<dyn std::any::Any + Send> {
        Box::new(self.deployer.imports.begin_upload())
    }

    fn upload_dir(&self, id: &str) -> Result<PathBuf, AppError> {
        let dir = self.uploads.join(id);
        crate::files::make_private_dir(&dir).map_err(|e| {
            AppError::Internal(format!("cannot make the upload folder {}: {e}", dir.display()))
        })?;
        Ok(dir)
    }

    fn deploy(&self, request: DeployRequest, events: mpsc::Sender<DeployEvent>) -> BoxFuture<'static, ()> {
        let (deployer, folder) = (self.deployer.clone(), self.uploads.join(&request.upload));
        deployer.deploy(folder, request, events).boxed()
    }

    fn undeploy(&self, name: &str) -> BoxFuture<'static, Result<(), AppError>> {
        match known(&self.view(), name) {
            Ok(_) => self.command(Command::Undeploy { name: name.to_owned() }),
            Err(error) => failed(error),
        }
    }

    fn models(&self) -> Vec<ModelSummary> {
        let view = self.view();
        let using = |hash: &str| -> Vec<String> {
            view.state.deployments.values().filter(|d| d.model == hash).map(|d| d.name.clone()).collect()
        };
        view.state
            .models
            .values()
            .map(|m| ModelSummary {
                hash: m.hash.clone(),
                deployments: using(&m.hash),
                source: m.source.clone(),
                weight_bytes: m.weight_bytes,
                nodes: usize::try_from(m.nodes).unwrap_or(usize::MAX),
                blocks: usize::try_from(m.blocks).unwrap_or(usize::MAX),
            })
            .collect()
    }

    fn remove_model(&self, model: &str) -> BoxFuture<'static, Result<(), AppError>> {
        match select::model(&self.view().state, model) {
            Ok(record) => self.command(Command::RemoveModel { hash: record.hash.clone() }),
            Err(error) => failed(error),
        }
    }

    fn set_draining(&self, node: &str, draining: bool) -> BoxFuture<'static, Result<(), AppError>> {
        match self.find_device(node) {
            Ok(device) => self.command(Command::SetDraining { device, draining }),
            Err(error) => failed(error),
        }
    }

    fn remove_node(&self, node: &str) -> BoxFuture<'static, Result<(), AppError>> {
        match self.find_device(node) {
            Ok(device) if device.0 == self.facts.me().to_string() => {
                failed(AppError::Invalid("a device cannot remove itself; run this on another one".into()))
            }
            Ok(device) => self.patient_command(Command::RemoveMember { device }, REMOVE_PATIENCE),
            Err(error) => failed(error),
        }
    }
}

/// A handle for the API.
pub fn handle(app: DaemonApp) -> crate::app::AppHandle {
    Arc::new(app)
}

#[cfg(test)]
mod tests;
