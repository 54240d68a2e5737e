//! The client side of the HTTP API.

use std::{
    io::{self, BufRead, BufReader, Read},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use ureq::{
    Agent, Body, SendBody,
    http::{Response, header},
};

use super::{args::Global, exit::CliError, settings, wire};
use crate::app::{DeployEvent, DeployRequest, InferResponse, ModelMetadata};
use mesh_inference::tensor::Tensor;

/// Commands whose answer is ready at once wait at most this long for it.
const SHORT: Duration = Duration::from_secs(30);
/// Largest document that is read: outputs can be as large as inputs.
const ANSWER_MAX: u64 = 4 << 30;

/// A daemon to talk to. Clones share connections.
#[derive(Debug, Clone)]
pub(super) struct Client {
    agent: Agent,
    base: String,
    token: Option<String>,
}

/// Why a daemon did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// Nobody answers.
    #[error(
        "no daemon answers at {base} ({why}): start one with `mesh run`, or name another device with --api URL"
    )]
    NoDaemon {
        /// Where.
        base: String,
        /// What the system said.
        why: String,
    },
    /// It answered with an error.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its words.
        message: String,
    },
    /// What it said makes no sense.
    #[error("the answer of {base} is not what a Mesh daemon says ({why}): check --api and the versions")]
    Strange {
        /// Where.
        base: String,
        /// What is wrong.
        why: String,
    },
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        let message = error.to_string();
        match error {
            ClientError::NoDaemon { .. } => Self::unreachable(message),
            ClientError::Refused { status: 401, .. } => {
                Self::failed(format!("{message}; set MESH_API_TOKEN, or name the config with --config"))
            }
            // No quorum, a full ingress, a device that has not joined: what may pass.
            ClientError::Refused { status: 503, .. } => Self::unreachable(message),
            ClientError::Refused { .. } | ClientError::Strange { .. } => Self::failed(message),
        }
    }
}

impl Client {
    /// Finds the daemon by `--api`, `MESH_API` or the config's `api.listen`.
    pub(super) fn new(global: &Global) -> Result<Self, CliError> {
        let (base, token) = settings::daemon(global)?;
        Ok(Self::at(&base, token))
    }

