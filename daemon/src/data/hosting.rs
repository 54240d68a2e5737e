//! A stage that runs on this device, with the queue in front of it.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use mesh_inference::{
    stage::{StageError, StageOutput, StageRunner, Typical},
    tensor::Tensor,
};

use super::{
    busy::Busy,
    frame::{Address, FailureKind, Named},
    limits::DataLimits,
    link::smooth,
    metrics::StageMetrics,
    route::StageKey,
    wire::now,
};

/// Jobs that the runner has at a time: one at work and the next at hand. The others wait here, where those whose
/// time is over can be dropped unrun.
const AT_RUNNER: usize = 2;

/// What runs a stage. [`StageRunner`] in the daemon; tests bring their own.
pub trait StageRun: Send + Sync + fmt::Debug + 'static {
    /// Queues one run; `done` is called on another thread. Never blocks. `should_run` is asked when its turn comes.
    fn submit(
        &self,
        inputs: Vec<Tensor>,
        should_run: Box<dyn Fn() -> bool + Send>,
        done: Box<dyn FnOnce(Result<StageOutput, StageError>) + Send>,
    ) -> Result<(), StageError>;
    /// Names of the inputs, in the order that `submit` takes them.
    fn input_names(&self) -> &[String];
    /// Names of the outputs, in the order that a run gives them.
    fn output_names(&self) -> &[String];
}

impl StageRun for StageRunner {
    fn submit(
        &self,
        inputs: Vec<Tensor>,
        should_run: Box<dyn Fn() -> bool + Send>,
        done: Box<dyn FnOnce(Result<StageOutput, StageError>) + Send>,
    ) -> Result<(), StageError> {
        self.submit_if(inputs, should_run, done).map(|_token| ())
    }

    fn input_names(&self) -> &[String] {
        Self::input_names(self)
    }

    fn output_names(&self) -> &[String] {
        Self::output_names(self)
    }
}

/// A prepared stage as the data plane takes it.
#[derive(Debug)]
pub struct HostedStage<R = StageRunner> {
    /// Runs it.
    pub runner: R,
    /// Tensors that enter and leave the stage without being used in it.
    pub passthrough: Vec<String>,
}

/// A frame's activations, to be run.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) address: Address,
    pub(super) deadline: Instant,
    pub(super) tensors: Vec<Named>,
}

/// A job that the stage is done with.
pub(super) enum Done {
    /// The tensors that leave the stage, and how long such a job takes.
    Outputs(Address, Instant, Vec<Named>, Duration),
    /// It did not run; kind and text.
    Failed(Address, FailureKind, String),
    /// Its time was over before its turn came.
    Expired,
}

/// Told of every job that the stage is done with, on any thread.
pub(super) type OnDone = dyn Fn(&StageKey, Done) + Send + Sync;

/// A stage within reach of other devices.
pub(super) struct Hosted {
    pub(super) key: StageKey,
    runner: Box<dyn StageRun>,
    passthrough: Vec<String>,
    on_done: Arc<OnDone>,
    busy: Arc<Busy>,
    jobs_max: usize,
    bytes_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    waiting_bytes: usize,
    at_runner: usize,
    errors: u64,
    cost: Typical,
    output_bytes: f64,
}

impl fmt::Debug for Hosted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hosted").field("key", &self.key).finish_non_exhaustive()
    }
}

impl Hosted {
    pub(super) fn new(
        key: StageKey,
        stage: HostedStage<impl StageRun>,
        limits: &DataLimits,
        on_done: Arc<OnDone>,
        busy: Arc<Busy>,
    ) -> Self {
        Self {
            key,
            runner: Box::new(stage.runner),
            passthrough: stage.passthrough,
            on_done,
            busy,
            jobs_max: limits.stage_queue_jobs,
            bytes_max: limits.stage_queue_bytes,
            state: Mutex::new(State::default()),
        }
    }

    /// Takes a job, or says why not.
    pub(super) fn offer(self: &Arc<Self>, job: Job) -> Result<(), (FailureKind, String)> {
        let needed = self.runner.input_names().iter().chain(&self.passthrough);
        for name in needed {
            if !job.tensors.iter().any(|(n, _)| n == name) {
                return Err((FailureKind::Inputs, format!("{} was sent without tensor {name:?}", self.key)));
            }
        }
        {
            let mut state = self.lock();
            let bytes = bytes_of(&job.tensors);
            let room = state.waiting.is_empty()
                || (state.waiting.len() < self.jobs_max && state.waiting_bytes + bytes <= self.bytes_max);
            if !room {
                return Err((FailureKind::Busy, format!("the queue of {} is full", self.key)));
            }
            state.waiting_bytes += bytes;
            state.waiting.push_back(job);
            self.busy.enter();
        }
        self.pump();
        Ok(())
    }

