//! Checked load over HTTP: open and closed loops, every answer compared with the whole model's.
//!
//! `Load::start` sets clients going at the *entrances* (devices, each in its network namespace) and `Load::stop`
//! tells what they saw. Time is in seconds since the start, also in marks, timelines and windows.

mod arrivals;
mod clients;
mod expected;
mod record;
mod report;
mod steady;

use std::{
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

pub use expected::Expected;
pub use report::{Bin, Bucket, Latency, LoadReport, Mark};
pub use steady::{Steady, Window, measure_steady};

use clients::{Job, Worker};
use record::Shared;

/// What goes wrong with a load itself, as opposed to with the requests in it.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The reference answers cannot be computed.
    #[error("the whole model in {file} gives no reference answers: check the file and ONNX Runtime")]
    Whole {
        /// The model file.
        file: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The model does not take such inputs, or its answers are not such that they can be compared.
    #[error("the model in {file} cannot be checked: {why}")]
    Uncheckable {
        /// The model file.
        file: String,
        /// Why.
        why: String,
    },
    /// The settings cannot be met.
    #[error("the load cannot be made: {0}")]
    Settings(String),
    /// A thread could not be started or ended by a panic.
    #[error("a thread of the load failed: {0}; look for a limit on threads")]
    Thread(String),
    /// Requests of a window did not end.
    #[error("requests that arrived before {seconds:.1} s had not ended after another {} s", bound.as_secs())]
    Unended {
        /// They arrived before it.
        seconds: f64,
        /// How long was waited.
        bound: Duration,
    },
    /// Too few answers came.
    #[error("{got} of {wanted} answers came within {} s; last errors: {errors}", bound.as_secs())]
    TooFew {
        /// Answers that came.
        got: u64,
        /// Answers that were waited for.
        wanted: u64,
        /// How long was waited.
        bound: Duration,
        /// What came instead.
        errors: String,
    },
}

/// How requests arrive.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Arrivals {
    /// Clients that each send the next request when the last one is answered.
    Closed {
        /// How many.
        clients: usize,
    },
    /// Requests at random moments, whatever became of those before: an open loop. Latency counts from the moment of
    /// arrival, also where a request had to wait for a client.
    Poisson {
        /// Mean rate of arrival, requests per second.
        rate_per_s: f64,
        /// Arrivals beyond so many unanswered requests are dropped and counted.
        max_in_flight: usize,
    },
}

/// A load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadSpec {
    /// How requests arrive.
    pub arrivals: Arrivals,
    /// Name of the deployment that is asked.
    pub deployment: String,
    /// Of arrivals and of the order of inputs.
    #[serde(default)]
    pub seed: u64,
    /// Whether each client keeps its connection from one request to the next.
    #[serde(default = "yes")]
    pub keep_connections: bool,
    /// A request that an entrance does not take or answer goes to the next one, as a client with two addresses does it.
    #[serde(default)]
    pub failover: bool,
    /// What one request may take, in seconds.
    #[serde(default = "a_minute")]
    pub timeout_s: f64,
}

fn yes() -> bool {
    true
}

fn a_minute() -> f64 {
    60.0
}

impl LoadSpec {
    /// A load with seed 0, kept connections and a minute for each request.
    pub fn new(deployment: &str, arrivals: Arrivals) -> Self {
        let deployment = deployment.to_owned();
        Self { arrivals, deployment, seed: 0, keep_connections: true, failover: false, timeout_s: a_minute() }
    }
}

/// Where requests enter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entrance {
    /// Network namespace in which the clients run; none: this process's own.
    pub namespace: Option<String>,
    /// The API there, such as `http://127.0.0.1:7401`.
    pub url: String,
}

/// Most clients of one load: each is a thread.
const MOST_CLIENTS: usize = 4096;

