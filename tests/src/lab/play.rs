//! Plays a scenario's script.

mod compare;
mod deploy;
mod measure;
mod reference;
mod rematch;
mod roles;
mod wait;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    hall::{Hall, HallError},
    load::{Arrivals, Entrance, Expected, Load, LoadError, LoadSpec},
    machine::{LabDevice, MachineError},
    network::Card,
    report::{Happened, Measurement, Report},
    scenario::{Deploy, Event, Scenario, Step, Try},
    units::Rate,
};
use deploy::Others;
use measure::Stretch;
use reference::Reference;

/// Different inputs that a load sends in turn.
const INPUTS: usize = 4;
/// Seconds that a client waits: a large model on a slow device takes a while, and what is lost shows all the same.
const PATIENCE_S: f64 = 600.0;
/// Of cards while weights are brought.
const FULL_RATE: Rate = Rate(1_000_000_000);
/// Extent of dynamic axes but the batch, such as the length of a sentence.
const LENGTH: i64 = 128;

/// A script that is being played.
#[derive(Debug)]
pub struct Player {
    /// The lab that it plays in.
    pub hall: Hall,
    /// What was found so far.
    pub report: Report,
    models: PathBuf,
    expected: BTreeMap<PathBuf, Arc<Expected>>,
    /// File of each deployment's model.
    deployed: BTreeMap<String, PathBuf>,
    /// Epoch of each deployment at the last look.
    epochs: BTreeMap<String, u64>,
    loads: BTreeMap<String, Load>,
    /// Of the model that was measured last.
    reference: Option<Reference>,
    /// Loads that were started: each has arrivals of its own.
    loads_started: u64,
    start: Instant,
    tell: fn(&str),
}

/// Why a script could not be played to its end.
#[derive(Debug, thiserror::Error)]
pub enum PlayError {
    /// The lab.
    #[error(transparent)]
    Hall(#[from] HallError),
    /// The load.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A wait.
    #[error("{what} was not so after {after:?}\n{logs}")]
    Wait {
        /// For what.
        what: String,
        /// How long.
        after: Duration,
        /// What the devices say.
        logs: String,
    },
    /// The script asks for what cannot be.
    #[error("{0}")]
    Script(String),
    /// A cell could not be deployed.
    #[error(transparent)]
    Deploy(Box<PlayError>),
    /// An event, with its place in the script.
    #[error("event {number} ({what}): {source}")]
    Event {
        /// From 1.
        number: usize,
        /// Which.
        what: String,
        /// Why.
        source: Box<PlayError>,
    },
}

impl From<MachineError> for PlayError {
    fn from(error: MachineError) -> Self {
        Self::Hall(error.into())
    }
}

impl From<super::network::NetworkError> for PlayError {
    fn from(error: super::network::NetworkError) -> Self {
        Self::Hall(error.into())
    }
}

impl Player {
    /// Makes the lab. `models` is the folder with a folder per model; `tell` gets a line for each event.
    ///
    /// # Errors
    /// When the lab does not come up.
    pub fn new(scenario: Scenario, models: PathBuf, tell: fn(&str)) -> Result<Self, HallError> {
        let report = Report {
            scenario: scenario.name.clone(),
            host_cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            ..Report::default()
        };
        let hall = Hall::create(scenario)?;
        Ok(Self {
            hall,
            report,
            models,
            expected: BTreeMap::new(),
            deployed: BTreeMap::new(),
            epochs: BTreeMap::new(),
            loads: BTreeMap::new(),
            reference: None,
            loads_started: 0,
            start: Instant::now(),
            tell,
        })
    }

    /// Plays the whole script.
    ///
    /// # Errors
    /// The first event that failed.
    pub fn play(&mut self) -> Result<(), PlayError> {
        let events = self.hall.scenario.event.clone();
        self.start = Instant::now();
        for (number, event) in events.iter().enumerate() {
            self.event(event).map_err(|source| PlayError::Event {
                number: number + 1,
                what: describe(&event.step),
                source: Box::new(source),
            })?;
        }
        let left: Vec<String> = self.loads.keys().cloned().collect();
        left.iter().try_for_each(|name| self.stop_load(Some(name)))
    }

