//! Dense tensors as they travel between stages.

use std::sync::Arc;

/// Element types that can cross a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs)]
pub enum DType {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
}

/// A dense tensor: element type, shape, row-major little-endian bytes. Clones share the memory.
#[derive(Debug, Clone)]
pub struct Tensor(Arc<()>);

impl Tensor {
    /// Copies `bytes` into a new tensor; refuses a length that does not fit the shape.
    pub fn from_bytes(_dtype: DType, _shape: &[i64], _bytes: &[u8]) -> Result<Self, TensorError> {
        Err(TensorError::Placeholder)
    }
    /// A zeroed tensor whose bytes `fill` writes in place (read from a socket, decompress into it).
    pub fn build<E: From<TensorError>>(
        _dtype: DType,
        _shape: &[i64],
        _fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        Err(TensorError::Placeholder.into())
    }
    /// Element type.
    pub fn dtype(&self) -> DType {
        DType::Fp32
    }
    /// Extents, outermost first; empty for a scalar.
    pub fn shape(&self) -> &[i64] {
        &[]
    }
    /// Row-major little-endian bytes.
    pub fn bytes(&self) -> &[u8] {
        &[]
    }
}

/// Why a tensor could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    /// Not written yet.
    #[error("placeholder")]
    Placeholder,
}
