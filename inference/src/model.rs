//! An imported model: what it takes and gives, its blocks and cuts, and the blobs that it needs.

use serde::{Deserialize, Serialize};

use crate::{blobs::Hash, tensor::DType};

/// Name, element type and shape of a tensor that enters or leaves a model or a stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValueType {
    /// The value's name in the graph.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Extents, outermost first; -1 where an extent is only known at run time. Empty for a scalar, and where
    /// the number of dimensions is only known at run time.
    pub shape: Vec<i64>,
    /// For each extent that is -1 the symbol that the graph gives it, else "" (as long as `shape`).
    #[serde(default)]
    pub symbols: Vec<String>,
}

/// A tensor's bytes in the blob store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlobRef {
    /// The content's hash.
    pub hash: Hash,
    /// The content's length.
    pub bytes: u64,
}

/// A stage as a model of its own, ready for one ONNX Runtime session.
#[derive(Debug, Clone)]
pub struct StageModel {
    /// The ONNX file. Its external data are blobs beside it: write it to [`crate::blobs::BlobStore::stage_path`].
    pub onnx: Vec<u8>,
    /// Inputs of the ONNX graph, a part of the tensors of the stage's first cut.
    pub inputs: Vec<ValueType>,
    /// Outputs of the ONNX graph, a part of the tensors of the stage's last cut.
    pub outputs: Vec<ValueType>,
    /// Tensors of the first cut that belong to the last cut as well: forward them untouched.
    /// One that the stage also reads is listed in `inputs` too. `outputs` and `passthrough` never share
    /// a name; together they are the last cut.
    pub passthrough: Vec<String>,
    /// Blobs that must be in the store before the session is made, each once.
    pub blobs: Vec<BlobRef>,
    /// Bytes of all weights that the stage reads, blobs and inline ones.
    pub weight_bytes: u64,
}
