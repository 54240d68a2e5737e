//! From a body to an [`InferRequest`], checked against the model's metadata.

use std::time::Duration;

use mesh_inference::tensor::{DType, Tensor, TensorError, byte_len};

use super::{
    TIMEOUT_DEFAULT, TIMEOUT_MAX,
    header::{Header, Input, Output, RequestParameters},
    json_data,
    response::{Answer, WantedOutput},
};
use crate::{
    api::{body::Pieces, error::ApiError},
    app::{InferRequest, ModelMetadata, TensorSpec},
};

/// A request, and how its answer is to be written.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) request: InferRequest,
    pub(super) answer: Answer,
}

/// Reads a body: JSON of `json_len` bytes (all of it when absent) and then the binary tensors in the inputs' order. All
/// tensors together may take `inputs_max` bytes.
pub(super) fn parse(
    mut body: Pieces,
    json_len: Option<usize>,
    model: &ModelMetadata,
    inputs_max: usize,
) -> Result<Parsed, ApiError> {
    let json_len = json_len.unwrap_or(body.len());
    if json_len > body.len() {
        return Err(ApiError::bad(format!(
            "Inference-Header-Content-Length is {json_len}, but the body has only {} bytes",
            body.len()
        )));
    }
    let json = body.take_front(json_len);
    let header: Header<'_> = serde_json::from_slice(&json)
        .map_err(|error| ApiError::bad(format!("the JSON part is not an inference request: {error}")))?;
    check_names(&header.inputs, model)?;
    let mut inputs = Vec::with_capacity(header.inputs.len());
    let mut left = inputs_max;
    for input in &header.inputs {
        let spec = spec_of(input, model)?;
        let bad =
            |what: String| ApiError::bad(format!("input {:?} of model {}: {what}", input.name, model.name));
        let data = check_input(input, spec, &body).map_err(bad)?;
        left = left.checked_sub(data.bytes()).ok_or_else(|| ApiError::inputs_too_large(inputs_max))?;
        if let Data::Text { bytes, .. } = data {
            body.make_room(bytes)?;
        }
        let tensor = data.read(spec.dtype, &input.shape, &mut body).map_err(bad)?;
        inputs.push((spec.name.clone(), tensor));
    }
    if body.len() > 0 {
        let left = body.len();
        return Err(ApiError::bad(format!("the body has {left} bytes after the last binary tensor")));
    }
    let outputs = wanted(&header.outputs, &header.parameters, model)?;
    Ok(Parsed {
        request: InferRequest {
            model: model.name.clone(),
            inputs,
            // By name even where all are wanted: the answer has those of the model that the request was made for.
            outputs: outputs.iter().map(|output| output.name.clone()).collect(),
            timeout: timeout(&header.parameters)?,
            from_elsewhere: false,
        },
        answer: Answer { model: model.name.clone(), id: header.id, outputs },
    })
}

fn timeout(parameters: &RequestParameters) -> Result<Duration, ApiError> {
    match Duration::from_micros(parameters.timeout) {
        Duration::ZERO => Ok(TIMEOUT_DEFAULT),
        asked if asked <= TIMEOUT_MAX => Ok(asked),
        _ => Err(ApiError::bad(format!(
            "parameters.timeout is {} microseconds; at most {} are possible",
            parameters.timeout,
            TIMEOUT_MAX.as_micros()
        ))),
    }
}

/// Every input of the model once, and no other.
fn check_names(given: &[Input<'_>], model: &ModelMetadata) -> Result<(), ApiError> {
    for (index, input) in given.iter().enumerate() {
        spec_of(input, model)?;
        if given[..index].iter().any(|earlier| earlier.name == input.name) {
            return Err(ApiError::bad(format!("input {:?} is given twice", input.name)));
        }
    }
    let missing: Vec<_> =
        model.inputs.iter().filter(|s| !given.iter().any(|i| i.name == s.name)).map(describe).collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(ApiError::bad(format!("model {} also wants {}", model.name, missing.join(", ")))),
    }
}

fn spec_of<'m>(input: &Input<'_>, model: &'m ModelMetadata) -> Result<&'m TensorSpec, ApiError> {
    model.inputs.iter().find(|spec| spec.name == input.name).ok_or_else(|| {
        let known: Vec<_> = model.inputs.iter().map(describe).collect();
        ApiError::bad(format!(
            "model {} has no input {:?}; its inputs are {}",
            model.name,
            input.name,
            known.join(", ")
        ))
    })
}

