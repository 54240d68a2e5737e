//! The client side of the Open Inference Protocol: requests and answers with binary tensors.

use std::time::Duration;

use mesh_inference::tensor::{DType, Tensor};
use serde::Deserialize;
use serde_json::json;

use crate::app::{InferResponse, ModelMetadata, TensorSpec};

/// Says how long the JSON part is.
pub(super) const JSON_LENGTH: &str = "inference-header-content-length";

/// A request's body, and the length of its JSON part.
pub(super) fn encode(inputs: &[(String, Tensor)], timeout: Duration) -> (Vec<u8>, usize) {
    let documents: Vec<_> = inputs
        .iter()
        .map(|(name, tensor)| {
            json!({
                "name": name,
                "datatype": tensor.dtype().oip_name(),
                "shape": tensor.shape(),
                "parameters": {"binary_data_size": tensor.bytes().len()},
            })
        })
        .collect();
    let micros = u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX);
    let header = json!({"inputs": documents, "parameters": {"binary_data_output": true, "timeout": micros}});
    let mut body = header.to_string().into_bytes();
    let json_len = body.len();
    for (_, tensor) in inputs {
        body.extend_from_slice(tensor.bytes());
    }
    (body, json_len)
}

#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(default)]
    parameters: AnswerParameters,
    outputs: Vec<Output>,
}

#[derive(Debug, Default, Deserialize)]
struct AnswerParameters {
    #[serde(default)]
    epoch: u64,
    #[serde(default)]
    retries: u32,
}

#[derive(Debug, Deserialize)]
struct Output {
    name: String,
    datatype: DType,
    shape: Vec<i64>,
    parameters: OutputParameters,
}

#[derive(Debug, Deserialize)]
struct OutputParameters {
    binary_data_size: usize,
}

/// Reads an answer whose outputs are all binary.
pub(super) fn decode(body: &[u8], json_len: usize) -> Result<InferResponse, String> {
    let (json, mut rest) = body.split_at_checked(json_len).ok_or("it is shorter than it says")?;
    let answer: Answer = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let mut outputs = Vec::new();
    for output in answer.outputs {
        let size = output.parameters.binary_data_size;
        let (bytes, after) = rest.split_at_checked(size).ok_or("it ends inside a tensor")?;
        let tensor = Tensor::from_bytes(output.datatype, &output.shape, bytes)
            .map_err(|error| format!("output {:?}: {error}", output.name))?;
        outputs.push((output.name, tensor));
        rest = after;
    }
    Ok(InferResponse { outputs, epoch: answer.parameters.epoch, retries: answer.parameters.retries })
}

/// `GET /v2/models/{name}`.
#[derive(Debug, Deserialize)]
pub(super) struct ModelDocument {
    name: String,
    inputs: Vec<TensorDocument>,
    outputs: Vec<TensorDocument>,
}

#[derive(Debug, Deserialize)]
struct TensorDocument {
    name: String,
    datatype: DType,
    shape: Vec<i64>,
}

impl From<ModelDocument> for ModelMetadata {
    fn from(document: ModelDocument) -> Self {
        let specs = |list: Vec<TensorDocument>| {
            list.into_iter().map(|t| TensorSpec { name: t.name, dtype: t.datatype, shape: t.shape }).collect()
        };
        Self { name: document.name, inputs: specs(document.inputs), outputs: specs(document.outputs) }
    }
}
