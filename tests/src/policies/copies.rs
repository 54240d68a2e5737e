//! Every device for itself.

use mesh_planner::{PinnedStage, Problem};

use super::view::View;

/// The whole model on every device that holds it, as a load balancer in front of servers has it. No published system
/// of these plans so; it is what a plan with replicas has to be measured against.
///
/// # Errors
/// When replication is off, no device holds it, or the problem is senseless.
pub fn copies(problem: &Problem) -> Result<Vec<PinnedStage>, String> {
    if !problem.replication {
        return Err("copies on several devices are replicas, and replication is off".into());
    }
    let view = View::new(problem)?;
    let holds = |&device: &usize| view.fits(device, 0, view.blocks);
    let devices: Vec<String> = (0..view.devices()).filter(holds).map(|device| view.id(device)).collect();
    if devices.is_empty() {
        return Err(format!("no device holds the model's {} bytes", view.bytes(0, view.blocks)));
    }
    Ok(vec![PinnedStage { first_block: 0, last_block: view.blocks - 1, devices }])
}
