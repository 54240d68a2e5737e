//! `POST /v2/models/{name}/infer`: JSON and the binary tensor extension, in both directions. What gRPC shares with it is
//! here, too: the checks of a request, filling tensors, and running it.

pub(super) mod checks;
pub(super) mod fill;
mod header;
mod json_data;
mod request;
pub(super) mod response;

use std::time::Duration;

use axum::{
    body::Body,
    extract::{ConnectInfo, State},
    http::{HeaderMap, StatusCode},
    response::Response,
};

use super::{Api, body, error::ApiError, extract::Path, listener::Client, protocol::ModelPath};
use crate::app::{AppError, InferRequest, InferResponse};

/// Time for a request that names none.
pub(super) const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// Longest time that a request may ask for: its inputs are kept as long.
pub(super) const TIMEOUT_MAX: Duration = Duration::from_secs(600);
/// Bodies from here up are turned into tensors and back on a blocking thread.
pub(super) const BLOCKING_BYTES: usize = 256 << 10;
/// The core answers by the deadline; this much later the API answers for it.
const GRACE: Duration = Duration::from_secs(2);

/// Says how long the JSON part is when binary tensors follow.
const JSON_LENGTH: &str = "inference-header-content-length";

pub(super) async fn infer(
    State(api): State<Api>,
    ConnectInfo(client): ConnectInfo<Client>,
    Path(path): Path<ModelPath>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    path.check()?;
    let metadata = api.app.metadata(&path.name)?;
    let json_len = json_length(&headers)?;
    let body = body::read(&api, &headers, body).await?;
    let (large, inputs_max) = (body.len() >= BLOCKING_BYTES, api.inputs_max);
    let parsed = off_thread(large, move || request::parse(body, json_len, &metadata, inputs_max)).await?;
    let request::Parsed { mut request, answer } = parsed;
    request.from_elsewhere = client.is_elsewhere;
    let response = run(&api, request).await?;
    let large = response.outputs.iter().any(|(_, tensor)| tensor.bytes().len() >= BLOCKING_BYTES);
    off_thread(large, move || response::encode(&answer, response)).await
}

/// Runs a request through the mesh.
pub(super) async fn run(api: &Api, request: InferRequest) -> Result<InferResponse, ApiError> {
    let timeout = request.timeout;
    let result = tokio::time::timeout(timeout + GRACE, api.app.infer(request)).await;
    let response = result.unwrap_or_else(|_| {
        Err(AppError::DeadlineExceeded(format!(
            "no answer within {} ms: give more time",
            timeout.as_millis()
        )))
    })?;
    Ok(response)
}

fn json_length(headers: &HeaderMap) -> Result<Option<usize>, ApiError> {
    let Some(value) = headers.get(JSON_LENGTH) else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    match parsed {
        Some(len) => Ok(Some(len)),
        None => {
            Err(ApiError::bad("Inference-Header-Content-Length must be the length of the JSON part in bytes"))
        }
    }
}

/// Runs `work` here when it is short, on a blocking thread when it is long.
pub(super) async fn off_thread<T: Send + 'static>(
    long: bool,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if !long {
        return work();
    }
    match crate::background::spawn(work).await {
        Ok(result) => result,
        Err(error) => Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}
