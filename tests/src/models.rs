//! Whole models as the reference: inputs by fixed seeds, the answer of one session, and how far another is from it.

use std::path::{Path, PathBuf};

use mesh_inference::{
    runtime::{Dim, Engine, EngineError, ModelSource, Port, Session, SessionOptions},
    tensor::{DType, Tensor},
};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// ONNX Runtime: the one that `MESH_INFERENCE_ONNXRUNTIME` names, or one from the usual places.
///
/// # Errors
/// When there is none.
pub fn engine() -> Result<Engine, EngineError> {
    let named = std::env::var_os("MESH_INFERENCE_ONNXRUNTIME").filter(|value| !value.is_empty());
    Engine::load(named.map(PathBuf::from).as_deref())
}

/// Tensors by name.
pub type Named = Vec<(String, Tensor)>;

/// A model in one session in this process.
#[derive(Debug)]
pub struct Whole {
    session: Session,
}

impl Whole {
    /// Loads the model in a file with its external data. ONNX Runtime is the one that `MESH_INFERENCE_ONNXRUNTIME`
    /// names, or one from the usual places.
    pub fn load(file: &Path) -> Self {
        Self::open(file).expect("ONNX Runtime is there and the model loads")
    }

    /// The same, with what went wrong.
    pub fn open(file: &Path) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let engine = engine()?;
        Ok(Self { session: engine.session(ModelSource::File(file), &SessionOptions::default())? })
    }

    /// Inputs for a batch of `batch`, with `length` for every other dynamic extent. `None` when the batch is fixed
    /// to something else.
    pub fn inputs(&self, batch: i64, length: i64, seed: u64) -> Option<Named> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        self.session.inputs().iter().map(|port| input(port, batch, length, &mut random)).collect()
    }

    /// Whether an extent other than the batch is known at run time only, such as the length of a sentence.
    pub fn has_dynamic_length(&self) -> bool {
        let dynamic = |dim: &Dim| matches!(dim, Dim::Dynamic(_));
        self.session.inputs().iter().any(|port| port.dims.iter().skip(1).any(dynamic))
    }

    /// What the whole model answers.
    pub fn run(&mut self, inputs: &Named) -> Named {
        let names: Vec<String> = self.session.outputs().iter().map(|port| port.name.clone()).collect();
        names.into_iter().zip(self.session.run(inputs).expect("the whole model runs")).collect()
    }
}

fn input(port: &Port, batch: i64, length: i64, random: &mut ChaCha8Rng) -> Option<(String, Tensor)> {
    let extent = |(axis, dim): (usize, &Dim)| match dim {
        Dim::Fixed(extent) => *extent,
        Dim::Dynamic(_) if axis == 0 => batch,
        Dim::Dynamic(_) => length,
    };
    let shape: Vec<i64> = port.dims.iter().enumerate().map(extent).collect();
    if shape.first() != Some(&batch) {
        return None;
    }
    let count = usize::try_from(shape.iter().product::<i64>()).expect("no negative extent");
    let dtype = port.dtype.expect("an input of numbers");
    let tensor = if dtype == DType::Int64 {
        Tensor::from_slice(&shape, &integers(&port.name, count, random))
    } else {
        assert_eq!(dtype, DType::Fp32, "inputs of other types are not made here");
        let data: Vec<f32> = (0..count).map(|_| random.random_range(-1.0..1.0)).collect();
        Tensor::from_slice(&shape, &data)
    };
    Some((port.name.clone(), tensor.expect("the count fits the shape")))
}

/// Words for `input_ids`; ones and zeros for a mask, which starts with a one, and for kinds of tokens.
fn integers(name: &str, count: usize, random: &mut ChaCha8Rng) -> Vec<i64> {
    let top = if name == "input_ids" { 30_000 } else { 2 };
    let mut data: Vec<i64> = (0..count).map(|_| random.random_range(0..top)).collect();
    if name.contains("mask") {
        data[0] = 1;
        data[count - 1] = 0;
    }
    data
}

/// The largest difference of two answers, as a part of the largest magnitude of each output; an error when names,
/// types or shapes differ, when a value is not finite, or when an output holds nothing but zeros.
pub fn difference(found: &Named, expected: &Named) -> Result<f64, String> {
    if found.len() != expected.len() {
        return Err(format!("{} outputs instead of {}", found.len(), expected.len()));
    }
    let mut worst: f64 = 0.0;
    for (name, expected) in expected {
        let found = found.iter().find(|(n, _)| n == name).ok_or_else(|| format!("no output {name}"))?;
        let found = &found.1;
        if (found.shape(), found.dtype()) != (expected.shape(), expected.dtype()) {
            let (a, b) = (found.shape(), expected.shape());
            return Err(format!("output {name}: {a:?} {:?} for {b:?}", found.dtype()));
        }
        let (found, expected) = (floats(found), floats(expected));
        let largest = expected.iter().fold(0.0f64, |most, x| most.max(x.abs()));
        if largest == 0.0 {
            return Err(format!("output {name} is expected to be all zeros: nothing can be compared"));
        }
        for (a, b) in found.iter().zip(&expected) {
            if !a.is_finite() || !b.is_finite() {
                return Err(format!("output {name} holds {a} for {b}"));
            }
            worst = worst.max((a - b).abs() / largest);
        }
    }
    Ok(worst)
}

fn floats(tensor: &Tensor) -> Vec<f64> {
    let values = tensor.as_slice::<f32>().expect("the models here answer in FP32");
    values.iter().map(|&x| f64::from(x)).collect()
}
