//! What would lift a plan, for people who think of buying something.

use mesh_planner::{Lift, Plan, Problem};
use tokio::sync::Semaphore;

/// Planner's budget for each idea, in steps: an estimate will do.
const STEPS: u64 = 200_000;

/// One at a time on a device: it takes a processor.
static COMPUTING: Semaphore = Semaphore::const_new(1);

/// Ideas with what they would bring, the most effective first. Computes on a thread of its own.
pub async fn lifts(problem: Problem, plan: Plan) -> Vec<Lift> {
    let Ok(permit) = COMPUTING.acquire().await else { return Vec::new() };
    let computing = crate::background::spawn(move || {
        let _permit = permit;
        mesh_planner::lifts(&problem, &plan, STEPS)
    });
    computing.await.unwrap_or_else(|error| {
        tracing::warn!(%error, "what would lift a plan could not be computed");
        Vec::new()
    })
}