    /// Plays one event.
    ///
    /// # Errors
    /// Why it did not happen.
    pub fn event(&mut self, event: &Event) -> Result<(), PlayError> {
        if let Some(at) = event.at {
            // The script says when: this is not a wait for something to become so.
            std::thread::sleep(at.0.saturating_sub(self.start.elapsed()));
        }
        let what = describe(&event.step);
        let begun = self.start.elapsed();
        for load in self.loads.values() {
            load.mark(&what);
        }
        self.step(&event.step)?;
        let took_s = (self.start.elapsed() - begun).as_secs_f64();
        (self.tell)(&format!("{:8.2} s  {what}  ({took_s:.2} s)", begun.as_secs_f64()));
        self.report.events.push(Happened { at_s: begun.as_secs_f64(), took_s, what });
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), PlayError> {
        match step {
            Step::Start { devices } => self.all(devices, start),
            Step::Stop { devices } => self.all(devices, |d| {
                d.daemon.stop();
            }),
            Step::Kill { devices } => self.all(devices, |d| d.daemon.kill()),
            Step::Restart { devices } => self.all(devices, |d| {
                d.daemon.stop();
                start(d);
            }),
            Step::Freeze { devices } => self.each(devices, |_, d| d.set_frozen(true)),
            Step::Thaw { devices } => self.each(devices, |_, d| d.set_frozen(false)),
            Step::Cpu { devices, cpu } => self.each(devices, |_, d| d.set_cpu(Some(*cpu))),
            Step::Burn { devices } => self.each(devices, |_, d| d.burn()),
            Step::Cool { devices } => self.all(devices, LabDevice::cool),
            Step::FillDisk { devices, leave } => {
                self.each(devices, |_, d| d.fill_disk(leave.map_or(0, |size| size.0)))
            }
            Step::FreeDisk { devices } => self.each(devices, |_, d| d.free_disk()),
            Step::WipeDisk { devices } => self.each(devices, |_, d| d.wipe_disk()),
            Step::Cut { devices } => self.each(devices, |net, d| Ok(net.set_connected(&d.port, false)?)),
            Step::Heal { devices } => self.each(devices, |net, d| Ok(net.set_group(&d.port, 0)?)),
            Step::Partition { groups } => self.partition(groups),
            Step::Link { devices, rate, delay, jitter, loss, restore } => {
                self.each(devices, |net, d| {
                    if *restore {
                        d.port.card = Card::of(&d.machine.hardware);
                    }
                    let card = &mut d.port.card;
                    card.rate = rate.or(card.rate);
                    card.delay = delay.unwrap_or(card.delay);
                    card.jitter = jitter.unwrap_or(card.jitter);
                    card.loss = loss.unwrap_or(card.loss);
                    Ok(net.shape(&d.port)?)
                })?;
                Ok(self.hall.write_relay_orders()?)
            }
            Step::Address { device, address } => {
                let devices = [device.clone()];
                self.each(&devices, |net, d| Ok(d.set_address(net, *address)?))
            }
            Step::Mesh { device, args } => self.command(device, args),
            Step::Deploy(deploy) => self.deploy(deploy, Others::Drained),
            Step::Load(load) => self.load(load),
            Step::StopLoad { name } => self.stop_load(name.as_deref()),
            Step::Measure { label, seconds, warmup } => {
                let stretch = Stretch { label, seconds: *seconds, answers: 0, warmup: *warmup };
                let measurement = self.measure(&stretch, None)?;
                self.report.measurements.push(measurement);
                Ok(())
            }
            Step::Try(cell) => self.try_it(cell),
            Step::Compare(compare) => self.compare(compare),
            Step::Rematch(rematch) => self.rematch(rematch),
            Step::Wait { until, within } => {
                self.wait(until, within.map_or(Duration::from_secs(120), |span| span.0))
            }
        }
    }

    fn all(&mut self, patterns: &[String], mut act: impl FnMut(&mut LabDevice)) -> Result<(), PlayError> {
        self.each(patterns, |_, device| {
            act(device);
            Ok(())
        })
    }

    fn each(
        &mut self,
        patterns: &[String],
        mut act: impl FnMut(&mut super::network::Network, &mut LabDevice) -> Result<(), MachineError>,
    ) -> Result<(), PlayError> {
        for at in self.hall.named(patterns) {
            act(&mut self.hall.network, &mut self.hall.devices[at])?;
        }
        Ok(())
    }

    /// Group 0 stays on the first bridge; every device in no group is alone on one of its own.
    fn partition(&mut self, groups: &[Vec<String>]) -> Result<(), PlayError> {
        let groups: Vec<Vec<usize>> = groups.iter().map(|patterns| self.hall.named(patterns)).collect();
        let mut next = groups.len();
        for at in 0..self.hall.devices.len() {
            let group = groups.iter().position(|group| group.contains(&at)).unwrap_or_else(|| {
                next += 1;
                next - 1
            });
            self.hall.network.set_group(&self.hall.devices[at].port, group)?;
        }
        Ok(())
    }

    fn command(&self, device: &str, args: &[String]) -> Result<(), PlayError> {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let Some(device) = self.hall.device(device) else { return Ok(()) };
        let output = device.daemon.mesh(&args);
        Ok(super::hall::succeeded(&format!("mesh {}", args.join(" ")), &output)?)
    }

    fn load(&mut self, load: &super::scenario::Load) -> Result<(), PlayError> {
        let Some(file) = self.deployed.get(&load.name).cloned() else {
            return Err(PlayError::Script(format!("{} was not deployed in this script before", load.name)));
        };
        let expected = self.expected(&file)?;
        let entrances: Vec<Entrance> = match &load.devices {
            Some(patterns) => {
                self.hall.named(patterns).iter().map(|&at| entrance(&self.hall.devices[at])).collect()
            }
            None => self.hall.running().map(entrance).collect(),
        };
        let arrivals = match (load.clients, load.rate_per_s) {
            (_, Some(rate_per_s)) => Arrivals::Poisson { rate_per_s, max_in_flight: load.max_in_flight },
            (clients, None) => Arrivals::Closed { clients: clients.unwrap_or(1) * entrances.len() },
        };
        let (seed, timeout_s) = (self.hall.scenario.seed.wrapping_add(self.loads_started), PATIENCE_S);
        self.loads_started += 1;
        let failover = load.failover;
        let spec = LoadSpec { seed, timeout_s, failover, ..LoadSpec::new(&load.name, arrivals) };
        let running = Load::start(&spec, expected, &entrances)?;
        self.loads.insert(load.name.clone(), running);
        Ok(())
    }

