//! A stage at work: one thread owns one ONNX Runtime session.
//!
//! Requests wait in a bounded queue; submitting never blocks, and the answer is handed over on the stage's thread. A
//! run that panics or fails is answered with an error, and the stage goes on to the next.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::priority::give_way;
use crate::profile::{Costing, Stopwatch};
use crate::runtime::{CancelToken, Port, RunError, Session};
use crate::tensor::Tensor;

mod stats;

use stats::Counters;
pub use stats::{StageStats, Typical};

/// What comes back from a run.
#[derive(Debug)]
pub struct StageOutput {
    /// Output tensors in the stage's output order.
    pub tensors: Vec<Tensor>,
    /// Time in the session.
    pub compute: Duration,
    /// What the run cost the device: the time that counts for how many runs it can do. With one thread, processor
    /// time lengthened by the quota of its control group; else the time in the session.
    pub cost: Duration,
}

/// Cheap handle on a stage thread; the thread ends when the last handle is dropped.
///
/// Requests that still wait then are answered with [`StageError::Closed`]; one that runs is finished.
#[derive(Debug, Clone)]
pub struct StageRunner(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    queue: SyncSender<Job>,
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.counters.closing.store(true, Ordering::SeqCst);
    }
}

/// Tells when a stage that was let go is gone, with its memory.
#[derive(Debug, Clone)]
pub struct Ending(Weak<Shared>);

impl Ending {
    /// No handle is left, and the thread has ended.
    pub fn is_over(&self) -> bool {
        self.0.strong_count() == 0
    }
}

/// What the thread and its handles both see.
#[derive(Debug)]
struct Shared {
    name: String,
    inputs: Vec<Port>,
    input_names: Vec<String>,
    output_names: Vec<String>,
    counters: Counters,
    engine: crate::runtime::Engine,
}

type Done = Box<dyn FnOnce(Result<StageOutput, StageError>) + Send>;
type ShouldRun = Box<dyn Fn() -> bool + Send>;

struct Job {
    inputs: Vec<Tensor>,
    token: CancelToken,
    should_run: Option<ShouldRun>,
    done: Done,
}

/// Why a stage did not answer.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The bounded queue is full; nothing was taken.
    #[error("the stage's queue is full")]
    Busy,
    /// The inputs do not fit the stage: their number, an element type or a shape.
    #[error("the stage cannot take these inputs: {0}")]
    Input(String),
    /// ONNX Runtime failed, or the run panicked.
    #[error("{0}")]
    Run(String),
    /// The request was not worth running any more when its turn came.
    #[error("the request expired before the stage came to it")]
    Expired,
    /// The run was ended by its token.
    #[error("the run was cancelled")]
    Cancelled,
    /// The stage thread has ended.
    #[error("the stage has been shut down")]
    Closed,
    /// The stage could not be started.
    #[error("the stage \"{name}\" cannot start: {reason}")]
    Start {
        /// The stage.
        name: String,
        /// What is wrong.
        reason: String,
    },
}

impl From<RunError> for StageError {
    fn from(error: RunError) -> Self {
        match error {
            RunError::MissingInput { .. }
            | RunError::UnknownInput { .. }
            | RunError::WrongType { .. }
            | RunError::WrongShape { .. } => Self::Input(error.to_string()),
            RunError::Cancelled => Self::Cancelled,
            RunError::Output { ref source, .. } => Self::Run(format!("{error}: {source}")),
            RunError::Failed { .. } => Self::Run(error.to_string()),
        }
    }
}

