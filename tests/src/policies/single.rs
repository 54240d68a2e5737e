//! One device.

use mesh_planner::{PinnedStage, Problem};

use super::view::View;

/// The whole model on the fastest device that holds it.
///
/// # Errors
/// When no device holds it, or the problem is senseless.
pub fn single(problem: &Problem) -> Result<Vec<PinnedStage>, String> {
    let view = View::new(problem)?;
    let whole = view.bytes(0, view.blocks);
    let fitting = (0..view.devices()).filter(|&device| view.fits(device, 0, view.blocks));
    let by_time =
        |&a: &usize, &b: &usize| view.seconds(a, 0, view.blocks).total_cmp(&view.seconds(b, 0, view.blocks));
    let fastest = fitting.min_by(by_time);
    let device = fastest.ok_or_else(|| format!("no single device holds the model's {whole} bytes"))?;
    Ok(view.stages(&[view.blocks], &[device]))
}
