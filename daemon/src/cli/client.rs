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
/// Time for a daemon to say whether it takes a body. One that says nothing gets the body all the same.
const GO_AHEAD: Duration = Duration::from_secs(5);
/// Inference requests from here up wait for the go-ahead, as those of curl do; smaller ones are not worth the way there
/// and back.
const LARGE: usize = 1 << 20;
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
            .timeout_await_100(Some(GO_AHEAD))
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
        self.check(self.authorised(on_go_ahead(request)).send(SendBody::from_reader(&mut *from))).map(drop)
    }

    /// Asks for a deployment; `each` sees the events until it returns `false` or they end.
    pub(super) fn deploy(
        &self,
        request: &DeployRequest,
        mut each: impl FnMut(DeployEvent) -> bool,
    ) -> Result<(), ClientError> {
        let post = on_go_ahead(self.agent.post(self.url("/api/deploy")));
        let call = self.authorised(post).send_json(request);
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
        let request = if body.len() >= LARGE { on_go_ahead(request) } else { request };
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

/// Has the body sent only when the daemon wants it: what it refuses by the head alone breaks the connection while the
/// body is sent, and its words would be lost.
fn on_go_ahead<B>(request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
    request.header(header::EXPECT, "100-continue")
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
    use std::{
        io::{self, BufRead, BufReader, Read, Write},
        net::TcpListener,
        thread,
        time::Duration,
    };

    use mesh_inference::tensor::Tensor;

    use super::{Client, ClientError, LARGE, base_of, segment};
    use crate::{api::tests::Served, app::DeployRequest, cli::exit::CliError};

    /// A body that must not be asked for.
    struct Unwanted;

    impl Read for Unwanted {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            panic!("the body of a refused request is sent");
        }
    }

    /// Has a request answered by its head alone, as by a daemon that closes then; returns the head.
    fn refused(status: &str, ask: impl FnOnce(&Client) -> Result<(), ClientError>) -> (String, ClientError) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = Client::at(&format!("http://{}", listener.local_addr().unwrap()), None);
        let body = r#"{"error": "not this"}"#;
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        thread::scope(|scope| {
            let daemon = scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut head = String::new();
                let mut lines = BufReader::new(stream.try_clone().unwrap());
                while !head.ends_with("\r\n\r\n") && lines.read_line(&mut head).unwrap() > 0 {}
                stream.write_all(answer.as_bytes()).unwrap();
                head.to_lowercase()
            });
            let error = ask(&client).unwrap_err();
            (daemon.join().unwrap(), error)
        })
    }

    #[test]
    fn what_is_refused_by_its_head_is_told_and_not_sent() {
        let put = |client: &Client| client.put("/api/uploads/u/m", &mut Unwanted, 1 << 40);
        let values = vec![0.5f32; LARGE / 4];
        let tensor = Tensor::from_slice(&[i64::try_from(values.len()).unwrap()], &values).unwrap();
        let inputs = [("x".to_owned(), tensor)];
        let infer = |client: &Client| client.infer("m", &inputs, Duration::from_secs(20)).map(drop);
        let request = DeployRequest {
            name: "m".into(),
            upload: "u".into(),
            file: "m.onnx".into(),
            objective: mesh_planner::Objective::Throughput,
            shapes: Vec::new(),
            stages: None,
            pin: None,
            dry_run: false,
        };
        let deploy = |client: &Client| client.deploy(&request, |_| panic!("it is refused"));
        for (what, (head, error), code) in [
            ("upload", refused("507 Insufficient Storage", put), 1),
            ("upload", refused("429 Too Many Requests", put), 1),
            ("infer", refused("413 Payload Too Large", infer), 1),
            ("infer", refused("503 Service Unavailable", infer), 69),
            ("deploy", refused("401 Unauthorized", deploy), 1),
        ] {
            assert!(head.contains("expect: 100-continue"), "{what}: {head}");
            assert!(matches!(error, ClientError::Refused { .. }), "{what}: {error:?}");
            let error = CliError::from(error);
            assert!(error.message().starts_with("not this"), "{what}: {}", error.message());
            assert_eq!(error.code(), code, "{what}");
        }
    }

    #[test]
    fn a_daemon_says_go_ahead_or_why_not() {
        let served = Served::new();
        let client = Client::at(&format!("http://{}", served.address), None);
        let bytes = vec![7; 3 << 20];
        client.put("/api/uploads/u/m", &mut &bytes[..], 3 << 20).unwrap();
        client.put("/api/uploads/u/empty", &mut io::empty(), 0).unwrap();
        // More than any disk has.
        let error = client.put("/api/uploads/u/large", &mut Unwanted, 1 << 60).unwrap_err();
        assert!(error.to_string().contains("too full"), "{error}");
        let values = vec![0.5f32; LARGE / 4];
        let tensor = Tensor::from_slice(&[i64::try_from(values.len()).unwrap()], &values).unwrap();
        let answer = client.infer("echo-FP32", &[("x".to_owned(), tensor)], Duration::from_secs(20)).unwrap();
        assert_eq!(answer.outputs[0].1.as_slice::<f32>(), Some(&values[..]));
    }

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
