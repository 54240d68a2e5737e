//! Inputs for a model that nobody has asked anything yet.

use std::collections::BTreeMap;

use super::ProfileError;
use crate::model::ValueType;
use crate::tensor::{DType, Element, Tensor};

/// Extents where the model leaves them open: of the outermost axis, which is nearly always the batch, and of others.
const BATCH: i64 = 1;
const OTHER: i64 = 128;

/// Tensors of the given or of usual shapes: floating-point numbers are random between 0 and 1 (the same on every
/// device), all others are 1, which is a valid index, mask and length nearly everywhere.
pub(super) fn make(
    inputs: &[ValueType],
    shapes: &BTreeMap<String, Vec<i64>>,
) -> Result<Vec<(String, Tensor)>, ProfileError> {
    let mut symbols: BTreeMap<&str, i64> = BTreeMap::new();
    for (name, shape) in shapes {
        let refuse =
            |reason: String| ProfileError::Shape { input: name.clone(), shape: shape.clone(), reason };
        let Some(input) = inputs.iter().find(|input| input.name == *name) else {
            let names: Vec<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
            return Err(refuse(format!("the model's inputs are: {}", names.join(", "))));
        };
        check(input, shape).map_err(&refuse)?;
        for (symbol, extent) in input.symbols.iter().zip(shape).filter(|(symbol, _)| !symbol.is_empty()) {
            if *symbols.entry(symbol).or_insert(*extent) != *extent {
                return Err(refuse(format!("the extent \"{symbol}\" is another in another input")));
            }
        }
    }
    let usual = |input: &ValueType| -> Vec<i64> {
        let extent = |(axis, extent): (usize, &i64)| match input
            .symbols
            .get(axis)
            .and_then(|s| symbols.get(s.as_str()))
        {
            _ if *extent >= 0 => *extent,
            Some(given) => *given,
            None if axis == 0 => BATCH,
            None => OTHER,
        };
        input.shape.iter().enumerate().map(extent).collect()
    };
    inputs
        .iter()
        .map(|input| {
            let shape = shapes.get(&input.name).cloned().unwrap_or_else(|| usual(input));
            let tensor = fill(input.dtype, &shape)
                .map_err(|source| ProfileError::Input { input: input.name.clone(), source })?;
            Ok((input.name.clone(), tensor))
        })
        .collect()
}

fn check(input: &ValueType, shape: &[i64]) -> Result<(), String> {
    // An empty shape stands for an unknown number of dimensions as well.
    if !input.shape.is_empty() && input.shape.len() != shape.len() {
        return Err(format!("it has {} dimensions", input.shape.len()));
    }
    match input.shape.iter().zip(shape).find(|(fixed, given)| **given < 0 || (**fixed >= 0 && fixed != given))
    {
        Some((fixed, _)) if *fixed >= 0 => Err(format!("the model fixes it to {:?}", input.shape)),
        Some(_) => Err("an extent is negative".to_owned()),
        None => Ok(()),
    }
}

fn fill(dtype: DType, shape: &[i64]) -> Result<Tensor, crate::tensor::TensorError> {
    let mut builder = Tensor::builder(dtype, shape)?;
    let mut state = 0x2545_f491_u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32
    };
    for element in builder.bytes_mut().chunks_exact_mut(dtype.size()) {
        match dtype {
            DType::Fp32 => element.copy_from_slice(&random().to_le_bytes()),
            DType::Fp64 => element.copy_from_slice(&f64::from(random()).to_le_bytes()),
            DType::Fp16 => element.copy_from_slice(&half::f16::from_f32(random()).to_le_bytes()),
            DType::Bf16 => element.copy_from_slice(&half::bf16::from_f32(random()).to_le_bytes()),
            DType::Bool | DType::Uint8 | DType::Int8 => element.copy_from_slice(u8::as_bytes(&[1])),
            DType::Uint16 | DType::Int16 => element.copy_from_slice(&1_u16.to_le_bytes()),
            DType::Uint32 | DType::Int32 => element.copy_from_slice(&1_u32.to_le_bytes()),
            DType::Uint64 | DType::Int64 => element.copy_from_slice(&1_u64.to_le_bytes()),
        }
    }
    builder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(name: &str, dtype: DType, dims: &[(i64, &str)]) -> ValueType {
        ValueType {
            name: name.to_owned(),
            dtype,
            shape: dims.iter().map(|(extent, _)| *extent).collect(),
            ranked: true,
            symbols: dims.iter().map(|(_, symbol)| (*symbol).to_owned()).collect(),
        }
    }

    fn text() -> Vec<ValueType> {
        ["ids", "mask"].map(|name| input(name, DType::Int64, &[(-1, "batch"), (-1, "seq")])).into()
    }

    #[test]
    fn open_extents_are_filled() {
        let shapes = |given: &[(&str, &[i64])]| {
            let given = given.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect();
            make(&text(), &given)
                .map(|made| made.iter().map(|(_, tensor)| tensor.shape().to_vec()).collect::<Vec<_>>())
        };
        assert_eq!(shapes(&[]).unwrap(), [[1, 128], [1, 128]]);
        assert_eq!(shapes(&[("mask", &[2, 9])]).unwrap(), [[2, 9], [2, 9]], "by symbol");
        for wrong in [
            &[("ids", &[1_i64, 2][..]), ("mask", &[1, 3])][..],
            &[("ids", &[1])],
            &[("x", &[1])],
            &[("ids", &[1, -1])],
        ] {
            assert!(matches!(shapes(wrong), Err(ProfileError::Shape { .. })), "{wrong:?}");
        }
        let image = [input("image", DType::Fp32, &[(-1, ""), (3, ""), (4, "")])];
        let given = BTreeMap::from([("image".to_owned(), vec![1, 3, 5])]);
        assert!(matches!(make(&image, &given), Err(ProfileError::Shape { .. })));
    }

    #[test]
    fn values_are_valid_for_their_type() {
        for dtype in DType::ALL {
            let made = make(&[input("x", dtype, &[(2, ""), (3, "")])], &BTreeMap::new()).unwrap();
            assert_eq!((made[0].1.dtype(), made[0].1.shape()), (dtype, &[2, 3][..]));
        }
        let made = make(&[input("x", DType::Fp32, &[(1000, "")])], &BTreeMap::new()).unwrap();
        let values = made[0].1.as_slice::<f32>().unwrap();
        assert!(values.iter().all(|value| (0.0..1.0).contains(value)));
        let mean: f32 = values.iter().sum::<f32>() / 1000.0;
        assert!((0.4..0.6).contains(&mean), "{mean}");
    }
}
