//! A short fixed workload that makes devices comparable before any model was measured on them.

use serde::{Deserialize, Serialize};

use super::build::{GraphBuilder, int, ints};
use super::measure::{LONG, seconds_per_run};
use crate::memory::Thrift;
use crate::runtime::{Engine, EngineError, ModelSource, RunError, SessionOptions};
use crate::tensor::{DType, Tensor, TensorError};

/// What the workload takes on one thread of the reference device, an x86-64 server core with AVX-512: its speed is 1.
pub const REFERENCE_SECONDS: f64 = 0.00095;

/// Runs, of which the fastest counts.
const RUNS: usize = 6;

/// How long the workload takes on this device.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Seconds of the fastest run.
    pub seconds: f64,
    /// Threads it ran on; 0 stands for all cores.
    pub threads: usize,
}

impl Calibration {
    /// Speed relative to the reference device: 2 is twice as fast.
    pub fn speed(&self) -> f64 {
        REFERENCE_SECONDS / self.seconds
    }
}

/// Why a device could not be calibrated.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationError {
    /// The session could not be made.
    #[error("the calibration model could not be loaded")]
    Session(#[from] EngineError),
    /// The input could not be made.
    #[error("the calibration input could not be made")]
    Input(#[from] TensorError),
    /// A run failed.
    #[error("the calibration model did not run")]
    Run(#[from] RunError),
}

/// Runs the workload: convolutions, a depthwise one, products of matrices, and one product that is as fast as the
/// memory is; 0.14 GFLOP and 9 MB of weights in all, 30 ms on one core of a small single-board computer.
pub fn calibrate(engine: &Engine, threads: usize) -> Result<Calibration, CalibrationError> {
    let _thrift = Thrift::start();
    let options = SessionOptions { threads, ..SessionOptions::default() };
    let mut session = engine.session(ModelSource::Bytes(&workload()), &options)?;
    let image = Tensor::from_slice(&[1, 32, 56, 56], &vec![0.5_f32; 32 * 56 * 56])?;
    let tokens = Tensor::from_slice(&[64, 384], &vec![0.5_f32; 64 * 384])?;
    let inputs = [("image", image), ("tokens", tokens)];
    session.run(&inputs)?;
    let seconds = seconds_per_run(threads, (RUNS, LONG), || session.run(&inputs).map(|_| ()))?;
    Ok(Calibration { seconds, threads })
}

fn workload() -> Vec<u8> {
    let f = DType::Fp32;
    let mut graph = GraphBuilder::new()
        .input("image", f, &[1, 32, 56, 56])
        .input("tokens", f, &[64, 384])
        .random_weight("conv", &[32, 32, 3, 3], 288)
        .node_with("Conv", &["image", "conv"], &["a"], vec![ints("pads", &[1, 1, 1, 1])])
        .node("Relu", &["a"], &["b"])
        .random_weight("depthwise", &[32, 1, 3, 3], 9)
        .node_with("Conv", &["b", "depthwise"], &["c"], vec![ints("pads", &[1; 4]), int("group", 32)])
        .node("Relu", &["c"], &["d"])
        .random_weight("pointwise", &[64, 32, 1, 1], 32)
        .node_with("Conv", &["d", "pointwise"], &["e"], vec![ints("strides", &[2, 2])])
        .node("Relu", &["e"], &["f"])
        .node("GlobalAveragePool", &["f"], &["image_out"]);
    let mut last = "tokens".to_owned();
    for layer in 0..4 {
        let (weight, product, active) = (format!("w{layer}"), format!("p{layer}"), format!("t{layer}"));
        graph = graph
            .random_weight(&weight, &[384, 384], 384)
            .node("MatMul", &[&last, &weight], &[&product])
            .node("Tanh", &[&product], &[&active]);
        last = active;
    }
    graph
        .node_with("ReduceMean", &[&last], &["row"], vec![ints("axes", &[0]), int("keepdims", 1)])
        .random_weight("large", &[384, 4096], 384)
        .node("MatMul", &["row", "large"], &["tokens_out"])
        .output("image_out", f, &[1, 64, 1, 1])
        .output("tokens_out", f, &[1, 4096])
        .model()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workload_runs_and_gives_a_speed() {
        let engine = crate::runtime::tests::engine();
        let calibration = calibrate(&engine, 1).unwrap();
        assert!(calibration.seconds > 0.0 && calibration.seconds.is_finite(), "{calibration:?}");
        assert!(calibration.speed() > 0.0);
    }
}
