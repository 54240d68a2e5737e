//! A random division on random devices.

use mesh_planner::{PinnedStage, Problem};
use rand::{RngExt as _, SeedableRng as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;

use super::view::View;

/// Draws of an order of devices before giving up.
const TRIES: usize = 1_000;

/// Devices in a random order; every part ends at a random place among those that leave the rest feasible.
///
/// # Errors
/// When no order drawn can hold the model within the stages asked for, or the problem is senseless.
pub fn random(problem: &Problem, seed: u64) -> Result<Vec<PinnedStage>, String> {
    let view = View::new(problem)?;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut order: Vec<usize> = (0..view.devices()).collect();
    let (least, most) = view.stage_limits();
    for _ in 0..TRIES {
        order.shuffle(&mut random);
        let Some(ends) = divide(&view, &order[..most], &mut random) else { continue };
        let linked = order[..ends.len()].windows(2).all(|pair| view.rate(pair[0], pair[1]) > 0.0);
        if ends.len() >= least && linked {
            return Ok(view.stages(&ends, &order));
        }
    }
    Err(format!("{TRIES} random orders of the devices gave no feasible plan"))
}

fn divide(view: &View<'_>, order: &[usize], random: &mut ChaCha8Rng) -> Option<Vec<usize>> {
    // feasible[step][first]: the devices from `step` on can hold the blocks from `first` on.
    let blocks = view.blocks;
    let mut feasible = vec![vec![false; blocks + 1]; order.len() + 1];
    feasible[order.len()][blocks] = true;
    for (step, &device) in order.iter().enumerate().rev() {
        feasible[step][blocks] = true;
        for first in 0..blocks {
            let ends = first + 1..=blocks;
            feasible[step][first] =
                ends.into_iter().any(|end| feasible[step + 1][end] && view.fits(device, first, end));
        }
    }
    let (mut first, mut ends) = (0, Vec::new());
    for (step, &device) in order.iter().enumerate() {
        let open: Vec<usize> = (first + 1..=blocks)
            .filter(|&end| feasible[step + 1][end] && view.fits(device, first, end))
            .collect();
        first = *open.get(random.random_range(0..open.len().max(1)))?;
        ends.push(first);
        if first == blocks {
            return Some(ends);
        }
    }
    None
}
