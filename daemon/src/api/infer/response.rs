//! From an [`InferResponse`] to the body that the client asked for. Binary outputs are sent from the tensors' memory, others
//! are written once, into the body.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use mesh_inference::tensor::{DType, Tensor};
use serde::Serialize;

use super::{
    JSON_LENGTH,
    json_data::{self, Elements},
};
use crate::{
    api::{error::ApiError, protocol::VERSION},
    app::InferResponse,
};

/// How to write the answer to a request.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) model: String,
    /// The request's id, sent back.
    pub(super) id: String,
    /// In the order to answer.
    pub(super) outputs: Vec<WantedOutput>,
}

/// An output that the client wants.
#[derive(Debug)]
pub(super) struct WantedOutput {
    pub(super) name: String,
    pub(super) binary: bool,
}

#[derive(Debug, Serialize)]
struct Document<'a> {
    model_name: &'a str,
    model_version: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    id: &'a str,
    parameters: Parameters,
    outputs: Vec<Output<'a>>,
}

/// Ours: which plan answered, and how often the request was sent again.
#[derive(Debug, Serialize)]
struct Parameters {
    epoch: u64,
    retries: u32,
}

#[derive(Debug, Serialize)]
struct Output<'a> {
    name: &'a str,
    datatype: DType,
    shape: &'a [i64],
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<OutputParameters>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Elements<'a>>,
}

#[derive(Debug, Serialize)]
struct OutputParameters {
    binary_data_size: usize,
}

/// An output of an answer by its name.
pub(in crate::api) fn output<'r>(
    response: &'r InferResponse,
    name: &str,
    model: &str,
) -> Result<&'r Tensor, ApiError> {
    let found = response.outputs.iter().find(|(known, _)| known == name);
    match found {
        Some((_, tensor)) => Ok(tensor),
        None => Err(internal(format!("the answer of model {model} lacks output {name:?}"))),
    }
}

pub(super) fn encode(answer: &Answer, response: InferResponse) -> Result<Response, ApiError> {
    let mut outputs = Vec::with_capacity(answer.outputs.len());
    let mut binary = Vec::new();
    for wanted in &answer.outputs {
        let tensor = output(&response, &wanted.name, &answer.model)?;
        let data = match wanted.binary {
            true => {
                binary.push(Bytes::from_owner(tensor.clone()));
                None
            }
            false => {
                json_data::check(tensor).map_err(|what| unsaid(&wanted.name, &what))?;
                Some(Elements(tensor))
            }
        };
        let parameters = wanted.binary.then(|| OutputParameters { binary_data_size: tensor.bytes().len() });
        outputs.push(Output {
            name: &wanted.name,
            datatype: tensor.dtype(),
            shape: tensor.shape(),
            parameters,
            data,
        });
    }
    let document = Document {
        model_name: &answer.model,
        model_version: VERSION,
        id: &answer.id,
        parameters: Parameters { epoch: response.epoch, retries: response.retries },
        outputs,
    };
    let json = serde_json::to_vec(&document).map_err(|error| internal(error.to_string()))?;
    Ok(assemble(json, binary))
}

fn assemble(json: Vec<u8>, binary: Vec<Bytes>) -> Response {
    let mut headers = HeaderMap::new();
    if binary.is_empty() {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        return (headers, json).into_response();
    }
    let length = json.len() + binary.iter().map(Bytes::len).sum::<usize>();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(JSON_LENGTH, HeaderValue::from(json.len()));
    let pieces = std::iter::once(Bytes::from(json)).chain(binary).map(Ok::<_, std::convert::Infallible>);
    (headers, Body::from_stream(futures::stream::iter(pieces))).into_response()
}

fn unsaid(name: &str, what: &str) -> ApiError {
    ApiError::bad(format!("output {name:?} cannot be sent as JSON: {what}; ask for it with binary_data"))
}

fn internal(message: String) -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
}
