//! Elements written one by one into a tensor's memory, checked against its type and number.

use half::{bf16, f16};
use mesh_inference::tensor::{DType, Tensor, TensorError};

/// A tensor whose elements `fill` writes; what is wrong is said for people.
pub(in crate::api) fn tensor(
    dtype: DType,
    shape: &[i64],
    fill: impl FnOnce(Filler<'_>) -> Result<(), String>,
) -> Result<Tensor, String> {
    let fill = |target: &mut [u8]| fill(Filler { dtype, target, at: 0 }).map_err(Fault);
    Tensor::build(dtype, shape, fill).map_err(|Fault(what)| what)
}

/// Why a tensor could not be filled, for people.
struct Fault(String);

impl From<TensorError> for Fault {
    fn from(error: TensorError) -> Self {
        Self(error.to_string())
    }
}

/// Memory that has room for exactly the elements wanted.
pub(in crate::api) struct Filler<'t> {
    dtype: DType,
    target: &'t mut [u8],
    at: usize,
}

impl Filler<'_> {
    /// What the elements are.
    pub(in crate::api) fn dtype(&self) -> DType {
        self.dtype
    }

    /// Room for the next `len` bytes.
    pub(in crate::api) fn slot(&mut self, len: usize) -> Result<&mut [u8], String> {
        if len > self.target.len() - self.at {
            let wanted = self.target.len() / self.dtype.size();
            return Err(format!("more elements than the {wanted} that the shape wants"));
        }
        let slot = &mut self.target[self.at..self.at + len];
        self.at += len;
        Ok(slot)
    }

    /// An element that must be one of the type's values.
    pub(in crate::api) fn integer(&mut self, value: i128) -> Result<(), String> {
        macro_rules! as_int {
            ($t:ty) => {
                match <$t>::try_from(value) {
                    Ok(number) => self.push(&number.to_le_bytes()),
                    Err(_) => Err(format!("{value} does not fit {}", stringify!($t))),
                }
            };
        }
        match self.dtype {
            DType::Bool => match value {
                0 | 1 => self.push(&[u8::from(value == 1)]),
                _ => Err(format!("{value} is neither true nor false")),
            },
            DType::Uint8 => as_int!(u8),
            DType::Uint16 => as_int!(u16),
            DType::Uint32 => as_int!(u32),
            DType::Uint64 => as_int!(u64),
            DType::Int8 => as_int!(i8),
            DType::Int16 => as_int!(i16),
            DType::Int32 => as_int!(i32),
            DType::Int64 => as_int!(i64),
            // A literal integer is a good way to write a float; rounding is what a cast does.
            DType::Fp16 | DType::Bf16 | DType::Fp32 | DType::Fp64 => self.float(value as f64),
        }
    }

    /// An element of a floating-point type, rounded to it.
    pub(in crate::api) fn float(&mut self, value: f64) -> Result<(), String> {
        match self.dtype {
            DType::Fp64 => self.push(&value.to_le_bytes()),
            DType::Fp32 if (value as f32).is_finite() => self.push(&(value as f32).to_le_bytes()),
            DType::Fp16 if f16::from_f64(value).is_finite() => self.push(&f16::from_f64(value).to_le_bytes()),
            DType::Bf16 if bf16::from_f64(value).is_finite() => {
                self.push(&bf16::from_f64(value).to_le_bytes())
            }
            DType::Fp32 | DType::Fp16 | DType::Bf16 => Err(format!("{value} does not fit the datatype")),
            DType::Bool
            | DType::Uint8
            | DType::Uint16
            | DType::Uint32
            | DType::Uint64
            | DType::Int8
            | DType::Int16
            | DType::Int32
            | DType::Int64 => Err(format!("{value:?} is not an integer")),
        }
    }

    /// That no element is missing.
    pub(in crate::api) fn end(&self) -> Result<(), String> {
        let size = self.dtype.size();
        match self.at == self.target.len() {
            true => Ok(()),
            false => {
                Err(format!("{} elements where the shape wants {}", self.at / size, self.target.len() / size))
            }
        }
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.slot(bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }
}
