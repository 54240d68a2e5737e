//! A rack of devices on one Linux host: a network namespace per device, joined by a bridge in a namespace of its own,
//! and the real binary in each. Needs root. Everything made is removed on drop.

mod device;
mod namespace;
mod tensors;

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

pub use device::{Client, Device, NoAnswer};
pub use namespace::{Namespace, is_root, move_into};
pub use tensors::{Answer, BinaryRequest};

/// Devices joined by one bridge.
#[derive(Debug)]
pub struct Rack {
    /// The devices, in the order in which they were added. Declared first: they stop before their network goes.
    pub devices: Vec<Device>,
    switch: Namespace,
    name: String,
    folder: tempfile::TempDir,
    cluster: PathBuf,
    settings: Vec<(String, String)>,
    count: u32,
    /// Racks of one test binary take turns: they would slow each other down.
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

impl Rack {
    /// An empty rack whose devices will share one config for a cluster of `expected` devices. `settings` are set for
    /// every device through the environment, such as `("MESH_LIMITS_MEMORY", "1GiB")`.
    pub fn new(expected: usize, settings: &[(&str, &str)]) -> Self {
        let turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let folder = tempfile::Builder::new().prefix("mesh-rack-").tempdir().expect("a temporary folder");
        let name = format!("mesh{}x{}", std::process::id(), unique());
        let switch = Namespace::create(&format!("{name}-sw"));
        switch.ip(&["link", "add", "br0", "type", "bridge", "mcast_snooping", "0"]);
        switch.ip(&["link", "set", "br0", "up"]);
        let cluster = folder.path().join("cluster");
        let made = std::process::Command::new(binary())
            .args(["init", "--name", "rack", "--devices", &expected.to_string(), "--out"])
            .arg(&cluster)
            .output()
            .expect("mesh init runs");
        assert!(made.status.success(), "mesh init: {}", String::from_utf8_lossy(&made.stderr));
        let settings = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Self { devices: Vec::new(), switch, name, folder, cluster, settings, count: 0, _turn: turn }
    }

    /// Adds devices without starting their daemons.
    pub fn add(&mut self, devices: usize) {
        for _ in 0..devices {
            self.count += 1;
            let namespace = Namespace::create(&format!("{}-{}", self.name, self.count));
            let address = format!("10.77.0.{}", self.count);
            self.switch.plug(&namespace, &format!("p{}", self.count), &format!("{address}/24"));
            let home = self.folder.path().join(format!("device-{}", self.count));
            let mut device =
                Device::new(namespace, &format!("device-{}", self.count), &address, &home, &self.cluster);
            device.env.extend(self.settings.iter().cloned());
            self.devices.push(device);
        }
    }

    /// Puts a device's cable into the switch, or takes it out.
    pub fn plug(&self, device: usize, is_in: bool) {
        let port = format!("p{}", device + 1);
        self.switch.ip(&["link", "set", &port, if is_in { "up" } else { "down" }]);
    }

    /// Adds and starts devices.
    pub fn start(&mut self, devices: usize) {
        let first = self.devices.len();
        self.add(devices);
        for device in &mut self.devices[first..] {
            device.start();
        }
    }

    /// Waits until every running device sees one cluster of all of them with a leader, all up, and returns how long
    /// that took. Panics with what the devices say when `bound` passes.
    pub fn wait_for_one_cluster(&self, bound: Duration) -> Duration {
        let start = Instant::now();
        loop {
            let statuses: Vec<_> = self.running().map(Device::status).collect();
            if agree(&statuses) {
                return start.elapsed();
            }
            assert!(
                start.elapsed() < bound,
                "no single cluster within {bound:?}:\n{}\n{}",
                statuses.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join("\n"),
                self.logs()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Devices whose daemon runs.
    pub fn running(&self) -> impl Iterator<Item = &Device> {
        self.devices.iter().filter(|d| d.is_running())
    }

    /// The ends of all logs, for a failing test.
    pub fn logs(&self) -> String {
        self.devices.iter().map(Device::log_tail).collect::<Vec<_>>().join("\n")
    }
}

/// One cluster, one leader, every running device up and a member, nobody down.
pub(crate) fn agree(statuses: &[Option<mesh_daemon::status::Status>]) -> bool {
    let Some(statuses) = statuses.iter().cloned().collect::<Option<Vec<_>>>() else { return false };
    let Some(first) = statuses.first() else { return false };
    !first.cluster.id.is_empty()
        && statuses.iter().all(|s| {
            s.cluster.id == first.cluster.id
                && s.cluster.quorum
                && s.cluster.leader == first.cluster.leader
                && s.nodes.len() == statuses.len()
                && s.nodes.iter().all(|n| n.state == "up")
        })
}

/// The `mesh` binary that was built with these tests.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("MESH_BIN") {
        return path.into();
    }
    let own = std::env::current_exe().expect("the program knows its own path");
    // Programs lie beside it in target/<profile>, tests a folder deeper.
    let beside = own.with_file_name("mesh");
    let above = own.parent().and_then(Path::parent).map(|folder| folder.join("mesh"));
    let path = if beside.exists() { beside } else { above.expect("tests lie in target/<profile>/deps") };
    assert!(path.exists(), "{} is missing: run `cargo build -p mesh` first", path.display());
    path
}

fn unique() -> u32 {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}
