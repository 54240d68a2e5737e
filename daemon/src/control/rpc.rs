//! Calls between daemons on the control link: method numbers and bodies (CBOR).

use mesh_consensus::{ClusterId, Listed, Outcome, RaftId, StorageId};
use mesh_inference::blobs::Hash;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// A command for the leader: body [`mesh_consensus::Request`], answer [`ProposeReply`].
pub const METHOD_PROPOSE: u16 = 1;
/// An unfounded device asks to become a member: body [`JoinCall`], answer [`JoinReply`].
pub const METHOD_JOIN: u16 = 2;
/// Which of these blobs do you hold: body [`HaveCall`], answer [`HaveReply`].
pub const METHOD_HAVE: u16 = 3;

/// What the planner was asked for a plan: body [`ProblemCall`], answer an optional [`mesh_planner::Problem`].
pub const METHOD_PROBLEM: u16 = 4;

/// Answer to a proposal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ProposeReply {
    /// Committed and applied; the outcome may be a refusal.
    Applied(Outcome),
    /// Ask this device instead (PeerId as text), if one is known.
    NotLeader(Option<String>),
    /// Try again shortly.
    Busy,
}

/// A device that asks to join.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JoinCall {
    /// Identity of its data directory.
    pub storage: StorageId,
    /// How the cluster lists it now, as it was told.
    #[serde(default)]
    pub listed: Listed,
    /// Configured name.
    pub name: String,
    /// `ip:port` that it listens at, as the asked device sees it when empty.
    pub address: String,
}

/// Answer to a device that asks to join.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum JoinReply {
    /// It is a member from now on.
    Joined {
        /// The cluster.
        cluster: ClusterId,
        /// Its id in Raft.
        raft_id: RaftId,
    },
    /// It may not join.
    Refused(String),
    /// No leader at present.
    TryLater,
}

/// Question for the problem that a plan was made from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProblemCall {
    /// Deployment.
    pub deployment: String,
    /// The plan's number.
    pub epoch: u64,
}

/// Question for blobs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HaveCall {
    /// Hashes asked for; at most [`HAVE_MAX`].
    pub hashes: Vec<Hash>,
}

/// Which of the asked blobs are held, in the order asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HaveReply {
    /// One entry per hash.
    pub held: Vec<bool>,
}

/// Most hashes in one question.
pub const HAVE_MAX: usize = 8192;

/// As bytes.
pub fn encode<T: Serialize>(value: &T) -> bytes::Bytes {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).expect("plain data into a Vec");
    bytes.into()
}

/// From a peer's bytes; `None` when they are something else. The control link caps the size.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    ciborium::de::from_reader_with_recursion_limit(bytes, 32).ok()
}
