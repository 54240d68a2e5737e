//! The state's encoding in snapshots.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{ClusterState, Deployment, Member, ModelRecord, RecentRequests};
use crate::ids::{ClusterId, DeviceId, RaftId};

/// Version byte in front of every encoded state.
const STATE_VERSION: u8 = 1;

/// The most bytes that an encoded state may have.
pub(crate) const MAX_STATE_BYTES: usize = 64 * 1024 * 1024;

/// What is encoded, apart from [`ClusterState`] so that a field added there cannot be left out here unnoticed.
#[derive(Serialize, Deserialize)]
struct StateV1 {
    cluster_id: ClusterId,
    cluster_name: String,
    members: BTreeMap<RaftId, Member>,
    removed: BTreeSet<DeviceId>,
    next_raft_id: RaftId,
    models: BTreeMap<String, ModelRecord>,
    deployments: BTreeMap<String, Deployment>,
    epoch_floor: u64,
    recent: BTreeMap<DeviceId, RecentRequests>,
}

/// A snapshot that this build cannot read.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// Written by a newer build.
    #[error(
        "cluster state has format version {0}, this build reads {STATE_VERSION}; update this device to the version that the others run"
    )]
    UnknownVersion(u8),
    /// No bytes at all.
    #[error("cluster state is empty")]
    Empty,
    /// More bytes than a state may have.
    #[error("cluster state has {0} bytes, more than {MAX_STATE_BYTES}")]
    TooLarge(usize),
    /// Not a state.
    #[error("cluster state cannot be read")]
    Malformed(#[source] ciborium::de::Error<std::io::Error>),
}

impl ClusterState {
    /// The state as bytes: a version byte and CBOR. Equal states give equal bytes.
    pub fn encode(&self) -> Vec<u8> {
        let Self {
            cluster_id,
            cluster_name,
            members,
            removed,
            next_raft_id,
            models,
            deployments,
            epoch_floor,
            recent,
        } = self.clone();
        let state = StateV1 {
            cluster_id,
            cluster_name,
            members,
            removed,
            next_raft_id,
            models,
            deployments,
            epoch_floor,
            recent,
        };
        let mut bytes = vec![STATE_VERSION];
        ciborium::into_writer(&state, &mut bytes).expect("writing plain types into memory cannot fail");
        bytes
    }

    /// Reads what [`ClusterState::encode`] wrote.
    ///
    /// # Errors
    /// When the bytes are not a state that this build knows.
    pub fn decode(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let (version, body) = bytes.split_first().ok_or(SnapshotError::Empty)?;
        if *version != STATE_VERSION {
            return Err(SnapshotError::UnknownVersion(*version));
        }
        if bytes.len() > MAX_STATE_BYTES {
            return Err(SnapshotError::TooLarge(bytes.len()));
        }
        let StateV1 {
            cluster_id,
            cluster_name,
            members,
            removed,
            next_raft_id,
            models,
            deployments,
            epoch_floor,
            recent,
        } = ciborium::from_reader(body).map_err(SnapshotError::Malformed)?;
        Ok(Self {
            cluster_id,
            cluster_name,
            members,
            removed,
            next_raft_id,
            models,
            deployments,
            epoch_floor,
            recent,
        })
    }

    /// BLAKE3 of the encoded state: equal on all devices at equal log index.
    pub fn digest(&self) -> [u8; 32] {
        *blake3::hash(&self.encode()).as_bytes()
    }
}
