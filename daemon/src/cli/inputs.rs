//! A request's inputs: from files, or random.

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use mesh_inference::tensor::{DType, Tensor};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

use super::{arrays, exit::CliError, images};
use crate::app::{ModelMetadata, TensorSpec};

/// Reads `--input` values (`FILE` or `NAME=FILE`) for a model.
pub(super) fn read(given: &[String], model: &ModelMetadata) -> Result<Vec<(String, Tensor)>, CliError> {
    let mut inputs: Vec<(String, Tensor)> = Vec::with_capacity(given.len());
    for text in given {
        let (name, path) = split(text, model)?;
        let spec = model.inputs.iter().find(|spec| spec.name == name).ok_or_else(|| {
            CliError::failed(format!("model {} has no input {name:?}; it takes {}", model.name, known(model)))
        })?;
        if inputs.iter().any(|(earlier, _)| *earlier == name) {
            return Err(CliError::usage(format!("input {name:?} is given twice")));
        }
        let tensor =
            if images::is_image(&path) { images::read(&path, spec)? } else { arrays::read_npy(&path)? };
        check(&tensor, spec, &path)?;
        inputs.push((name, tensor));
    }
    match model.inputs.iter().find(|spec| !inputs.iter().any(|(name, _)| *name == spec.name)) {
        None => Ok(inputs),
        Some(spec) => Err(CliError::usage(format!(
            "model {} also wants input {:?}: add --input {}=FILE",
            model.name, spec.name, spec.name
        ))),
    }
}

/// The input's name and its file. A file whose name has a `=` is found before a name is read into it.
fn split(text: &str, model: &ModelMetadata) -> Result<(String, PathBuf), CliError> {
    if let Some((name, path)) = text.split_once('=')
        && !Path::new(text).exists()
    {
        return Ok((name.to_owned(), path.into()));
    }
    match &*model.inputs {
        [only] => Ok((only.name.clone(), text.into())),
        _ => Err(CliError::usage(format!(
            "model {} has several inputs, so that {text} needs a name: --input NAME={text}, with {}",
            model.name,
            known(model)
        ))),
    }
}

fn known(model: &ModelMetadata) -> String {
    let list: Vec<_> =
        model.inputs.iter().map(|s| format!("{} ({} {:?})", s.name, s.dtype.oip_name(), s.shape)).collect();
    list.join(", ")
}

/// The daemon checks as well; this says how to mend the file.
fn check(tensor: &Tensor, spec: &TensorSpec, path: &Path) -> Result<(), CliError> {
    if tensor.dtype() != spec.dtype {
        return Err(CliError::failed(format!(
            "{} holds {}, but input {:?} wants {}: save it with .astype(numpy.{})",
            path.display(),
            arrays::numpy_name(tensor.dtype()),
            spec.name,
            arrays::numpy_name(spec.dtype),
            arrays::numpy_name(spec.dtype)
        )));
    }
    let fits = tensor.shape().len() == spec.shape.len()
        && tensor.shape().iter().zip(&spec.shape).all(|(have, want)| *want < 0 || have == want);
    match fits {
        true => Ok(()),
        false => Err(CliError::failed(format!(
            "{} has shape {:?}, but input {:?} wants {:?} (-1: any)",
            path.display(),
            tensor.shape(),
            spec.name,
            spec.shape
        ))),
    }
}

/// Random inputs of a model's types and shapes, the same for the same `seed`.
///
/// Dynamic extents are those of `shapes`, else 1. Floats lie in 0..1; integers are 0 or 1, which every table of
/// token or category numbers has.
pub(super) fn random(
    model: &ModelMetadata,
    shapes: &[(String, Vec<i64>)],
    seed: u64,
) -> Result<Vec<(String, Tensor)>, CliError> {
    if let Some((name, _)) = shapes.iter().find(|(name, _)| !model.inputs.iter().any(|s| s.name == *name)) {
        return Err(CliError::usage(format!(
            "model {} has no input {name:?}; it takes {}",
            model.name,
            known(model)
        )));
    }
    let mut rng = StdRng::seed_from_u64(seed);
    let mut inputs = Vec::with_capacity(model.inputs.len());
    for spec in &model.inputs {
        let shape = match shapes.iter().find(|(name, _)| *name == spec.name) {
            Some((_, shape)) => shape.clone(),
            None => spec.shape.iter().map(|&extent| if extent < 0 { 1 } else { extent }).collect(),
        };
        let tensor = fill(spec.dtype, &shape, &mut rng).map_err(|error| {
            CliError::because(format!("input {:?} of shape {shape:?}", spec.name), &error)
        })?;
        inputs.push((spec.name.clone(), tensor));
    }
    Ok(inputs)
}

fn fill(
    dtype: DType,
    shape: &[i64],
    rng: &mut impl Rng,
) -> Result<Tensor, mesh_inference::tensor::TensorError> {
    Tensor::build(dtype, shape, |target| {
        for slot in target.chunks_exact_mut(dtype.size()) {
            let unit: f32 = rng.random();
            match dtype {
                DType::Fp16 => slot.copy_from_slice(&f16::from_f32(unit).to_le_bytes()),
                DType::Bf16 => slot.copy_from_slice(&bf16::from_f32(unit).to_le_bytes()),
                DType::Fp32 => slot.copy_from_slice(&unit.to_le_bytes()),
                DType::Fp64 => slot.copy_from_slice(&f64::from(unit).to_le_bytes()),
                DType::Bool
                | DType::Uint8
                | DType::Uint16
                | DType::Uint32
                | DType::Uint64
                | DType::Int8
                | DType::Int16
                | DType::Int32
                | DType::Int64 => slot[0] = u8::from(unit < 0.5),
            }
        }
        Ok(())
    })
}
