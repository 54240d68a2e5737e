use super::*;
use proptest::prelude::*;

#[test]
fn names_and_numbers_are_inverse() {
    for dtype in DType::ALL {
        assert_eq!(DType::from_oip_name(dtype.oip_name()), Some(dtype));
        assert_eq!(DType::from_onnx(dtype.to_onnx()), Some(dtype));
        assert_eq!(serde_json::to_string(&dtype).unwrap(), format!("\"{}\"", dtype.oip_name()));
    }
    assert_eq!(DType::from_oip_name("BYTES"), None);
    assert_eq!(DType::from_onnx(8), None, "strings");
    assert_eq!(DType::from_onnx(0), None);
}

#[test]
fn shapes_are_checked_before_memory_is_taken() {
    let refused = |shape: &[i64]| Tensor::builder(DType::Fp32, shape).map(|_| ()).unwrap_err();
    assert!(matches!(refused(&[2, -1]), TensorError::NegativeExtent { extent: -1, .. }));
    assert!(matches!(refused(&[i64::MIN]), TensorError::NegativeExtent { .. }));
    assert!(matches!(refused(&[i64::MAX, i64::MAX]), TensorError::TooLarge { .. }));
    assert!(matches!(refused(&[0, i64::MAX, i64::MAX]), TensorError::TooLarge { .. }));
    assert!(matches!(refused(&[1 << 30, 2]), TensorError::TooLarge { .. }));
    assert!(matches!(refused(&[1; 33]), TensorError::TooManyDimensions { got: 33 }));
}

#[test]
fn scalars_and_empty_tensors() {
    let scalar = Tensor::from_slice(&[], &[7_i64]).unwrap();
    assert_eq!(scalar.shape(), &[] as &[i64]);
    assert_eq!(scalar.as_slice::<i64>(), Some(&[7][..]));
    let empty = Tensor::from_slice::<f32>(&[2, 0, 3], &[]).unwrap();
    assert!(empty.is_empty());
    assert_eq!(empty.bytes(), &[] as &[u8]);
    assert_eq!(empty.as_slice::<f32>(), Some(&[][..]));
    assert_eq!(empty.as_slice::<f64>(), None);
}

#[test]
fn booleans_are_checked() {
    assert!(matches!(
        Tensor::from_bytes(DType::Bool, &[3], &[0, 1, 2]),
        Err(TensorError::NotABool { index: 2 })
    ));
    let tensor = Tensor::from_bytes(DType::Bool, &[2], &[0, 1]).unwrap();
    assert_eq!(tensor.as_slice::<bool>(), Some(&[false, true][..]));
}

#[test]
fn clones_share_the_memory() {
    let tensor = Tensor::from_slice(&[4], &[1_f32, 2., 3., 4.]).unwrap();
    assert_eq!(tensor.clone().bytes().as_ptr(), tensor.bytes().as_ptr());
}

#[test]
fn tensors_cross_threads() {
    fn check<T: Send + Sync>() {}
    check::<Tensor>();
    check::<TensorBuilder>();
}

proptest! {
    #[test]
    fn bytes_come_back(which in 0..DType::ALL.len(), shape in prop::collection::vec(0_i64..5, 0..4), seed: u64) {
        let dtype = DType::ALL[which];
        let elements: i64 = shape.iter().product();
        let len = usize::try_from(elements).unwrap() * dtype.size();
        let mask = if dtype == DType::Bool { 1 } else { 0xff };
        let bytes: Vec<u8> = (0..len as u64).map(|i| (seed.rotate_left((i % 64) as u32) ^ i) as u8 & mask).collect();
        let tensor = Tensor::from_bytes(dtype, &shape, &bytes).unwrap();
        prop_assert_eq!(tensor.bytes(), &bytes[..]);
        prop_assert_eq!(tensor.shape(), &shape[..]);
        prop_assert_eq!(tensor.len() as i64, elements);
        prop_assert_eq!(tensor.bytes().as_ptr() as usize % dtype.size(), 0);
        let too_long = [&bytes[..], &[0]].concat();
        let refused = matches!(
            Tensor::from_bytes(dtype, &shape, &too_long),
            Err(TensorError::WrongLength { .. })
        );
        prop_assert!(refused);
    }
}
