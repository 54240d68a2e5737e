//! SEIFER's greedy baseline ("joint optimisation"): its cuts, and from every device a walk along the best link left.

use mesh_planner::{PinnedStage, Problem};

use super::{seifer::least_sum_cuts, view::View, view::over};

/// Least-sum cuts, placed along the best remaining link from the best start.
///
/// # Errors
/// When no cuts fit, or no walk has links enough.
pub fn greedy(problem: &Problem) -> Result<Vec<PinnedStage>, String> {
    let view = View::new(problem)?;
    let ends = least_sum_cuts(&view)?;
    let transfers: Vec<f64> = ends[..ends.len() - 1].iter().map(|&end| view.cut(end)).collect();
    let devices = walk(view.devices(), |from, to| view.rate(from, to), &transfers)
        .ok_or_else(|| format!("no walk along the best links reaches {} devices", ends.len()))?;
    Ok(view.stages(&ends, &devices))
}

/// The walk with the shortest longest transfer. `None` when every walk ends at a device without a link.
fn walk(devices: usize, rate: impl Fn(usize, usize) -> f64, transfers: &[f64]) -> Option<Vec<usize>> {
    let mut best: Option<(f64, Vec<usize>)> = None;
    for start in 0..devices {
        let (mut path, mut longest) = (vec![start], 0.0f64);
        for &transfer in transfers {
            let from = path[path.len() - 1];
            let free = (0..devices).filter(|to| !path.contains(to));
            // Of equal links the first, whatever the order of the list.
            let next = free.min_by(|&a, &b| rate(from, b).total_cmp(&rate(from, a)))?;
            longest = longest.max(over(transfer, rate(from, next)));
            path.push(next);
        }
        if longest.is_finite() && best.as_ref().is_none_or(|(old, _)| longest < *old) {
            best = Some((longest, path));
        }
    }
    best.map(|(_, path)| path)
}
