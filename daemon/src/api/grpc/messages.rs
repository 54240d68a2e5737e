//! The protocol's small messages. Those of `ModelInfer` that hold tensors are read and written in `request` and
//! `response`.

use std::collections::BTreeMap;

use prost::Message;

use crate::{
    api::protocol::{PLATFORM, VERSION},
    app::{ModelMetadata, TensorSpec},
};

/// Whether the daemon runs.
#[derive(Clone, PartialEq, Message)]
pub(in crate::api) struct ServerLiveResponse {
    #[prost(bool, tag = "1")]
    pub(in crate::api) live: bool,
}

/// Whether the daemon takes requests.
#[derive(Clone, PartialEq, Message)]
pub(in crate::api) struct ServerReadyResponse {
    #[prost(bool, tag = "1")]
    pub(in crate::api) ready: bool,
}

/// What answers.
#[derive(Clone, PartialEq, Message)]
pub(in crate::api) struct ServerMetadataResponse {
    #[prost(string, tag = "1")]
    pub(in crate::api) name: String,
    #[prost(string, tag = "2")]
    pub(in crate::api) version: String,
    #[prost(string, repeated, tag = "3")]
    pub(in crate::api) extensions: Vec<String>,
}

impl ServerMetadataResponse {
    /// This daemon. The extensions that HTTP lists belong to HTTP.
    pub(super) fn new() -> Self {
        Self { name: "mesh".into(), version: env!("CARGO_PKG_VERSION").into(), extensions: Vec::new() }
    }
}

/// What `ModelReady` and `ModelMetadata` take.
#[derive(Clone, PartialEq, Message)]
pub(in crate::api) struct ModelRequest {
    #[prost(string, tag = "1")]
    pub(in crate::api) name: String,
    #[prost(string, tag = "2")]
    pub(in crate::api) version: String,
}

/// Whether a model answers requests now.
#[derive(Clone, PartialEq, Message)]
pub(in crate::api) struct ModelReadyResponse {
    #[prost(bool, tag = "1")]
    pub(in crate::api) ready: bool,
}

/// A model's inputs and outputs.
#[derive(Clone, PartialEq, Message)]
pub(in crate::api) struct ModelMetadataResponse {
    #[prost(string, tag = "1")]
    pub(in crate::api) name: String,
    #[prost(string, repeated, tag = "2")]
    pub(in crate::api) versions: Vec<String>,
    #[prost(string, tag = "3")]
    pub(in crate::api) platform: String,
    #[prost(message, repeated, tag = "4")]
    pub(in crate::api) inputs: Vec<TensorHead>,
    #[prost(message, repeated, tag = "5")]
    pub(in crate::api) outputs: Vec<TensorHead>,
}

impl ModelMetadataResponse {
    pub(super) fn of(model: ModelMetadata) -> Self {
        let heads = |specs: Vec<TensorSpec>| specs.into_iter().map(TensorHead::of).collect();
        Self {
            name: model.name,
            versions: vec![VERSION.into()],
            platform: PLATFORM.into(),
            inputs: heads(model.inputs),
            outputs: heads(model.outputs),
        }
    }
}

/// A tensor without its data: in a model's metadata, where -1 is any extent, and in an answer.
#[derive(Clone, PartialEq, Message)]
pub(in crate::api) struct TensorHead {
    #[prost(string, tag = "1")]
    pub(in crate::api) name: String,
    #[prost(string, tag = "2")]
    pub(in crate::api) datatype: String,
    #[prost(int64, repeated, tag = "3")]
    pub(in crate::api) shape: Vec<i64>,
}

impl TensorHead {
    fn of(spec: TensorSpec) -> Self {
        Self { name: spec.name, datatype: spec.dtype.oip_name().into(), shape: spec.shape }
    }
}

/// What comes before the data in the answer to a `ModelInfer`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ModelInferHead {
    #[prost(string, tag = "1")]
    pub(super) model_name: String,
    #[prost(string, tag = "2")]
    pub(super) model_version: String,
    #[prost(string, tag = "3")]
    pub(super) id: String,
    #[prost(btree_map = "string, message", tag = "4")]
    pub(super) parameters: BTreeMap<String, NumberParameter>,
    #[prost(message, repeated, tag = "5")]
    pub(super) outputs: Vec<TensorHead>,
}

/// A parameter of an answer: the protocol has other kinds, too.
#[derive(Clone, PartialEq, Message)]
pub(super) struct NumberParameter {
    #[prost(int64, optional, tag = "2")]
    pub(super) number: Option<i64>,
}
