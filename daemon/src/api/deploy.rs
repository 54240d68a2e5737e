//! `POST /api/deploy`: a deployment's progress as JSON lines. The deployment goes on when the client leaves.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use tokio::sync::mpsc;

use super::{Api, body, error::ApiError, uploads};
use crate::app::{DeployEvent, DeployRequest};

/// A pinned plan is the largest part; this is thousands of stages.
const REQUEST_MAX: usize = 4 << 20;
/// Events in flight to the client and from the daemon's core.
const EVENTS_MAX: usize = 64;
/// How long an event that matters waits for a slow client.
const CLIENT_LIMIT: Duration = Duration::from_secs(10);

pub(super) async fn deploy(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let text = body::read_small(&headers, body, REQUEST_MAX).await?;
    let request: DeployRequest = serde_json::from_slice(&text)
        .map_err(|error| ApiError::bad(format!("this is not a deploy request: {error}")))?;
    check(&request)?;
    let permit = api.deploys.clone().try_acquire_owned().map_err(|_| {
        ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "this device imports as many models as it can: wait for one, or deploy through another device",
        )
        .retry_after(5)
    })?;
    let (events, from_app) = mpsc::channel(EVENTS_MAX);
    let (to_client, lines) = mpsc::channel(EVENTS_MAX);
    tokio::spawn(async move {
        let upload = request.upload.clone();
        let work = api.app.deploy(request, events);
        tokio::join!(work, pump(from_app, &to_client));
        // A deployment uses up its upload: what it needs now lies in the store.
        uploads::forget(&api, &upload).await;
        drop(permit);
        // The answer ends when all is done.
        drop(to_client);
    });
    let stream = futures::stream::unfold(lines, |mut lines: mpsc::Receiver<Bytes>| async move {
        lines.recv().await.map(|line| (Ok::<_, Infallible>(line), lines))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(stream)).into_response())
}

/// Takes events as they come, so that the daemon never waits for the client: progress is dropped when the client is
/// slow, the rest waits a while.
async fn pump(mut events: mpsc::Receiver<DeployEvent>, client: &mpsc::Sender<Bytes>) {
    while let Some(event) = events.recv().await {
        let Ok(mut line) = serde_json::to_vec(&event) else { continue };
        line.push(b'\n');
        match event {
            DeployEvent::Progress { .. } => drop(client.try_send(line.into())),
            DeployEvent::Planned { .. }
            | DeployEvent::Serving { .. }
            | DeployEvent::DryRun
            | DeployEvent::Failed { .. } => drop(client.send_timeout(line.into(), CLIENT_LIMIT).await),
        }
    }
}

/// Whether a deployment may have this name, or why not.
pub(crate) fn check_deployment_name(name: &str) -> Result<(), String> {
    match uploads::is_plain(name) {
        true => Ok(()),
        false => Err(format!(
            "{name:?} is no name for a deployment: use 1 to 64 letters, digits, '-', '_' and '.', not starting with '.'"
        )),
    }
}

fn check(request: &DeployRequest) -> Result<(), ApiError> {
    check_deployment_name(&request.name).map_err(ApiError::bad)?;
    if !uploads::is_plain(&request.upload) {
        return Err(ApiError::bad(format!("{:?} is no upload", request.upload)));
    }
    uploads::check_path(&request.file)?;
    if request.stages == Some(0) {
        return Err(ApiError::bad("a plan has at least one stage"));
    }
    Ok(())
}
