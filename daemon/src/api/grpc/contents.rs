//! Tensor data in the protocol's typed lists (`InferTensorContents`).

use mesh_inference::tensor::{DType, Tensor};

use super::wire::{Fields, Value, wrong};
use crate::api::{
    body::Pieces,
    infer::fill::{self, Filler},
};

/// The lists' names, the first with the number 1.
const LISTS: [&str; 8] = [
    "bool_contents",
    "int_contents",
    "int64_contents",
    "uint_contents",
    "uint64_contents",
    "fp32_contents",
    "fp64_contents",
    "bytes_contents",
];

/// The number of the list for a type.
fn list_of(dtype: DType) -> Option<u64> {
    match dtype {
        DType::Bool => Some(1),
        DType::Int8 | DType::Int16 | DType::Int32 => Some(2),
        DType::Int64 => Some(3),
        DType::Uint8 | DType::Uint16 | DType::Uint32 => Some(4),
        DType::Uint64 => Some(5),
        DType::Fp32 => Some(6),
        DType::Fp64 => Some(7),
        DType::Fp16 | DType::Bf16 => None,
    }
}

/// Finds what is wrong before memory is taken for a tensor of `bytes`; else the list that has its elements.
pub(super) fn check(contents: &Pieces, dtype: DType, bytes: usize) -> Result<u64, String> {
    let Some(list) = list_of(dtype) else {
        return Err("16-bit floats have no typed contents in the protocol: send raw_input_contents".into());
    };
    // Each element takes a byte at least, which caps the memory by what was sent.
    let elements = bytes / dtype.size();
    if elements > contents.len() {
        return Err(format!("contents has fewer than the {elements} elements that the shape wants"));
    }
    Ok(list)
}

/// Reads a tensor from the list that [`check`] has found.
pub(super) fn read(contents: Pieces, list: u64, dtype: DType, shape: &[i64]) -> Result<Tensor, String> {
    fill::tensor(dtype, shape, |filler| {
        fill(contents, list, filler).map_err(|what| format!("contents: {what}"))
    })
}

fn fill(contents: Pieces, list: u64, mut filler: Filler<'_>) -> Result<(), String> {
    let mut fields = Fields::new(contents);
    while let Some((number, value)) = fields.next_field()? {
        if number == list {
            fill_from(value, list, &mut filler)?;
        } else if let Some(other) = name(number) {
            let (dtype, right) = (filler.dtype().oip_name(), name(list).unwrap_or_default());
            return Err(format!("{other} is not where {dtype} goes: use {right}"));
        }
    }
    filler.end()
}

fn name(number: u64) -> Option<&'static str> {
    LISTS.get(usize::try_from(number).ok()?.checked_sub(1)?).copied()
}

/// Numbers are cut to what their list holds, as protobuf says.
fn fill_from(value: Value, list: u64, filler: &mut Filler<'_>) -> Result<(), String> {
    match list {
        1 => value.each_number(|number| filler.integer((number != 0).into())),
        2 => value.each_number(|number| filler.integer((number as i32).into())),
        3 => value.each_number(|number| filler.integer((number as i64).into())),
        4 => value.each_number(|number| filler.integer((number as u32).into())),
        5 => value.each_number(|number| filler.integer(number.into())),
        _ => floats(value, filler),
    }
}

/// Floats are written as they lie in a tensor.
fn floats(value: Value, filler: &mut Filler<'_>) -> Result<(), String> {
    match (value, filler.dtype().size()) {
        (Value::Four(float), 4) => filler.slot(4)?.copy_from_slice(&float),
        (Value::Eight(float), 8) => filler.slot(8)?.copy_from_slice(&float),
        (Value::Run(mut packed), size) if packed.len().is_multiple_of(size) => {
            let slot = filler.slot(packed.len())?;
            packed.fill(slot);
        }
        (Value::Number(_) | Value::Four(_) | Value::Eight(_) | Value::Run(_), _) => return Err(wrong()),
    }
    Ok(())
}
