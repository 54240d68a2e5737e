//! SEIFER's radio model: devices at random places, and the bandwidth of their links by distance.

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

pub mod bound;
pub mod wifi;

/// Side of the square that the devices are in, in metres.
pub const SIDE_M: f64 = 150.0;
/// Signal to noise ratio at one metre, as SEIFER's simulator has it.
const SIGNAL: f64 = 283_230.0;
/// Devices never stand closer than this, so that every bandwidth is finite.
const NEAREST_M: f64 = 0.1;

/// A place in the square, in metres.
pub type Place = (f64, f64);

/// Places drawn evenly from the square.
pub fn places(devices: usize, seed: u64) -> Vec<Place> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut coordinate = || random.random_range(0.0..SIDE_M);
    (0..devices).map(|_| (coordinate(), coordinate())).collect()
}

/// Bandwidth over a distance in metres, in Mbit/s: `log2(1 + 283230 / d^2)`.
pub fn mbit_per_s(distance_m: f64) -> f64 {
    (1.0 + SIGNAL / distance_m.max(NEAREST_M).powi(2)).log2()
}

/// Bandwidths between all pairs of places in Mbit/s, row by sender; 0 from a place to itself. Both directions are equal.
pub fn mbit_between(places: &[Place]) -> Vec<Vec<f64>> {
    let rate = |from: usize, to: usize| {
        let ((x, y), (u, v)) = (places[from], places[to]);
        if from == to { 0.0 } else { mbit_per_s((x - u).hypot(y - v)) }
    };
    (0..places.len()).map(|from| (0..places.len()).map(|to| rate(from, to)).collect()).collect()
}

/// Link rates between so many devices at random places, in bytes per second, row by sender; 0 from a device to itself.
pub fn links(devices: usize, seed: u64) -> Vec<Vec<f64>> {
    let mut rates = mbit_between(&places(devices, seed));
    rates.iter_mut().flatten().for_each(|rate| *rate *= 1e6 / 8.0);
    rates
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_symmetric_and_as_fast_as_the_formula_says() {
        let mut sum = 0.0;
        for seed in 0..100 {
            let rates = links(20, seed);
            for (from, row) in rates.iter().enumerate() {
                assert_eq!(row[from], 0.0);
                for (to, rate) in row.iter().enumerate() {
                    assert_eq!(*rate, rates[to][from]);
                    sum += rate * 8.0 / 1e6;
                }
            }
        }
        // The formula's mean over the square, by 2,000,000 draws elsewhere, is 6.02 Mbit/s.
        let mean = sum / (100.0 * 20.0 * 19.0);
        assert!((5.9..6.15).contains(&mean), "{mean}");
    }

    #[test]
    fn bandwidth_falls_with_distance() {
        assert!((mbit_per_s(283_230f64.sqrt()) - 1.0).abs() < 1e-12);
        assert!(mbit_per_s(0.0).is_finite());
        assert!(mbit_per_s(10.0) > mbit_per_s(20.0));
    }

    #[test]
    fn one_seed_gives_the_same_links() {
        assert_eq!(links(5, 7), links(5, 7));
        assert_ne!(links(5, 7), links(5, 8));
    }
}
