//! Between our tensors and ONNX Runtime's values, without a copy.

use std::sync::Arc;

use half::{bf16, f16};
use ort::session::SessionInputValue;
use ort::value::{DynValue, PrimitiveTensorElementType, TensorRef, ValueType};

use super::{DType, Element, Storage, Tensor, TensorError};

/// The bytes of a value that is a tensor of `dtype` in this computer's memory.
pub(super) fn bytes(value: &DynValue, dtype: DType) -> Result<&[u8], ort::Error> {
    fn of<T: Element + PrimitiveTensorElementType>(value: &DynValue) -> Result<&[u8], ort::Error> {
        value.try_extract_tensor::<T>().map(|(_, elements)| T::as_bytes(elements))
    }
    match dtype {
        DType::Bool => of::<bool>(value),
        DType::Uint8 => of::<u8>(value),
        DType::Uint16 => of::<u16>(value),
        DType::Uint32 => of::<u32>(value),
        DType::Uint64 => of::<u64>(value),
        DType::Int8 => of::<i8>(value),
        DType::Int16 => of::<i16>(value),
        DType::Int32 => of::<i32>(value),
        DType::Int64 => of::<i64>(value),
        DType::Fp16 => of::<f16>(value),
        DType::Bf16 => of::<bf16>(value),
        DType::Fp32 => of::<f32>(value),
        DType::Fp64 => of::<f64>(value),
    }
}

/// A view of the tensor that ONNX Runtime reads in place.
pub(crate) fn to_ort(tensor: &Tensor) -> Result<SessionInputValue<'_>, ort::Error> {
    fn of<T: Element + PrimitiveTensorElementType + std::fmt::Debug>(
        tensor: &Tensor,
    ) -> Result<SessionInputValue<'_>, ort::Error> {
        let elements = tensor.as_slice::<T>().ok_or_else(|| {
            ort::Error::new(format!("the tensor's memory cannot be read as {}", tensor.dtype()))
        })?;
        Ok(TensorRef::<T>::from_array_view((tensor.shape(), elements))?.into())
    }
    match tensor.dtype() {
        DType::Bool => of::<bool>(tensor),
        DType::Uint8 => of::<u8>(tensor),
        DType::Uint16 => of::<u16>(tensor),
        DType::Uint32 => of::<u32>(tensor),
        DType::Uint64 => of::<u64>(tensor),
        DType::Int8 => of::<i8>(tensor),
        DType::Int16 => of::<i16>(tensor),
        DType::Int32 => of::<i32>(tensor),
        DType::Int64 => of::<i64>(tensor),
        DType::Fp16 => of::<f16>(tensor),
        DType::Bf16 => of::<bf16>(tensor),
        DType::Fp32 => of::<f32>(tensor),
        DType::Fp64 => of::<f64>(tensor),
    }
}

/// Wraps an output of a run over `inputs`.
///
/// A graph that hands an input straight through gives back a value that lies in the *input's* memory, which ONNX
/// Runtime does not own: such an output must hold on to that input's memory instead of the value.
pub(crate) fn from_ort<'a>(
    value: DynValue,
    inputs: impl IntoIterator<Item = &'a Tensor>,
) -> Result<Tensor, TensorError> {
    let unsupported = |what: &ValueType| TensorError::Unsupported { what: what.to_string() };
    let ValueType::Tensor { ty, shape, .. } = value.dtype() else {
        return Err(unsupported(value.dtype()));
    };
    let dtype = DType::from_ort(*ty).ok_or_else(|| unsupported(value.dtype()))?;
    let shape: Box<[i64]> = (&**shape).into();
    super::byte_len(dtype, &shape)?;
    let output = bytes(&value, dtype).map_err(|_| unsupported(value.dtype()))?;
    let range = output.as_ptr_range();
    for input in inputs {
        let input_range = input.bytes().as_ptr_range();
        if !output.is_empty() && range.start < input_range.end && input_range.start < range.end {
            if range == input_range {
                return Ok(Tensor::wrap(dtype, shape, Arc::clone(&input.0.storage)));
            }
            return Tensor::from_bytes(dtype, &shape, output);
        }
    }
    Ok(Tensor::wrap(dtype, shape, Arc::new(Storage::Ort(value))))
}