    /// A client of the daemon at `base`, such as `http://127.0.0.1:7401`.
    pub(super) fn at(base: &str, token: Option<String>) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // A proxy of the environment is for the internet, not for the devices next door.
            .proxy(None)
            .max_redirects(0)
            .timeout_connect(Some(Duration::from_secs(5)))
            .max_idle_connections(1024)
            .max_idle_connections_per_host(1024);
        Self { agent: config.build().into(), base: base.to_owned(), token }
    }

    /// Where the daemon is.
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let request = self.agent.get(self.url(path)).config().timeout_global(Some(SHORT)).build();
        let mut response = self.check(self.authorised(request).call())?;
        self.read_json(&mut response)
    }

    pub(super) fn post(&self, path: &str, limit: Duration) -> Result<(), ClientError> {
        let request = self.agent.post(self.url(path)).config().timeout_global(Some(limit)).build();
        self.check(self.authorised(request).send_empty()).map(drop)
    }

    pub(super) fn delete(&self, path: &str, limit: Duration) -> Result<(), ClientError> {
        let request = self.agent.delete(self.url(path)).config().timeout_global(Some(limit)).build();
        self.check(self.authorised(request).call()).map(drop)
    }

    /// Sends `len` bytes of `from` as a file.
    pub(super) fn put(&self, path: &str, from: &mut dyn Read, len: u64) -> Result<(), ClientError> {
        let request = self.agent.put(self.url(path)).header(header::CONTENT_LENGTH, len.to_string());
        self.check(self.authorised(request).send(SendBody::from_reader(&mut *from))).map(drop)
    }

    /// Asks for a deployment; `each` sees the events until it returns `false` or they end.
    pub(super) fn deploy(
        &self,
        request: &DeployRequest,
        mut each: impl FnMut(DeployEvent) -> bool,
    ) -> Result<(), ClientError> {
        let call = self.authorised(self.agent.post(self.url("/api/deploy"))).send_json(request);
        let response = self.check(call)?;
        let mut lines = BufReader::new(response.into_body().into_reader());
        let mut line = String::new();
        loop {
            line.clear();
            let read = (&mut lines).take(64 << 20).read_line(&mut line);
            if read.map_err(|error| self.lost(&error))? == 0 {
                return Ok(());
            }
            let event = serde_json::from_str(&line).map_err(|error| self.strange(error.to_string()))?;
            if !each(event) {
                return Ok(());
            }
        }
    }

    pub(super) fn metadata(&self, model: &str) -> Result<ModelMetadata, ClientError> {
        let document: wire::ModelDocument = self.get(&format!("/v2/models/{}", segment(model)))?;
        Ok(document.into())
    }

    /// One inference request with binary tensors, as any client of the protocol would send it.
    pub(super) fn infer(
        &self,
        model: &str,
        inputs: &[(String, Tensor)],
        timeout: Duration,
    ) -> Result<InferResponse, ClientError> {
        let (body, json_len) = wire::encode(inputs, timeout);
        // The daemon answers by the deadline; the rest is for the way.
        let limit = timeout + Duration::from_secs(10);
        let request = self.agent.post(self.url(&format!("/v2/models/{}/infer", segment(model))));
        let request = request
            .config()
            .timeout_global(Some(limit))
            .build()
            .content_type("application/octet-stream")
            .header(wire::JSON_LENGTH, json_len.to_string());
        let mut response = self.check(self.authorised(request).send(&body[..]))?;
        let json_len = response.headers().get(wire::JSON_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
        let body = self.read(&mut response)?;
        wire::decode(&body, json_len.unwrap_or(body.len())).map_err(|why| self.strange(why))
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn authorised<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.token {
            Some(token) => request.header(header::AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        }
    }

    fn check(&self, call: Result<Response<Body>, ureq::Error>) -> Result<Response<Body>, ClientError> {
        let mut response = call.map_err(|error| {
            if matches!(error, ureq::Error::Http(_) | ureq::Error::Protocol(_)) {
                return self.strange(error.to_string());
            }
            self.lost(&error)
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        #[derive(serde::Deserialize)]
        struct Document {
            error: String,
        }
        let text = self.read(&mut response)?;
        let document: Document = serde_json::from_slice(&text)
            .map_err(|_| self.strange(format!("status {status} without an error document")))?;
        Err(ClientError::Refused { status: status.as_u16(), message: document.error })
    }

    fn read(&self, response: &mut Response<Body>) -> Result<Vec<u8>, ClientError> {
        response.body_mut().with_config().limit(ANSWER_MAX).read_to_vec().map_err(|error| self.lost(&error))
    }

    fn read_json<T: DeserializeOwned>(&self, response: &mut Response<Body>) -> Result<T, ClientError> {
        let text = self.read(response)?;
        serde_json::from_slice(&text).map_err(|error| self.strange(error.to_string()))
    }

    fn lost(&self, error: &dyn std::fmt::Display) -> ClientError {
        ClientError::NoDaemon { base: self.base.clone(), why: error.to_string() }
    }

    fn strange(&self, why: String) -> ClientError {
        ClientError::Strange { base: self.base.clone(), why }
    }
}

/// `host:port` or `http://host:port` as the start of URLs.
pub(super) fn base_of(listen: &str) -> Result<String, CliError> {
    let rest = listen.strip_prefix("http://").unwrap_or(listen).trim_end_matches('/');
    if rest.is_empty() || rest.contains(['/', '?', '#', ' ']) {
        return Err(CliError::usage(format!("{listen:?} is no address of a daemon: write http://HOST:PORT")));
    }
    let port = rest.rsplit_once(':').map(|(_, port)| port).filter(|port| port.parse::<u16>().is_ok());
    let port = if port.is_some() { "" } else { ":7401" };
    // A daemon that listens on all addresses is reached at this device's own.
    let rest = rest.replacen("0.0.0.0", "127.0.0.1", 1).replacen("[::]", "[::1]", 1);
    Ok(format!("http://{rest}{port}"))
}

/// A name as one segment of a path.
pub(super) fn segment(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Prints a value as JSON for programs.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| CliError::failed(format!("the document cannot be written: {error}")))?;
    super::output::print(&format!("{text}\n"))
}

/// An error while reading a local file.
pub(super) fn file_error(path: &std::path::Path, error: &io::Error) -> CliError {
    CliError::failed(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::{base_of, segment};

    #[test]
    fn addresses() {
        let cases = [
            ("127.0.0.1:7401", Some("http://127.0.0.1:7401")),
            ("http://pi.local:80/", Some("http://pi.local:80")),
            ("pi.local", Some("http://pi.local:7401")),
            ("0.0.0.0:9", Some("http://127.0.0.1:9")),
            ("[::]:9", Some("http://[::1]:9")),
            ("[::1]", Some("http://[::1]:7401")),
            ("https://pi", None),
            ("", None),
            ("http://a/b", None),
        ];
        for (given, wanted) in cases {
            assert_eq!(base_of(given).ok().as_deref(), wanted, "{given}");
        }
        assert_eq!(segment("a b/ä"), "a%20b%2F%C3%A4");
    }
}
