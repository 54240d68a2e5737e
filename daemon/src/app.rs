//! What the HTTP API and through it the command line can ask of a running daemon.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use mesh_inference::tensor::{DType, Tensor};
use mesh_planner::{Lift, Objective, Plan, Problem};
use serde::{Deserialize, Serialize};

use crate::status::Status;

/// One input or output of a model as the Open Inference Protocol describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSpec {
    /// Name in the ONNX graph.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Extents; -1 where dynamic.
    pub shape: Vec<i64>,
}

/// A model as clients see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelMetadata {
    /// Deployment name.
    pub name: String,
    /// Inputs in graph order.
    pub inputs: Vec<TensorSpec>,
    /// Outputs in graph order.
    pub outputs: Vec<TensorSpec>,
}

/// An imported model.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ModelSummary {
    /// Hash of the manifest, hex.
    pub hash: String,
    /// Names of deployments that serve it.
    pub deployments: Vec<String>,
    /// File name that it was imported from.
    pub source: String,
    /// Bytes of weights.
    pub weight_bytes: u64,
    /// Graph nodes.
    pub nodes: usize,
    /// Blocks between cut points.
    pub blocks: usize,
}

/// A request for inference.
#[derive(Debug, Clone)]
pub struct InferRequest {
    /// Deployment name.
    pub model: String,
    /// Inputs by name.
    pub inputs: Vec<(String, Tensor)>,
    /// Outputs wanted; empty for all.
    pub outputs: Vec<String>,
    /// Time until the request must be answered.
    pub timeout: Duration,
    /// Its client is on another machine: inputs came over the network card, and outputs will leave by it.
    pub from_elsewhere: bool,
}

/// Answer to a request for inference.
#[derive(Debug, Clone)]
pub struct InferResponse {
    /// Outputs by name, in graph order.
    pub outputs: Vec<(String, Tensor)>,
    /// Epoch of the plan that answered.
    pub epoch: u64,
    /// Times that the request was sent again.
    pub retries: u32,
}

/// A plan as `/api/plan` and `mesh plan --json` give it and as `mesh deploy --pin` takes it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlanDocument {
    /// Deployment name.
    pub name: String,
    /// Number of the plan.
    pub epoch: u64,
    /// The plan, in the same object.
    #[serde(flatten)]
    pub plan: Plan,
    /// What would make it better, the most effective first; computed only when it is asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lifts: Vec<Lift>,
}

/// What a plan was made from, as `/api/plan/{name}?problem=1` and `mesh plan --problem` give it: the planner's problem
/// with four keys more.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProblemDocument {
    /// Deployment name.
    pub name: String,
    /// Number of the plan.
    pub epoch: u64,
    /// Nobody remembers what the plan was made from: this is what a plan would be made from now.
    pub rebuilt: bool,
    /// The plan serves, and this is the problem as it is known now: with measured times of stages in it.
    #[serde(default)]
    pub corrected: bool,
    /// The problem, in the same object.
    #[serde(flatten)]
    pub problem: Problem,
}

/// A request to serve a model whose files lie in an upload folder of this device.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeployRequest {
    /// Deployment name.
    pub name: String,
    /// Upload that holds the files: the id that they were `PUT` to `/api/uploads/{id}/{file}` under.
    pub upload: String,
    /// The ONNX file inside the upload.
    pub file: String,
    /// What to plan for.
    #[serde(default)]
    pub objective: Objective,
    /// Concrete extents for dynamic inputs while profiling.
    #[serde(default)]
    pub shapes: Vec<(String, Vec<i64>)>,
    /// Exact number of stages wanted.
    #[serde(default)]
    pub stages: Option<usize>,
    /// A plan to use as it is.
    #[serde(default)]
    pub pin: Option<Plan>,
    /// Only plan; change nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// One line of progress of a deployment, as the API streams it (one JSON object per line).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum DeployEvent {
    /// Something goes on.
    Progress {
        /// "importing", "profiling", "planning", "spreading", "preparing".
        step: String,
        /// Work done, in `total`'s unit.
        done: u64,
        /// All work; 0 when unknown.
        total: u64,
    },
    /// The plan that was chosen.
    Planned {
        /// The plan.
        plan: Box<Plan>,
        /// What would make it better; only for a dry run.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        lifts: Vec<Lift>,
    },
    /// Serving: the end.
    Serving {
        /// Epoch of the plan.
        epoch: u64,
    },
    /// Nothing was changed: the end of a dry run.
    DryRun,
    /// It failed: the end.
    Failed {
        /// HTTP-like status: 400 for what the user must change, 503 for what may pass.
        status: u16,
        /// What happened, to what, and what to do next.
        error: String,
    },
}

