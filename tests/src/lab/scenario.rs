//! A scenario: the devices of a rack and a script of what happens to them. TOML; `docs/lab.md` has the reference.

mod check;
mod event;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::units::{Rate, Size, Span};
pub(crate) use check::matches;
pub use event::{Compare, Condition, Deploy, Event, Load, Rematch, Step, Try};

/// A scenario file.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Names the namespaces and control groups: short, letters, digits and dashes.
    pub name: String,
    /// What it is for, for people.
    #[serde(default)]
    pub about: String,
    /// Seeds the load's arrivals and inputs.
    #[serde(default)]
    pub seed: u64,
    /// `cluster.devices` of the config; the number of devices when absent.
    #[serde(default)]
    pub founders: Option<usize>,
    /// Environment of every daemon, such as `MESH_NETWORK_MDNS`.
    #[serde(default)]
    pub env: std::collections::BTreeMap<String, String>,
    /// Whether the host's processors are kept awake: without that, small shares are slower the fewer are at work.
    #[serde(default = "yes")]
    pub awake: bool,
    /// What devices have unless they say otherwise.
    #[serde(default)]
    pub defaults: Hardware,
    /// The devices.
    pub device: Vec<DeviceSpec>,
    /// Links that differ from the cards at their ends.
    #[serde(default)]
    pub link: Vec<LinkSpec>,
    /// Rates of all links drawn from SEIFER's radio model.
    #[serde(default)]
    pub radio: Option<Radio>,
    /// The script.
    #[serde(default)]
    pub event: Vec<Event>,
}

fn yes() -> bool {
    true
}

/// One device, or several equal ones.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceSpec {
    /// Its name; `name-1` and so on when `count` is given.
    pub name: String,
    /// How many of them.
    #[serde(default)]
    pub count: Option<usize>,
    /// IPv4 address on the rack's network; chosen when absent.
    #[serde(default)]
    pub address: Option<std::net::Ipv4Addr>,
    /// What differs from the defaults.
    #[serde(flatten)]
    pub hardware: Hardware,
}

/// What a device is made of. Absent: not limited.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
pub struct Hardware {
    /// Part of one core, or several: 0.15 is 15 % of a core.
    pub cpu: Option<f64>,
    /// Threads of inference.
    pub threads: Option<usize>,
    /// Memory cap of the control group.
    pub memory: Option<Size>,
    /// What stages may use (`limits.memory`).
    pub budget: Option<Size>,
    /// Rate of its network card, each direction.
    pub rate: Option<Rate>,
    /// Added to everything that it sends.
    pub delay: Option<Span>,
    /// Spread of the delay.
    pub jitter: Option<Span>,
    /// Part of the frames that it sends which is lost, 0 to 1.
    pub loss: Option<f64>,
    /// Size of the disk that its data lies on; a folder of the host when absent.
    pub disk: Option<Size>,
}

impl Hardware {
    /// What is not said here is taken from `defaults`.
    fn over(&self, defaults: &Self) -> Self {
        Self {
            cpu: self.cpu.or(defaults.cpu),
            threads: self.threads.or(defaults.threads),
            memory: self.memory.or(defaults.memory),
            budget: self.budget.or(defaults.budget),
            rate: self.rate.or(defaults.rate),
            delay: self.delay.or(defaults.delay),
            jitter: self.jitter.or(defaults.jitter),
            loss: self.loss.or(defaults.loss),
            disk: self.disk.or(defaults.disk),
        }
    }

    /// Whether frames must be delayed or lost on the way out.
    pub fn is_impaired(&self) -> bool {
        let some = |span: Option<Span>| span.is_some_and(|span| !span.0.is_zero());
        some(self.delay) || some(self.jitter) || self.loss.is_some_and(|loss| loss > 0.0)
    }
}

/// The rate from one device to another, where it is less than the cards'.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LinkSpec {
    /// Sender.
    pub from: String,
    /// Receiver.
    pub to: String,
    /// Rate in this direction; in both when `both` is set.
    pub rate: Rate,
    /// Also the other way.
    #[serde(default)]
    pub both: bool,
}

/// SEIFER's radio model ([`crate::radio`]): devices at random places, rates by distance.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Radio {
    /// Of the places.
    pub seed: u64,
    /// All rates times this.
    #[serde(default = "one")]
    pub times: f64,
}

