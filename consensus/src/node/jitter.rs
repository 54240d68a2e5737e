//! Election timeouts from a seed. raft-rs draws its own from the thread's random numbers, which no simulator
//! can repeat; so its timeout is made constant and the drawing is done here.

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
#[derive(Debug)]
pub(super) struct Jitter {
    state: u64,
    election_ticks: usize,
    /// Ticks of the present timeout.
    pub(super) timeout: usize,
}

impl Jitter {
    pub(super) fn new(seed: u64, election_ticks: usize) -> Self {
        let mut jitter = Self { state: seed, election_ticks, timeout: 0 };
        jitter.redraw();
        jitter
    }

    /// A new timeout in `election_ticks..2 * election_ticks`.
    pub(super) fn redraw(&mut self) {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let spread = self.election_ticks.max(1) as u64;
        self.timeout = self.election_ticks + usize::try_from(mixed % spread).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_cover_the_range_and_repeat_with_the_seed() {
        let draw = |seed| {
            let mut jitter = Jitter::new(seed, 10);
            (0..500)
                .map(|_| {
                    jitter.redraw();
                    jitter.timeout
                })
                .collect::<Vec<_>>()
        };
        let drawn = draw(7);
        assert_eq!(drawn, draw(7));
        assert_ne!(drawn, draw(8));
        assert!((10..20).all(|ticks| drawn.contains(&ticks)));
        assert!(drawn.iter().all(|ticks| (10..20).contains(ticks)));
    }
}
