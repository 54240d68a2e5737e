//! Four daemons of this executable on loopback, in folders of their own, gone when the demo ends.

use std::{
    fs::{self, File},
    io::{self, Write},
    net::TcpListener,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{
    cli::{client::Client, exit::CliError, output},
    status::Status,
};

/// How many daemons there are.
pub(super) const DEVICES: usize = 4;
/// What stages may use on each: half of the 874 KiB that the model needs, so that it has to be cut, and three devices
/// still hold it with room for uneven cuts.
const MEMORY: &str = "448KiB";
/// Time for a daemon to end by itself.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// Lines of a daemon's log that are shown when it failed.
const LOG_LINES: usize = 20;

/// A running cluster. Dropping it ends the daemons and removes their folders.
#[derive(Debug)]
pub(super) struct Cluster {
    processes: Arc<Mutex<Processes>>,
    devices: Vec<Device>,
}

#[derive(Debug)]
struct Device {
    name: String,
    api: String,
    log: PathBuf,
}

/// What has to be gone in the end, also when the demo is interrupted.
#[derive(Debug)]
struct Processes {
    children: Vec<Option<Child>>,
    folder: Option<TempDir>,
}

impl Cluster {
    pub(super) fn start() -> Result<Self, CliError> {
        let fail =
            |error: io::Error| CliError::failed(format!("the demo's daemons could not be started: {error}"));
        let folder = tempfile::Builder::new().prefix("mesh-demo-").tempdir().map_err(fail)?;
        let root = folder.path().to_owned();
        let written = mesh_config::generate(&root, "demo", DEVICES as u32)
            .map_err(|error| CliError::because("the demo's config could not be written", &error))?;
        let ports = free_ports(2 * DEVICES).map_err(fail)?;
        let (mesh, api) = ports.split_at(DEVICES);
        let processes = Arc::new(Mutex::new(Processes { children: Vec::new(), folder: Some(folder) }));
        end_on_signal(processes.clone()).map_err(fail)?;
        let mut cluster = Self { processes, devices: Vec::new() };
        for (index, api) in api.iter().enumerate() {
            let name = format!("device-{}", index + 1);
            let home = root.join(&name);
            fs::create_dir(&home).map_err(fail)?;
            let config = home.join("mesh.toml");
            let text = config_text(&name, &home, &written.key, mesh, index, *api);
            File::create(&config).and_then(|mut file| file.write_all(text.as_bytes())).map_err(fail)?;
            let log = home.join("log");
            let child = spawn(&config, &log).map_err(fail)?;
            cluster.lock().children.push(Some(child));
            cluster.devices.push(Device { name, api: format!("http://127.0.0.1:{api}"), log });
        }
        Ok(cluster)
    }

    /// A client of one device.
    pub(super) fn client(&self, index: usize) -> Client {
        Client::at(&self.devices[index].api, None)
    }

    /// The device of a name.
    pub(super) fn index_of(&self, name: &str) -> Option<usize> {
        self.devices.iter().position(|device| device.name == name)
    }

    /// Waits until every device sees the same cluster with every device up and a leader.
    pub(super) fn wait_until_formed(&self, limit: Duration) -> Result<Status, CliError> {
        let start = Instant::now();
        let mut seen = "none of them answers".to_owned();
        while start.elapsed() < limit {
            self.check_alive()?;
            let views: Vec<Status> =
                (0..DEVICES).filter_map(|i| self.client(i).get("/api/status").ok()).collect();
            if views.len() == DEVICES && views.iter().all(|view| is_formed(view, &views[0].cluster.id)) {
                return views.into_iter().next().ok_or_else(|| CliError::failed("no device"));
            }
            if let Some(view) = views.first() {
                let up = view.nodes.iter().filter(|node| node.state == "up").count();
                seen = format!("{} answer, {up} are up in the first one's view", views.len());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Err(CliError::failed(format!(
            "the {DEVICES} daemons are no cluster after {} s: {seen}\n{}",
            limit.as_secs(),
            tail(&self.devices[0].log)
        )))
    }

    /// An error when a daemon has ended by itself, with the end of its log.
    fn check_alive(&self) -> Result<(), CliError> {
        let mut processes = self.lock();
        for (child, device) in processes.children.iter_mut().zip(&self.devices) {
            if let Some(status) = child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                return Err(CliError::failed(format!(
                    "{} ended with {status}\n{}",
                    device.name,
                    tail(&device.log)
                )));
            }
        }
        Ok(())
    }

    /// Ends a daemon without warning, as a pulled plug does.
    pub(super) fn kill(&self, index: usize) -> Result<(), CliError> {
        let taken = self.lock().children.get_mut(index).and_then(Option::take);
        let Some(mut child) = taken else { return Ok(()) };
        let killed = child.kill().and_then(|()| child.wait());
        killed.map(drop).map_err(|error| CliError::failed(format!("a daemon could not be killed: {error}")))
    }

    /// Lets the daemons live on; says how to look at them and how to end them.
    pub(super) fn keep(&self) -> String {
        let mut processes = self.lock();
        let pids: Vec<String> =
            processes.children.iter().flatten().map(|child| child.id().to_string()).collect();
        let living = processes.children.iter().position(Option::is_some).unwrap_or(0);
        processes.children.clear();
        let folder = processes.folder.take().map(TempDir::keep).unwrap_or_default();
        drop(processes);
        let api = &self.devices[living].api;
        format!(
            "The cluster goes on. Dashboard: {api}/\nTry: mesh --api {api} status\n\
             End it: kill {}; rm -r {}\n",
            pids.join(" "),
            folder.display()
        )
    }

    fn lock(&self) -> MutexGuard<'_, Processes> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.lock().end();
    }
}

impl Processes {
    /// Asks all daemons to end, waits a while, kills those that have not, and removes the folder.
    fn end(&mut self) {
        for child in self.children.iter().flatten() {
            // A process that has gone by itself is what is wanted.
            let _ = kill_process(Pid::from_child(child), Signal::TERM);
        }
        let start = Instant::now();
        for child in &mut self.children {
            let Some(child) = child else { continue };
            while start.elapsed() < STOP_LIMIT && matches!(child.try_wait(), Ok(None)) {
                thread::sleep(Duration::from_millis(10));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        self.children.clear();
        if let Some(Err(error)) = self.folder.take().map(TempDir::close) {
            output::note(&format!("mesh: the demo's folder could not be removed: {error}"));
        }
    }
}

/// The daemons are no part of the terminal's process group, so that `--keep` works; Ctrl-C ends them here.
fn end_on_signal(processes: Arc<Mutex<Processes>>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let wait = move || {
        let signalled = runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let mut terminate = signal(SignalKind::terminate())?;
            let mut hang_up = signal(SignalKind::hangup())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            tokio::select! {
                _ = terminate.recv() => {}
                _ = hang_up.recv() => {}
                _ = interrupt.recv() => {}
            }
            Ok::<(), io::Error>(())
        });
        if signalled.is_ok() {
            processes.lock().unwrap_or_else(PoisonError::into_inner).end();
            std::process::exit(1);
        }
    };
    thread::Builder::new().name("demo-signals".into()).spawn(wait).map(drop)
}

fn is_formed(view: &Status, id: &str) -> bool {
    !id.is_empty()
        && view.cluster.id == id
        && view.cluster.quorum
        && view.nodes.len() == DEVICES
        && view.nodes.iter().all(|node| node.state == "up")
}

/// Ports that are free now; all are held until all are known, so that none comes twice.
fn free_ports(count: usize) -> io::Result<Vec<u16>> {
    let held: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind(("127.0.0.1", 0))).collect::<Result<_, _>>()?;
    held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

fn config_text(name: &str, home: &Path, key: &Path, mesh: &[u16], index: usize, api: u16) -> String {
    let peers: Vec<String> = mesh
        .iter()
        .enumerate()
        .filter(|(other, _)| *other != index)
        .map(|(_, port)| format!("\"127.0.0.1:{port}\""))
        .collect();
    format!(
        "[cluster]\nname = \"demo\"\nkey_file = {key:?}\ndevices = {DEVICES}\n\
         [node]\nname = \"{name}\"\ndata_dir = {data:?}\n\
         [network]\nlisten = \"127.0.0.1:{port}\"\nmdns = false\npeers = [{peers}]\n\
         [api]\nlisten = \"127.0.0.1:{api}\"\n\
         [limits]\nmemory = \"{MEMORY}\"\nthreads = 1\n",
        key = key.display().to_string(),
        data = home.join("data").display().to_string(),
        port = mesh[index],
        peers = peers.join(", "),
    )
}

fn spawn(config: &Path, log: &Path) -> io::Result<Child> {
    let log = File::create(log)?;
    let mut command = Command::new(std::env::current_exe()?);
    // Variables that set keys for one daemon would set them for all four; where ONNX Runtime is holds for all.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("MESH_") && !text.starts_with("MESH_INFERENCE_") {
            command.env_remove(&name);
        }
    }
    command
        .arg("run")
        .arg("--config")
        .arg(config)
        .env("NO_COLOR", "1")
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .process_group(0)
        .spawn()
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}