/// Errors with the HTTP status that fits.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppError {
    /// 400: the request is wrong; the message says what to change.
    #[error("{0}")]
    Invalid(String),
    /// 404.
    #[error("{0}")]
    NotFound(String),
    /// 409.
    #[error("{0}")]
    Conflict(String),
    /// 503 with `Retry-After`.
    #[error("{message}")]
    Unavailable {
        /// What is missing.
        message: String,
        /// When to try again, in seconds.
        retry_after_s: u64,
    },
    /// 504.
    #[error("{0}")]
    DeadlineExceeded(String),
    /// 500.
    #[error("{0}")]
    Internal(String),
}

/// A running daemon as the API sees it. Object-safe, so that the API is built and tested apart from the daemon's core.
pub trait App: Send + Sync + 'static {
    /// The status document.
    fn status(&self) -> Status;
    /// Text in the Prometheus exposition format.
    fn metrics(&self) -> String;
    /// The active (else the preparing) plan of a deployment, with its epoch.
    fn plan(&self, name: &str) -> Result<(u64, Plan), AppError>;
    /// What the plan of [`App::plan`] was made from.
    fn problem(&self, name: &str) -> BoxFuture<'static, Result<ProblemDocument, AppError>>;
    /// What would make the plan of [`App::plan`] better. Takes as long as several plannings.
    fn lifts(&self, name: &str) -> BoxFuture<'static, Result<Vec<Lift>, AppError>>;
    /// Inputs and outputs of a deployment's model.
    fn metadata(&self, name: &str) -> Result<ModelMetadata, AppError>;
    /// Whether a deployment answers requests now.
    fn model_ready(&self, name: &str) -> Result<bool, AppError>;
    /// Whether this device is part of a cluster and takes requests.
    fn ready(&self) -> bool;
    /// Runs a request through the mesh.
    fn infer(&self, request: InferRequest) -> BoxFuture<'static, Result<InferResponse, AppError>>;
    /// Held while a file of an upload comes in: the device is at work, and not at rest.
    fn uploading(&self) -> Box<dyn std::any::Any + Send> {
        Box::new(())
    }
    /// The folder that an upload's files are written to; made when new. `id` has been checked to be a plain name.
    fn upload_dir(&self, id: &str) -> Result<std::path::PathBuf, AppError>;
    /// Imports, plans and serves; progress goes to `events` (bounded), the last event tells the end.
    /// Goes on when the client has left, until the model is imported and the deployment replicated. Then the API removes the
    /// upload's files.
    fn deploy(
        &self,
        request: DeployRequest,
        events: tokio::sync::mpsc::Sender<DeployEvent>,
    ) -> BoxFuture<'static, ()>;
    /// Stops serving a deployment.
    fn undeploy(&self, name: &str) -> BoxFuture<'static, Result<(), AppError>>;
    /// Imported models.
    fn models(&self) -> Vec<ModelSummary>;
    /// Forgets a model that no deployment uses (by hash, hash prefix, source name or that name without its ending).
    fn remove_model(&self, model: &str) -> BoxFuture<'static, Result<(), AppError>>;
    /// Moves work off a device (by name, id, or the start or end of its id), or lets it come back.
    fn set_draining(&self, node: &str, draining: bool) -> BoxFuture<'static, Result<(), AppError>>;
    /// Removes and revokes a device.
    fn remove_node(&self, node: &str) -> BoxFuture<'static, Result<(), AppError>>;
}

/// Shared handle.
pub type AppHandle = Arc<dyn App>;
