//! Taking the cost of single sessions out of the times of single blocks: pure logic.
//!
//! A block in a session of its own pays for the call, for tensors that are laid out anew at both ends, and for fusions
//! that it cannot have. In a stage of many blocks it does not. Longer runs of blocks, measured as one session each,
//! say what the blocks in them cost together.

use std::ops::Range;

/// Blocks in a window of the finest kind.
const WINDOW: usize = 8;
/// Times as many blocks are in a window of the next kind. What a session pays at its ends grows with the tensors there,
/// which differ along a model: windows as long as stages are say what stages cost.
const COARSER: usize = 2;

/// A run of blocks measured in one session.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Window {
    pub(super) blocks: Range<usize>,
    pub(super) seconds: f64,
}

/// The runs of blocks to measure, of which `memory` bytes of weights can be held: equal parts of the model, each level
/// of some times as many blocks as the one before, then neighbours in groups as large as the memory allows; the whole
/// model is the last when it fits. Groups of one block are left out.
pub(super) fn windows(weights: &[u64], memory: u64) -> Vec<Range<usize>> {
    let blocks = weights.len();
    let fits = |group: &Range<usize>| weights[group.clone()].iter().sum::<u64>() <= memory;
    let largest = groups(weights, memory);
    let mut windows: Vec<Range<usize>> = Vec::new();
    let mut size = WINDOW;
    while size < blocks {
        let parts = blocks.div_ceil(size);
        windows
            .extend((0..parts).map(|part| part * blocks / parts..(part + 1) * blocks / parts).filter(fits));
        size *= COARSER;
    }
    windows.retain(|group| !largest.contains(group));
    windows.extend(largest);
    windows.retain(|group| group.len() > 1);
    windows
}

fn groups(weights: &[u64], memory: u64) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    let mut held = 0_u64;
    for (block, weight) in weights.iter().enumerate() {
        match groups.last_mut() {
            Some(group) if held.saturating_add(*weight) <= memory => {
                group.end = block + 1;
                held = held.saturating_add(*weight);
            }
            Some(_) | None => {
                groups.push(block..block + 1);
                held = *weight;
            }
        }
    }
    groups
}

/// Scales the times of blocks so that those of each window sum to what the window takes, the windows in their order,
/// so that the last and largest have the last word. Gives the seconds that a session of its own costs on average.
pub(super) fn correct(seconds: &mut [f64], windows: &[Window]) -> f64 {
    let alone = seconds.to_vec();
    for window in windows {
        let part = &mut seconds[window.blocks.clone()];
        let sum: f64 = part.iter().sum();
        if sum > 0.0 {
            part.iter_mut().for_each(|seconds| *seconds *= window.seconds / sum);
        }
    }
    let lost: f64 = alone.iter().zip(seconds.iter()).map(|(alone, corrected)| alone - corrected).sum();
    (lost / seconds.len().max(1) as f64).max(0.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn windows_are_fine_then_coarse_and_within_the_memory() {
        assert_eq!(windows(&[1; 20], u64::MAX), [0..6, 6..13, 13..20, 0..10, 10..20, 0..20]);
        assert_eq!(windows(&[1; 5], u64::MAX), std::iter::once(0..5).collect::<Vec<_>>());
        let lengths: Vec<usize> = windows(&[1; 122], u64::MAX).iter().map(ExactSizeIterator::len).collect();
        assert!(lengths[..16].iter().all(|length| [7, 8].contains(length)), "{lengths:?}");
        assert_eq!(lengths[16..], [15, 15, 15, 16, 15, 15, 15, 16, 30, 31, 30, 31, 61, 61, 122]);
        assert_eq!(windows(&[5, 5, 5, 20, 5, 5], 10), [0..2, 4..6], "single blocks are measured already");
        assert!(windows(&[7], u64::MAX).is_empty());
        assert!(windows(&[], u64::MAX).is_empty());
    }

    /// As in ResNet-50: blocks cost the same, but the tensors between the early ones are large, and a session pays for
    /// those at its ends.
    #[test]
    fn what_sessions_pay_at_their_ends_is_not_counted_where_it_is_most() {
        let ends = |cut: usize| 0.5 / f64::from(1 << (cut / 16));
        let session = |blocks: &Range<usize>| blocks.len() as f64 + ends(blocks.start) + ends(blocks.end);
        let mut seconds: Vec<f64> = (0..64).map(|block| session(&(block..block + 1))).collect();
        let windows: Vec<Window> = windows(&[1; 64], u64::MAX)
            .into_iter()
            .map(|blocks| Window { seconds: session(&blocks), blocks })
            .collect();
        correct(&mut seconds, &windows);
        for stage in [0..16, 16..32, 32..64, 0..21, 43..64] {
            let predicted: f64 = seconds[stage.clone()].iter().sum();
            let is = stage.len() as f64;
            assert!((predicted / is - 1.0).abs() < 0.03, "{stage:?}: {predicted} for {is}");
        }
    }

    #[test]
    fn the_sum_becomes_the_whole() {
        let mut seconds = vec![0.2, 0.2, 0.4, 0.2];
        let windows = [
            Window { blocks: 0..2, seconds: 0.2 },
            Window { blocks: 2..4, seconds: 0.6 },
            Window { blocks: 0..4, seconds: 0.9 },
        ];
        let session = correct(&mut seconds, &windows);
        let expected = [0.1125, 0.1125, 0.45, 0.225];
        assert!(
            seconds.iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 1e-12),
            "{seconds:?}"
        );
        assert!((session - 0.025).abs() < 1e-12);
    }

    proptest! {
        #[test]
        fn windows_hold_what_the_memory_allows(weights in prop::collection::vec(0_u64..100, 0..60), memory in 0_u64..500) {
            let windows = windows(&weights, memory);
            for window in &windows {
                prop_assert!(weights[window.clone()].iter().sum::<u64>() <= memory);
            }
            let fits = weights.len() > 1 && weights.iter().sum::<u64>() <= memory;
            prop_assert_eq!(windows.last() == Some(&(0..weights.len())), fits);
        }
    }
}
