//! Devices on loopback with static peers and no multicast: real daemons without root, one data directory each.

use std::{
    fs::{File, OpenOptions},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use mesh_daemon::status::Status;
use rustix::net::{AddressFamily, SocketType};

use crate::rack::binary;

/// Devices of one cluster.
#[derive(Debug)]
pub struct Loopback {
    /// The devices, not yet started.
    pub devices: Vec<LoopDevice>,
    folder: tempfile::TempDir,
}

/// A device on loopback.
#[derive(Debug)]
pub struct LoopDevice {
    /// Name in the cluster.
    pub name: String,
    /// Its own copy of `mesh.toml` and `cluster.key`, and its data directory, are below this.
    pub home: PathBuf,
    /// Environment beside the config.
    pub env: Vec<(String, String)>,
    /// Variables of the test's own environment that the device does not get.
    pub unset: Vec<&'static str>,
    /// Address of the API, `127.0.0.1:PORT`.
    pub api: String,
    /// Address for peers, `127.0.0.1:PORT`.
    pub peer: String,
    child: Option<Child>,
}

impl Loopback {
    /// A cluster of `devices`, with settings for all such as `("MESH_LIMITS_MEMORY", "1GiB")`. Nothing runs yet.
    pub fn new(devices: usize, settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::Builder::new().prefix("mesh-loopback-").tempdir().expect("a temporary folder");
        let cluster = folder.path().join("cluster");
        let made = Command::new(binary())
            .args(["init", "--name", "loopback", "--devices", &devices.to_string(), "--out"])
            .arg(&cluster)
            .output()
            .expect("mesh init runs");
        assert!(made.status.success(), "mesh init: {}", String::from_utf8_lossy(&made.stderr));
        let ports = free_addresses(devices * 2);
        let peers = ports[..devices].join(",");
        let device = |index: usize| {
            let home = folder.path().join(format!("device-{}", index + 1));
            LoopDevice::new(&home, &cluster, &ports[index], &ports[devices + index], &peers, settings)
        };
        Self { devices: (0..devices).map(device).collect(), folder }
    }

    /// Starts every device that does not run, and waits until all see one cluster of all of them, all up.
    pub fn start(&mut self, bound: Duration) {
        for device in self.devices.iter_mut().filter(|d| d.child.is_none()) {
            device.start();
        }
        wait("a cluster of all devices", bound, || {
            self.devices.iter().all(|d| d.status().is_some_and(|s| is_whole(&s, self.devices.len())))
        });
    }

    /// A further device with the same config and another cluster key. It does not run yet.
    pub fn stranger(&self) -> LoopDevice {
        let cluster = self.folder.path().join("stranger");
        let made = Command::new(binary())
            .args(["init", "--name", "loopback", "--out"])
            .arg(&cluster)
            .output()
            .expect("mesh init runs");
        assert!(made.status.success(), "mesh init: {}", String::from_utf8_lossy(&made.stderr));
        let ports = free_addresses(2);
        let peers: Vec<&str> = self.devices.iter().map(|d| d.peer.as_str()).collect();
        let home = self.folder.path().join("device-stranger");
        LoopDevice::new(
            &home,
            &cluster,
            &ports[0],
            &ports[1],
            &peers.join(","),
            &[("MESH_CLUSTER_DEVICES", "3")],
        )
    }
}

impl LoopDevice {
    fn new(
        home: &Path,
        cluster: &Path,
        peer: &str,
        api: &str,
        peers: &str,
        settings: &[(&str, &str)],
    ) -> Self {
        std::fs::create_dir_all(home).expect("the device's folder");
        for file in ["mesh.toml", "cluster.key"] {
            std::fs::copy(cluster.join(file), home.join(file)).expect("the cluster's files");
        }
        let name = home.file_name().map(|n| n.to_string_lossy().into_owned()).expect("the folder has a name");
        let data = home.join("data").display().to_string();
        let own = [
            ("MESH_NODE_NAME", name.as_str()),
            ("MESH_NODE_DATA_DIR", &data),
            ("MESH_NETWORK_LISTEN", peer),
            ("MESH_NETWORK_MDNS", "false"),
            ("MESH_NETWORK_PEERS", peers),
            ("MESH_API_LISTEN", api),
            ("NO_COLOR", "1"),
        ];
        let env = own.iter().chain(settings).map(|(key, value)| ((*key).into(), (*value).into())).collect();
        Self {
            name,
            home: home.to_owned(),
            env,
            unset: Vec::new(),
            api: api.to_owned(),
            peer: peer.to_owned(),
            child: None,
        }
    }

    /// A file of the device, such as `data/identity.key`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    /// Changes a setting, such as `MESH_LIMITS_DISK`, from the next start on.
    pub fn set(&mut self, key: &str, value: &str) {
        self.env.retain(|(k, _)| k != key);
        self.env.push((key.to_owned(), value.to_owned()));
    }

    /// The `mesh` binary with this device's config.
    pub fn command(&self) -> Command {
        let mut command = Command::new(binary());
        command.env("MESH_CONFIG", self.file("mesh.toml")).env_remove("MESH_API").current_dir(&self.home);
        command.envs(self.env.iter().cloned()).stdin(Stdio::null());
        for name in &self.unset {
            command.env_remove(name);
        }
        command
    }

    /// Runs a `mesh` command against this device and waits for it.
    pub fn mesh(&self, args: &[&str]) -> Output {
        self.command().args(args).output().expect("mesh runs")
    }

    /// Starts the daemon. Its log is appended to.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = OpenOptions::new().create(true).append(true).open(self.file("log")).expect("the log");
        let err: File = log.try_clone().expect("the log twice");
        self.child =
            Some(self.command().arg("run").stdout(log).stderr(err).spawn().expect("the daemon starts"));
    }

    /// Starts the daemon and waits until it ends by itself: its exit status and what it said.
    pub fn start_and_fail(&mut self, bound: Duration) -> (ExitStatus, String) {
        let _ = std::fs::remove_file(self.file("log"));
        self.start();
        let mut child = self.child.take().expect("just started");
        let end = Instant::now() + bound;
        while Instant::now() < end {
            if let Ok(Some(status)) = child.try_wait() {
                return (status, self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
        let _ = child.wait();
        panic!("{} runs, though it should refuse to start:\n{}", self.name, self.log());
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The status document, if the daemon answers.
    pub fn status(&self) -> Option<Status> {
        let (code, body) = self.http("GET", "/api/status", b"")?;
        (code == 200).then(|| serde_json::from_slice(body.as_bytes()).ok())?
    }

    /// One HTTP request: status and body. `None` when the connection failed.
    pub fn http(&self, method: &str, path: &str, body: &[u8]) -> Option<(u16, String)> {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(60)))
            .http_status_as_error(false)
            .build();
        let agent: ureq::Agent = config.into();
        let url = format!("http://{}{path}", self.api);
        let request = ureq::http::Request::builder().method(method).uri(url).body(body.to_vec()).ok()?;
        let mut response = agent.run(request).ok()?;
        Some((response.status().as_u16(), response.body_mut().read_to_string().ok()?))
    }

    /// All that the daemon logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.file("log")).unwrap_or_default()
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether a device sees a cluster of so many devices, all up, with a leader.
pub fn is_whole(status: &Status, devices: usize) -> bool {
    status.cluster.quorum && status.nodes.len() == devices && status.nodes.iter().all(|n| n.state == "up")
}

/// Waits until something holds, or panics when `bound` passes.
pub fn wait(what: &str, bound: Duration, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < bound, "{what} did not come within {bound:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Addresses on loopback whose ports were free a moment ago, all different.
pub fn free_addresses(count: usize) -> Vec<String> {
    let held: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    held.iter().map(|l| l.local_addr().expect("its address").to_string()).collect()
}

/// An address at which nobody listens while this lives: the port is taken, so that no daemon is given it meanwhile.
#[derive(Debug)]
pub struct Nobody {
    address: SocketAddr,
    _held: OwnedFd,
}

impl Nobody {
    /// Takes a port.
    ///
    /// # Panics
    /// Where none is to be had.
    #[expect(clippy::new_without_default, reason = "it takes a port")]
    pub fn new() -> Self {
        let held = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
        rustix::net::bind(&held, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a free port");
        let address = rustix::net::getsockname(&held).expect("its address");
        Self { address: address.try_into().expect("an address of IP"), _held: held }
    }

    /// Where nobody is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
