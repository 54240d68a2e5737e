//! The Open Inference Protocol v2 over gRPC: the service `inference.GRPCInferenceService` on `api.grpc_listen`.
//!
//! Requests pass the checks that those over HTTP pass, with the same limits, and out of the same budget of bodies. That
//! is why the little that gRPC puts around a message is handled here, on hyper's HTTP/2: a library for it buffers a
//! message before anybody can refuse it, and makes every list that the message says it holds.
//!
//! Browsers speak HTTP/2 only with TLS, so that nothing here is about pages and host names, as in `guard`.

mod call;
mod connection;
mod contents;
pub(super) mod messages;
mod request;
mod response;
mod wire;

use std::{future::Future, panic::AssertUnwindSafe, sync::Arc};

use axum::{
    body::Body,
    http::{StatusCode, request::Parts},
    response::Response,
};
use futures::FutureExt;
use hyper::{Request, body::Incoming};
use prost::Message;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

use self::{
    connection::Open,
    messages::{
        ModelMetadataResponse, ModelReadyResponse, ModelRequest, ServerLiveResponse, ServerMetadataResponse,
        ServerReadyResponse,
    },
};
use super::{
    Api,
    body::{self, Pieces},
    error::ApiError,
    guard,
    infer::{self, BLOCKING_BYTES, off_thread},
    listener::{Client, Limited, PATIENCE},
    protocol::check_version,
};

/// Clients that may be connected at once; more wait in the system's queue. A client needs one connection, whatever it
/// does at once.
const CONNECTIONS_MAX: usize = 256;
/// Calls that may be open at once, over all connections: as many as HTTP's connections allow there.
const CALLS_MAX: usize = 1024;
/// Largest message of a call that only names a model.
const SMALL_MAX: usize = 1 << 20;

/// Serves until `shutdown` ends; then open calls have a few seconds to finish.
pub(super) async fn serve(listener: TcpListener, api: Api, shutdown: impl Future<Output = ()>) {
    let room = Arc::new(Semaphore::new(CALLS_MAX));
    let serve = move |stream: TcpStream, client: Client, ending: CancellationToken| {
        let service = Service { api: api.clone(), room: room.clone(), client };
        let answer = move |request, open| service.clone().answer(request, open);
        connection::serve(stream, PATIENCE, ending, answer)
    };
    Limited::with_room(listener, CONNECTIONS_MAX).serve_each(shutdown, serve).await;
}

/// The service's methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    ServerLive,
    ServerReady,
    ServerMetadata,
    ModelReady,
    ModelMetadata,
    ModelInfer,
}

impl Method {
    fn of(path: &str) -> Option<Self> {
        match path.strip_prefix("/inference.GRPCInferenceService/")? {
            "ServerLive" => Some(Self::ServerLive),
            "ServerReady" => Some(Self::ServerReady),
            "ServerMetadata" => Some(Self::ServerMetadata),
            "ModelReady" => Some(Self::ModelReady),
            "ModelMetadata" => Some(Self::ModelMetadata),
            "ModelInfer" => Some(Self::ModelInfer),
            _ => None,
        }
    }

    /// Whether it needs no token, as `/v2/health/*` does not.
    fn is_open(self) -> bool {
        matches!(self, Self::ServerLive | Self::ServerReady)
    }
}

/// The service as one client sees it.
#[derive(Clone)]
struct Service {
    api: Api,
    /// For calls, over all clients.
    room: Arc<Semaphore>,
    client: Client,
}

impl Service {
    /// Answers a call, whatever happens.
    async fn answer(self, request: Request<Incoming>, open: Open) -> Response {
        let (head, body) = request.into_parts();
        if !call::is_call(&head) {
            return call::no_call();
        }
        let Ok(place) = self.room.clone().try_acquire_owned() else {
            let full = "this device has as many calls open as it can: try again soon, or use another device";
            return call::refuse(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, full).retry_after(1));
        };
        match AssertUnwindSafe(self.call(&head, Body::new(body))).catch_unwind().await {
            Ok(Ok(message)) => call::answer(message, open, place),
            Ok(Err(error)) => call::refuse(error),
            Err(_) => call::refuse(ApiError::defect()),
        }
    }

    async fn call(&self, head: &Parts, body: Body) -> Result<Pieces, ApiError> {
        let method = Method::of(head.uri.path());
        self.admit(method, head)?;
        let Some(method) = method else {
            let message = format!("there is no method {} here", head.uri.path());
            return Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, message));
        };
        match method {
            Method::ServerLive => {
                self.read::<()>(head, body).await?;
                Ok(call::message(&ServerLiveResponse { live: true }))
            }
            Method::ServerReady => {
                self.read::<()>(head, body).await?;
                Ok(call::message(&ServerReadyResponse { ready: self.api.app.ready() }))
            }
            Method::ServerMetadata => {
                self.read::<()>(head, body).await?;
                Ok(call::message(&ServerMetadataResponse::new()))
            }
            Method::ModelReady => {
                let model = self.read_model(head, body).await?;
                let ready = self.api.app.model_ready(&model)?;
                Ok(call::message(&ModelReadyResponse { ready }))
            }
            Method::ModelMetadata => {
                let model = self.read_model(head, body).await?;
                let metadata = self.api.app.metadata(&model)?;
                Ok(call::message(&ModelMetadataResponse::of(metadata)))
            }
            Method::ModelInfer => self.infer(head, body).await,
        }
    }

    fn admit(&self, method: Option<Method>, head: &Parts) -> Result<(), ApiError> {
        let Some(token) = &self.api.token else { return Ok(()) };
        if method.is_some_and(Method::is_open) || guard::carries(&head.headers, token) {
            return Ok(());
        }
        Err(ApiError::new(
            StatusCode::UNAUTHORIZED,
            "this API wants a token: send the metadata `authorization: Bearer TOKEN`",
        ))
    }

    /// Reads a small message.
    async fn read<M: Message + Default>(&self, head: &Parts, body: Body) -> Result<M, ApiError> {
        let mut message = body::read_message(&self.api, &head.headers, body, SMALL_MAX).await?;
        let length = message.len();
        M::decode(message.take_front(length)).map_err(|error| {
            ApiError::bad(format!("the message is none that {} takes: {error}", head.uri.path()))
        })
    }

    /// Reads which model is meant.
    async fn read_model(&self, head: &Parts, body: Body) -> Result<String, ApiError> {
        let ModelRequest { name, version } = self.read(head, body).await?;
        check_version(&name, &version)?;
        Ok(name)
    }

    async fn infer(&self, head: &Parts, body: Body) -> Result<Pieces, ApiError> {
        let deadline = call::deadline(&head.headers)?;
        let message = body::read_message(&self.api, &head.headers, body, self.api.body_max).await?;
        let (app, inputs_max) = (self.api.app.clone(), self.api.inputs_max);
        let large = message.len() >= BLOCKING_BYTES;
        let parsed = off_thread(large, move || request::parse(message, &*app, deadline, inputs_max)).await?;
        let request::Parsed { mut request, answer } = parsed;
        request.from_elsewhere = self.client.is_elsewhere;
        let response = infer::run(&self.api, request).await?;
        response::encode(answer, &response)
    }
}
