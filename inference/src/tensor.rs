//! Dense tensors as they travel between stages.
//!
//! A tensor's bytes are filled in place (from a socket, a decoder) and read in place by ONNX Runtime; what ONNX
//! Runtime gives back is wrapped where it lies. Nothing is copied in between, and clones share the memory.

use std::sync::Arc;

mod dtype;
mod ort_value;

pub use dtype::{DType, Element};
pub(crate) use ort_value::{from_ort, to_ort};

#[cfg(target_endian = "big")]
compile_error!(
    "tensors travel as little-endian bytes and are read in place: big-endian machines are not supported"
);

/// Largest tensor that is accepted, in bytes.
pub const MAX_TENSOR_BYTES: u64 = 4 << 30;

/// Most dimensions that are accepted.
pub const MAX_DIMENSIONS: usize = 32;

/// From this size on an allocation is tried before it is made, so that a lack of memory is an error and not an abort.
const CHECKED_ALLOCATION: usize = 16 << 20;

/// A dense tensor: element type, shape, row-major little-endian bytes. Clones share the memory.
#[derive(Debug, Clone)]
pub struct Tensor(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dtype: DType,
    shape: Box<[i64]>,
    storage: Arc<Storage>,
}

/// Where the bytes lie.
#[derive(Debug)]
enum Storage {
    Owned(Buffer),
    Ort(ort::value::DynValue),
}

/// Owned bytes, aligned for every element type.
#[derive(Debug)]
struct Buffer {
    words: Vec<u128>,
    len: usize,
}

impl Buffer {
    fn zeroed(len: usize) -> Result<Self, TensorError> {
        let words = len.div_ceil(size_of::<u128>());
        if len >= CHECKED_ALLOCATION {
            let mut probe: Vec<u128> = Vec::new();
            probe.try_reserve_exact(words).map_err(|_| TensorError::OutOfMemory { bytes: len as u64 })?;
        }
        Ok(Self { words: vec![0; words], len })
    }

    fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.len]
    }
}

impl Tensor {
    /// Copies `bytes` into a new tensor; refuses a length that does not fit the shape.
    pub fn from_bytes(dtype: DType, shape: &[i64], bytes: &[u8]) -> Result<Self, TensorError> {
        let expected = byte_len(dtype, shape)?;
        if expected != bytes.len() {
            return Err(TensorError::WrongLength {
                shape: shape.to_vec(),
                dtype,
                expected,
                got: bytes.len(),
            });
        }
        Self::build(dtype, shape, |target| {
            target.copy_from_slice(bytes);
            Ok(())
        })
    }

    /// Copies typed elements into a new tensor; refuses a number that does not fit the shape.
    pub fn from_slice<T: Element>(shape: &[i64], elements: &[T]) -> Result<Self, TensorError> {
        Self::from_bytes(T::DTYPE, shape, T::as_bytes(elements))
    }

    /// A zeroed tensor whose bytes `fill` writes in place (read from a socket, decompress into it).
    pub fn build<E: From<TensorError>>(
        dtype: DType,
        shape: &[i64],
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut builder = Self::builder(dtype, shape)?;
        fill(builder.bytes_mut())?;
        Ok(builder.finish()?)
    }

    /// As [`Tensor::build`], for a filler that cannot be one call, such as an asynchronous read.
    pub fn builder(dtype: DType, shape: &[i64]) -> Result<TensorBuilder, TensorError> {
        let buffer = Buffer::zeroed(byte_len(dtype, shape)?)?;
        Ok(TensorBuilder { dtype, shape: shape.into(), buffer })
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.0.dtype
    }

    /// Extents, outermost first; empty for a scalar.
    pub fn shape(&self) -> &[i64] {
        &self.0.shape
    }

    /// Row-major little-endian bytes.
    pub fn bytes(&self) -> &[u8] {
        match &*self.0.storage {
            Storage::Owned(buffer) => buffer.bytes(),
            Storage::Ort(value) => {
                ort_value::bytes(value, self.0.dtype).expect("was readable when it was wrapped")
            }
        }
    }