impl StageRunner {
    /// Starts a thread called `name` that owns the session and takes up to `queue` waiting requests.
    ///
    /// `inputs` must be the session's inputs, each once, in the order in which requests will bring them; `outputs`
    /// are those of the session's outputs that requests get back, in that order.
    pub fn spawn(
        name: &str,
        session: Session,
        inputs: Vec<String>,
        outputs: Vec<String>,
        queue: usize,
    ) -> Result<Self, StageError> {
        let start = |reason: String| StageError::Start { name: name.to_owned(), reason };
        let ports =
            in_order(session.inputs(), &inputs).map_err(|what| start(format!("its inputs: {what}")))?;
        if ports.len() != session.inputs().len() {
            return Err(start(format!(
                "the session has {} inputs, not {}",
                session.inputs().len(),
                ports.len()
            )));
        }
        let selected: Vec<usize> = in_order(session.outputs(), &outputs)
            .map_err(|what| start(format!("its outputs: {what}")))?
            .into_iter()
            .map(|(index, _)| index)
            .collect();
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            inputs: ports.into_iter().map(|(_, port)| port.clone()).collect(),
            input_names: inputs,
            output_names: outputs,
            counters: Counters::default(),
            engine: session.engine().clone(),
        });
        let (sender, receiver) = sync_channel(queue.max(1));
        let costing = Costing::new(session.threads());
        let worker = Worker { session, selected, costing, shared: Arc::clone(&shared) };
        std::thread::Builder::new()
            .name(thread_name(name))
            .spawn(move || {
                give_way();
                worker.serve(&receiver);
            })
            .map_err(|error| start(format!("no thread: {error}")))?;
        Ok(Self(Arc::new(Handle { queue: sender, shared })))
    }

    /// To know when the stage is gone, after all handles have been dropped.
    pub fn ending(&self) -> Ending {
        Ending(Arc::downgrade(&self.0.shared))
    }

    /// Queues one run. `done` is called on the stage's thread. Never blocks. On an error `done` is not called.
    pub fn submit(
        &self,
        inputs: Vec<Tensor>,
        done: Box<dyn FnOnce(Result<StageOutput, StageError>) + Send>,
    ) -> Result<(), StageError> {
        self.enqueue(inputs, None, done).map(|_| ())
    }

    /// As [`StageRunner::submit`]; `should_run` is asked when the request's turn comes, and a request that is not
    /// worth running any more is answered with [`StageError::Expired`]. The token ends the run early.
    pub fn submit_if(
        &self,
        inputs: Vec<Tensor>,
        should_run: Box<dyn Fn() -> bool + Send>,
        done: Box<dyn FnOnce(Result<StageOutput, StageError>) + Send>,
    ) -> Result<CancelToken, StageError> {
        self.enqueue(inputs, Some(should_run), done)
    }

    fn enqueue(
        &self,
        inputs: Vec<Tensor>,
        should_run: Option<ShouldRun>,
        done: Done,
    ) -> Result<CancelToken, StageError> {
        let shared = &self.0.shared;
        if inputs.len() != shared.inputs.len() {
            let (expected, got) = (shared.inputs.len(), inputs.len());
            return Err(StageError::Input(format!("it takes {expected} tensors, not {got}")));
        }
        let token = shared.engine.cancel_token().map_err(|error| StageError::Run(error.to_string()))?;
        let job = Job { inputs, token: token.clone(), should_run, done };
        shared.counters.entered();
        match self.0.queue.try_send(job) {
            Ok(()) => Ok(token),
            Err(error) => {
                shared.counters.left();
                Err(match error {
                    TrySendError::Full(_) => StageError::Busy,
                    TrySendError::Disconnected(_) => StageError::Closed,
                })
            }
        }
    }

    /// Names of the inputs, in the order that `submit` takes them.
    pub fn input_names(&self) -> &[String] {
        &self.0.shared.input_names
    }

    /// Inputs with their element types and extents, in the order that `submit` takes them.
    pub fn inputs(&self) -> &[Port] {
        &self.0.shared.inputs
    }

    /// Names of the outputs, in the order that a run gives them.
    pub fn output_names(&self) -> &[String] {
        &self.0.shared.output_names
    }

    /// The stage's name.
    pub fn name(&self) -> &str {
        &self.0.shared.name
    }

    /// What the stage has done so far; takes no lock.
    pub fn stats(&self) -> StageStats {
        self.0.shared.counters.read()
    }
}

/// The ports of these names, with their positions; refuses unknown and repeated names.
fn in_order<'a>(ports: &'a [Port], names: &[String]) -> Result<Vec<(usize, &'a Port)>, String> {
    let mut found = Vec::with_capacity(names.len());
    for (position, name) in names.iter().enumerate() {
        if names[..position].contains(name) {
            return Err(format!("\"{name}\" is named twice"));
        }
        let port = ports.iter().enumerate().find(|(_, port)| port.name == *name);
        found.push(port.ok_or_else(|| format!("the session has no \"{name}\""))?);
    }
    Ok(found)
}

/// Linux shows 15 bytes of a thread's name, and none may be zero.
fn thread_name(name: &str) -> String {
    name.chars().filter(|c| *c != '\0').collect()
}

struct Worker {
    session: Session,
    selected: Vec<usize>,
    costing: Costing,
    shared: Arc<Shared>,
}

impl Worker {
    fn serve(mut self, jobs: &Receiver<Job>) {
        while let Ok(job) = jobs.recv() {
            let Job { inputs, token, should_run, done } = job;
            self.shared.counters.left();
            let result = self.answer(inputs, &token, should_run);
            // The callback is the caller's code: its panic must not take the stage down with it.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| done(result))) {
                tracing::error!(
                    stage = self.shared.name,
                    panic = panic_text(&*panic),
                    "an answer's receiver panicked"
                );
            }
        }
    }

    fn answer(
        &mut self,
        inputs: Vec<Tensor>,
        token: &CancelToken,
        should_run: Option<ShouldRun>,
    ) -> Result<StageOutput, StageError> {
        if self.shared.counters.closing.load(Ordering::SeqCst) {
            return Err(StageError::Closed);
        }
        let wanted =
            should_run.is_none_or(|should_run| catch_unwind(AssertUnwindSafe(should_run)).unwrap_or(true));
        if !wanted {
            self.shared.counters.expired.fetch_add(1, Ordering::Relaxed);
            return Err(StageError::Expired);
        }
        let watch = Stopwatch::start();
        let result = catch_unwind(AssertUnwindSafe(|| self.run(inputs, token))).unwrap_or_else(|panic| {
            Err(StageError::Run(format!("the run panicked: {}", panic_text(&*panic))))
        });
        let (compute, cost) = (watch.wall(), self.costing.of(&watch));
        self.shared.counters.ran(compute, cost, result.is_ok());
        result.map(|tensors| StageOutput { tensors, compute, cost })
    }

    fn run(&mut self, inputs: Vec<Tensor>, token: &CancelToken) -> Result<Vec<Tensor>, StageError> {
        let inputs: Vec<(&str, Tensor)> =
            self.shared.input_names.iter().map(String::as_str).zip(inputs).collect();
        let outputs = self.session.run_cancellable(&inputs, token)?;
        Ok(self.selected.iter().map(|index| outputs[*index].clone()).collect())
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests;
