//! `POST /api/deploy`: a deployment's progress as JSON lines. The deployment goes on when the client leaves.

use std::{convert::Infallible, future::Future, time::Duration};

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
    // Before there is a place for it: who is told again and again to come back keeps what it has sent.
    let held = api.uploads_known.hold(&request.upload)?;
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
        // A deployment uses up its upload: what it needs now lies in the store.
        let let_go = async {
            drop(held);
            uploads::forget(&api, &upload).await;
            drop(permit);
        };
        // The answer ends when all is done.
        tokio::join!(work, pump(from_app, to_client, let_go));
    });
    let stream = futures::stream::unfold(lines, |mut lines: mpsc::Receiver<Bytes>| async move {
        lines.recv().await.map(|line| (Ok::<_, Infallible>(line), lines))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(stream)).into_response())
}

/// Takes events as they come, so that the daemon never waits for the client: progress is dropped when the client is
/// slow, the rest waits a while.
///
/// Lets go of what the deployment holds of this device once it is imported and replicated: to be planned may take any
/// time. From then on nobody listens when the client has left. Before, events are taken all the same: who imports for a
/// client that has left goes on.
async fn pump(
    mut events: mpsc::Receiver<DeployEvent>,
    client: mpsc::Sender<Bytes>,
    let_go: impl Future<Output = ()>,
) {
    let mut held = Some(let_go);
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = client.closed(), if held.is_none() => None,
        };
        if event.as_ref().is_none_or(is_past_import)
            && let Some(let_go) = held.take()
        {
            let_go.await;
        }
        let Some(event) = event else { return };
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

/// Whether nothing of the upload is needed any more when this is told.
fn is_past_import(event: &DeployEvent) -> bool {
    match event {
        DeployEvent::Progress { step, .. } => !matches!(step.as_str(), "importing" | "profiling"),
        DeployEvent::Planned { .. }
        | DeployEvent::Serving { .. }
        | DeployEvent::DryRun
        | DeployEvent::Failed { .. } => true,
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::{sync::Semaphore, task::JoinHandle};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A deployment of which the events are told by hand.
    struct Told {
        events: mpsc::Sender<DeployEvent>,
        lines: mpsc::Receiver<Bytes>,
        permits: Arc<Semaphore>,
        pump: JoinHandle<()>,
    }

    impl Told {
        fn new() -> Self {
            let (events, from_app) = mpsc::channel(EVENTS_MAX);
            let (to_client, lines) = mpsc::channel(EVENTS_MAX);
            let permits = Arc::new(Semaphore::new(1));
            let permit = permits.clone().try_acquire_owned().unwrap();
            let pump = tokio::spawn(pump(from_app, to_client, async move { drop(permit) }));
            Self { events, lines, permits, pump }
        }

        /// Tells of a step and whether the permit is free once the client has heard of it.
        async fn step(&mut self, step: &str) -> bool {
            self.tell(DeployEvent::Progress { step: step.into(), done: 0, total: 0 }).await
        }

        async fn tell(&mut self, event: DeployEvent) -> bool {
            self.events.send(event).await.unwrap();
            assert!(self.lines.recv().await.is_some());
            self.permits.available_permits() == 1
        }
    }

    #[tokio::test]
    async fn what_is_held_is_let_go_of_once_the_model_is_replicated() {
        let mut told = Told::new();
        assert!(!told.step("importing").await && !told.step("profiling").await);
        assert!(told.step("planning").await && told.step("preparing").await);
        for end in [DeployEvent::DryRun, DeployEvent::Failed { status: 400, error: "bad".into() }] {
            let mut told = Told::new();
            assert!(!told.step("importing").await && told.tell(end).await);
        }
        let Told { events, permits, pump, .. } = Told::new();
        drop(events);
        tokio::time::timeout(PATIENCE, pump).await.unwrap().unwrap();
        assert_eq!(permits.available_permits(), 1, "an end without a word is an end");
    }

    #[tokio::test]
    async fn nobody_watches_for_a_client_that_has_left() {
        let mut told = Told::new();
        assert!(told.step("planning").await);
        drop(told.lines);
        tokio::time::timeout(PATIENCE, told.events.closed()).await.unwrap();
        tokio::time::timeout(PATIENCE, told.pump).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_import_goes_on_without_its_client() {
        let mut told = Told::new();
        assert!(!told.step("importing").await);
        drop(told.lines);
        let profiling = || DeployEvent::Progress { step: "profiling".into(), done: 0, total: 0 };
        // More than the queues hold: they are taken.
        for _ in 0..3 * EVENTS_MAX {
            tokio::time::timeout(PATIENCE, told.events.send(profiling())).await.unwrap().unwrap();
        }
        assert_eq!(told.permits.available_permits(), 0);
        told.events.send(DeployEvent::Progress { step: "planning".into(), done: 0, total: 0 }).await.unwrap();
        tokio::time::timeout(PATIENCE, told.pump).await.unwrap().unwrap();
        assert_eq!(told.permits.available_permits(), 1);
    }
}