fn one() -> f64 {
    1.0
}

/// A device with everything said.
#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: std::net::Ipv4Addr,
    /// What it is made of.
    pub hardware: Hardware,
}

/// Why a scenario cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// The file cannot be read.
    #[error("{path} cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no TOML, or not of this form.
    #[error("{path}: {message}")]
    Form {
        /// The file.
        path: PathBuf,
        /// What and where.
        message: String,
    },
    /// It makes no sense: all that is wrong.
    #[error("{path}:\n  {}", problems.join("\n  "))]
    Sense {
        /// The file.
        path: PathBuf,
        /// A line each.
        problems: Vec<String>,
    },
}

impl Scenario {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// What is wrong, all of it where that can be told.
    pub fn load(path: &Path) -> Result<Self, ScenarioError> {
        let read = |source| ScenarioError::Read { path: path.into(), source };
        let text = std::fs::read_to_string(path).map_err(read)?;
        Self::parse(&text, path)
    }

    /// The same from text; `path` is for messages.
    ///
    /// # Errors
    /// As [`Scenario::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ScenarioError> {
        let form =
            |error: toml::de::Error| ScenarioError::Form { path: path.into(), message: error.to_string() };
        let scenario: Self = toml::from_str(text).map_err(form)?;
        scenario.check(path)?;
        Ok(scenario)
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn check(&self, path: &Path) -> Result<(), ScenarioError> {
        let problems = check::problems(self);
        if problems.is_empty() { Ok(()) } else { Err(ScenarioError::Sense { path: path.into(), problems }) }
    }

    /// The same with every processor share so many times as large, and waits and measurements so many times as short:
    /// on a host with more processors it is over sooner. Links stay as they are.
    pub fn faster(mut self, times: f64) -> Self {
        let share = |hardware: &mut Hardware| hardware.cpu = hardware.cpu.map(|cpu| cpu * times);
        share(&mut self.defaults);
        self.device.iter_mut().for_each(|spec| share(&mut spec.hardware));
        self.event.iter_mut().for_each(|event| event.hasten(times));
        self
    }

    /// Processors that all devices use at most; `None` where one is not limited.
    pub fn cores(&self) -> Option<f64> {
        self.machines().iter().map(|machine| machine.hardware.cpu).sum()
    }

    /// All links that are slower than the cards at their ends, each for one direction: sender, receiver, rate.
    pub fn links(&self) -> Vec<(String, String, Rate)> {
        let mut links = Vec::new();
        if let Some(radio) = self.radio {
            let machines = self.machines();
            let rates = crate::radio::links(machines.len(), radio.seed);
            for (from, row) in machines.iter().zip(&rates) {
                for (to, bytes_per_s) in machines.iter().zip(row).filter(|(to, _)| to.name != from.name) {
                    let rate = Rate((bytes_per_s * 8.0 * radio.times) as u64);
                    links.push((from.name.clone(), to.name.clone(), rate));
                }
            }
        }
        for link in &self.link {
            links.push((link.from.clone(), link.to.clone(), link.rate));
            if link.both {
                links.push((link.to.clone(), link.from.clone(), link.rate));
            }
        }
        links
    }

    /// The devices, each with its name, address and hardware.
    pub fn machines(&self) -> Vec<Machine> {
        let mut machines = Vec::new();
        let taken: Vec<_> = self.device.iter().filter_map(|spec| spec.address).collect();
        let mut free = (1u32..).map(address).filter(|address| !taken.contains(address));
        for spec in &self.device {
            let names = match spec.count {
                None => vec![spec.name.clone()],
                Some(count) => (1..=count).map(|n| format!("{}-{n}", spec.name)).collect(),
            };
            for name in names {
                let address = spec.address.or_else(|| free.next()).unwrap_or(std::net::Ipv4Addr::UNSPECIFIED);
                machines.push(Machine { name, address, hardware: spec.hardware.over(&self.defaults) });
            }
        }
        machines
    }
}

/// The rack's network is 10.77.0.0/16.
fn address(number: u32) -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::from(u32::from(std::net::Ipv4Addr::new(10, 77, 0, 0)) + number)
}
