//! What can happen in a scenario.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::lab::units::{Rate, Size, Span};

/// One line of the script.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Event {
    /// Not before this time after the start of the script; right after the event before when absent.
    #[serde(default)]
    pub at: Option<Span>,
    /// What happens.
    #[serde(flatten)]
    pub step: Step,
}

#[allow(missing_docs, reason = "fields of one meaning, told once: devices are names or patterns")]
/// What happens. `devices` are names, patterns with `*`, or ranges such as `pi-1..4`; all devices when absent where that makes sense.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Step {
    /// Starts daemons.
    Start {
        #[serde(default = "all")]
        devices: Vec<String>,
    },
    /// Asks daemons to stop, and waits.
    Stop { devices: Vec<String> },
    /// `kill -9`.
    Kill { devices: Vec<String> },
    /// Stops daemons and starts them again.
    Restart { devices: Vec<String> },
    /// Freezes everything on a device.
    Freeze { devices: Vec<String> },
    /// Ends a freeze.
    Thaw { devices: Vec<String> },
    /// Pulls the network cable.
    Cut { devices: Vec<String> },
    /// All cables in, one network.
    Heal {
        #[serde(default = "all")]
        devices: Vec<String>,
    },
    /// Only devices of one group reach each other; who is in none is alone.
    Partition { groups: Vec<Vec<String>> },
    /// Changes a card: what is absent stays.
    Link {
        devices: Vec<String>,
        #[serde(default)]
        rate: Option<Rate>,
        #[serde(default)]
        delay: Option<Span>,
        #[serde(default)]
        jitter: Option<Span>,
        #[serde(default)]
        loss: Option<f64>,
        /// First back to what the scenario says.
        #[serde(default)]
        restore: bool,
    },
    /// Gives a device another address while its daemon runs; the scenario's when absent.
    Address {
        device: String,
        #[serde(default)]
        address: Option<std::net::Ipv4Addr>,
    },
    /// Changes the processor's share.
    Cpu { devices: Vec<String>, cpu: f64 },
    /// Keeps the processor share of devices busy with a program that is not Mesh.
    Burn { devices: Vec<String> },
    /// Ends that.
    Cool {
        #[serde(default = "all")]
        devices: Vec<String>,
    },
    /// Fills the disk up to `leave` bytes.
    FillDisk {
        devices: Vec<String>,
        #[serde(default)]
        leave: Option<Size>,
    },
    /// Takes away what filled it.
    FreeDisk { devices: Vec<String> },
    /// Removes all data of devices whose daemons do not run.
    WipeDisk { devices: Vec<String> },
    /// Runs a `mesh` command on a device; it must succeed.
    Mesh { device: String, args: Vec<String> },
    /// `mesh deploy` on a device.
    Deploy(Deploy),
    /// Starts clients that check every answer.
    Load(Load),
    /// Ends the load and keeps its report.
    StopLoad {
        /// Which; the only one when absent.
        #[serde(default)]
        name: Option<String>,
    },
    /// Watches the load for a while: rates, processor time, bytes, what was predicted.
    Measure {
        /// Heads the row of the report.
        label: String,
        seconds: f64,
        /// Answers to let pass before.
        #[serde(default)]
        warmup: u64,
    },
    /// One cell of a table: deploy, load, measure, end of load.
    Try(Try),
    /// Several cells that are measured in turn, round after round: what they have to each other does not drift with
    /// the host.
    Compare(Compare),
    /// Measures a cell and those of others that came close again, in turns.
    Rematch(Rematch),
    /// Waits until something is so, and fails after `within` (2 minutes when absent).
    Wait {
        until: Condition,
        #[serde(default)]
        within: Option<Span>,
    },
}

impl Event {
    /// Makes it so many times as short as it is long by the clock.
    pub(super) fn hasten(&mut self, times: f64) {
        let span = |span: &mut Span| span.0 = span.0.div_f64(times);
        let cell = |cell: &mut Try| {
            span(&mut cell.settle);
            cell.seconds /= times;
        };
        if let Some(at) = &mut self.at {
            span(at);
        }
        match &mut self.step {
            Step::Cpu { cpu, .. } => *cpu *= times,
            Step::Measure { seconds, .. } => *seconds /= times,
            Step::Wait { until: Condition::Time(time), .. } => span(time),
            Step::Try(one) => cell(one),
            Step::Compare(compare) => compare.cell.iter_mut().for_each(cell),
            Step::Rematch(rematch) => {
                span(&mut rematch.settle);
                rematch.seconds /= times;
            }
            Step::Start { .. }
            | Step::Stop { .. }
            | Step::Kill { .. }
            | Step::Restart { .. }
            | Step::Freeze { .. }
            | Step::Thaw { .. }
            | Step::Cut { .. }
            | Step::Heal { .. }
            | Step::Partition { .. }
            | Step::Link { .. }
            | Step::Address { .. }
            | Step::Burn { .. }
            | Step::Cool { .. }
            | Step::FillDisk { .. }
            | Step::FreeDisk { .. }
            | Step::WipeDisk { .. }
            | Step::Mesh { .. }
            | Step::Deploy(_)
            | Step::Load(_)
            | Step::StopLoad { .. }
            | Step::Wait { .. } => {}
        }
    }
}