    /// A cell of a table.
    fn try_it(&mut self, cell: &Try) -> Result<(), PlayError> {
        let measurement = match self.tried(cell, cell.settle.0) {
            Err(PlayError::Deploy(error)) if cell.optional => {
                (self.tell)(&format!("            {}: {error}", cell.label));
                Measurement::impossible(cell, &error.to_string())
            }
            other => other?,
        };
        self.report.measurements.push(measurement);
        Ok(())
    }

    /// Deploys a cell and measures it.
    fn tried(&mut self, cell: &Try, settle: Duration) -> Result<Measurement, PlayError> {
        if cell.lift {
            self.cards(Some(FULL_RATE))?;
        }
        let deployed = self.deploy(&Deploy::from(cell), Others::Drained);
        if cell.lift {
            self.cards(None)?;
        }
        deployed.map_err(|error| PlayError::Deploy(Box::new(error)))?;
        self.turn(cell, settle)
    }

    /// Load on a cell that is deployed, and what is measured of it after a while.
    fn turn(&mut self, cell: &Try, settle: Duration) -> Result<Measurement, PlayError> {
        let load = super::scenario::Load {
            name: cell.name.clone(),
            devices: Some(cell.on.clone()),
            clients: Some(cell.clients),
            rate_per_s: None,
            max_in_flight: 1,
            failover: false,
        };
        let planned = self.predicted(&cell.name).unwrap_or(0.0);
        let file = self.deployed.get(&cell.name);
        if let Some(file) = file.filter(|file| !self.reference.as_ref().is_some_and(|of| of.is_of(file))) {
            self.reference = Reference::load(file)?;
        }
        self.load(&load)?;
        std::thread::sleep(settle);
        // Every client has had two answers: the pipeline is full.
        let warmup = 2 * cell.clients * self.hall.named(&cell.on).len();
        let stretch = Stretch {
            label: &cell.label,
            seconds: cell.seconds,
            answers: cell.answers,
            warmup: warmup as u64,
        };
        let mut reference = self.reference.take();
        let measurement = self.measure(&stretch, reference.as_mut());
        self.reference = reference;
        let measurement = measurement?;
        self.stop_load(Some(&cell.name))?;
        // Also what went wrong while the pipeline filled, or a plan was replaced.
        let faults = self.report.loads.last().map_or(0, |(_, load)| load.not_right());
        Ok(Measurement { planned, faults, ..measurement })
    }

    /// All cards at this rate, or back to what the scenario says.
    fn cards(&mut self, rate: Option<Rate>) -> Result<(), PlayError> {
        let (devices, restore) = (vec!["*".to_owned()], rate.is_none());
        self.step(&Step::Link { devices, rate, delay: None, jitter: None, loss: None, restore })
    }

    fn stop_load(&mut self, name: Option<&str>) -> Result<(), PlayError> {
        let name = name.map(str::to_owned).or_else(|| self.loads.keys().next().cloned());
        let Some((name, load)) = name.and_then(|name| self.loads.remove_entry(&name)) else {
            return Err(PlayError::Script("no load runs that could be stopped".into()));
        };
        self.report.loads.push((name, load.stop()?));
        Ok(())
    }

    /// The whole model's answers, computed once.
    fn expected(&mut self, file: &PathBuf) -> Result<Arc<Expected>, PlayError> {
        if let Some(expected) = self.expected.get(file) {
            return Ok(Arc::clone(expected));
        }
        let expected = Arc::new(Expected::compute(file, 1, LENGTH, INPUTS, self.hall.scenario.seed)?);
        self.expected.insert(file.clone(), Arc::clone(&expected));
        Ok(expected)
    }
}

fn start(device: &mut LabDevice) {
    if !device.daemon.is_running() {
        device.daemon.start();
    }
}

fn entrance(device: &LabDevice) -> Entrance {
    let namespace = Some(device.port.namespace.name().to_owned());
    Entrance { namespace, url: "http://127.0.0.1:7401".into() }
}

/// An event in a few words.
fn describe(step: &Step) -> String {
    let text = serde_json::to_value(step).unwrap_or_default();
    let Some(map) = text.as_object() else { return String::new() };
    let words = map.iter().filter(|(key, value)| *key != "do" && !value.is_null());
    let words: Vec<String> = words.map(|(key, value)| format!("{key}={value}").replace('"', "")).collect();
    format!("{} {}", map.get("do").and_then(|v| v.as_str()).unwrap_or(""), words.join(" ")).trim().to_owned()
}
