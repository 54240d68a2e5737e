use super::*;
use proptest::prelude::*;

/// The format, said once more in the simplest way.
fn naive(size: usize, bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    for chunk in bytes.chunks(CHUNK * size) {
        let elements: Vec<&[u8]> = chunk.chunks(size).collect();
        for group in elements.chunks(GROUP) {
            let bit = |(i, e): (usize, &&[u8])| if e.iter().all(|b| *b == 0) { 0 } else { 1_u64 << i };
            packed.extend(group.iter().enumerate().map(bit).sum::<u64>().to_le_bytes());
        }
        packed.extend(elements.iter().filter(|e| e.iter().any(|b| *b != 0)).flat_map(|e| e.iter()));
    }
    packed
}

fn dtype(size: usize) -> DType {
    match size {
        2 => DType::Fp16,
        4 => DType::Fp32,
        _ => DType::Int64,
    }
}

fn packed_by_size(size: usize, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut packed = Vec::new();
    let smaller = match size {
        2 => pack_elements(bytes.as_chunks::<2>().0, &mut packed),
        4 => pack_elements(bytes.as_chunks::<4>().0, &mut packed),
        _ => pack_elements(bytes.as_chunks::<8>().0, &mut packed),
    };
    smaller.then_some(packed)
}

/// Packs, compares with the naive version and unpacks; whether it was smaller.
fn check(size: usize, bytes: &[u8]) -> bool {
    let expected = naive(size, bytes);
    let packed = packed_by_size(size, bytes);
    assert_eq!(packed.is_some(), expected.len() < bytes.len(), "{size} {}", bytes.len());
    if let Some(packed) = &packed {
        assert_eq!(*packed, expected);
    }
    let mut target = vec![0; bytes.len()];
    unpack(size, &expected, &mut target).unwrap();
    assert_eq!(target, bytes);
    packed.is_some()
}

#[test]
fn every_length_around_the_borders_comes_back() {
    for size in [2, 4, 8] {
        for length in [0, 1, 63, 64, 65, 127, 128, 1023, 1024, 1025, 1087, 1088, 2048, 5000] {
            let every = |step: usize| -> Vec<u8> {
                (0..length).flat_map(|i| vec![u8::from(i % step == 0); size]).collect()
            };
            assert_eq!(check(size, &vec![0; length * size]), length * size > 8, "all zeros: {length}");
            assert!(!check(size, &every(1)), "no zeros: {length}");
            for step in [2, 3, 5, 64, 100] {
                check(size, &every(step));
            }
        }
    }
}

#[test]
fn negative_zeros_and_nans_are_kept() {
    let patterns = [0x8000_0000, 0x7fc0_0001, 0xffff_ffff, 1, 0x0080_0000, 0x7f80_0000_u32];
    let bytes: Vec<u8> =
        (0..3000_usize).flat_map(|i| if i % 3 == 0 { patterns[i % 6] } else { 0 }.to_le_bytes()).collect();
    assert!(check(4, &bytes));
}

#[test]
fn the_sample_tells_what_is_worth_packing() {
    let share = |zeros: usize, length: usize| -> Vec<u8> {
        let hash = |i: usize| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        (0..length).flat_map(|i| u32::from(hash(i) % 100 >= zeros).to_le_bytes()).collect()
    };
    for length in [1000, 1025, 100_000] {
        assert!(expected_ratio(DType::Fp32, &share(10, length)).is_none());
        let ratio = expected_ratio(DType::Fp32, &share(50, length)).unwrap();
        assert!((ratio - 0.53).abs() < 0.08, "{ratio}");
        assert!(pack(DType::Fp32, &share(10, length)).is_none());
        let packed = pack(DType::Fp32, &share(50, length)).unwrap();
        assert!(packed.len() * 100 < length * 4 * 60, "{}", packed.len());
    }
    assert!(pack(DType::Fp32, &[]).is_none());
    assert!(pack(DType::Uint8, &[0; 5000]).is_none(), "bytes are left alone");
    assert_eq!(pack(DType::Int64, &[0; 8 * 1000]).unwrap().len(), 16 * 8);
}

#[test]
fn damaged_packages_are_refused() {
    let bytes: Vec<u8> = (0..1500_u32).flat_map(|i| (i % 2).to_le_bytes()).collect();
    let good = pack(DType::Fp32, &bytes).unwrap();
    let refused = |packed: &[u8]| unpack(4, packed, &mut vec![0; bytes.len()]).unwrap_err();
    for cut in 0..good.len() {
        refused(&good[..cut]);
    }
    assert_eq!(refused(&[&good[..], &[0]].concat()), "bytes follow the last element");
    let mut more = good.clone();
    more[0] |= 1;
    refused(&more);
    // 1500 elements are 1024 and 476: the last word of the second bitmap has 28 bits.
    let mut beyond = good.clone();
    let last_word = 128 + 512 * 4 + 7 * 8;
    beyond[last_word + 7] |= 0x80;
    beyond.extend([1; 4]);
    assert_eq!(refused(&beyond), "elements follow the last one");
    assert!(unpack(1, &good, &mut [0; 10]).is_err());
}

proptest! {
    #[test]
    fn it_packs_as_the_naive_version_does(
        size in prop::sample::select(vec![2_usize, 4, 8]),
        runs in prop::collection::vec((any::<bool>(), 1_usize..200, any::<u8>()), 0..40),
        scattered in prop::collection::vec(0_u8..3, 0..4000),
    ) {
        let runs = runs.iter().flat_map(|(zero, length, byte)| vec![if *zero { 0 } else { *byte }; *length]);
        let bytes: Vec<u8> = runs
            .chain(scattered)
            .flat_map(|byte| std::iter::once(byte).chain(std::iter::repeat_n(0, size - 1)))
            .collect();
        check(size, &bytes);
        if let Some(packed) = pack(dtype(size), &bytes) {
            prop_assert_eq!(packed, naive(size, &bytes));
        }
    }
}
