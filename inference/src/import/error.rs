//! Why a model was not imported.

use std::{io, path::PathBuf};

use crate::{blobs::BlobError, graph::GraphError, model::ModelError};

/// Why a model was not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file holds something else.
    #[error("{path} is not an ONNX file ({detail}): export the model to ONNX and deploy that file")]
    NotOnnx {
        /// The file.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// The file ends in the middle.
    #[error("{path} is truncated at byte {at}: copy or export it again")]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Where it ends.
        at: u64,
    },
    /// The protobuf is broken.
    #[error("{path} is damaged near byte {at} ({detail}): copy or export it again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// About where.
        at: u64,
        /// What was found.
        detail: String,
    },
    /// The graph without its large tensors is larger than any that makes sense.
    #[error("the graph of {path} has more than {limit} bytes beside its tensors: it is too large to import")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// A file cannot be read.
    #[error("cannot read {path}: check that it is there and readable")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file with tensors is missing.
    #[error(
        "the model keeps tensor '{tensor}' in the file '{file}', which is not in {folder}: put it there and deploy again"
    )]
    MissingExternal {
        /// The tensor.
        tensor: String,
        /// The file, as the model names it.
        file: String,
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// The model wants a file from elsewhere on the disk.
    #[error(
        "the model keeps tensor '{tensor}' in '{file}', which leads out of the model's folder: only files beside the model are read"
    )]
    ExternalEscapes {
        /// The tensor.
        tensor: String,
        /// The file, as the model names it.
        file: String,
    },
    /// The model wants bytes that the file with tensors does not have.
    #[error(
        "tensor '{tensor}' should be bytes {offset} to {end} of '{file}', which has {size}: the file is truncated or belongs to another model"
    )]
    ExternalRange {
        /// The tensor.
        tensor: String,
        /// The file.
        file: String,
        /// First byte.
        offset: u64,
        /// Byte after the last.
        end: u64,
        /// The file's length.
        size: u64,
    },
    /// A tensor's declaration and data do not fit.
    #[error("tensor '{tensor}' is damaged ({detail}): export the model again")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// What does not fit.
        detail: String,
    },
    /// An input or output that cannot travel.
    #[error(
        "{what} '{name}' is no tensor of numbers: such models cannot be served, wrap the model so that it takes and gives tensors"
    )]
    NoTensor {
        /// "input" or "output".
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// The file format or operator set is too new, or missing.
    #[error(
        "the model's versions do not suit this ONNX Runtime ({detail}): export the model with an older operator set, or use a newer ONNX Runtime"
    )]
    Version {
        /// What ONNX Runtime said, or what is missing.
        detail: String,
    },
    /// ONNX Runtime lacks an operator.
    #[error(
        "ONNX Runtime lacks the operator {operator} of domain '{domain}' at version {version}: export the model with another one, or use an ONNX Runtime that has it ({detail})"
    )]
    Operator {
        /// The operator.
        operator: String,
        /// Its domain; "ai.onnx" for ONNX's own.
        domain: String,
        /// The operator set version that the model imports; 0 when it imports none of this domain.
        version: i64,
        /// What ONNX Runtime said.
        detail: String,
    },
    /// ONNX Runtime does not take the model.
    #[error("ONNX Runtime refuses the model ({detail}): check it with onnx.checker and export it again")]
    Refused {
        /// What ONNX Runtime said.
        detail: String,
    },
    /// The graph cannot be used.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The manifest that was made cannot be read again.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The blob store failed.
    #[error(transparent)]
    Blob(#[from] BlobError),
}
