//! Work for threads beside those that serve the network.

use tokio::task::JoinHandle;

/// Computes or waits for the disk on a thread that gives way to those that serve the network.
#[expect(clippy::disallowed_methods, reason = "all others use this instead")]
pub fn spawn<F, R>(work: F) -> JoinHandle<R>
where
    F: FnOnce() -> R + Send + 'static,
    R: Send + 'static,
{
    tokio::task::spawn_blocking(move || {
        mesh_inference::priority::give_way();
        work()
    })
}
