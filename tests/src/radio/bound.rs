//! What no placement can be below in SEIFER's simulation: the slowest transfer of the best walk. A walk is a chain of
//! devices that may come back to a device, only not at once; so every chain is a walk, and the best walk is found
//! exactly and quickly, cuts and devices together.

/// From where a device was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Nowhere,
    One(usize),
    /// The start, or two devices at least: whatever comes next, one of them is another.
    Several,
}

impl Before {
    fn with(self, other: Self) -> Self {
        match (self, other) {
            (Self::Nowhere, one) | (one, Self::Nowhere) => one,
            (Self::One(a), Self::One(b)) if a == b => self,
            (Self::One(_) | Self::Several, Self::One(_) | Self::Several) => Self::Several,
        }
    }

    fn other_than(self, device: usize) -> bool {
        match self {
            Self::Nowhere => false,
            Self::One(before) => before != device,
            Self::Several => true,
        }
    }
}

/// Seconds of the slowest transfer of the best walk, any number of parts long. `transfers` are Mbit at every cut
/// point, the input's first; `memory_bytes` those of the segments between; `mbit` the link rates in Mbit/s. Infinite
/// when a segment alone exceeds the capacity, or no link is there where one is needed.
pub fn slowest_of_best_walk(
    transfers: &[f64],
    memory_bytes: &[u64],
    capacity_bytes: u64,
    mbit: &[Vec<f64>],
) -> f64 {
    let earliest = earliest_starts(memory_bytes, capacity_bytes);
    let mut candidates = vec![0.0];
    let mut sizes = transfers[1..transfers.len() - 1].to_vec();
    sizes.sort_by(f64::total_cmp);
    sizes.dedup();
    for row in mbit {
        let rates = row.iter().filter(|&&rate| rate > 0.0);
        candidates.extend(rates.flat_map(|rate| sizes.iter().map(move |size| size / rate)));
    }
    candidates.sort_by(f64::total_cmp);
    candidates.dedup();
    let first = candidates.partition_point(|&limit_s| !is_reached(transfers, &earliest, mbit, limit_s));
    candidates.get(first).copied().unwrap_or(f64::INFINITY)
}

/// For every end the first segment that a part with that end may begin with.
fn earliest_starts(memory_bytes: &[u64], capacity_bytes: u64) -> Vec<usize> {
    let (mut first, mut held) = (0, 0u64);
    let mut starts = vec![0];
    for (index, &bytes) in memory_bytes.iter().enumerate() {
        held += bytes;
        while held > capacity_bytes {
            held -= memory_bytes[first];
            first += 1;
        }
        starts.push(first.min(index + 1));
    }
    starts
}

/// Is there a walk whose transfers all take this long at most?
fn is_reached(transfers: &[f64], earliest: &[usize], mbit: &[Vec<f64>], limit_s: f64) -> bool {
    let (devices, last) = (mbit.len(), earliest.len() - 1);
    // begins[position][device]: from where a part that begins there was reached.
    let mut begins = vec![vec![Before::Several; devices]];
    for end in 1..=last {
        let ends: Vec<Before> = (0..devices)
            .map(|device| {
                begins[earliest[end]..].iter().fold(Before::Nowhere, |sum, row| sum.with(row[device]))
            })
            .collect();
        if end == last {
            return ends.iter().any(|&before| before != Before::Nowhere);
        }
        let mut row = vec![Before::Nowhere; devices];
        for (from, before) in ends.iter().enumerate() {
            for (to, begin) in row.iter_mut().enumerate() {
                let rate = mbit[from][to];
                if to != from && before.other_than(to) && rate > 0.0 && transfers[end] / rate <= limit_s {
                    *begin = begin.with(Before::One(from));
                }
            }
        }
        begins.push(row);
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The best chain over all cuts and devices.
    fn best_chain(
        transfers: &[f64],
        memory: &[u64],
        capacity: u64,
        mbit: &[Vec<f64>],
        path: &mut Vec<usize>,
        first: usize,
    ) -> f64 {
        let mut best = f64::INFINITY;
        for device in (0..mbit.len()).filter(|device| !path.contains(device)).collect::<Vec<_>>() {
            let hop = path.last().map_or(0.0, |&from| transfers[first] / mbit[from][device]);
            path.push(device);
            for end in first + 1..=memory.len() {
                if memory[first..end].iter().sum::<u64>() > capacity {
                    break;
                }
                let rest = if end == memory.len() {
                    0.0
                } else {
                    best_chain(transfers, memory, capacity, mbit, path, end)
                };
                best = best.min(hop.max(rest));
            }
            path.pop();
        }
        best
    }

    proptest! {
        #[test]
        fn no_chain_is_below_the_bound(
            segments in prop::collection::vec((1u8..9, 1u64..6), 1..6),
            rates in prop::collection::vec(1u8..9, 16),
            capacity in 3u64..20,
        ) {
            let mut transfers: Vec<f64> = vec![1.0];
            transfers.extend(segments.iter().map(|(size, _)| f64::from(*size)));
            let memory: Vec<u64> = segments.iter().map(|(_, bytes)| *bytes).collect();
            let mbit: Vec<Vec<f64>> =
                rates.chunks(4).map(|row| row.iter().map(|&rate| f64::from(rate)).collect()).collect();
            let bound = slowest_of_best_walk(&transfers, &memory, capacity, &mbit);
            let best = best_chain(&transfers, &memory, capacity, &mbit, &mut Vec::new(), 0);
            prop_assert!(bound <= best, "{bound} {best}");
            // Up to three parts every walk is a chain.
            let whole: u64 = memory.iter().sum();
            if whole <= capacity { prop_assert_eq!(best, 0.0); }
            if segments.len() <= 3 { prop_assert_eq!(bound, best); }
        }
    }
}
