//! How fast a device is, and what each block of a model costs on it, both by running them.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::blobs::{BlobStore, Hash};
use crate::memory::Thrift;
use crate::model::{Model, ModelError};
use crate::runtime::{Engine, EngineError, RunError, SessionOptions};
use crate::tensor::TensorError;

mod blocks;
mod build;
mod calibrate;
mod cgroup;
mod correct;
mod inputs;
mod measure;
mod memory;

pub use calibrate::{Calibration, CalibrationError, REFERENCE_SECONDS, calibrate};
pub use cgroup::{cores, processors_used, spare_memory};
pub use measure::thread_seconds;
pub(crate) use measure::{Costing, Stopwatch};

#[cfg(test)]
pub(crate) use build::GraphBuilder;

/// What each block of a model costs on a class of devices. Kept as a blob and shared between devices of the class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelProfile {
    /// The model: the hash of its manifest.
    pub model: Hash,
    /// Version of ONNX Runtime that it was measured with.
    pub runtime: String,
    /// Threads that it was measured with; 0 stands for all cores.
    pub threads: usize,
    /// The shapes of the model's inputs that it was measured for.
    pub shapes: BTreeMap<String, Vec<i64>>,
    /// Seconds of each block as a part of a longer stage: without the cost of a session of its own.
    pub block_seconds: Vec<f64>,
    /// Bytes that each block needs while it runs, its weights not counted.
    pub block_peak_bytes: Vec<u64>,
    /// Bytes of the weights that each block reads.
    pub block_weight_bytes: Vec<u64>,
    /// Bytes that cross each cut; the first are the model's inputs, the last its outputs.
    pub cut_bytes: Vec<u64>,
    /// What [`crate::codec::Codec::Sparse`] leaves of each cut's bytes: what crosses where processors are short. The
    /// model's inputs are made up for profiling and count whole. Empty in profiles from before this was measured.
    #[serde(default)]
    pub cut_sparse_bytes: Vec<u64>,
    /// Bytes of memory that a byte of weights is counted as: more than 1 where ONNX Runtime makes copies or other layouts
    /// while it loads, 1 where nothing was measured.
    #[serde(default = "one")]
    pub memory_per_weight: f64,
    /// Seconds that each session costs beside its blocks.
    pub session_seconds: f64,
    /// Seconds of the whole model in one session, when that fits in the memory that the profiling was allowed.
    pub whole_seconds: Option<f64>,
}

fn one() -> f64 {
    1.0
}

impl ModelProfile {
    /// Bytes that the weights of a block are counted as beyond their own.
    pub fn overhead_bytes(&self, block: usize) -> u64 {
        (self.block_weight_bytes[block] as f64 * (self.memory_per_weight - 1.0).max(0.0)) as u64
    }
}

/// How a model is profiled.
#[derive(Debug, Clone)]
pub struct ProfileOptions {
    /// Shapes of the model's inputs by name. Extents that are not given here nor fixed by the model are 1 for the
    /// outermost axis (the batch) and 128 for the others; equal symbols get equal extents.
    pub shapes: BTreeMap<String, Vec<i64>>,
    /// Least number of runs per block, of which the fastest counts; short blocks are run for some 15 ms, long ones once.
    pub repetitions: usize,
    /// How sessions are made: what the stages will use.
    pub session: SessionOptions,
    /// Bytes of weights that may be held at a time (one block's are held in any case): more of them make the
    /// correction for the cost of single sessions better. At first a quarter of what this process can still take, less what is
    /// touched between runs: weights of convolutions take over twice their bytes while they are loaded, and tensors from
    /// all over the model are kept beside.
    pub memory: u64,
}

impl Default for ProfileOptions {
    fn default() -> Self {
        Self {
            shapes: BTreeMap::new(),
            repetitions: 3,
            session: SessionOptions::default(),
            memory: (cgroup::spare_memory() / 4).saturating_sub(measure::OTHER_BYTES as u64),
        }
    }
}

/// How far a profiling is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Sessions measured.
    pub done: usize,
    /// Sessions to measure in all.
    pub total: usize,
}

