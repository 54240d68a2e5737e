//! The config file: found, read, checked as a whole, and turned into one typed `Config`.
//!
//! Every key can also be set as `MESH_<SECTION>_<KEY>`; the environment wins. All defects are reported together,
//! each with its line, or its variable. The daemon sees only values that have been checked.

mod checks;
mod error;
mod find;
mod generate;
mod keys;
mod load;
mod raw;
mod reader;
mod secret;

use std::net::SocketAddr;
use std::path::PathBuf;

pub use error::{ConfigErrors, Defect, Place};
pub use find::find;
pub use generate::{GenerateError, Written, generate};
pub use load::{MAX_DEVICES, load, load_client};
pub use secret::{ClusterKey, Secret};

/// A checked configuration. Paths are absolute or relative to the working directory, never to the config file.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file that this was read from.
    pub file: PathBuf,
    /// What all devices of a cluster share.
    pub cluster: Cluster,
    /// This device.
    pub node: Node,
    /// How devices reach each other.
    pub network: Network,
    /// The API, over HTTP and gRPC.
    pub api: Api,
    /// What the daemon may use of this device.
    pub limits: Limits,
    /// ONNX Runtime.
    pub inference: Inference,
}

/// A checked configuration without what only the daemon's user may read: the cluster key was not opened.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// The file that this was read from.
    pub file: PathBuf,
    /// Where clients reach the daemon; port 0 means any free one.
    pub listen: SocketAddr,
    /// What the daemon wants to be shown, where that can be read.
    pub token: Option<Secret>,
    /// Why there is no token although the config names a file with one.
    pub token_defect: Option<Defect>,
    /// What the daemon may use of this device.
    pub limits: Limits,
    /// ONNX Runtime.
    pub inference: Inference,
}

/// `[cluster]`: the same on every device.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// The cluster's name: 1 to 63 letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// The secret that admits a device.
    pub key: ClusterKey,
    /// How many devices there will be when the cluster is first formed.
    pub devices: u32,
}

/// `[node]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What people call this device.
    pub name: String,
    /// Where identity, state and weights are kept.
    pub data_dir: PathBuf,
}

/// `[network]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Where other devices reach this one; port 0 means any free one.
    pub listen: SocketAddr,
    /// Find devices on the local network by multicast.
    pub mdns: bool,
    /// `host:port` of other devices.
    pub peers: Vec<String>,
    /// Names of the network interfaces to use; empty means all.
    pub interfaces: Vec<String>,
}

/// `[api]`.
#[derive(Debug, Clone)]
pub struct Api {
    /// Where clients reach this device over HTTP; port 0 means any free one.
    pub listen: SocketAddr,
    /// Where they reach it over gRPC, if anywhere.
    pub grpc_listen: Option<SocketAddr>,
    /// What clients must present, if anything.
    pub token: Option<Secret>,
}

/// `[limits]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that stages may use; `None` leaves it to the daemon.
    pub memory: Option<u64>,
    /// Threads for inference; 0 means all processors that this process may use.
    pub threads: usize,
    /// Bytes of disk that weights may use; `None` leaves it to the daemon.
    pub disk: Option<u64>,
}

/// `[inference]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inference {
    /// ONNX Runtime's shared library; `None` lets the daemon look for it.
    pub onnxruntime: Option<PathBuf>,
    /// Execution providers in order of preference.
    pub execution_providers: Vec<String>,
}
