//! From a body to an [`InferRequest`], checked against the model's metadata.

use mesh_inference::tensor::{DType, Tensor};

use super::{
    TIMEOUT_DEFAULT,
    checks::{self, Asked, Described, InputsLeft},
    fill,
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
    let names: Vec<&str> = header.inputs.iter().map(|input| &*input.name).collect();
    let mut inputs = Vec::with_capacity(header.inputs.len());
    let mut left = InputsLeft::new(inputs_max);
    for (input, spec) in header.inputs.iter().zip(checks::inputs(&names, model)?) {
        let wrong = |what: String| checks::wrong_input(&input.name, model, &what);
        let data = check_input(input, spec, &body).map_err(wrong)?;
        left.take(data.bytes())?;
        if let Data::Text { bytes, .. } = data {
            body.make_room(bytes)?;
        }
        let tensor = data.read(spec.dtype, &input.shape, &mut body).map_err(wrong)?;
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
            timeout: checks::timeout(header.parameters.timeout)?.unwrap_or(TIMEOUT_DEFAULT),
            from_elsewhere: false,
        },
        answer: Answer { model: model.name.clone(), id: header.id, outputs },
    })
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
        fill::tensor(dtype, shape, |mut filler| match self {
            Self::Binary { bytes } => {
                body.fill(filler.slot(*bytes)?);
                Ok(())
            }
            Self::Text { text, .. } => json_data::read(text, filler).map_err(|what| format!("data: {what}")),
        })
    }
}

/// Finds what is wrong with an input before memory is taken for it.
fn check_input<'a>(input: &Input<'a>, spec: &TensorSpec, body: &Pieces) -> Result<Data<'a>, String> {
    let described = Described {
        datatype: &input.datatype,
        shape: &input.shape,
        is_shared: input.parameters.shared_memory_region.is_some(),
    };
    let (dtype, bytes) = described.check(spec)?;
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

/// Which outputs to answer with, and which of them in binary.
fn wanted(
    given: &[Output],
    parameters: &RequestParameters,
    model: &ModelMetadata,
) -> Result<Vec<WantedOutput>, ApiError> {
    let asked = given.iter().map(|output| Asked {
        name: &output.name,
        by_extension: output.parameters.classification > 0
            || output.parameters.shared_memory_region.is_some(),
    });
    let names = checks::outputs(&asked.collect::<Vec<_>>(), model)?;
    // As many as are given, in their order; where none is, all of the model.
    let is_binary = |index: usize| {
        let chosen = given.get(index).and_then(|output| output.parameters.binary_data);
        chosen.unwrap_or(parameters.binary_data_output)
    };
    let wanted = names.into_iter().enumerate();
    Ok(wanted.map(|(index, name)| WantedOutput { name, binary: is_binary(index) }).collect())
}
