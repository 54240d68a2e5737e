//! Delay, jitter and loss of a link in user space, for kernels without netem.
//!
//! A relayed link is two TAP cards instead of a veth pair: `eth0` in the device's network namespace and a port in the
//! switch's. Two threads move Ethernet frames between them. What the device sends is delayed, lost, doubled or
//! reordered; what it is sent passes at once; a cut stops both. The cards are gone when the relay ends, so addresses,
//! bridges and `tbf` are set after its start. Rate is `tbf`'s: on `eth0` for what the device sends, on the port for
//! what it is sent.

mod card;
mod delay_line;
mod netem;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

pub use netem::netem_available;

use card::Card;
use delay_line::{DelayLine, Fate};

/// How a link treats what a device sends.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Impairment {
    /// Delay, in milliseconds.
    pub delay_ms: f64,
    /// Evenly distributed around the delay, this much to either side, in milliseconds. Frames keep their order.
    pub jitter_ms: f64,
    /// Part of the frames that is lost, 0 to 1.
    pub loss: f64,
    /// Part of the frames that comes twice, 0 to 1.
    pub duplicate: f64,
    /// Part of the frames that passes at once, ahead of those delayed, 0 to 1.
    pub reorder: f64,
    /// Nothing passes, either way.
    pub cut: bool,
}

impl Impairment {
    /// Says what is wrong with it, if anything is.
    pub fn check(&self) -> Result<(), String> {
        for (name, part) in [("loss", self.loss), ("duplicate", self.duplicate), ("reorder", self.reorder)] {
            if !(0.0..=1.0).contains(&part) {
                return Err(format!("{name} is {part}: give a part of the frames, 0 to 1"));
            }
        }
        for (name, ms) in [("delay_ms", self.delay_ms), ("jitter_ms", self.jitter_ms)] {
            if !(0.0..=60_000.0).contains(&ms) {
                return Err(format!("{name} is {ms}: give milliseconds, 0 to 60000"));
            }
        }
        Ok(())
    }
}

/// Where a relay stands and how it starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelaySpec {
    /// Network namespace of the device, as `ip netns` knows it.
    pub device_namespace: String,
    /// Name of the card there, such as `eth0`.
    pub device_card: String,
    /// Network namespace of the switch.
    pub switch_namespace: String,
    /// Name of the card there.
    pub switch_card: String,
    /// Most frames under way; later ones are dropped and counted. A link of 1 Gbit/s holds 4,200 frames in 50 ms.
    #[serde(default = "ten_thousand")]
    pub queue_frames: usize,
    /// Of losses and jitter.
    #[serde(default)]
    pub seed: u64,
    /// At the start.
    #[serde(default)]
    pub impairment: Impairment,
}

fn ten_thousand() -> usize {
    10_000
}

impl RelaySpec {
    /// A relay from `eth0` of a device to a port of a switch, at first without any impairment.
    pub fn new(device_namespace: &str, switch_namespace: &str, port: &str) -> Self {
        Self {
            device_namespace: device_namespace.to_owned(),
            device_card: "eth0".to_owned(),
            switch_namespace: switch_namespace.to_owned(),
            switch_card: port.to_owned(),
            queue_frames: ten_thousand(),
            seed: 0,
            impairment: Impairment::default(),
        }
    }
}

/// Why a relay does not run.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// A TAP card cannot be made.
    #[error("the TAP card {card} cannot be made in the namespace {namespace}: be root, with /dev/net/tun")]
    Card {
        /// Name of the card.
        card: String,
        /// Name of the namespace.
        namespace: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A thread cannot be started.
    #[error("a thread of the relay cannot be started; look for a limit on threads")]
    Thread(#[source] std::io::Error),
    /// An impairment or a size is out of range.
    #[error("the link cannot be impaired like this: {0}")]
    Settings(String),
    /// The process of a relay does not do what it should.
    #[error("the relay's process: {0}")]
    Process(String),
}

/// Frames of a relay so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Passed on from the device.
    pub sent: u64,
    /// Passed on to the device.
    pub received: u64,
    /// Lost by lot.
    pub lost: u64,
    /// Sent a second time by lot.
    pub doubled: u64,
    /// Dropped because too many were under way.
    pub overflowed: u64,
    /// Dropped because the link was cut.
    pub cut: u64,
    /// Not taken by the card on the other side, which was down.
    pub refused: u64,
}

#[derive(Debug, Default)]
struct Counters {
    sent: AtomicU64,
    received: AtomicU64,
    lost: AtomicU64,
    doubled: AtomicU64,
    overflowed: AtomicU64,
    cut: AtomicU64,
    refused: AtomicU64,
}

/// Changes and watches a relay while it runs.
#[derive(Debug, Clone)]
pub struct RelayHandle {
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    impairment: Mutex<Impairment>,
    counters: Counters,
    stop: AtomicBool,
}

