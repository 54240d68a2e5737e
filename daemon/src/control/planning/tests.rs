use mesh_inference::blobs::Hash;

use super::*;

fn stored(cut_sparse_bytes: Vec<u64>) -> StoredProfile {
    let profile = ModelProfile {
        model: Hash::of(b"a model"),
        runtime: "1".into(),
        threads: 1,
        shapes: BTreeMap::new(),
        block_seconds: vec![0.1, 0.2, 0.3],
        block_peak_bytes: vec![10_000, 20_000, 5_000],
        block_weight_bytes: vec![1, 2, 3],
        cut_bytes: vec![600, 8000, 4000, 40],
        cut_sparse_bytes,
        session_seconds: 0.0,
        whole_seconds: None,
    };
    StoredProfile { calibration_s: 0.1, profile }
}

#[test]
fn what_crosses_is_counted_without_zeros_and_memory_with_them() {
    let problem = problem(&stored(vec![600, 4250, 3000, 40]), &[], &Wishes::default());
    assert_eq!(problem.cuts, [600, 4250, 3000, 40]);
    let whole = super::problem(&stored(Vec::new()), &[], &Wishes::default());
    assert_eq!(whole.cuts, [600, 8000, 4000, 40], "a profile from before");
    // A block alone needs what it did with whole tensors; a longer stage at most what is left out more.
    let stage = |problem: &Problem, first: usize, end: usize| {
        let peak = problem.blocks[first..end].iter().map(|b| b.peak_bytes).max().unwrap();
        peak + problem.cuts[first] + problem.cuts[end]
    };
    for first in 0..3 {
        for end in first + 1..=3 {
            let (packed, unpacked) = (stage(&problem, first, end), stage(&whole, first, end));
            assert!(packed <= unpacked + 4750, "{first}..{end}: {packed} {unpacked}");
        }
        assert_eq!(stage(&problem, first, first + 1), stage(&whole, first, first + 1));
    }
}

#[test]
fn a_senseless_profile_does_not_add_bytes() {
    let problem = problem(&stored(vec![9000; 2]), &[], &Wishes::default());
    assert_eq!(problem.cuts, [600, 8000, 4000, 40]);
    assert_eq!(problem.blocks[1].peak_bytes, 20_000);
}
