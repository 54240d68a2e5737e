//! Frames between replicas: a version byte and CBOR of our own types, so that raft-rs' protobuf never reads
//! bytes from the network. Only messages that may cross the network have a form here.

use raft::eraftpb::{Message, MessageType};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::{ClusterId, RaftId};
use crate::state::MAX_STATE_BYTES;
use crate::store::{StoredEntry, StoredSnapshot, from_entry, from_snapshot, to_entry, to_snapshot};

/// Version byte in front of every frame.
const FRAME_VERSION: u8 = 1;

/// The most bytes of a frame that carries no snapshot.
pub const MAX_FRAME_BYTES: usize = 2 * 1024 * 1024;

/// The most bytes of a frame that carries a snapshot.
pub const MAX_SNAPSHOT_FRAME_BYTES: usize = MAX_STATE_BYTES + 64 * 1024;

/// What raft-rs puts into the context of a vote request that a leader asked for.
const TRANSFER: &[u8] = b"CampaignTransfer";

/// A message between two replicas.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Frame {
    /// Replica numbers mean something only within one cluster.
    pub(crate) cluster: ClusterId,
    pub(crate) from: RaftId,
    pub(crate) to: RaftId,
    pub(crate) term: u64,
    pub(crate) body: Body,
}

/// What a frame says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Body {
    Append { index: u64, log_term: u64, commit: u64, entries: Vec<StoredEntry> },
    AppendAnswer { index: u64, log_term: u64, commit: u64, reject: bool, reject_hint: u64 },
    Vote { pre: bool, transfer: bool, index: u64, log_term: u64, commit: u64, commit_term: u64 },
    VoteAnswer { pre: bool, reject: bool, commit: u64, commit_term: u64 },
    Heartbeat { commit: u64 },
    HeartbeatAnswer { commit: u64 },
    Snapshot(StoredSnapshot),
    TimeoutNow,
}

/// Bytes that are not a frame.
#[derive(Debug, Error)]
pub enum FrameError {
    /// More bytes than a frame may have.
    #[error("frame has {0} bytes, more than allowed")]
    TooLarge(usize),
    /// No bytes at all.
    #[error("frame is empty")]
    Empty,
    /// From a newer build.
    #[error(
        "frame has format version {0}, this build reads {FRAME_VERSION}; update the older of the two devices"
    )]
    UnknownVersion(u8),
    /// Not a frame.
    #[error("frame cannot be read")]
    Malformed(#[source] ciborium::de::Error<std::io::Error>),
}

/// The replica that a frame says it is from: for a joiner, which learns from its first snapshot only which
/// device is which replica.
///
/// # Errors
/// When the bytes are not a frame.
pub fn claimed_sender(frame: &[u8]) -> Result<RaftId, FrameError> {
    Frame::decode(frame).map(|frame| frame.from)
}

