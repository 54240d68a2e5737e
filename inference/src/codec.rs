//! The activation codec: how a tensor's bytes are packed for a hop, losslessly.
//!
//! Decoding is safe on hostile bytes: the output is exactly as large as the shape says, is only allocated when the
//! packed bytes could possibly fill it, and nothing else grows with the input.

use std::cell::RefCell;
use std::io;

use bytes::Bytes;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe;

use crate::tensor::{DType, Tensor, TensorError, byte_len};

mod planes;
mod policy;
mod sparse;

pub use policy::{Hop, HopPolicy, Observation};

/// How a tensor's bytes are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Codec {
    /// As they are.
    Raw,
    /// One zstd frame: good for integers, masks and activations with many zeros.
    Zstd,
    /// Bytes of one significance together, then zstd: finds what floating-point numbers share.
    PlanesZstd,
    /// Elements that are zero left out: takes less processor time than moving what it saves.
    Sparse,
}

/// zstd's own fast level; the next ones gain little on activations and cost much.
const LEVEL: i32 = 1;

/// The most bytes that zstd can unpack from one packed byte, with room: a run-length block gives 128 KiB for 4.
const BEST_RATIO: usize = 32 << 10;

/// A packed tensor.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// How it is packed: what was asked for, or [`Codec::Raw`] where that would not have been smaller.
    pub codec: Codec,
    /// The packed bytes; for [`Codec::Raw`] the tensor's own memory.
    pub bytes: Bytes,
}

/// Buffers and a zstd context that a thread reuses between tensors.
pub struct Scratch {
    compressor: Option<Compressor<'static>>,
    plane: Vec<u8>,
    packed: Vec<u8>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scratch").field("packed", &self.packed.capacity()).finish_non_exhaustive()
    }
}

impl Scratch {
    /// Empty buffers; they grow to what the tensors need.
    pub fn new() -> Self {
        Self { compressor: None, plane: Vec::new(), packed: Vec::new() }
    }
}

/// Why packed bytes are not the tensor that they are said to be.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The shape or the element type is refused.
    #[error("the packed tensor cannot be made")]
    Tensor(#[from] TensorError),
    /// The bytes are not what the codec writes for this shape.
    #[error("{bytes} bytes are not a tensor {shape:?} of {dtype} packed as {codec:?}: {reason}")]
    Corrupt {
        /// How they were said to be packed.
        codec: Codec,
        /// Element type.
        dtype: DType,
        /// Shape.
        shape: Vec<i64>,
        /// Packed bytes.
        bytes: usize,
        /// What is wrong.
        reason: &'static str,
    },
}

/// Packs a tensor; falls back to [`Codec::Raw`] where packing would not make it smaller.
pub fn encode(tensor: &Tensor, codec: Codec, scratch: &mut Scratch) -> Encoded {
    let packed = match codec {
        Codec::Raw => Ok(false),
        Codec::Zstd => scratch.zstd(tensor.bytes()),
        Codec::PlanesZstd => scratch.planes(tensor.bytes(), tensor.dtype().size()),
        Codec::Sparse => {
            return match sparse::pack(tensor.dtype(), tensor.bytes()) {
                Some(packed) => Encoded { codec, bytes: packed.into() },
                None => raw(tensor),
            };
        }
    };
    match packed {
        Ok(true) if scratch.packed.len() < tensor.bytes().len() => {
            Encoded { codec, bytes: Bytes::copy_from_slice(&scratch.packed) }
        }
        Ok(_) => raw(tensor),
        Err(error) => {
            tracing::warn!(%error, "a tensor could not be compressed and is sent as it is");
            raw(tensor)
        }
    }
}

/// The part of a tensor's bytes that [`Codec::Sparse`] would leave, by a look at a sample of it; `None` where there
/// are too few zeros, or elements of a size that it does not pack.
pub fn sparse_ratio(tensor: &Tensor) -> Option<f64> {
    sparse::expected_ratio(tensor.dtype(), tensor.bytes())
}

fn raw(tensor: &Tensor) -> Encoded {
    Encoded { codec: Codec::Raw, bytes: Bytes::from_owner(tensor.clone()) }
}

impl Scratch {
    /// Packs `bytes` as one frame.
    fn zstd(&mut self, bytes: &[u8]) -> io::Result<bool> {
        self.packed.clear();
        self.packed.reserve(zstd_safe::compress_bound(bytes.len()));
        compressor(&mut self.compressor)?.compress_to_buffer(bytes, &mut self.packed)?;
        Ok(true)
    }

