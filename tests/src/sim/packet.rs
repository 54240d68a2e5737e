//! What travels between simulated devices. The daemon has a stream per protocol; here it is one enum.

use super::serving::{Call, Frame, Report};
use mesh_consensus::{ClusterId, Listed, Outcome, RaftId, Request, StorageId};

/// A message between two devices.
#[derive(Debug, Clone)]
pub(crate) enum Packet {
    /// The founding protocol, encoded.
    Founding(Vec<u8>),
    /// A frame of the Raft group.
    Raft {
        /// The replica that the sender says it is.
        from: RaftId,
        to: RaftId,
        snapshot: bool,
        frame: Vec<u8>,
    },
    /// `origin` asks to be added to the cluster, perhaps through another member.
    JoinRequest { origin: usize, storage: StorageId, listed: Listed, relayed: bool },
    /// What became of it.
    JoinReply { origin: usize, storage: StorageId, cluster: ClusterId, outcome: Outcome },
    /// A client's request on its way to the leader.
    Forward(Box<Request>),
    /// What a device tells of itself with its heartbeat.
    Report(Box<Report>),
    /// Weights, and who wants some.
    Blobs(Call),
    /// Activations, results and refusals.
    Frame(Box<Frame>),
}

impl Packet {
    /// The replica that a snapshot goes to, if this is one.
    pub(crate) fn snapshot_for(&self) -> Option<RaftId> {
        if let Self::Raft { to, snapshot: true, .. } = self { Some(*to) } else { None }
    }

    /// A word for the log.
    pub(crate) fn kind(&self) -> String {
        match self {
            Self::Founding(bytes) => match mesh_consensus::founding::Message::from_bytes(bytes) {
                Ok(message) => format!("{message:?}").chars().take(160).collect(),
                Err(error) => error.to_string(),
            },
            Self::Raft { from, to, snapshot, frame } => {
                let what = if *snapshot { "snapshot" } else { "raft" };
                format!("{what} {from}->{to} {} bytes", frame.len())
            }
            Self::JoinRequest { origin, storage, relayed, .. } => {
                format!("join request of d{origin} with {storage}, relayed {relayed}")
            }
            Self::JoinReply { origin, outcome, .. } => format!("join reply for d{origin}: {outcome:?}"),
            Self::Forward(request) => format!("request {}:{}", request.id.proposer, request.id.sequence),
            Self::Report(_) => "report".to_owned(),
            Self::Blobs(Call::Want(hashes)) => format!("asks for {} blobs", hashes.len()),
            Self::Blobs(Call::Have(hashes)) => format!("sends {} blobs", hashes.len()),
            Self::Frame(frame) => frame.kind(),
        }
    }
}
