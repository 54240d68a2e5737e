//! What a simulated device did, for the world.

use mesh_consensus::{ClusterId, MemoryDisk, RaftId, RequestId};
use mesh_daemon::app::AppError;

use crate::sim::packet::Packet;

/// What a device did, for the world.
pub(crate) enum Deed {
    Send {
        to: usize,
        packet: Packet,
    },
    /// Installed a founded cluster.
    Founded(ClusterId),
    /// Joined a running one.
    Joined(ClusterId, RaftId),
    /// Gave its cluster up and must be started anew on this disk.
    Replaced(MemoryDisk),
    /// Is no member of this cluster any more.
    Removed(ClusterId),
    Applied {
        cluster: ClusterId,
        index: u64,
        request: RequestId,
    },
    /// A request that was proposed here is committed.
    Acknowledged {
        cluster: ClusterId,
        index: u64,
    },
    /// A client's request has ended: output and epoch, or why there is none.
    Answered {
        cluster: ClusterId,
        deployment: String,
        input: u64,
        answer: Result<(u64, u64), AppError>,
    },
    /// Something that must never happen has happened.
    Broken(String),
    Note(String),
}

impl Deed {
    /// A line for the log; what is sent is logged when it arrives.
    pub(crate) fn describe(&self) -> Option<String> {
        match self {
            Self::Send { .. } => None,
            Self::Founded(cluster) => Some(format!("founds {cluster}")),
            Self::Joined(cluster, raft_id) => Some(format!("joins {cluster} as replica {raft_id}")),
            Self::Replaced(_) => Some("empties its store".to_owned()),
            Self::Removed(_) => Some("is no member any more".to_owned()),
            Self::Applied { cluster: _, index, request } => {
                Some(format!("applies entry {index}: request {}:{}", request.proposer, request.sequence))
            }
            Self::Acknowledged { cluster: _, index } => Some(format!("acknowledges entry {index}")),
            Self::Answered { deployment, answer, .. } => Some(format!("{deployment} answers {answer:?}")),
            Self::Broken(text) | Self::Note(text) => Some(text.clone()),
        }
    }
}
