//! Taking the cost of single sessions out of the times of single blocks: pure logic.
//!
//! A block in a session of its own pays for the call, for tensors that are laid out anew at both ends, and for fusions
//! that it cannot have. In a stage of many blocks it does not. Longer runs of blocks, measured as one session each,
//! say what the blocks in them cost together.

use std::ops::Range;

/// Blocks in a window of the finer kind.
const WINDOW: usize = 8;

/// A run of blocks measured in one session.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Window {
    pub(super) blocks: Range<usize>,
    pub(super) seconds: f64,
}

/// The runs of blocks to measure: neighbours in groups of some blocks, then in groups as large as `memory` bytes of
/// weights allow; the whole model is the last when it fits. Groups of one block are left out.
pub(super) fn windows(weights: &[u64], memory: u64) -> Vec<Range<usize>> {
    let fine = groups(weights, memory, WINDOW);
    let coarse = groups(weights, memory, usize::MAX);
    let mut windows: Vec<Range<usize>> = fine.into_iter().filter(|group| !coarse.contains(group)).collect();
    windows.extend(coarse);
    windows.retain(|group| group.len() > 1);
    windows
}

fn groups(weights: &[u64], memory: u64, most: usize) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    let mut held = 0_u64;
    for (block, weight) in weights.iter().enumerate() {
        match groups.last_mut() {
            Some(group) if group.len() < most && held.saturating_add(*weight) <= memory => {
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
        assert_eq!(windows(&[1; 20], u64::MAX), [0..8, 8..16, 16..20, 0..20]);
        assert_eq!(windows(&[1; 5], u64::MAX), std::iter::once(0..5).collect::<Vec<_>>());
        assert_eq!(windows(&[5, 5, 5, 20, 5, 5], 10), [0..2, 4..6], "single blocks are measured already");
        assert!(windows(&[7], u64::MAX).is_empty());
        assert!(windows(&[], u64::MAX).is_empty());
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