/// Why a model could not be profiled.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Somebody asked for it.
    #[error("the profiling was cancelled")]
    Cancelled,
    /// Blobs are not in the store.
    #[error(
        "{missing} of the model's blobs are not on this device, {example} for one: fetch them, then profile again"
    )]
    MissingBlobs {
        /// How many.
        missing: usize,
        /// One of them.
        example: Hash,
    },
    /// A shape was given for an input that the model does not have, or that it cannot take.
    #[error("the shape {shape:?} cannot be used for the input \"{input}\": {reason}")]
    Shape {
        /// The input.
        input: String,
        /// The shape given.
        shape: Vec<i64>,
        /// What is wrong with it.
        reason: String,
    },
    /// A stage could not be cut out of the model.
    #[error("blocks {first} to {last} could not be cut out of the model")]
    Cut {
        /// First block.
        first: usize,
        /// Last block.
        last: usize,
        /// Why not.
        #[source]
        source: ModelError,
    },
    /// A stage's model could not be written.
    #[error("cannot write {}: check the data directory and its file system", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A session could not be made.
    #[error("ONNX Runtime could not load blocks {first} to {last}")]
    Session {
        /// First block.
        first: usize,
        /// Last block.
        last: usize,
        /// Why not.
        #[source]
        source: EngineError,
    },
    /// A run failed.
    #[error("blocks {first} to {last} did not run")]
    Run {
        /// First block.
        first: usize,
        /// Last block.
        last: usize,
        /// Why not.
        #[source]
        source: RunError,
    },
    /// An input could not be made.
    #[error("the input \"{input}\" could not be made")]
    Input {
        /// The input.
        input: String,
        /// Why not.
        #[source]
        source: TensorError,
    },
    /// A block wants a tensor that is in no cut before it.
    #[error(
        "block {block} reads \"{tensor}\", which no block before it gives: the model was not cut right, deploy it again"
    )]
    NoTensor {
        /// The block.
        block: usize,
        /// The tensor.
        tensor: String,
    },
}

/// The shapes of all inputs that a model would be profiled for. `shapes` as in [`ProfileOptions::shapes`].
///
/// # Errors
/// When the model does not have such inputs.
pub fn shapes(
    model: &Model,
    shapes: &BTreeMap<String, Vec<i64>>,
) -> Result<BTreeMap<String, Vec<i64>>, ProfileError> {
    let inputs = inputs::make(&model.inputs, shapes)?;
    Ok(inputs.into_iter().map(|(name, tensor)| (name, tensor.shape().to_vec())).collect())
}

/// Measures every block by running it on real outputs of the block before, holding the weights of one block at a
/// time; then runs of blocks that fit in `options.memory` together, to take out what a session of its own costs each.
///
/// Blocks for minutes on slow devices: call it on a thread of its own. `progress` is called after each session, and
/// `cancelled` is asked between runs.
pub fn profile(
    model: &Model,
    store: &BlobStore,
    engine: &Engine,
    options: &ProfileOptions,
    progress: &mut dyn FnMut(Progress),
    cancelled: &dyn Fn() -> bool,
) -> Result<ModelProfile, ProfileError> {
    let missing: Vec<Hash> =
        model.blobs().iter().map(|blob| blob.hash).filter(|hash| !store.has(hash)).collect();
    if let Some(example) = missing.first() {
        return Err(ProfileError::MissingBlobs { missing: missing.len(), example: *example });
    }
    let _thrift = Thrift::start();
    let inputs = inputs::make(&model.inputs, &options.shapes)?;
    let shapes = inputs.iter().map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())).collect();
    let windows = correct::windows(&weights(model), options.memory);
    let total = model.blocks().len() + windows.len();
    let prober = blocks::Prober { model, store, engine, options, cancelled };
    let mut done = 0;
    let mut step = || {
        done += 1;
        progress(Progress { done, total });
    };
    let measured = prober.blocks(&inputs, &windows, &mut step)?;
    let memory_per_weight = memory::per_weight(&measured, &weights(model));
    let mut block_seconds = measured.seconds;
    let session_seconds = correct::correct(&mut block_seconds, &measured.windows);
    let all = 0..model.blocks().len();
    Ok(ModelProfile {
        model: model.hash,
        runtime: engine.version().to_owned(),
        threads: options.session.threads,
        shapes,
        block_seconds,
        block_peak_bytes: measured.peaks,
        block_weight_bytes: weights(model),
        cut_bytes: measured.cuts,
        cut_sparse_bytes: measured.sparse_cuts,
        memory_per_weight,
        session_seconds,
        whole_seconds: measured
            .windows
            .iter()
            .find(|window| window.blocks == all)
            .map(|window| window.seconds),
    })
}

fn weights(model: &Model) -> Vec<u64> {
    model.blocks().iter().map(|block| block.weight_bytes).collect()
}
