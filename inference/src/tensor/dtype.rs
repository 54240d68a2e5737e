//! Element types and their names in the protocols that Mesh speaks.

use std::fmt;

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use ort::value::TensorElementType;

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

impl DType {
    /// Every element type.
    pub const ALL: [Self; 13] = [
        Self::Bool,
        Self::Uint8,
        Self::Uint16,
        Self::Uint32,
        Self::Uint64,
        Self::Int8,
        Self::Int16,
        Self::Int32,
        Self::Int64,
        Self::Fp16,
        Self::Bf16,
        Self::Fp32,
        Self::Fp64,
    ];

    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => 1,
            Self::Uint16 | Self::Int16 | Self::Fp16 | Self::Bf16 => 2,
            Self::Uint32 | Self::Int32 | Self::Fp32 => 4,
            Self::Uint64 | Self::Int64 | Self::Fp64 => 8,
        }
    }

    /// Name in the Open Inference Protocol: `FP32`, `INT64`, `BOOL`.
    pub const fn oip_name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Uint8 => "UINT8",
            Self::Uint16 => "UINT16",
            Self::Uint32 => "UINT32",
            Self::Uint64 => "UINT64",
            Self::Int8 => "INT8",
            Self::Int16 => "INT16",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp16 => "FP16",
            Self::Bf16 => "BF16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
        }
    }

    /// The element type of an Open Inference Protocol name; `None` for `BYTES` and for what is unknown.
    pub fn from_oip_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.oip_name() == name)
    }

    /// Number in ONNX's `TensorProto.DataType`.
    pub const fn to_onnx(self) -> i32 {
        match self {
            Self::Fp32 => 1,
            Self::Uint8 => 2,
            Self::Int8 => 3,
            Self::Uint16 => 4,
            Self::Int16 => 5,
            Self::Int32 => 6,
            Self::Int64 => 7,
            Self::Bool => 9,
            Self::Fp16 => 10,
            Self::Fp64 => 11,
            Self::Uint32 => 12,
            Self::Uint64 => 13,
            Self::Bf16 => 16,
        }
    }

    /// The element type of an ONNX `TensorProto.DataType` number; `None` for strings, complex and packed types.
    pub fn from_onnx(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.to_onnx() == number)
    }

    /// Whether the elements are floating-point numbers.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::Fp16 | Self::Bf16 | Self::Fp32 | Self::Fp64)
    }

    const fn ort(self) -> TensorElementType {
        match self {
            Self::Bool => TensorElementType::Bool,
            Self::Uint8 => TensorElementType::Uint8,
            Self::Uint16 => TensorElementType::Uint16,
            Self::Uint32 => TensorElementType::Uint32,
            Self::Uint64 => TensorElementType::Uint64,
            Self::Int8 => TensorElementType::Int8,
            Self::Int16 => TensorElementType::Int16,
            Self::Int32 => TensorElementType::Int32,
            Self::Int64 => TensorElementType::Int64,
            Self::Fp16 => TensorElementType::Float16,
            Self::Bf16 => TensorElementType::Bfloat16,
            Self::Fp32 => TensorElementType::Float32,
            Self::Fp64 => TensorElementType::Float64,
        }
    }

    pub(crate) fn from_ort(element: TensorElementType) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.ort() == element)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.oip_name())
    }
}

/// Rust types that a tensor's elements can be read as.
pub trait Element: Copy + sealed::Sealed + 'static {
    /// The tensor element type that this is.
    const DTYPE: DType;
    /// The elements' bytes.
    fn as_bytes(elements: &[Self]) -> &[u8];
    /// The bytes' elements; `None` when they are not aligned, not whole, or no values of this type.
    fn of_bytes(bytes: &[u8]) -> Option<&[Self]>;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! elements {
    ($($rust:ty => $dtype:ident),*) => {$(
        impl sealed::Sealed for $rust {}
        impl Element for $rust {
            const DTYPE: DType = DType::$dtype;
            fn as_bytes(elements: &[Self]) -> &[u8] {
                bytemuck::cast_slice(elements)
            }
            fn of_bytes(bytes: &[u8]) -> Option<&[Self]> {
                bytemuck::checked::try_cast_slice(bytes).ok()
            }
        }
    )*};
}

elements!(
    bool => Bool, u8 => Uint8, u16 => Uint16, u32 => Uint32, u64 => Uint64,
    i8 => Int8, i16 => Int16, i32 => Int32, i64 => Int64, f32 => Fp32, f64 => Fp64
);

macro_rules! half_elements {
    ($($rust:ty => $dtype:ident),*) => {$(
        impl sealed::Sealed for $rust {}
        impl Element for $rust {
            const DTYPE: DType = DType::$dtype;
            fn as_bytes(elements: &[Self]) -> &[u8] {
                let bits: &[u16] = elements.reinterpret_cast();
                bytemuck::cast_slice(bits)
            }
            fn of_bytes(bytes: &[u8]) -> Option<&[Self]> {
                let bits: &[u16] = bytemuck::try_cast_slice(bytes).ok()?;
                Some(bits.reinterpret_cast())
            }
        }
    )*};
}

half_elements!(f16 => Fp16, bf16 => Bf16);
