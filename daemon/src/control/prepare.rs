//! Preparing a stage: fetch its weights, write its ONNX file, load the session, start its thread.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use mesh_inference::{
    model::StageModel,
    runtime::{Engine, EngineError, ModelSource, SessionOptions},
    stage::StageRunner,
};

use super::{
    models::{Models, ModelsError},
    transfer::{FetchError, Transfer, Wanted},
};

/// Runs that may wait in front of a stage's session.
const STAGE_QUEUE: usize = 64;

/// A session serves any plan that wants these blocks of this model.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionKey {
    /// Manifest hash.
    pub model: String,
    /// First block (inclusive).
    pub first_block: usize,
    /// Last block (inclusive).
    pub last_block: usize,
}

impl fmt::Display for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let model: String = self.model.chars().take(8).collect();
        write!(f, "blocks {}-{} of {model}", self.first_block, self.last_block)
    }
}

/// A stage that can answer.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Its thread.
    pub runner: StageRunner,
    /// Tensors that only pass through.
    pub passthrough: Vec<String>,
}

/// Why a stage cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The model's description is not to be had.
    #[error("the model is not known here")]
    Model(#[from] ModelsError),
    /// The plan names blocks that the model does not have, or a graph that cannot be cut there.
    #[error("the stage cannot be cut out of the model: {0}")]
    Extract(String),
    /// Weights did not arrive.
    #[error("weights did not arrive")]
    Weights(#[from] FetchError),
    /// The stage's file cannot be written.
    #[error("cannot write the stage's file")]
    Write(#[source] std::io::Error),
    /// ONNX Runtime refused it.
    #[error("ONNX Runtime cannot load the stage")]
    Load(#[source] EngineError),
    /// The thread could not be started.
    #[error("cannot start the stage: {0}")]
    Start(String),
}

/// Prepares stages on this device.
#[derive(Debug, Clone)]
pub struct Preparer {
    models: Models,
    transfer: Transfer,
    engine: Engine,
    options: Arc<SessionOptions>,
}

impl Preparer {
    /// With these session options.
    pub fn new(models: Models, transfer: Transfer, engine: Engine, options: SessionOptions) -> Self {
        Self { models, transfer, engine, options: Arc::new(options) }
    }

    /// Fetches what a stage needs. `done` and `total` count bytes of weights: in the end they are equal, and not 0.
    pub async fn fetch(
        &self,
        key: &SessionKey,
        done: &AtomicU64,
        total: &AtomicU64,
    ) -> Result<StageModel, PrepareError> {
        let model = self.models.ensure(&key.model).await?;
        let (first, last) = (key.first_block, key.last_block);
        let extracted = crate::background::spawn(move || model.stage(first, last));
        let stage = extracted
            .await
            .map_err(|e| PrepareError::Extract(e.to_string()))?
            .map_err(|e| PrepareError::Extract(e.to_string()))?;
        let wanted: Vec<Wanted> =
            stage.blobs.iter().map(|b| Wanted { hash: b.hash, bytes: Some(b.bytes) }).collect();
        let all: u64 = stage.blobs.iter().map(|b| b.bytes).sum();
        total.store(all, Ordering::Relaxed);
        // Before they are counted: what is damaged goes, and is fetched below.
        self.transfer.check_held(&wanted).await?;
        let held: u64 =
            stage.blobs.iter().filter(|b| self.transfer.store().has(&b.hash)).map(|b| b.bytes).sum();
        done.store(held, Ordering::Relaxed);
        self.transfer.fetch(&wanted, done).await?;
        // One where there is nothing to fetch: others read from it that all is here.
        total.store(all.max(1), Ordering::Relaxed);
        done.store(all.max(1), Ordering::Relaxed);
        Ok(stage)
    }

    /// Loads a stage that was fetched, which takes its memory.
    pub async fn load(&self, key: &SessionKey, stage: StageModel) -> Result<Prepared, PrepareError> {
        let (first, last) = (key.first_block, key.last_block);
        let this = self.clone();
        let name = format!("{}-{}-{}", key.model.chars().take(16).collect::<String>(), first, last);
        crate::background::spawn(move || this.load_here(&name, stage))
            .await
            .map_err(|e| PrepareError::Start(e.to_string()))?
    }

    fn load_here(&self, name: &str, stage: StageModel) -> Result<Prepared, PrepareError> {
        let path = self.transfer.store().stage_path(name);
        crate::files::write_atomically(&path, &stage.onnx).map_err(PrepareError::Write)?;
        let session =
            self.engine.session(ModelSource::File(&path), &self.options).map_err(PrepareError::Load)?;
        let inputs = stage.inputs.iter().map(|v| v.name.clone()).collect();
        let outputs = stage.outputs.iter().map(|v| v.name.clone()).collect();
        let runner = StageRunner::spawn(name, session, inputs, outputs, STAGE_QUEUE)
            .map_err(|e| PrepareError::Start(e.to_string()))?;
        Ok(Prepared { runner, passthrough: stage.passthrough })
    }
}
