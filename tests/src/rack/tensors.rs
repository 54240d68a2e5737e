//! The binary tensor extension of the Open Inference Protocol, written independently of the daemon's own client.

use mesh_inference::tensor::{DType, Tensor};
use serde_json::{Value, json};

/// The deadline of a request, microseconds: clients here give up by themselves.
const DEADLINE_US: u64 = 600_000_000;
/// Header with the length of the JSON part, in requests and answers.
pub(super) const JSON_LENGTH: &str = "Inference-Header-Content-Length";

/// A request for inference with binary inputs that asks for binary outputs.
#[derive(Debug, Clone)]
pub struct BinaryRequest {
    /// JSON, then the tensors' bytes.
    pub(super) body: Vec<u8>,
    /// Length of the JSON part.
    pub(super) json_length: usize,
}

impl BinaryRequest {
    /// The request with these inputs.
    pub fn new(inputs: &[(String, Tensor)]) -> Self {
        let (body, json_length) = encode(inputs);
        Self { body, json_length }
    }
}

fn encode(inputs: &[(String, Tensor)]) -> (Vec<u8>, usize) {
    let described: Vec<Value> = inputs
        .iter()
        .map(|(name, tensor)| {
            json!({"name": name, "datatype": tensor.dtype().oip_name(), "shape": tensor.shape(),
                   "parameters": {"binary_data_size": tensor.bytes().len()}})
        })
        .collect();
    let header =
        json!({"inputs": described, "parameters": {"binary_data_output": true, "timeout": DEADLINE_US}});
    let mut body = header.to_string().into_bytes();
    let json_length = body.len();
    for (_, tensor) in inputs {
        body.extend_from_slice(tensor.bytes());
    }
    (body, json_length)
}

/// An answer to a request for inference.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Outputs by name.
    pub outputs: Vec<(String, Tensor)>,
    /// How often the mesh sent the request again.
    pub retries: u64,
}

/// The answer whose JSON part is `json_length` bytes long.
pub(super) fn decode(body: &[u8], json_length: usize) -> Option<Answer> {
    let (header, mut rest) = body.split_at_checked(json_length)?;
    let header: Value = serde_json::from_slice(header).ok()?;
    let mut outputs = Vec::new();
    for output in header["outputs"].as_array()? {
        let shape: Option<Vec<i64>> = output["shape"].as_array()?.iter().map(Value::as_i64).collect();
        let dtype = DType::from_oip_name(output["datatype"].as_str()?)?;
        let size = usize::try_from(output["parameters"]["binary_data_size"].as_u64()?).ok()?;
        let (bytes, after) = rest.split_at_checked(size)?;
        rest = after;
        let tensor = Tensor::from_bytes(dtype, &shape?, bytes).ok()?;
        outputs.push((output["name"].as_str()?.to_owned(), tensor));
    }
    let retries = header["parameters"]["retries"].as_u64()?;
    rest.is_empty().then_some(Answer { outputs, retries })
}
