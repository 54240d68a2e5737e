//! What a request must be in whatever form it comes, JSON or protobuf: checked against the model's metadata.

use std::time::Duration;

use mesh_inference::tensor::{DType, byte_len};

use super::TIMEOUT_MAX;
use crate::{
    api::error::ApiError,
    app::{ModelMetadata, TensorSpec},
};

/// Inputs or outputs that a request may name.
pub(in crate::api) const TENSORS_MAX: usize = 1024;
/// Dimensions that a tensor may have.
pub(in crate::api) const RANK_MAX: usize = 32;

/// An input as a request describes it.
#[derive(Debug, Clone, Copy)]
pub(in crate::api) struct Described<'a> {
    pub(in crate::api) datatype: &'a str,
    pub(in crate::api) shape: &'a [i64],
    /// Its data is said to lie in shared memory.
    pub(in crate::api) is_shared: bool,
}

impl Described<'_> {
    /// Its element type, and the bytes that it takes, when it is what the model wants.
    pub(in crate::api) fn check(&self, spec: &TensorSpec) -> Result<(DType, usize), String> {
        if self.is_shared {
            return Err("shared memory is not supported: send the data".into());
        }
        let dtype = DType::from_oip_name(self.datatype)
            .ok_or_else(|| format!("datatype {:?} is not supported", self.datatype))?;
        if dtype != spec.dtype {
            return Err(format!(
                "datatype is {}, the model wants {}",
                dtype.oip_name(),
                spec.dtype.oip_name()
            ));
        }
        check_shape(self.shape, &spec.shape)?;
        let bytes = byte_len(dtype, self.shape).map_err(|error| error.to_string())?;
        Ok((dtype, bytes))
    }
}

fn check_shape(given: &[i64], wanted: &[i64]) -> Result<(), String> {
    let fits = given.len() == wanted.len()
        && given.iter().zip(wanted).all(|(&have, &want)| have >= 0 && (want < 0 || have == want));
    match fits {
        true => Ok(()),
        false => Err(format!("shape is {given:?}, the model wants {wanted:?} (-1: any)")),
    }
}

/// What the model says of the inputs with these names: every one of its inputs once, and no other.
pub(in crate::api) fn inputs<'m>(
    given: &[&str],
    model: &'m ModelMetadata,
) -> Result<Vec<&'m TensorSpec>, ApiError> {
    let mut specs = Vec::with_capacity(given.len());
    for (index, name) in given.iter().enumerate() {
        specs.push(spec_of(name, model)?);
        if given[..index].contains(name) {
            return Err(ApiError::bad(format!("input {name:?} is given twice")));
        }
    }
    let missing: Vec<_> =
        model.inputs.iter().filter(|s| !given.contains(&s.name.as_str())).map(describe).collect();
    match missing.is_empty() {
        true => Ok(specs),
        false => Err(ApiError::bad(format!("model {} also wants {}", model.name, missing.join(", ")))),
    }
}

fn spec_of<'m>(name: &str, model: &'m ModelMetadata) -> Result<&'m TensorSpec, ApiError> {
    model.inputs.iter().find(|spec| spec.name == name).ok_or_else(|| {
        let known: Vec<_> = model.inputs.iter().map(describe).collect();
        ApiError::bad(format!(
            "model {} has no input {name:?}; its inputs are {}",
            model.name,
            known.join(", ")
        ))
    })
}

fn describe(spec: &TensorSpec) -> String {
    format!("{:?} ({} {:?})", spec.name, spec.dtype.oip_name(), spec.shape)
}

/// What is wrong with an input, with its name.
pub(in crate::api) fn wrong_input(name: &str, model: &ModelMetadata, what: &str) -> ApiError {
    ApiError::bad(format!("input {name:?} of model {}: {what}", model.name))
}

/// Bytes that the inputs of a request may take as tensors beside those that were counted.
#[derive(Debug)]
pub(in crate::api) struct InputsLeft {
    max: usize,
    left: usize,
}

impl InputsLeft {
    pub(in crate::api) fn new(max: usize) -> Self {
        Self { max, left: max }
    }

    /// Counts an input, before memory is taken for it.
    pub(in crate::api) fn take(&mut self, bytes: usize) -> Result<(), ApiError> {
        self.left = self.left.checked_sub(bytes).ok_or_else(|| ApiError::inputs_too_large(self.max))?;
        Ok(())
    }
}

/// An output that a request asks for.
#[derive(Debug, Clone, Copy)]
pub(in crate::api) struct Asked<'a> {
    pub(in crate::api) name: &'a str,
    /// As classes, or into shared memory.
    pub(in crate::api) by_extension: bool,
}

/// Names of the outputs to answer with, in that order: those asked for, or all.
pub(in crate::api) fn outputs(asked: &[Asked<'_>], model: &ModelMetadata) -> Result<Vec<String>, ApiError> {
    if asked.is_empty() {
        return Ok(model.outputs.iter().map(|spec| spec.name.clone()).collect());
    }
    let mut names: Vec<String> = Vec::with_capacity(asked.len());
    for Asked { name, by_extension } in asked {
        if !model.outputs.iter().any(|spec| spec.name == *name) {
            let known: Vec<_> = model.outputs.iter().map(describe).collect();
            let known = known.join(", ");
            return Err(ApiError::bad(format!(
                "model {} has no output {name:?}; its outputs are {known}",
                model.name
            )));
        }
        if names.iter().any(|earlier| earlier == name) {
            return Err(ApiError::bad(format!("output {name:?} is asked for twice")));
        }
        if *by_extension {
            return Err(ApiError::bad(format!(
                "output {name:?}: the classification and shared memory extensions are not supported"
            )));
        }
        names.push((*name).to_owned());
    }
    Ok(names)
}

/// The time that a request's parameters give it; 0 is the same as none.
pub(in crate::api) fn timeout(microseconds: u64) -> Result<Option<Duration>, ApiError> {
    match Duration::from_micros(microseconds) {
        Duration::ZERO => Ok(None),
        asked if asked <= TIMEOUT_MAX => Ok(Some(asked)),
        _ => Err(ApiError::bad(format!(
            "parameters.timeout is {microseconds} microseconds; at most {} are possible",
            TIMEOUT_MAX.as_micros()
        ))),
    }
}
