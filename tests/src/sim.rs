//! A seeded simulator of clusters: the real founding protocol, Raft driver, leader's duties, planner, holdings and
//! ingress on simulated disks, clocks and network, in one thread and virtual time. One `u64` reproduces everything.
//!
//! A run has two parts. At first things go wrong as the seed says: loss, delay, repetition, partitions in one
//! or both directions, crashes that lose or tear unsynced writes, failing disks, frozen devices, stalled clocks,
//! wiped disks, removed devices. Then everything is healed, and one cluster with one leader and all
//! devices must be there and take a request within bounded time. A checker looks at every device after every step.
//!
//! - `options` draws the kind of run from the seed;
//! - `world` holds virtual time and the event loop; `faults` what goes wrong; `tail` the second part;
//! - `serving` is what it does for deployments: the leader's duties, stages, routes, requests;
//! - `process` is one daemon; `network` and `packet` what is between them; `workload` the clients;
//! - `checker` says what must never happen.

mod checker;
mod dice;
mod faults;
mod happening;
mod network;
mod options;
mod packet;
mod process;
mod replication;
mod serving;
mod tail;
mod workload;
mod world;

use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

pub use self::options::Sabotage;
use self::world::World;

/// What a run that ended well was like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Devices in the cluster at the end.
    pub devices: usize,
    /// Events that were simulated.
    pub events: u64,
    /// Virtual time of the whole run, in milliseconds.
    pub virtual_ms: u64,
    /// Virtual time from healing to agreement, in milliseconds.
    pub healing_ms: u64,
    /// The last log index that all devices applied.
    pub applied: u64,
    /// Requests that got right answers.
    pub answers: u64,
    /// Crashes that were survived.
    pub crashes: u64,
    /// The event log, if it was asked for.
    pub log: String,
}

/// A run in which something happened that must not, or something did not that must.
#[derive(Debug, Clone)]
pub struct Violation {
    /// The seed of the run.
    pub seed: u64,
    /// Virtual time, in milliseconds; 0 when the code under test panicked.
    pub at_ms: u64,
    /// What is wrong.
    pub what: String,
    /// The event log up to there, if it was asked for.
    pub log: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, at_ms, what, log: _ } = self;
        write!(
            f,
            "seed {seed} fails at {at_ms} ms: {what}\nreplay it: cargo run -p mesh-tests --bin sim -- --seed {seed} --log"
        )
    }
}

/// Simulates one seed. With `log`, every event is written down.
///
/// # Errors
/// [`Violation`] when a promise is broken or the code under test panics.
pub fn run(seed: u64, log: bool) -> Result<Report, Box<Violation>> {
    play(seed, None, log)
}

/// The same, with a rule of safety broken.
///
/// # Errors
/// As [`run`]: what is wanted here.
pub fn sabotaged(seed: u64, sabotage: Sabotage) -> Result<Report, Box<Violation>> {
    play(seed, Some(sabotage), false)
}

fn play(seed: u64, sabotage: Option<Sabotage>, log: bool) -> Result<Report, Box<Violation>> {
    let lines = log.then(|| Rc::new(RefCell::new(String::new())));
    let world = World::new(seed, sabotage, lines.clone());
    let result = catch_unwind(AssertUnwindSafe(|| world.run()));
    let log = lines.map(|lines| lines.borrow().clone()).unwrap_or_default();
    match result {
        Ok(Ok(report)) => Ok(Report { log, ..report }),
        Ok(Err((at_ms, what))) => Err(Box::new(Violation { seed, at_ms, what, log })),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            let what = format!("panic: {}", text.unwrap_or_default());
            Err(Box::new(Violation { seed, at_ms: 0, what, log }))
        }
    }
}