impl Step {
    /// Whether this starts clients.
    pub fn is_load(&self) -> bool {
        matches!(self, Self::Load(_))
    }
}

/// A deployment.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Deploy {
    /// `digits`, the name of a model in the folder of models, or a file.
    pub model: PathBuf,
    /// What to serve it as.
    pub name: String,
    /// Where the command runs; the first device that runs when absent.
    #[serde(default)]
    pub device: Option<String>,
    /// `throughput` or `latency`.
    #[serde(default)]
    pub objective: Option<String>,
    /// Exact number of stages, without replicas.
    #[serde(default)]
    pub stages: Option<usize>,
    /// Only these devices take part; the others are drained.
    #[serde(default)]
    pub on: Option<Vec<String>>,
    /// Whose planning: `mesh`, or one of the baselines, whose plan is pinned.
    #[serde(default)]
    pub policy: Option<String>,
    /// Once the model is known and planned, the processors are not limited until it serves: weights get there sooner.
    #[serde(default)]
    pub hurry: bool,
}

/// Checked load.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// The deployment.
    pub name: String,
    /// The devices that requests enter by; those that run when absent.
    #[serde(default)]
    pub devices: Option<Vec<String>>,
    /// Closed loop: so many clients per device, each sends when it has its answer.
    #[serde(default)]
    pub clients: Option<usize>,
    /// Open loop: requests per second over all devices, a Poisson process, whatever comes back.
    #[serde(default)]
    pub rate_per_s: Option<f64>,
    /// Open loop: arrivals beyond so many unanswered ones are dropped.
    #[serde(default = "in_flight")]
    pub max_in_flight: usize,
    /// Clients turn to the next device when theirs does not take or answer a request.
    #[serde(default)]
    pub failover: bool,
}

/// A deployment, a closed loop of clients on it, and a measurement.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Try {
    /// Heads the row of the report.
    pub label: String,
    /// As in [`Deploy`].
    pub model: PathBuf,
    /// As in [`Deploy`]; also as in [`Load`].
    pub name: String,
    /// As in [`Deploy`]; the requests enter by these devices.
    pub on: Vec<String>,
    /// As in [`Deploy`].
    #[serde(default)]
    pub policy: Option<String>,
    /// As in [`Deploy`].
    #[serde(default)]
    pub objective: Option<String>,
    /// As in [`Deploy`].
    #[serde(default)]
    pub stages: Option<usize>,
    /// Clients per device.
    pub clients: usize,
    /// As in [`Deploy`].
    #[serde(default)]
    pub hurry: bool,
    /// Cards are as fast as they can be until the deployment serves: weights get there sooner.
    #[serde(default)]
    pub lift: bool,
    /// A policy that has no plan, or none that the devices can hold, has its row in the report and the script goes on.
    #[serde(default)]
    pub optional: bool,
    /// Load before the measurement: the mesh corrects its plan by what it measures.
    #[serde(default)]
    pub settle: Span,
    /// Length of the measurement.
    pub seconds: f64,
    /// Answers to measure at least, however long it takes.
    #[serde(default)]
    pub answers: u64,
}

/// Cells that are all deployed at once and get load in turn.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Compare {
    /// How often each cell has its turn.
    pub rounds: usize,
    /// The cells, each a deployment of its own. `on` says where requests enter and which devices a policy may plan
    /// for; no device is drained. `settle` is the load before the first round, `seconds` the length of a turn.
    pub cell: Vec<Try>,
}

/// A cell of the script, and those of some others that came close, once more.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rematch {
    /// The cell.
    pub label: String,
    /// The others. Those without a row, or whose plan was impossible, are left out.
    pub against: Vec<String>,
    /// How much slower than the cell they were at most, as a part of its rate; or faster.
    pub within: f64,
    /// How often each has its turn.
    pub rounds: usize,
    /// Load before each turn: pipelines fill.
    pub settle: Span,
    /// Length of a turn.
    pub seconds: f64,
}

/// What a script waits for: `"cluster"`, `{ serving = "digits" }` and so on.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Condition {
    /// All running devices see one cluster of all of them, with a leader.
    Cluster,
    /// Every running device answers requests for the deployment.
    Serving(String),
    /// The deployment's plan is another than at the last `deploy` or `new-plan`.
    NewPlan(String),
    /// So many right answers since the wait began.
    Answers(u64),
    /// A device is seen in this state by all others that run.
    State {
        /// The device.
        device: String,
        /// `up`, `down`, `draining` or `joining`.
        state: String,
    },
    /// Time passes.
    Time(Span),
}

fn all() -> Vec<String> {
    vec!["*".into()]
}

fn in_flight() -> usize {
    256
}