    /// Packs every plane of every chunk as a frame of its own. Gives up after a first chunk that does not shrink:
    /// the rest of an activation is like its beginning.
    fn planes(&mut self, bytes: &[u8], size: usize) -> io::Result<bool> {
        self.packed.clear();
        let compressor = compressor(&mut self.compressor)?;
        for (index, chunk) in bytes.chunks(planes::CHUNK * size).enumerate() {
            for which in 0..size {
                let plane = planes::gather(chunk, size, which, &mut self.plane);
                append_frame(compressor, plane, &mut self.packed)?;
            }
            if index == 0 && self.packed.len() >= chunk.len() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn compressor<'a>(slot: &'a mut Option<Compressor<'static>>) -> io::Result<&'a mut Compressor<'static>> {
    if slot.is_none() {
        *slot = Some(Compressor::new(LEVEL)?);
    }
    slot.as_mut().ok_or_else(|| io::Error::other("the compressor was just made"))
}

/// Compresses `bytes` behind what `packed` holds.
fn append_frame(compressor: &mut Compressor<'_>, bytes: &[u8], packed: &mut Vec<u8>) -> io::Result<()> {
    let start = packed.len();
    packed.resize(start + zstd_safe::compress_bound(bytes.len()), 0);
    let written = compressor.compress_to_buffer(bytes, &mut packed[start..])?;
    packed.truncate(start + written);
    Ok(())
}

thread_local! {
    /// A decompression context and a plane, reused by the tensors that this thread unpacks.
    static UNPACK: RefCell<(Option<Decompressor<'static>>, Vec<u8>)> = const { RefCell::new((None, Vec::new())) };
}

/// Unpacks a tensor. The bytes may be hostile.
pub fn decode(codec: Codec, dtype: DType, shape: &[i64], bytes: &[u8]) -> Result<Tensor, CodecError> {
    let corrupt =
        |reason| CodecError::Corrupt { codec, dtype, shape: shape.to_vec(), bytes: bytes.len(), reason };
    let len = byte_len(dtype, shape)?;
    match codec {
        Codec::Raw if bytes.len() != len => return Err(corrupt("the number of bytes is another")),
        Codec::Raw => return Ok(Tensor::from_bytes(dtype, shape, bytes)?),
        Codec::Sparse if bytes.len() < sparse::bitmap_bytes(dtype.size(), len) => {
            return Err(corrupt("the bitmaps are cut off"));
        }
        Codec::Sparse => {
            let mut builder = Tensor::builder(dtype, shape)?;
            sparse::unpack(dtype.size(), bytes, builder.bytes_mut()).map_err(corrupt)?;
            return Ok(builder.finish()?);
        }
        Codec::Zstd | Codec::PlanesZstd => {}
    }
    if len > bytes.len().saturating_mul(BEST_RATIO) {
        return Err(corrupt("so few bytes cannot unpack to that many"));
    }
    let mut builder = Tensor::builder(dtype, shape)?;
    UNPACK.with_borrow_mut(|(decompressor, plane)| {
        if decompressor.is_none() {
            *decompressor = Decompressor::new().ok();
        }
        let decompressor = decompressor.as_mut().ok_or_else(|| corrupt("no memory to unpack it"))?;
        let target = builder.bytes_mut();
        match codec {
            Codec::Raw | Codec::Sparse => Ok(()),
            Codec::Zstd => unpack_frame(decompressor, bytes, target).map_err(corrupt),
            Codec::PlanesZstd => {
                unpack_planes(decompressor, plane, bytes, target, dtype.size()).map_err(corrupt)
            }
        }
    })?;
    Ok(builder.finish()?)
}

/// Unpacks one frame that must fill `target` exactly.
fn unpack_frame(
    decompressor: &mut Decompressor<'_>,
    frame: &[u8],
    target: &mut [u8],
) -> Result<(), &'static str> {
    let written = decompressor
        .decompress_to_buffer(frame, &mut *target)
        .map_err(|_| "it is no sound zstd data of that size")?;
    if written == target.len() { Ok(()) } else { Err("it unpacks to fewer bytes") }
}

fn unpack_planes(
    decompressor: &mut Decompressor<'_>,
    plane: &mut Vec<u8>,
    mut bytes: &[u8],
    target: &mut [u8],
    size: usize,
) -> Result<(), &'static str> {
    for chunk in target.chunks_mut(planes::CHUNK * size) {
        plane.clear();
        plane.resize(chunk.len() / size, 0);
        for which in 0..size {
            let frame =
                zstd_safe::find_frame_compressed_size(bytes).map_err(|_| "a frame is cut off or damaged")?;
            let (frame, rest) = bytes.split_at_checked(frame).ok_or("a frame is cut off")?;
            unpack_frame(decompressor, frame, plane)?;
            planes::scatter(plane, size, which, chunk);
            bytes = rest;
        }
    }
    if bytes.is_empty() { Ok(()) } else { Err("bytes follow the last frame") }
}

#[cfg(test)]
mod tests;
