//! Bounds of the data plane.

use std::time::Duration;

/// Every bound that the data plane keeps. `Default` is meant for devices with 1 GiB of memory and more.
#[derive(Debug, Clone)]
pub struct DataLimits {
    /// Most requests of one deployment that this ingress has in the pipeline at a time.
    pub window_max: usize,
    /// Most requests of one deployment that wait behind the window; beyond it the answer is 503.
    pub line_max: usize,
    /// Most input bytes of unanswered requests that this ingress keeps; one request is always taken.
    pub held_bytes_max: usize,
    /// Longest deadline that a request can have.
    pub timeout_max: Duration,
    /// Shortest time that an attempt is given before the request is sent again.
    pub attempt_min: Duration,
    /// Shortest time after which a request is sent to other devices as well: longer than a packet that was lost takes.
    pub copy_min: Duration,
    /// Time that an attempt is given while there are too few measured latencies to go by.
    pub attempt_unmeasured: Duration,
    /// Most jobs that wait in front of one stage.
    pub stage_queue_jobs: usize,
    /// Most input bytes that wait in front of one stage; one job is always taken.
    pub stage_queue_bytes: usize,
    /// Most frames that wait for one peer's stream.
    pub link_queue_frames: usize,
    /// Most bytes that wait for one peer's stream; one frame is always taken.
    pub link_queue_bytes: usize,
    /// Largest tensor that is taken from a peer, in bytes.
    pub tensor_bytes_max: u64,
    /// Largest frame that is taken from a peer, all tensors together, in bytes.
    pub frame_bytes_max: u64,
    /// A stream that brings no byte for this long in the middle of a frame is closed.
    pub stall_max: Duration,
    /// Most inbound streams of one peer; the oldest is closed for the next.
    pub streams_per_peer: usize,
}

impl Default for DataLimits {
    fn default() -> Self {
        Self {
            window_max: 64,
            line_max: 256,
            held_bytes_max: 256 << 20,
            timeout_max: Duration::from_secs(3600),
            attempt_min: Duration::from_secs(1),
            copy_min: Duration::from_millis(250),
            attempt_unmeasured: Duration::from_secs(15),
            stage_queue_jobs: 256,
            stage_queue_bytes: 256 << 20,
            link_queue_frames: 256,
            link_queue_bytes: 256 << 20,
            tensor_bytes_max: 1 << 30,
            frame_bytes_max: 2 << 30,
            stall_max: Duration::from_secs(10),
            streams_per_peer: 4,
        }
    }
}

impl DataLimits {
    /// Limits for a device that can spare about `memory_bytes` for tensors on their way.
    pub fn for_memory(memory_bytes: u64) -> Self {
        let part = usize::try_from(memory_bytes / 4).unwrap_or(usize::MAX).clamp(16 << 20, 1 << 30);
        Self { held_bytes_max: part, stage_queue_bytes: part, link_queue_bytes: part, ..Self::default() }
    }
}
