//! The API over real connections, against a small daemon that adds numbers itself.

mod adder;
pub(super) mod grpc;
mod hostile;
mod manage;
mod protocol;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use serde_json::Value;
use tokio::sync::oneshot;

pub(crate) use self::adder::Adder;
use super::{ApiOptions, ServeError, Server};

/// A served API; it ends with the value.
pub(crate) struct Served {
    pub(crate) address: SocketAddr,
    grpc: Option<SocketAddr>,
    pub(crate) app: Arc<Adder>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Served {
    pub(crate) fn new() -> Self {
        Self::with(ApiOptions::default())
    }

    pub(crate) fn with(options: ApiOptions) -> Self {
        let app = Arc::new(Adder::default());
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let (stop, stopped) = oneshot::channel();
        let served = app.clone();
        let work = move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            runtime.unwrap().block_on(async {
                let server = Server::bind("127.0.0.1:0", options).await.unwrap();
                tell.send((server.address(), server.grpc_address())).unwrap();
                server.serve(served, async { drop(stopped.await) }).await;
            });
        };
        let thread = thread::Builder::new().spawn(work).unwrap();
        let (address, grpc) = told.recv().unwrap();
        Self { address, grpc, app, stop: Some(stop), thread: Some(thread) }
    }

    /// Begins the end, without waiting for it.
    fn stop(&mut self) {
        drop(self.stop.take());
    }

    fn send(&self, request: Request<'_>) -> Reply {
        self.raw(&request.bytes(self.address))
    }

    fn get(&self, path: &str) -> Reply {
        self.send(Request { path, ..Request::default() })
    }

    /// Sends bytes, reads the whole answer.
    fn raw(&self, bytes: &[u8]) -> Reply {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        // The server may answer and close before it has read everything.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        Reply::parse(&answer)
    }

    fn infer(&self, model: &str, json: &Value) -> Reply {
        let path = format!("/v2/models/{model}/infer");
        self.send(Request { method: "POST", path: &path, body: json.to_string().as_bytes(), headers: &[] })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking());
        }
    }
}

#[derive(Clone, Copy)]
struct Request<'a> {
    method: &'a str,
    path: &'a str,
    headers: &'a [(&'a str, &'a str)],
    body: &'a [u8],
}

impl Default for Request<'_> {
    fn default() -> Self {
        Self { method: "GET", path: "/", headers: &[], body: b"" }
    }
}

impl Request<'_> {
    fn bytes(&self, address: SocketAddr) -> Vec<u8> {
        let mut text = format!("{} {} HTTP/1.1\r\nconnection: close\r\n", self.method, self.path);
        if !self.headers.iter().any(|(name, _)| *name == "host") {
            text.push_str(&format!("host: {address}\r\n"));
        }
        for (name, value) in self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str(&format!("content-length: {}\r\n\r\n", self.body.len()));
        [text.as_bytes(), self.body].concat()
    }
}

#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Reply {
    fn parse(answer: &[u8]) -> Self {
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no HTTP answer: {:?}", String::from_utf8_lossy(answer)));
        let head = String::from_utf8(answer[..end].to_vec()).unwrap().to_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut body = answer[end + 4..].to_vec();
        if head.contains("transfer-encoding: chunked") {
            body = dechunk(&body);
        }
        Self { status, head, body }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!("{error}: {} {:?}", self.status, String::from_utf8_lossy(&self.body))
        })
    }

    /// The message of an error document; the status must be the one given.
    #[track_caller]
    fn error(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        let document = self.json();
        assert_eq!(document.as_object().unwrap().len(), 1);
        document["error"].as_str().unwrap().to_owned()
    }
}

fn dechunk(mut body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let line = body.windows(2).position(|two| two == b"\r\n").unwrap();
        let len = usize::from_str_radix(std::str::from_utf8(&body[..line]).unwrap(), 16).unwrap();
        if len == 0 {
            return out;
        }
        out.extend_from_slice(&body[line + 2..line + 2 + len]);
        body = &body[line + 2 + len + 2..];
    }
}

#[test]
fn a_taken_port_is_an_error_of_its_own() {
    let served = Served::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let address = served.address.to_string();
    let error = runtime.block_on(Server::bind(&address, ApiOptions::default())).unwrap_err();
    assert!(matches!(error, ServeError::PortTaken { .. }), "{error}");
    assert!(error.to_string().contains(&address) && error.to_string().contains("api.listen"));
    let options = ApiOptions { grpc_listen: Some(served.address), ..ApiOptions::default() };
    let error = runtime.block_on(Server::bind("127.0.0.1:0", options)).unwrap_err();
    assert!(matches!(error, ServeError::PortTaken { .. }), "{error}");
    assert!(error.to_string().contains(&address) && error.to_string().contains("api.grpc_listen"));
    let error = runtime.block_on(Server::bind("203.0.113.1:1", ApiOptions::default())).unwrap_err();
    assert!(matches!(error, ServeError::Bind { .. }), "{error}");
}
