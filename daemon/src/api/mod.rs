//! The HTTP API on every device: Open Inference Protocol v2, status, plans, metrics, dashboard and management. The
//! protocol is spoken over gRPC, too, on a port of its own, when the config names one.
//!
//! All of it knows the daemon only as [`App`](crate::app::App). [`Server::bind`] takes the ports before anything else
//! starts, so that a taken port is an error at start and not a surprise later.

mod body;
mod deploy;
mod error;
mod extract;
mod grpc;
mod guard;
mod infer;
mod listener;
mod manage;
mod protocol;
mod socket;
mod uploads;

#[cfg(test)]
pub(crate) mod tests;

use std::{future::Future, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    http::{StatusCode, Uri, header},
    middleware,
    response::{Html, IntoResponse, Response},
    routing::{any, delete, get, post, put},
};
use futures::FutureExt;
use tokio::{net::TcpListener, sync::Semaphore};

pub(crate) use self::deploy::check_deployment_name;
use self::error::ApiError;
use crate::app::AppHandle;

/// What protects the API.
#[derive(Debug, Clone)]
pub struct ApiOptions {
    /// Bearer token that every request but `/v2/health/*` and the dashboard's page must carry.
    pub token: Option<String>,
    /// Largest body of an inference request, in bytes (after decompression); more is answered with 413. Twice as much is
    /// held of all bodies together.
    pub body_max: usize,
    /// Most bytes that the inputs of one request may take as tensors; more is answered with 413.
    pub inputs_max: usize,
    /// Where gRPC is spoken, if anywhere; port 0 takes any free one.
    pub grpc_listen: Option<SocketAddr>,
}

/// Whatever memory a device has, no body may be larger...
const BODY_MAX: usize = 256 << 20;
/// ...and so much is always taken.
const BODY_MIN: usize = 16 << 20;

impl ApiOptions {
    /// For a device that keeps up to `held` bytes of inputs for requests that are under way.
    pub fn for_held(held: usize) -> Self {
        let body_max = held.clamp(BODY_MIN, BODY_MAX);
        Self { token: None, body_max, inputs_max: held, grpc_listen: None }
    }
}

impl Default for ApiOptions {
    fn default() -> Self {
        Self::for_held(BODY_MAX)
    }
}