fn describe(spec: &TensorSpec) -> String {
    format!("{:?} ({} {:?})", spec.name, spec.dtype.oip_name(), spec.shape)
}

/// Where an input's elements are, and how many bytes they take as a tensor.
enum Data<'a> {
    /// The next bytes of the body.
    Binary { bytes: usize },
    /// JSON.
    Text { text: &'a str, bytes: usize },
}

impl Data<'_> {
    fn bytes(&self) -> usize {
        match self {
            Self::Binary { bytes } | Self::Text { bytes, .. } => *bytes,
        }
    }

    fn read(&self, dtype: DType, shape: &[i64], body: &mut Pieces) -> Result<Tensor, String> {
        let fill = |target: &mut [u8]| match self {
            Self::Binary { .. } => {
                body.fill(target);
                Ok(())
            }
            Self::Text { text, .. } => {
                json_data::read(text, dtype, target).map_err(|what| Fill(format!("data: {what}")))
            }
        };
        Tensor::build(dtype, shape, fill).map_err(|Fill(what)| what)
    }
}

/// Finds what is wrong with an input before memory is taken for it.
fn check_input<'a>(input: &Input<'a>, spec: &TensorSpec, body: &Pieces) -> Result<Data<'a>, String> {
    if input.parameters.shared_memory_region.is_some() {
        return Err("shared memory is not supported: send the data".into());
    }
    let dtype = DType::from_oip_name(&input.datatype)
        .ok_or_else(|| format!("datatype {:?} is not supported", input.datatype))?;
    if dtype != spec.dtype {
        return Err(format!("datatype is {}, the model wants {}", dtype.oip_name(), spec.dtype.oip_name()));
    }
    check_shape(&input.shape, &spec.shape)?;
    let bytes = byte_len(dtype, &input.shape).map_err(|error| error.to_string())?;
    match (input.parameters.binary_data_size, input.data) {
        (Some(_), Some(_)) => Err("has both data and binary_data_size: send one of them".into()),
        (None, None) => Err("has neither data nor binary_data_size".into()),
        (Some(size), None) if size != bytes as u64 => Err(format!(
            "binary_data_size is {size}, but {} {:?} takes {bytes} bytes",
            dtype.oip_name(),
            input.shape
        )),
        (Some(_), None) if bytes > body.len() => {
            Err(format!("the body ends {} bytes before the end of its data", bytes - body.len()))
        }
        (Some(_), None) => Ok(Data::Binary { bytes }),
        (None, Some(_)) if matches!(dtype, DType::Fp16 | DType::Bf16) => {
            Err("16-bit floats have no JSON form in the protocol: send binary data".into())
        }
        (None, Some(data)) => {
            let (text, elements) = (data.get(), bytes / dtype.size());
            // Each has a character and a comma, but for the last: what was sent caps the memory.
            if elements.saturating_mul(2).saturating_sub(1) > text.len() {
                return Err(format!("data has fewer than the {elements} elements that the shape wants"));
            }
            Ok(Data::Text { text, bytes })
        }
    }
}

/// Why a tensor could not be filled, for people.
struct Fill(String);

impl From<TensorError> for Fill {
    fn from(error: TensorError) -> Self {
        Self(error.to_string())
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

/// Which outputs to answer with, and which of them in binary.
fn wanted(
    given: &[Output],
    parameters: &RequestParameters,
    model: &ModelMetadata,
) -> Result<Vec<WantedOutput>, ApiError> {
    let default = parameters.binary_data_output;
    if given.is_empty() {
        let all = model.outputs.iter().map(|s| WantedOutput { name: s.name.clone(), binary: default });
        return Ok(all.collect());
    }
    let mut wanted: Vec<WantedOutput> = Vec::with_capacity(given.len());
    for output in given {
        let name = &output.name;
        if !model.outputs.iter().any(|spec| spec.name == *name) {
            let known: Vec<_> = model.outputs.iter().map(describe).collect();
            let known = known.join(", ");
            return Err(ApiError::bad(format!(
                "model {} has no output {name:?}; its outputs are {known}",
                model.name
            )));
        }
        if wanted.iter().any(|earlier| earlier.name == *name) {
            return Err(ApiError::bad(format!("output {name:?} is asked for twice")));
        }
        if output.parameters.classification > 0 || output.parameters.shared_memory_region.is_some() {
            return Err(ApiError::bad(format!(
                "output {name:?}: the classification and shared memory extensions are not supported"
            )));
        }
        wanted.push(WantedOutput {
            name: name.clone(),
            binary: output.parameters.binary_data.unwrap_or(default),
        });
    }
    Ok(wanted)
}
