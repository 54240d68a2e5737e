//! Numbers of the data plane, for status, the Prometheus page and the planner's corrections.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use libp2p::PeerId;

use super::{route::StageKey, sent::SentMetrics};

/// All numbers at one moment.
#[derive(Debug, Clone, Default)]
pub struct DataMetrics {
    /// Requests that entered here, per deployment.
    pub deployments: BTreeMap<String, DeploymentMetrics>,
    /// Stages that run here.
    pub stages: Vec<StageMetrics>,
    /// Outbound streams.
    pub links: Vec<LinkMetrics>,
    /// Bytes of the frames that came from peers, as they were on the wire.
    pub received: u64,
    /// Bytes of the tensors that clients brought here and took from here.
    pub entered: u64,
}

/// Requests of one deployment that entered by this device.
#[derive(Debug, Clone, Default)]
pub struct DeploymentMetrics {
    /// Accepted.
    pub requests: u64,
    /// Those of them whose client is on another machine.
    pub arrived: u64,
    /// Answered with an error.
    pub errors: u64,
    /// Sends after the first of a request.
    pub retries: u64,
    /// In the pipeline now.
    pub in_flight: usize,
    /// Numbers of the plans that requests are on now, or would be sent on if somebody has asked lately.
    pub epochs: BTreeSet<u64>,
    /// In line now.
    pub waiting: usize,
    /// Answers per second over the last ten seconds.
    pub rps: f64,
    /// Median time from acceptance to answer of recent requests.
    pub p50: Option<Duration>,
    /// 99th percentile of the same.
    pub p99: Option<Duration>,
}

/// One stage that runs here.
#[derive(Debug, Clone)]
pub struct StageMetrics {
    /// Which.
    pub key: StageKey,
    /// Runs that gave outputs.
    pub runs: u64,
    /// Runs that failed.
    pub errors: u64,
    /// What a run costs the device, smoothed, in seconds (see `StageOutput::cost`); 0 before the first.
    pub compute_s: f64,
    /// Bytes handed on per run, smoothed; 0 before the first.
    pub output_bytes: f64,
    /// Jobs waiting or running.
    pub queue: usize,
}

/// The outbound stream to one peer.
#[derive(Debug, Clone)]
pub struct LinkMetrics {
    /// The peer.
    pub peer: PeerId,
    /// Frames sent.
    pub frames: u64,
    /// Bytes sent, as they went over the wire.
    pub bytes_sent: u64,
    /// Bytes before compression.
    pub bytes_raw: u64,
    /// Seconds that the writes of large frames have taken.
    pub busy_s: f64,
    /// Rate of the stream while it was busy with large frames, smoothed, in bytes per second; 0 before the first.
    pub bytes_per_s: f64,
    /// The same of the last large frame alone.
    pub last_bytes_per_s: f64,
    /// Codec of the last large tensor.
    pub codec: &'static str,
    /// Frames waiting.
    pub queue: usize,
    /// Activations by the stage that they went to.
    pub sent: Vec<SentMetrics>,
}