impl Frame {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![FRAME_VERSION];
        ciborium::into_writer(self, &mut bytes).expect("writing plain types into memory cannot fail");
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        if bytes.len() > MAX_SNAPSHOT_FRAME_BYTES {
            return Err(FrameError::TooLarge(bytes.len()));
        }
        let (version, body) = bytes.split_first().ok_or(FrameError::Empty)?;
        if *version != FRAME_VERSION {
            return Err(FrameError::UnknownVersion(*version));
        }
        let frame: Self = ciborium::from_reader(body).map_err(FrameError::Malformed)?;
        if bytes.len() > MAX_FRAME_BYTES && !matches!(frame.body, Body::Snapshot(_)) {
            return Err(FrameError::TooLarge(bytes.len()));
        }
        Ok(frame)
    }

    /// The frame for a message of raft-rs; `None` for messages that stay inside a replica.
    pub(crate) fn from_message(cluster: ClusterId, message: &Message) -> Option<Self> {
        let commit = message.get_commit();
        let (index, log_term) = (message.get_index(), message.get_log_term());
        let kind = message.get_msg_type();
        let body = match kind {
            MessageType::MsgAppend => {
                let entries = message.get_entries().iter().map(from_entry).collect::<Option<_>>()?;
                Body::Append { index, log_term, commit, entries }
            }
            MessageType::MsgAppendResponse => {
                let (reject, reject_hint) = (message.get_reject(), message.get_reject_hint());
                Body::AppendAnswer { index, log_term, commit, reject, reject_hint }
            }
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => Body::Vote {
                pre: kind == MessageType::MsgRequestPreVote,
                transfer: message.get_context() == TRANSFER,
                index,
                log_term,
                commit,
                commit_term: message.get_commit_term(),
            },
            MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse => {
                Body::VoteAnswer {
                    pre: kind == MessageType::MsgRequestPreVoteResponse,
                    reject: message.get_reject(),
                    commit,
                    commit_term: message.get_commit_term(),
                }
            }
            MessageType::MsgHeartbeat => Body::Heartbeat { commit },
            MessageType::MsgHeartbeatResponse => Body::HeartbeatAnswer { commit },
            MessageType::MsgSnapshot => Body::Snapshot(from_snapshot(message.get_snapshot())),
            MessageType::MsgTimeoutNow => Body::TimeoutNow,
            MessageType::MsgHup
            | MessageType::MsgBeat
            | MessageType::MsgPropose
            | MessageType::MsgUnreachable
            | MessageType::MsgSnapStatus
            | MessageType::MsgCheckQuorum
            | MessageType::MsgTransferLeader
            | MessageType::MsgReadIndex
            | MessageType::MsgReadIndexResp => return None,
        };
        let (from, to, term) = (message.get_from(), message.get_to(), message.get_term());
        Some(Self { cluster, from, to, term, body })
    }

    /// The message of raft-rs that the frame stands for.
    pub(crate) fn into_message(self) -> Message {
        let mut message = Message::default();
        message.set_from(self.from);
        message.set_to(self.to);
        message.set_term(self.term);
        message.set_msg_type(self.body.kind());
        match self.body {
            Body::Append { index, log_term, commit, entries } => {
                message.set_index(index);
                message.set_log_term(log_term);
                message.set_commit(commit);
                message.set_entries(entries.into_iter().map(to_entry).collect());
            }
            Body::AppendAnswer { index, log_term, commit, reject, reject_hint } => {
                message.set_index(index);
                message.set_log_term(log_term);
                message.set_commit(commit);
                message.set_reject(reject);
                message.set_reject_hint(reject_hint);
            }
            Body::Vote { pre: _, transfer, index, log_term, commit, commit_term } => {
                message.set_index(index);
                message.set_log_term(log_term);
                message.set_commit(commit);
                message.set_commit_term(commit_term);
                if transfer {
                    message.set_context(TRANSFER.into());
                }
            }
            Body::VoteAnswer { pre: _, reject, commit, commit_term } => {
                message.set_reject(reject);
                message.set_commit(commit);
                message.set_commit_term(commit_term);
            }
            Body::Heartbeat { commit } | Body::HeartbeatAnswer { commit } => message.set_commit(commit),
            Body::Snapshot(snapshot) => message.set_snapshot(to_snapshot(snapshot)),
            Body::TimeoutNow => {}
        }
        message
    }
}

impl Body {
    fn kind(&self) -> MessageType {
        match self {
            Self::Append { .. } => MessageType::MsgAppend,
            Self::AppendAnswer { .. } => MessageType::MsgAppendResponse,
            Self::Vote { pre: true, .. } => MessageType::MsgRequestPreVote,
            Self::Vote { pre: false, .. } => MessageType::MsgRequestVote,
            Self::VoteAnswer { pre: true, .. } => MessageType::MsgRequestPreVoteResponse,
            Self::VoteAnswer { pre: false, .. } => MessageType::MsgRequestVoteResponse,
            Self::Heartbeat { .. } => MessageType::MsgHeartbeat,
            Self::HeartbeatAnswer { .. } => MessageType::MsgHeartbeatResponse,
            Self::Snapshot(_) => MessageType::MsgSnapshot,
            Self::TimeoutNow => MessageType::MsgTimeoutNow,
        }
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
