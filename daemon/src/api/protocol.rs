//! Health and metadata of the Open Inference Protocol v2.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Api, error::ApiError, extract::Path};

/// The only version that a deployment has: deploying again under the same name replaces it.
pub(super) const VERSION: &str = "1";
/// What the protocol calls the kind of model that is served.
pub(super) const PLATFORM: &str = "onnxruntime_onnx";

/// Path parameters of a model's endpoints.
#[derive(Debug, Deserialize)]
pub(super) struct ModelPath {
    pub(super) name: String,
    version: Option<String>,
}

impl ModelPath {
    /// Refuses versions that there are not.
    pub(super) fn check(&self) -> Result<(), ApiError> {
        check_version(&self.name, self.version.as_deref().unwrap_or_default())
    }
}

/// Refuses versions of a model that there are not; an empty one stands for whichever there is.
pub(super) fn check_version(model: &str, version: &str) -> Result<(), ApiError> {
    match version {
        "" | VERSION => Ok(()),
        other => Err(ApiError::new(
            StatusCode::NOT_FOUND,
            format!("model {model} has only version {VERSION}, not {other}"),
        )),
    }
}

pub(super) async fn server() -> Response {
    Json(json!({
        "name": "mesh",
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": ["binary_tensor_data"],
    }))
    .into_response()
}

pub(super) async fn live() -> StatusCode {
    StatusCode::OK
}

pub(super) async fn ready(State(api): State<Api>) -> Response {
    match api.app.ready() {
        true => StatusCode::OK.into_response(),
        false => ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "this device is not part of a cluster: see `mesh status`",
        )
        .retry_after(1)
        .into_response(),
    }
}

#[derive(Debug, Serialize)]
struct ModelDocument {
    name: String,
    versions: [&'static str; 1],
    platform: &'static str,
    inputs: Vec<TensorDocument>,
    outputs: Vec<TensorDocument>,
}

#[derive(Debug, Serialize)]
struct TensorDocument {
    name: String,
    datatype: mesh_inference::tensor::DType,
    shape: Vec<i64>,
}

pub(super) async fn model(State(api): State<Api>, Path(path): Path<ModelPath>) -> Result<Response, ApiError> {
    path.check()?;
    let metadata = api.app.metadata(&path.name)?;
    let document = |specs: Vec<crate::app::TensorSpec>| {
        specs
            .into_iter()
            .map(|s| TensorDocument { name: s.name, datatype: s.dtype, shape: s.shape })
            .collect::<Vec<_>>()
    };
    Ok(Json(ModelDocument {
        name: metadata.name,
        versions: [VERSION],
        platform: PLATFORM,
        inputs: document(metadata.inputs),
        outputs: document(metadata.outputs),
    })
    .into_response())
}

pub(super) async fn model_ready(
    State(api): State<Api>,
    Path(path): Path<ModelPath>,
) -> Result<Response, ApiError> {
    path.check()?;
    match api.app.model_ready(&path.name)? {
        true => Ok(Json(json!({ "name": path.name, "ready": true })).into_response()),
        false => Err(ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("model {} is not serving: see `mesh status`", path.name),
        )
        .retry_after(1)),
    }
}