/// Why the API could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another program holds the port.
    #[error("the API port {address} is taken: stop the other program, or set {key} to a free port")]
    PortTaken {
        /// Address that was asked for.
        address: String,
        /// Key of the config that it comes from.
        key: &'static str,
    },
    /// The address cannot be used.
    #[error("the API cannot listen on {address}: check {key}")]
    Bind {
        /// Address that was asked for.
        address: String,
        /// Key of the config that it comes from.
        key: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// What all handlers share.
#[derive(Clone)]
struct Api {
    app: AppHandle,
    /// BLAKE3 of the token: comparing hashes takes the same time wherever they differ.
    token: Option<blake3::Hash>,
    /// Whether names other than addresses and `localhost` are refused in `Host` (see `guard`).
    local_only: bool,
    body_max: usize,
    inputs_max: usize,
    /// What the bodies of all requests may take.
    body_budget: body::Budget,
    /// Uploads that may be written at once.
    uploads: Arc<Semaphore>,
    /// Uploads that have files here.
    uploads_known: uploads::Known,
    /// Deployments that may be imported at once.
    deploys: Arc<Semaphore>,
}

/// Files of several uploads may arrive together; each costs a thread and a few buffers.
const UPLOADS_MAX: usize = 8;
/// Import and profiling use the whole device, so that a second one only waits for the first.
const DEPLOYS_MAX: usize = 2;

impl Api {
    /// `local_only` refuses host names other than `localhost`.
    fn new(app: AppHandle, options: &ApiOptions, local_only: bool) -> Self {
        Self {
            app,
            token: options.token.as_ref().map(|t| blake3::hash(t.as_bytes())),
            local_only: local_only && options.token.is_none(),
            body_max: options.body_max,
            inputs_max: options.inputs_max,
            body_budget: body::Budget::new(options.body_max.saturating_mul(2)),
            uploads: Arc::new(Semaphore::new(UPLOADS_MAX)),
            uploads_known: uploads::Known::default(),
            deploys: Arc::new(Semaphore::new(DEPLOYS_MAX)),
        }
    }
}

/// A bound API that does not answer yet.
#[derive(Debug)]
pub struct Server {
    http: Port,
    grpc: Option<Port>,
    options: ApiOptions,
}

/// A port that is taken.
#[derive(Debug)]
struct Port {
    listener: TcpListener,
    address: SocketAddr,
}

impl Port {
    /// `key` is the config's for the address.
    async fn bind(key: &'static str, listen: &str) -> Result<Self, ServeError> {
        let fail = |source: std::io::Error| {
            let address = listen.to_owned();
            match source.kind() == std::io::ErrorKind::AddrInUse {
                true => ServeError::PortTaken { address, key },
                false => ServeError::Bind { address, key, source },
            }
        };
        let listener = TcpListener::bind(listen).await.map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        Ok(Self { listener, address })
    }
}

impl Server {
    /// Takes the ports. `listen` is HTTP's, as `host:port`; port 0 takes any free one.
    pub async fn bind(listen: &str, options: ApiOptions) -> Result<Self, ServeError> {
        let http = Port::bind("api.listen", listen).await?;
        let grpc = match options.grpc_listen {
            Some(address) => Some(Port::bind("api.grpc_listen", &address.to_string()).await?),
            None => None,
        };
        Ok(Self { http, grpc, options })
    }

    /// Where it listens for HTTP.
    pub fn address(&self) -> SocketAddr {
        self.http.address
    }

    /// Where it listens for gRPC, if it does.
    pub fn grpc_address(&self) -> Option<SocketAddr> {
        self.grpc.as_ref().map(|port| port.address)
    }

    /// Answers requests until `shutdown` ends; then open requests have a few seconds to finish.
    pub async fn serve(self, app: AppHandle, shutdown: impl Future<Output = ()> + Send + 'static) {
        let api = Api::new(app, &self.options, self.http.address.ip().is_loopback());
        let shutdown = shutdown.shared();
        let http = listener::Limited::new(self.http.listener).serve(router(api.clone()), shutdown.clone());
        let grpc = async {
            if let Some(port) = self.grpc {
                grpc::serve(port.listener, api.clone(), shutdown).await;
            }
        };
        tokio::select! {
            _ = futures::future::join(http, grpc) => {}
            () = uploads::sweep(&api) => {}
        }
    }
}

fn router(api: Api) -> Router {
    Router::new()
        .route("/", get(dashboard))
        .route("/metrics", get(manage::metrics))
        .merge(protocol_routes())
        .merge(management_routes())
        .route("/favicon.ico", any(|| async { StatusCode::NO_CONTENT }))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(api.clone(), guard::guard))
        .with_state(api)
}

fn protocol_routes() -> Router<Api> {
    Router::new()
        .route("/v2", get(protocol::server))
        .route("/v2/", get(protocol::server))
        .route("/v2/health/live", get(protocol::live))
        .route("/v2/health/ready", get(protocol::ready))
        .route("/v2/models/{name}", get(protocol::model))
        .route("/v2/models/{name}/versions/{version}", get(protocol::model))
        .route("/v2/models/{name}/ready", get(protocol::model_ready))
        .route("/v2/models/{name}/versions/{version}/ready", get(protocol::model_ready))
        .route("/v2/models/{name}/infer", post(infer::infer))
        .route("/v2/models/{name}/versions/{version}/infer", post(infer::infer))
}

fn management_routes() -> Router<Api> {
    Router::new()
        .route("/api/status", get(manage::status))
        .route("/api/plan/{name}", get(manage::plan))
        .route("/api/models", get(manage::models))
        .route("/api/models/{model}", delete(manage::remove_model))
        .route("/api/deployments/{name}", delete(manage::undeploy))
        .route("/api/nodes/{node}/{action}", post(manage::node))
        .route("/api/deploy", post(deploy::deploy))
        .route("/api/uploads/{id}", delete(uploads::remove))
        .route("/api/uploads/{id}/{*file}", put(uploads::write))
}

async fn dashboard() -> Response {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                  base-uri 'none'; frame-ancestors 'none'";
    ([(header::CONTENT_SECURITY_POLICY, policy)], Html(include_str!("dashboard.html"))).into_response()
}

async fn unknown_path(uri: Uri) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, format!("there is nothing at {}", uri.path()))
}

async fn wrong_method(uri: Uri) -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, format!("{} does not take this method", uri.path()))
}
