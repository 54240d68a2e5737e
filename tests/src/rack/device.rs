//! One device of a rack: its namespace, its files, its daemon.

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use mesh_daemon::status::Status;
use mesh_inference::tensor::Tensor;

use super::{
    binary,
    namespace::Namespace,
    tensors::{self, Answer, BinaryRequest},
};

/// A device of a rack.
#[derive(Debug)]
pub struct Device {
    /// Name in the cluster.
    pub name: String,
    /// IPv4 address on the rack's bridge.
    pub address: String,
    /// Data directory.
    pub data_dir: PathBuf,
    /// Environment of the daemon beside the shared config.
    pub env: Vec<(String, String)>,
    namespace: Namespace,
    config: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    /// What the daemon is started by: a program and its first arguments, such as one that joins a control group.
    launcher: Vec<String>,
}

/// Talks to a device's API, from inside its namespace where it has one.
#[derive(Debug, Clone)]
pub struct Client {
    agent: ureq::Agent,
    base: String,
}

/// A request for inference that got no answer with tensors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// The device said why.
    #[error("status {status}: {said}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Body of the answer.
        said: String,
    },
    /// The connection could not be made, broke or timed out, or what came is no answer with binary tensors.
    #[error("{0}")]
    Broken(String),
}

impl Device {
    /// A device named `name` with its files in `home`; the shared config lies in `cluster`.
    pub fn new(namespace: Namespace, name: &str, address: &str, home: &Path, cluster: &Path) -> Self {
        std::fs::create_dir_all(home).expect("the device's folder");
        let name = name.to_owned();
        let data_dir = home.join("data");
        let env = vec![
            ("MESH_NODE_NAME".to_owned(), name.clone()),
            ("MESH_NODE_DATA_DIR".to_owned(), data_dir.display().to_string()),
        ];
        Self {
            name,
            address: address.to_owned(),
            data_dir,
            env,
            namespace,
            config: cluster.join("mesh.toml"),
            log: home.join("log"),
            child: None,
            launcher: Vec::new(),
        }
    }

    /// Has the daemon started by a program, which gets the daemon's command line as its last arguments.
    pub fn set_launcher(&mut self, launcher: Vec<String>) {
        self.launcher = launcher;
    }