/// A running load. Ends on drop as well, without a report.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts the clients, spread evenly over the entrances.
    pub fn start(
        spec: &LoadSpec,
        expected: Arc<Expected>,
        entrances: &[Entrance],
    ) -> Result<Self, LoadError> {
        check(spec, entrances)?;
        let shared = Arc::new(Shared::new(Instant::now()));
        let mut load = Self { shared: Arc::clone(&shared), threads: Vec::new() };
        let worker = |number: usize| Worker {
            number,
            entrance: entrances[number % entrances.len()].clone(),
            second: (spec.failover && entrances.len() > 1)
                .then(|| entrances[(number + 1) % entrances.len()].clone()),
            spec: spec.clone(),
            expected: Arc::clone(&expected),
            shared: Arc::clone(&shared),
        };
        match spec.arrivals {
            Arrivals::Closed { clients } => {
                for number in 0..clients {
                    let worker = worker(number);
                    load.spawn("load-client", move || worker.closed_loop())?;
                }
            }
            Arrivals::Poisson { rate_per_s, max_in_flight } => {
                let mut doors = Vec::new();
                for at in 0..entrances.len().min(max_in_flight) {
                    let clients = (at..max_in_flight).step_by(entrances.len()).count();
                    let (send, receive) = mpsc::sync_channel::<Job>(clients);
                    let door = arrivals::Door::new(send, clients);
                    let receive = Arc::new(std::sync::Mutex::new(receive));
                    for number in (at..max_in_flight).step_by(entrances.len()) {
                        let (worker, jobs, busy) = (worker(number), Arc::clone(&receive), door.busy());
                        load.spawn("load-client", move || worker.open_loop(&jobs, &busy))?;
                    }
                    doors.push(door);
                }
                let (seed, inputs) = (spec.seed, expected.len());
                load.spawn("load-arrivals", move || {
                    arrivals::dispatch(rate_per_s, seed, inputs, &doors, &shared);
                })?;
            }
        }
        Ok(load)
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), LoadError> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
        self.threads.push(thread.map_err(|error| LoadError::Thread(error.to_string()))?);
        Ok(())
    }

    /// Answers so far, right and wrong.
    pub fn answers(&self) -> u64 {
        self.shared.answers()
    }

    /// Seconds since the start.
    pub fn seconds(&self) -> f64 {
        self.shared.seconds()
    }

    /// Notes an event for the timeline. Returns its time.
    pub fn mark(&self, label: &str) -> f64 {
        self.shared.mark(label)
    }

    /// What was seen until now.
    pub fn report(&self) -> LoadReport {
        // Copied first: the clients do not wait while the numbers are worked out.
        let (record, seconds) = (self.shared.record().clone(), self.seconds());
        LoadReport::of(&record, seconds)
    }

    /// Waits until `more` answers have come since now.
    pub fn wait_for(&self, more: u64, bound: Duration) -> Result<(), LoadError> {
        self.watch(more, bound, &mut || {})
    }

    /// The same; `look` is called all the while.
    pub fn watch(&self, more: u64, bound: Duration, look: &mut dyn FnMut()) -> Result<(), LoadError> {
        let (start, from) = (Instant::now(), self.answers());
        while self.answers() < from.saturating_add(more) {
            if start.elapsed() >= bound {
                let errors = self.shared.record().failures.iter().rev().take(3).cloned().collect::<Vec<_>>();
                let got = self.answers() - from;
                return Err(LoadError::TooFew { got, wanted: more, bound, errors: errors.join("; ") });
            }
            look();
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Waits until all requests have ended that arrived before a time on the load's clock.
    pub fn wait_for_all_since(&self, seconds: f64, bound: Duration) -> Result<(), LoadError> {
        let start = Instant::now();
        while self.shared.waits_since(seconds) {
            if start.elapsed() >= bound {
                return Err(LoadError::Unended { seconds, bound });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Stops: no new request is sent, those under way are waited for. Rates count up to the call of this.
    pub fn stop(mut self) -> Result<LoadReport, LoadError> {
        let seconds = self.seconds();
        let panicked = self.end();
        if panicked > 0 {
            return Err(LoadError::Thread(format!("{panicked} of them ended by a panic")));
        }
        Ok(LoadReport::of(&self.shared.record(), seconds))
    }

    /// Ends all threads; how many had ended by a panic.
    fn end(&mut self) -> usize {
        self.shared.stop();
        for thread in &self.threads {
            thread.thread().unpark();
        }
        self.threads.drain(..).map(|thread| usize::from(thread.join().is_err())).sum()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

fn check(spec: &LoadSpec, entrances: &[Entrance]) -> Result<(), LoadError> {
    let wrong = |why: &str| Err(LoadError::Settings(why.to_owned()));
    if entrances.is_empty() {
        return wrong("it has no entrance: name at least one device");
    }
    if !(spec.timeout_s > 0.0 && spec.timeout_s <= 86_400.0) {
        return wrong("the timeout of a request is above 0 and at most a day");
    }
    let clients = match spec.arrivals {
        Arrivals::Closed { clients } => clients,
        Arrivals::Poisson { rate_per_s, max_in_flight } => {
            if !(rate_per_s > 0.0 && rate_per_s <= 1e6) {
                return wrong("the rate of arrivals is above 0 and at most a million per second");
            }
            max_in_flight
        }
    };
    if clients == 0 || clients > MOST_CLIENTS {
        return wrong("clients or requests in flight: at least 1, at most 4096");
    }
    Ok(())
}