    /// Hands waiting jobs to the runner while it has room.
    fn pump(self: &Arc<Self>) {
        loop {
            let job = {
                let mut state = self.lock();
                if state.at_runner >= AT_RUNNER {
                    return;
                }
                let Some(job) = state.waiting.pop_front() else { return };
                state.waiting_bytes -= bytes_of(&job.tensors);
                if job.deadline <= now() {
                    // Its ingress has given up by itself.
                    self.busy.leave(1);
                    continue;
                }
                state.at_runner += 1;
                job
            };
            self.run(job);
        }
    }

    fn run(self: &Arc<Self>, job: Job) {
        let take = |name: &String| job.tensors.iter().find(|(n, _)| n == name).cloned();
        let inputs: Vec<Tensor> = self.runner.input_names().iter().filter_map(take).map(|(_, t)| t).collect();
        let passing: Vec<Named> = self.passthrough.iter().filter_map(take).collect();
        let ticket = Ticket { stage: self.clone(), job: Some((job.address, job.deadline, passing)) };
        let slot = Arc::new(Mutex::new(Some(ticket)));
        let in_runner = slot.clone();
        let done = Box::new(move |result| {
            let ticket = in_runner.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(ticket) = ticket {
                ticket.finish(result);
            }
        });
        let deadline = job.deadline;
        let should_run = Box::new(move || deadline > now());
        if let Err(error) = self.runner.submit(inputs, should_run, done) {
            let ticket = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(ticket) = ticket {
                ticket.finish(Err(error));
            }
        }
    }

    fn finished(
        self: &Arc<Self>,
        (address, deadline, mut tensors): (Address, Instant, Vec<Named>),
        result: Result<StageOutput, StageError>,
    ) {
        self.busy.leave(1);
        let done = match result {
            Ok(output) => {
                let names = self.runner.output_names().iter().cloned();
                tensors.extend(names.zip(output.tensors));
                let mut state = self.lock();
                state.at_runner -= 1;
                let now = now();
                self.busy.record(now, output.compute);
                state.cost.add(output.cost, now);
                state.output_bytes = smooth(state.output_bytes, bytes_of(&tensors) as f64);
                Done::Outputs(address, deadline, tensors, output.cost)
            }
            Err(error) => {
                let kind = match &error {
                    StageError::Busy => Some(FailureKind::Busy),
                    StageError::Closed | StageError::Cancelled | StageError::Start { .. } => {
                        Some(FailureKind::Closed)
                    }
                    StageError::Run(_) => Some(FailureKind::Run),
                    StageError::Input(_) => Some(FailureKind::Inputs),
                    // Its ingress has given up by itself.
                    StageError::Expired => None,
                };
                let mut state = self.lock();
                state.at_runner -= 1;
                state.errors += u64::from(kind.is_some_and(|kind| kind != FailureKind::Busy));
                match kind {
                    Some(kind) => Done::Failed(address, kind, error.to_string()),
                    None => Done::Expired,
                }
            }
        };
        (self.on_done)(&self.key, done);
        self.pump();
    }

    pub(super) fn metrics(&self) -> StageMetrics {
        let state = self.lock();
        StageMetrics {
            key: self.key.clone(),
            runs: state.cost.runs(),
            errors: state.errors,
            compute_s: state.cost.seconds(),
            output_bytes: state.output_bytes,
            queue: state.waiting.len() + state.at_runner,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hosted {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.busy.leave(state.waiting.len() as u32);
    }
}

/// A job at the runner. A runner that forgets it has failed it: none vanishes.
struct Ticket {
    stage: Arc<Hosted>,
    job: Option<(Address, Instant, Vec<Named>)>,
}

impl Ticket {
    fn finish(mut self, result: Result<StageOutput, StageError>) {
        if let Some(job) = self.job.take() {
            self.stage.finished(job, result);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(job) = self.job.take() {
            self.stage.finished(job, Err(StageError::Closed));
        }
    }
}

pub(super) fn bytes_of(tensors: &[Named]) -> usize {
    tensors.iter().map(|(_, tensor)| tensor.bytes().len()).sum()
}