    /// Starts the daemon. Its log is appended to.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = OpenOptions::new().create(true).append(true).open(&self.log).expect("the log");
        let err: File = log.try_clone().expect("the log twice");
        let mut command = self.command_by(&self.launcher);
        command.arg("run").stdin(Stdio::null()).stdout(log).stderr(err);
        self.child = Some(command.spawn().expect("the daemon starts"));
    }

    /// The `mesh` binary with this device's config, inside its namespace.
    pub fn command(&self) -> Command {
        self.command_by(&[])
    }

    fn command_by(&self, launcher: &[String]) -> Command {
        let enter = self.enter();
        let mut words = launcher.iter().chain(&enter);
        let mut command = Command::new(words.next().map_or("nsenter", String::as_str));
        command.args(words).arg(binary());
        command.env("MESH_CONFIG", &self.config).env("NO_COLOR", "1");
        command.envs(self.env.iter().cloned());
        command
    }

    /// Any program, inside the device's namespace.
    pub fn inside(&self, program: impl AsRef<OsStr>) -> Command {
        let enter = self.enter();
        let mut command = Command::new(&enter[0]);
        command.args(&enter[1..]).arg(program);
        command
    }

    /// Name of its network namespace.
    pub fn namespace(&self) -> &str {
        self.namespace.name()
    }

    /// Not `ip netns exec`: that puts an empty `/sys` in front of the control groups, which the daemon reads.
    fn enter(&self) -> Vec<String> {
        vec!["nsenter".into(), format!("--net=/run/netns/{}", self.namespace.name()), "--".into()]
    }

    /// Runs a `mesh` command on this device and waits for it.
    pub fn mesh(&self, args: &[&str]) -> Output {
        self.command().args(args).output().expect("mesh runs")
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Asks the daemon to stop, as systemd does, and waits. Returns its exit code.
    pub fn stop(&mut self) -> Option<i32> {
        let mut child = self.child.take()?;
        let pid = rustix::process::Pid::from_child(&child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(15);
        while Instant::now() < deadline {
            if let Ok(Some(status)) = child.try_wait() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = child.kill();
        let _ = child.wait();
        panic!("{} did not stop within 15 s of SIGTERM\n{}", self.name, self.log_tail());
    }

    /// How the daemon ended, if it did by itself.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.as_mut()?.try_wait().ok()?
    }

    /// Whether a daemon was started here and not ended by the test.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Process id of the daemon while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Runs `work` with a client of this device's API, inside the namespace.
    pub fn with_client<T: Send + 'static>(&self, work: impl FnOnce(Client) -> T + Send + 'static) -> T {
        self.namespace.enter(move || work(Client::new()))
    }

    /// The same on a thread that runs beside the caller.
    pub fn spawn_client(&self, work: impl FnOnce(Client) + Send + 'static) -> std::thread::JoinHandle<()> {
        self.namespace.spawn(move || work(Client::new()))
    }

    /// The status document, if the daemon answers.
    pub fn status(&self) -> Option<Status> {
        self.with_client(|client| client.status())
    }

    /// The end of the log, headed by the device's name.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(40)..].join("\n");
        format!("---- {} ----\n{tail}", self.name)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Client {
    fn new() -> Self {
        Self::at("http://127.0.0.1:7401", Duration::from_secs(60), true)
    }

    /// A client of the API at `base`, such as `http://127.0.0.1:7401`. A request may take `timeout` in all.
    /// `keep` connections for the next request, or make a new one for each.
    pub fn at(base: &str, timeout: Duration, keep: bool) -> Self {
        let mut config =
            ureq::Agent::config_builder().timeout_global(Some(timeout)).http_status_as_error(false);
        if !keep {
            config = config.max_idle_connections(0).max_idle_connections_per_host(0);
        }
        Self { agent: config.build().into(), base: base.trim_end_matches('/').to_owned() }
    }

    /// `GET` of a path: status and body.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut response = self.agent.get(format!("{}{path}", self.base)).call().ok()?;
        Some((response.status().as_u16(), response.body_mut().read_to_string().ok()?))
    }

    /// The status document, if the daemon answers.
    pub fn status(&self) -> Option<Status> {
        let (code, body) = self.get("/api/status")?;
        (code == 200).then(|| serde_json::from_str(&body).ok())?
    }

    /// One request for inference with a JSON body: status and answer. `None` when the connection failed.
    pub fn infer(&self, model: &str, body: &serde_json::Value) -> Option<(u16, serde_json::Value)> {
        let url = format!("{}/v2/models/{model}/infer", self.base);
        let mut response = self.agent.post(url).send_json(body).ok()?;
        let answer = response.body_mut().with_config().limit(1 << 30).read_json().ok()?;
        Some((response.status().as_u16(), answer))
    }

    /// One request for inference with binary tensors: the outputs, or what came instead of them.
    pub fn infer_binary(
        &self,
        model: &str,
        inputs: &[(String, Tensor)],
    ) -> Result<Vec<(String, Tensor)>, String> {
        let answer = self.infer_encoded(model, &BinaryRequest::new(inputs));
        answer.map(|answer| answer.outputs).map_err(|why| why.to_string())
    }

    /// The same with a request that was encoded before.
    pub fn infer_encoded(&self, model: &str, request: &BinaryRequest) -> Result<Answer, NoAnswer> {
        let broken = |error: ureq::Error| NoAnswer::Broken(error.to_string());
        let url = format!("{}/v2/models/{model}/infer", self.base);
        let post = self.agent.post(url).content_type("application/octet-stream");
        let post = post.header(tensors::JSON_LENGTH, request.json_length.to_string());
        let mut response = post.send(&request.body[..]).map_err(broken)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.body_mut().with_config().limit(1 << 30).read_to_vec().map_err(broken)?;
        if !status.is_success() {
            let said = String::from_utf8_lossy(&body).into_owned();
            return Err(NoAnswer::Refused { status: status.as_u16(), said });
        }
        let json_length = headers.get(tensors::JSON_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
        tensors::decode(&body, json_length.unwrap_or(body.len()))
            .ok_or_else(|| NoAnswer::Broken("the answer is no answer with binary tensors".to_owned()))
    }
}
