//! Status, plans, metrics and the small changes.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use mesh_planner::Lift;
use serde::Deserialize;

use super::{
    Api,
    error::ApiError,
    extract::{Path, Query},
};
use crate::app::{ModelSummary, PlanDocument};

/// Whoever asks for a plan waits so long for what would lift it.
const LIFTS_LIMIT: Duration = Duration::from_secs(5);

pub(super) async fn status(State(api): State<Api>) -> Response {
    Json(api.app.status()).into_response()
}

pub(super) async fn metrics(State(api): State<Api>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], api.app.metrics()).into_response()
}

/// What of a plan is wanted.
#[derive(Debug, Deserialize)]
pub(super) struct PlanQuery {
    /// "1": what the plan was made from.
    problem: Option<String>,
    /// "1": also what would lift the plan. Takes as long as several plannings.
    lifts: Option<String>,
}

/// "1" and "true" ask for it.
fn is_asked(value: Option<&str>) -> bool {
    matches!(value, Some("1" | "true"))
}

pub(super) async fn plan(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(asked): Query<PlanQuery>,
) -> Result<Response, ApiError> {
    if is_asked(asked.problem.as_deref()) {
        return Ok(Json(api.app.problem(&name).await?).into_response());
    }
    let (epoch, plan) = api.app.plan(&name)?;
    let lifts = if is_asked(asked.lifts.as_deref()) { lifts(&api, &name).await } else { Vec::new() };
    Ok(Json(PlanDocument { name, epoch, plan, lifts }).into_response())
}

/// What would lift a plan; nothing where that cannot be said in time: the plan is what was asked for.
async fn lifts(api: &Api, name: &str) -> Vec<Lift> {
    match tokio::time::timeout(LIFTS_LIMIT, api.app.lifts(name)).await {
        Ok(Ok(lifts)) => lifts,
        Ok(Err(error)) => {
            tracing::debug!(deployment = name, %error, "no word on what would lift the plan");
            Vec::new()
        }
        Err(_) => {
            tracing::debug!(deployment = name, "what would lift the plan takes too long to compute");
            Vec::new()
        }
    }
}

pub(super) async fn models(State(api): State<Api>) -> Json<Vec<ModelSummary>> {
    Json(api.app.models())
}

pub(super) async fn remove_model(
    State(api): State<Api>,
    Path(model): Path<String>,
) -> Result<StatusCode, ApiError> {
    api.app.remove_model(&model).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn undeploy(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    api.app.undeploy(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn node(
    State(api): State<Api>,
    Path((node, action)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    match action.as_str() {
        "drain" => api.app.set_draining(&node, true).await?,
        "undrain" => api.app.set_draining(&node, false).await?,
        "remove" => api.app.remove_node(&node).await?,
        other => {
            return Err(ApiError::new(
                StatusCode::NOT_FOUND,
                format!("a device can drain, undrain or be removed (remove), not {other}"),
            ));
        }
    }
    Ok(StatusCode::NO_CONTENT)
}
