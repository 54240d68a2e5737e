use super::*;
use proptest::prelude::*;

const PACKED: [Codec; 3] = [Codec::Zstd, Codec::PlanesZstd, Codec::Sparse];

fn round_trip(tensor: &Tensor, codec: Codec) -> Codec {
    let encoded = encode(tensor, codec, &mut Scratch::new());
    let back = decode(encoded.codec, tensor.dtype(), tensor.shape(), &encoded.bytes).unwrap();
    assert_eq!(back.bytes(), tensor.bytes());
    assert_eq!(back.shape(), tensor.shape());
    encoded.codec
}

/// Activations after a ReLU: half zeros, the rest of similar magnitude.
fn activations(count: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| next().max(0.0)).collect()
}

#[test]
fn activations_shrink_and_come_back() {
    // More than one chunk, the last one not full.
    let count = planes::CHUNK * 2 + 77;
    let tensor = Tensor::from_slice(&[count as i64], &activations(count)).unwrap();
    let mut scratch = Scratch::new();
    for codec in PACKED {
        assert_eq!(round_trip(&tensor, codec), codec);
    }
    let planes = encode(&tensor, Codec::PlanesZstd, &mut scratch).bytes.len();
    assert!(planes * 10 < tensor.bytes().len() * 8, "{planes} of {}", tensor.bytes().len());
}

#[test]
fn every_bit_pattern_survives() {
    // All 65,536 patterns of the top half: every NaN payload, infinity and subnormal class.
    let patterns: Vec<u8> =
        (0..=u16::MAX).flat_map(|top| [0x5a, 0xc3, top as u8, (top >> 8) as u8]).collect();
    for (dtype, count) in
        [(DType::Fp32, 65_536), (DType::Fp16, 131_072), (DType::Bf16, 131_072), (DType::Fp64, 32_768)]
    {
        let tensor = Tensor::from_bytes(dtype, &[count], &patterns).unwrap();
        for codec in PACKED {
            round_trip(&tensor, codec);
        }
    }
}

#[test]
fn incompressible_tensors_are_sent_in_place() {
    let hashed: Vec<u8> = (0..4000_u32).flat_map(|i| *blake3::hash(&i.to_le_bytes()).as_bytes()).collect();
    let tensor = Tensor::from_bytes(DType::Uint8, &[hashed.len() as i64], &hashed).unwrap();
    for codec in PACKED {
        let encoded = encode(&tensor, codec, &mut Scratch::new());
        assert_eq!(encoded.codec, Codec::Raw);
        assert_eq!(encoded.bytes.as_ptr(), tensor.bytes().as_ptr(), "no copy");
    }
}

#[test]
fn small_packages_do_not_make_large_allocations() {
    let bomb = encode(
        &Tensor::from_bytes(DType::Uint8, &[1 << 20], &vec![0; 1 << 20]).unwrap(),
        Codec::Zstd,
        &mut Scratch::new(),
    );
    for codec in PACKED {
        let refused = decode(codec, DType::Uint8, &[4 << 30], &bomb.bytes);
        assert!(matches!(refused, Err(CodecError::Corrupt { .. })), "{refused:?}");
        let refused = decode(codec, DType::Uint8, &[1 << 19], &bomb.bytes);
        assert!(matches!(refused, Err(CodecError::Corrupt { .. })), "larger than the shape: {refused:?}");
    }
    assert!(decode(Codec::Zstd, DType::Fp32, &[-1], &bomb.bytes).is_err());
}

#[test]
fn the_best_ratio_of_zstd_is_within_the_bound() {
    for bytes in [0, 1, 1000, 128 << 10, 1 << 20, 64 << 20] {
        let tensor = Tensor::from_bytes(DType::Uint8, &[bytes as i64], &vec![0; bytes]).unwrap();
        for codec in PACKED {
            round_trip(&tensor, codec);
        }
    }
}

proptest! {
    #[test]
    fn tensors_come_back(
        which in 0..DType::ALL.len(),
        codec in 0..PACKED.len(),
        noise in prop::collection::vec(any::<u8>(), 0..3000),
        zeros in 0_usize..3000,
    ) {
        let dtype = DType::ALL[which];
        let mask = if dtype == DType::Bool { 1 } else { 0xff };
        let mut bytes: Vec<u8> = noise.iter().map(|byte| byte & mask).chain(std::iter::repeat_n(0, zeros)).collect();
        bytes.truncate(bytes.len() / dtype.size() * dtype.size());
        let tensor = Tensor::from_bytes(dtype, &[(bytes.len() / dtype.size()) as i64], &bytes).unwrap();
        round_trip(&tensor, PACKED[codec]);
    }

    #[test]
    fn hostile_bytes_are_refused_or_fill_the_shape(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        codec in 0..PACKED.len(),
        elements in 0_i64..200_000,
        which in 0..DType::ALL.len(),
    ) {
        if let Ok(tensor) = decode(PACKED[codec], DType::ALL[which], &[elements], &bytes) {
            prop_assert_eq!(tensor.len() as i64, elements);
        }
    }

    #[test]
    fn damaged_packages_never_panic(
        elements in 1_usize..5000,
        codec in 0..PACKED.len(),
        at in any::<prop::sample::Index>(),
        bit in 0..8,
        cut in any::<prop::sample::Index>(),
    ) {
        let tensor = Tensor::from_slice(&[elements as i64], &activations(elements)).unwrap();
        let encoded = encode(&tensor, PACKED[codec], &mut Scratch::new());
        let mut bytes = encoded.bytes.to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1_u8 << bit;
        let _ = decode(encoded.codec, DType::Fp32, tensor.shape(), &bytes);
        let cut = cut.index(encoded.bytes.len());
        prop_assert!(decode(encoded.codec, DType::Fp32, tensor.shape(), &encoded.bytes[..cut]).is_err());
    }
}
