//! From an [`InferResponse`] to the message that answers a `ModelInfer`. Data is sent from the tensors' memory.

use axum::http::StatusCode;
use bytes::Bytes;
use prost::Message;

use super::messages::{ModelInferHead, NumberParameter, TensorHead};
use crate::{
    api::{body::Pieces, error::ApiError, infer::response::output, protocol::VERSION},
    app::InferResponse,
};

/// Before each run of `raw_output_contents`: field 6, a run of bytes.
const RAW_OUTPUT: u8 = (6 << 3) | 2;

/// How to write the answer to a request.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) model: String,
    /// The request's id, sent back.
    pub(super) id: String,
    /// In the order to answer.
    pub(super) outputs: Vec<String>,
}

pub(super) fn encode(answer: Answer, response: &InferResponse) -> Result<Pieces, ApiError> {
    let (mut heads, mut data) = (Vec::new(), Vec::new());
    for name in answer.outputs {
        let tensor = output(response, &name, &answer.model)?;
        heads.push(TensorHead {
            name,
            datatype: tensor.dtype().oip_name().into(),
            shape: tensor.shape().to_vec(),
        });
        data.push(Bytes::from_owner(tensor.clone()));
    }
    // Which plan answered, and how often the request was sent again: the same as over HTTP.
    let epoch = i64::try_from(response.epoch).unwrap_or(i64::MAX);
    let parameters = [("epoch", epoch), ("retries", i64::from(response.retries))];
    let head = ModelInferHead {
        model_name: answer.model,
        model_version: VERSION.into(),
        id: answer.id,
        parameters: parameters
            .map(|(name, number)| (name.to_owned(), NumberParameter { number: Some(number) }))
            .into(),
        outputs: heads,
    };
    let mut message = Pieces::default();
    message.push(head.encode_to_vec().into());
    for run in data {
        let mut before = vec![RAW_OUTPUT];
        prost::encode_length_delimiter(run.len(), &mut before)
            .map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        message.push(before.into());
        message.push(run);
    }
    Ok(message)
}
