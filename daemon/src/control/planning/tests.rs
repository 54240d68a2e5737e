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
        memory_per_weight: 1.5,
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

/// Devices behind one switch, with cards of these bytes per second.
fn star(cards: &[f64]) -> Vec<DeviceFacts> {
    let device = |index: usize| {
        let others = cards.iter().enumerate().filter(|(other, _)| *other != index);
        DeviceFacts {
            id: index.to_string(),
            memory_bytes: 1 << 30,
            calibration_s: 0.1,
            transfer: TransferCost::default(),
            card_bytes_per_s: None,
            links: others.map(|(other, card)| (other.to_string(), (card.min(cards[index]), 1e-3))).collect(),
        }
    };
    (0..cards.len()).map(device).collect()
}

fn assumed(devices: &[DeviceFacts]) -> Vec<Option<f64>> {
    let mut problem = problem(&stored(Vec::new()), devices, &Wishes::default());
    assume_cards(&mut problem);
    problem.devices.iter().map(|device| device.card_bytes_per_s).collect()
}

#[test]
fn slow_links_to_fast_peers_speak_of_a_slow_card() {
    let cards = [12e6, 3.75e6, 2.5e6, 1.25e6, 6e5];
    // The two fastest have one link each that is as fast as it gets: nothing is known of their cards.
    assert_eq!(assumed(&star(&cards)), [None, None, Some(2.5e6), Some(1.25e6), Some(6e5)]);
}

#[test]
fn equal_links_say_nothing_and_what_was_measured_stays() {
    assert_eq!(assumed(&star(&[1e8; 4])), [None; 4]);
    let mut devices = star(&[1e8, 1e8, 1e6]);
    devices[2].card_bytes_per_s = Some(2e6);
    assert_eq!(assumed(&devices), [None, None, Some(2e6)]);
    assert_eq!(assumed(&star(&[1e8, 1e6])), [None, None], "one link may itself be slow");
}
