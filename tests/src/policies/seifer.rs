//! SEIFER (arXiv 2210.12219): cuts first, by the least sum of transfers under the memory of the smallest device; then
//! the parts are placed on the links, the largest transfers first. Compute is not looked at.

use mesh_planner::{PinnedStage, Problem};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

use super::{
    kpath::{Links, place},
    partition::{Limits, least_sum},
    view::View,
};

/// Least-sum cuts and k-path placement with so many bandwidth classes.
///
/// # Errors
/// When no cuts fit, or the placement finds no path (it is randomised and can fail, as the published one can).
pub fn seifer(problem: &Problem, classes: usize, seed: u64) -> Result<Vec<PinnedStage>, String> {
    let view = View::new(problem)?;
    let ends = least_sum_cuts(&view)?;
    let transfers: Vec<f64> = ends[..ends.len() - 1].iter().map(|&end| view.cut(end)).collect();
    let links = Links::new(view.devices(), view.rates())?;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let devices = place(&links, &transfers, classes, &mut random)
        .ok_or_else(|| format!("SEIFER's placement found no path for {} parts", ends.len()))?;
    Ok(view.stages(&ends, &devices))
}

pub(super) fn least_sum_cuts(view: &View<'_>) -> Result<Vec<usize>, String> {
    let (least, most) = view.stage_limits();
    let smallest = view.smallest_memory();
    let limits = Limits { blocks: view.blocks, least, most };
    let ends = least_sum(limits, |p| view.cut(p), |first, end| view.bytes(first, end) <= smallest);
    ends.ok_or_else(|| {
        format!("no {least} to {most} parts fit the smallest device's {smallest} bytes, which SEIFER takes for all")
    })
}
