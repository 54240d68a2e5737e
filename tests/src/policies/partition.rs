//! SEIFER's cuts: the least sum of transfers, every part within the memory of the smallest device.

/// What may be cut, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Number of blocks.
    pub(crate) blocks: usize,
    /// Fewest parts.
    pub(crate) least: usize,
    /// Most parts.
    pub(crate) most: usize,
}

/// Ends of the parts whose cuts have the least sum; of equal sums the fewest parts. `None` when nothing fits.
pub(crate) fn least_sum(
    limits: Limits,
    cut: impl Fn(usize) -> f64,
    fits: impl Fn(usize, usize) -> bool,
) -> Option<Vec<usize>> {
    let Limits { blocks, least, most } = limits;
    // costs[parts][end]: the least sum, and the end of the part before.
    let mut costs = vec![vec![(f64::INFINITY, 0); blocks + 1]; most + 1];
    costs[0][0] = (0.0, 0);
    for parts in 1..=most {
        for first in 0..blocks {
            let (before, _) = costs[parts - 1][first];
            if before.is_infinite() {
                continue;
            }
            for (end, cost) in costs[parts].iter_mut().enumerate().skip(first + 1) {
                let sum = before + if end < blocks { cut(end) } else { 0.0 };
                if sum < cost.0 && fits(first, end) {
                    *cost = (sum, first);
                }
            }
        }
    }
    let counts = least.max(1)..=most;
    let parts = counts.min_by(|&a, &b| costs[a][blocks].0.total_cmp(&costs[b][blocks].0))?;
    if costs[parts][blocks].0.is_infinite() {
        return None;
    }
    let mut ends = vec![blocks];
    for count in (2..=parts).rev() {
        ends.push(costs[count][ends[ends.len() - 1]].1);
    }
    ends.reverse();
    Some(ends)
}