impl State {
    fn impairment(&self) -> Impairment {
        *self.impairment.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl RelayHandle {
    /// Changes the link for frames sent from now on; a cut also ends those under way.
    pub fn set(&self, impairment: Impairment) -> Result<(), RelayError> {
        impairment.check().map_err(RelayError::Settings)?;
        *self.state.impairment.lock().unwrap_or_else(PoisonError::into_inner) = impairment;
        Ok(())
    }

    /// The link as it is now.
    pub fn impairment(&self) -> Impairment {
        self.state.impairment()
    }

    /// Frames so far.
    pub fn counts(&self) -> Counts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.state.counters;
        Counts {
            sent: of(&counters.sent),
            received: of(&counters.received),
            lost: of(&counters.lost),
            doubled: of(&counters.doubled),
            overflowed: of(&counters.overflowed),
            cut: of(&counters.cut),
            refused: of(&counters.refused),
        }
    }
}

/// A relayed link. Ends on drop, with its threads and cards.
#[derive(Debug)]
pub struct Relay {
    handle: RelayHandle,
    threads: Vec<JoinHandle<()>>,
}

impl Relay {
    /// Makes both cards, down and without addresses, and starts to relay.
    pub fn start(spec: &RelaySpec) -> Result<Self, RelayError> {
        spec.impairment.check().map_err(RelayError::Settings)?;
        if !(1..=1_000_000).contains(&spec.queue_frames) {
            return Err(RelayError::Settings("queue_frames: 1 to 1,000,000".to_owned()));
        }
        let device = Arc::new(Card::make(&spec.device_namespace, &spec.device_card)?);
        let port = Arc::new(Card::make(&spec.switch_namespace, &spec.switch_card)?);
        let state = State {
            impairment: Mutex::new(spec.impairment),
            counters: Counters::default(),
            stop: AtomicBool::new(false),
        };
        let state = Arc::new(state);
        let mut relay = Self { handle: RelayHandle { state: Arc::clone(&state) }, threads: Vec::new() };
        let line = DelayLine::new(spec.queue_frames, spec.seed);
        let (from, to, shared) = (Arc::clone(&device), Arc::clone(&port), Arc::clone(&state));
        relay.spawn("relay-send", move || send(&from, &to, &shared, line))?;
        relay.spawn("relay-receive", move || receive(&port, &device, &state))?;
        Ok(relay)
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), RelayError> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Before the devices that keep this host busy, or delays grow with the load. On Linux this is the
            // calling thread's alone; refused without root, where there is no relay either.
            let _ = rustix::process::setpriority_process(None, FIRST);
            work();
        });
        self.threads.push(thread.map_err(RelayError::Thread)?);
        Ok(())
    }

    /// To change and watch it.
    pub fn handle(&self) -> RelayHandle {
        self.handle.clone()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.handle.state.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The best `nice` value.
const FIRST: i32 = -20;
/// A thread looks so often whether it should end.
const LOOK_UP: Duration = Duration::from_millis(50);
/// Frames read in a row before those due are sent.
const IN_A_ROW: usize = 64;

/// From the device to the switch, by way of the delay line.
fn send(device: &Card, port: &Card, state: &State, mut line: DelayLine) {
    let counters = &state.counters;
    let mut buffer = card::buffer();
    while !state.stop.load(Ordering::Acquire) {
        let impairment = state.impairment();
        for _ in 0..IN_A_ROW {
            let Some(frame) = device.read(&mut buffer) else { break };
            match line.push(Instant::now(), frame, &impairment) {
                Fate::Held => {}
                Fate::Doubled => count(&counters.doubled),
                Fate::Lost => count(&counters.lost),
                Fate::Overflowed => count(&counters.overflowed),
                Fate::Cut => count(&counters.cut),
            }
        }
        let now = Instant::now();
        while let Some(frame) = line.take(now) {
            count(if impairment.cut {
                &counters.cut
            } else if port.write(&frame) {
                &counters.sent
            } else {
                &counters.refused
            });
        }
        let wait = line.next_due().map_or(LOOK_UP, |due| due.saturating_duration_since(Instant::now()));
        device.wait(wait.min(LOOK_UP));
    }
}

/// From the switch to the device, at once.
fn receive(port: &Card, device: &Card, state: &State) {
    let mut buffer = card::buffer();
    while !state.stop.load(Ordering::Acquire) {
        let cut = state.impairment().cut;
        for _ in 0..IN_A_ROW {
            let Some(frame) = port.read(&mut buffer) else {
                port.wait(LOOK_UP);
                break;
            };
            count(if cut {
                &state.counters.cut
            } else if device.write(frame) {
                &state.counters.received
            } else {
                &state.counters.refused
            });
        }
    }
}
