//! A stage at work: one thread owns one ONNX Runtime session.

use std::time::Duration;

use crate::tensor::Tensor;

/// What comes back from a run.
#[derive(Debug)]
pub struct StageOutput {
    /// Output tensors in the stage's output order.
    pub tensors: Vec<Tensor>,
    /// Time in the session.
    pub compute: Duration,
}

/// Cheap handle on a stage thread; the thread ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub struct StageRunner {}

/// Why a stage did not answer.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The bounded queue is full; nothing was taken.
    #[error("the stage's queue is full")]
    Busy,
    /// ONNX Runtime refused the inputs or failed.
    #[error("{0}")]
    Run(String),
    /// The stage thread has ended.
    #[error("the stage has been shut down")]
    Closed,
}

impl StageRunner {
    /// Queues one run. `done` is called on the stage's thread. Never blocks.
    pub fn submit(
        &self,
        _inputs: Vec<Tensor>,
        _done: Box<dyn FnOnce(Result<StageOutput, StageError>) + Send>,
    ) -> Result<(), StageError> {
        Err(StageError::Closed)
    }
    /// Names of the inputs, in the order that `submit` takes them.
    pub fn input_names(&self) -> &[String] {
        &[]
    }
    /// Names of the outputs, in the order that a run gives them.
    pub fn output_names(&self) -> &[String] {
        &[]
    }
}
