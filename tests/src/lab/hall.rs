//! A lab that is up: its switch, its devices, its relay and its guard.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use super::{
    awake::Awake,
    cgroup::{Group, GroupError},
    machine::{LabDevice, MachineError, launcher},
    network::{Network, NetworkError},
    relay::Impairment,
    relay_process::Order,
    scenario::{Scenario, matches},
    site::{self, DownError, Guard},
};
use crate::rack::{Device, agree, binary};

/// All of a lab. It is cleared away on drop, unless [`Hall::keep`] was called.
#[derive(Debug)]
pub struct Hall {
    /// What it was made from.
    pub scenario: Scenario,
    /// The devices, in the order of the scenario.
    pub devices: Vec<LabDevice>,
    /// The network.
    pub network: Network,
    guard: Option<Guard>,
    _awake: Option<Awake>,
}

/// Why a lab did not come up, or an event did not happen.
#[derive(Debug, thiserror::Error)]
pub enum HallError {
    /// Not root.
    #[error("the lab makes network namespaces and control groups: run it as root")]
    NotRoot,
    /// One of this name is there.
    #[error("a lab named {0} is up or was left behind: take it down with `lab down {0}`")]
    Exists(String),
    /// Control group.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// Network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A device.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// Leftovers.
    #[error(transparent)]
    Down(#[from] DownError),
    /// A file or a program.
    #[error("{what}: {source}")]
    Io {
        /// What was done.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A program of ours.
    #[error("{what} failed: {output}")]
    Program {
        /// The command.
        what: String,
        /// What it said.
        output: String,
    },
    /// The relay's cards did not come.
    #[error("the relay did not make the cards of delayed devices within 10 s")]
    Relay,
}

fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> HallError {
    let what = what.into();
    move |source| HallError::Io { what, source }
}

impl Hall {
    /// Makes everything; no daemon is started yet.
    ///
    /// # Errors
    /// What could not be made; nothing is left then.
    pub fn create(scenario: Scenario) -> Result<Self, HallError> {
        if !crate::rack::is_root() {
            return Err(HallError::NotRoot);
        }
        let name = scenario.name.clone();
        if site::labs().contains(&name) {
            return Err(HallError::Exists(name));
        }
        let guard = Guard::start(&name).map_err(io("starting the guard of the lab"))?;
        let folder = site::folder(&name);
        fs::create_dir_all(&folder).map_err(io(folder.display().to_string()))?;
        let network = Network::create(&site::switch_namespace(&name))?;
        let awake =
            scenario.awake.then(Awake::start).transpose().map_err(io("keeping the processors awake"))?;
        let mut hall = Self { scenario, devices: Vec::new(), network, guard: Some(guard), _awake: awake };
        hall.init()?;
        let machines = hall.scenario.machines();
        let env: Vec<_> = hall.scenario.env.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        for (number, machine) in machines.iter().enumerate() {
            let device = LabDevice::create(&name, number + 1, machine, &mut hall.network, &env)?;
            hall.devices.push(device);
        }
        hall.start_relay()?;
        hall.limit_links()?;
        Ok(hall)
    }

    /// The shared config.
    fn init(&self) -> Result<(), HallError> {
        let founders = self.scenario.founders.unwrap_or_else(|| self.scenario.machines().len());
        let output = Command::new(binary())
            .args(["init", "--name", &self.scenario.name, "--devices", &founders.to_string(), "--out"])
            .arg(site::folder(&self.scenario.name).join("cluster"))
            .output()
            .map_err(io("mesh init"))?;
        succeeded("mesh init", &output)
    }

    /// One process moves the frames of all delayed devices; it reads what to do from a file.
    fn start_relay(&self) -> Result<(), HallError> {
        if !self.devices.iter().any(|device| device.is_relayed(&self.network)) {
            return Ok(());
        }
        let group = Group::create(&format!("{}/.relay", self.scenario.name))?;
        self.write_relay_orders()?;
        let launcher = launcher(&group);
        let log = site::folder(&self.scenario.name).join("relay.log");
        let log = fs::File::create(&log).map_err(io("the relay's log"))?;
        Command::new(&launcher[0])
            .args(&launcher[1..])
            .arg(site::tool())
            .arg("relay")
            .arg(self.relay_orders())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(io("the relay"))?;
        let deadline = Instant::now() + Duration::from_secs(10);
        for device in self.devices.iter().filter(|device| device.is_relayed(&self.network)) {
            while device.connect(&self.network).is_err() {
                if Instant::now() > deadline {
                    return Err(HallError::Relay);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    fn relay_orders(&self) -> PathBuf {
        site::folder(&self.scenario.name).join("relay.json")
    }

    /// Tells the relay what each card does now.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_relay_orders(&self) -> Result<(), HallError> {
        let orders =
            self.devices.iter().filter(|device| device.is_relayed(&self.network)).map(|device| Order {
                device_namespace: device.port.namespace.name().to_owned(),
                switch_namespace: self.network.name().to_owned(),
                port: device.port.name.clone(),
                impairment: Impairment {
                    delay_ms: device.port.card.delay.0.as_secs_f64() * 1e3,
                    jitter_ms: device.port.card.jitter.0.as_secs_f64() * 1e3,
                    loss: device.port.card.loss,
                    ..Impairment::default()
                },
            });
        let text = serde_json::to_vec(&orders.collect::<Vec<_>>()).unwrap_or_default();
        let (path, new) = (self.relay_orders(), self.relay_orders().with_extension("new"));
        // The relay reads it at any moment: it must never be half there.
        let written = fs::File::create(&new).and_then(|mut file| std::io::Write::write_all(&mut file, &text));
        written.and_then(|()| fs::rename(&new, &path)).map_err(io("the relay's orders"))
    }

    fn limit_links(&mut self) -> Result<(), HallError> {
        let mut rates: Vec<(String, _)> = Vec::new();
        for (from, to, rate) in self.scenario.links() {
            if let Some(to) = self.device(&to) {
                rates.push((from, (to.port.address, rate)));
            }
        }
        for device in &mut self.devices {
            let mine = rates.iter().filter(|(from, _)| *from == device.machine.name);
            device.port.rates = mine.map(|(_, rate)| *rate).collect();
            if !device.port.rates.is_empty() {
                self.network.shape(&device.port)?;
            }
        }
        Ok(())
    }

    /// A device by its name.
    pub fn device(&self, name: &str) -> Option<&LabDevice> {
        self.devices.iter().find(|device| device.name() == name)
    }

    /// Positions of the devices that patterns mean, in the scenario's order.
    pub fn named(&self, patterns: &[String]) -> Vec<usize> {
        let mut meant = 0..self.devices.len();
        let is_meant = |at: &usize| patterns.iter().any(|p| matches(p, self.devices[*at].name()));
        meant.by_ref().filter(is_meant).collect()
    }

    /// Devices whose daemon runs and is not frozen.
    pub fn running(&self) -> impl Iterator<Item = &LabDevice> {
        self.devices.iter().filter(|device| device.is_running())
    }

    /// Whether all running devices see one cluster of all of them, with a leader.
    pub fn is_one_cluster(&self) -> bool {
        let statuses: Vec<_> = self.running().map(|device| device.daemon.status()).collect();
        agree(&statuses)
    }

    /// The ends of all logs.
    pub fn logs(&self) -> String {
        self.devices.iter().map(|device| Device::log_tail(&device.daemon)).collect::<Vec<_>>().join("\n")
    }

    /// Leaves everything as it is when this value goes.
    pub fn keep(mut self) {
        if let Some(guard) = self.guard.take() {
            guard.release();
        }
        std::mem::forget(self);
    }
}

impl Drop for Hall {
    fn drop(&mut self) {
        for device in &mut self.devices {
            device.cool();
            device.daemon.kill();
        }
        if let Some(guard) = self.guard.take() {
            guard.clear();
        }
    }
}

/// An error with what the program said, unless it succeeded.
pub(super) fn succeeded(what: &str, output: &std::process::Output) -> Result<(), HallError> {
    if output.status.success() {
        return Ok(());
    }
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Err(HallError::Program { what: what.to_owned(), output: said.trim().to_owned() })
}