    /// The elements, or `None` when they are of another type than `T`.
    pub fn as_slice<T: Element>(&self) -> Option<&[T]> {
        if T::DTYPE != self.0.dtype { None } else { T::of_bytes(self.bytes()) }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes().len() / self.0.dtype.size()
    }

    /// Whether there is no element at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn wrap(dtype: DType, shape: Box<[i64]>, storage: Arc<Storage>) -> Self {
        Self(Arc::new(Inner { dtype, shape, storage }))
    }
}

impl AsRef<[u8]> for Tensor {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

/// A tensor whose bytes are still being written.
#[derive(Debug)]
pub struct TensorBuilder {
    dtype: DType,
    shape: Box<[i64]>,
    buffer: Buffer,
}

impl TensorBuilder {
    /// All bytes of the tensor, zero at first.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.buffer.bytes_mut()
    }

    /// Closes the tensor. Refuses booleans other than 0 and 1, which ONNX Runtime must not be given.
    pub fn finish(self) -> Result<Tensor, TensorError> {
        if self.dtype == DType::Bool
            && let Some(index) = self.buffer.bytes().iter().position(|byte| *byte > 1)
        {
            return Err(TensorError::NotABool { index });
        }
        Ok(Tensor::wrap(self.dtype, self.shape, Arc::new(Storage::Owned(self.buffer))))
    }
}

/// Bytes that a tensor of this type and shape takes, within the limits that tensors have.
pub fn byte_len(dtype: DType, shape: &[i64]) -> Result<usize, TensorError> {
    if shape.len() > MAX_DIMENSIONS {
        return Err(TensorError::TooManyDimensions { got: shape.len() });
    }
    if let Some(extent) = shape.iter().find(|extent| **extent < 0) {
        return Err(TensorError::NegativeExtent { shape: shape.to_vec(), extent: *extent });
    }
    let too_large = || TensorError::TooLarge { shape: shape.to_vec(), dtype };
    // An extent of zero makes the product zero, but the others must still be sane: ONNX Runtime multiplies them too.
    let mut product = dtype.size() as u64;
    for extent in shape.iter().filter(|extent| **extent != 0) {
        product = product
            .checked_mul(extent.unsigned_abs())
            .filter(|p| *p <= MAX_TENSOR_BYTES)
            .ok_or_else(too_large)?;
    }
    if shape.contains(&0) {
        return Ok(0);
    }
    usize::try_from(product).map_err(|_| too_large())
}

/// Why a tensor could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    /// More dimensions than [`MAX_DIMENSIONS`].
    #[error("a tensor of {got} dimensions: at most {MAX_DIMENSIONS} are accepted")]
    TooManyDimensions {
        /// Dimensions asked for.
        got: usize,
    },
    /// An extent below zero.
    #[error("the shape {shape:?} has the negative extent {extent}: give every dimension its real size")]
    NegativeExtent {
        /// The shape asked for.
        shape: Vec<i64>,
        /// Its first negative extent.
        extent: i64,
    },
    /// More bytes than [`MAX_TENSOR_BYTES`], or than a 64-bit number holds.
    #[error("a tensor {shape:?} of {dtype} is larger than the limit of 4 GiB")]
    TooLarge {
        /// The shape asked for.
        shape: Vec<i64>,
        /// The element type asked for.
        dtype: DType,
    },
    /// The data does not fit the shape.
    #[error("{got} bytes were given for a tensor {shape:?} of {dtype}, which takes {expected}")]
    WrongLength {
        /// The shape asked for.
        shape: Vec<i64>,
        /// The element type asked for.
        dtype: DType,
        /// Bytes that the shape takes.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
    /// A boolean that is neither 0 nor 1.
    #[error("element {index} of a BOOL tensor is neither 0 nor 1")]
    NotABool {
        /// Position of the first such element.
        index: usize,
    },
    /// The memory could not be had.
    #[error("no memory for a tensor of {bytes} bytes: send smaller batches, or free memory on this device")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: u64,
    },
    /// ONNX Runtime gave a value that cannot be read as a tensor of numbers.
    #[error(
        "ONNX Runtime gave {what}, which is not a tensor of a supported element type in this computer's memory"
    )]
    Unsupported {
        /// What it gave.
        what: String,
    },
}

#[cfg(test)]
mod tests;
