//! What devices tell each other while a cluster is founded, and how it is written on the wire.

use serde::{Deserialize, Serialize};

use super::record::{Ballot, decode, encode};
use super::{Candidate, FoundingError};
use crate::{ClusterId, DeviceId, Genesis, StorageId};

/// First byte of every encoded message.
const MESSAGE_VERSION: u8 = 1;

/// No message is longer. A promise with the largest genesis stays below.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Rounds above this are refused: nobody gets there by counting.
const ROUND_MAX: u64 = 1 << 48;

/// Most members of a genesis; more devices than these join afterwards.
pub(super) const FOUNDERS_MAX: usize = 32;

/// Longest name, address or id in a message, in bytes.
const TEXT_BYTES_MAX: usize = 256;

/// Most devices that one promise may report as seen.
pub(super) const SEEN_MAX: usize = 256;

/// A message of the founding protocol. Ids of the sender come from the transport, which proved them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// Who I am and whether I belong to a cluster.
    Hello(Hello),
    /// I want to found a cluster: refuse older attempts from now on.
    Prepare {
        /// The attempt; its device is the sender.
        ballot: Ballot,
        /// `devices` of the sender's config. Devices that differ do not found together.
        devices: u32,
    },
    /// Older attempts than this one are refused from now on.
    Promise {
        /// The attempt that is answered.
        ballot: Ballot,
        /// The device that promises, as it should be listed if it becomes a voter.
        candidate: Candidate,
        /// The cluster that the sender accepted before, if any: it must be proposed again.
        accepted: Option<Box<(Ballot, Genesis)>>,
        /// Devices without a cluster that the sender has seen, at most 256.
        seen: Vec<DeviceId>,
    },
    /// The attempt comes too late.
    Refuse {
        /// The attempt that is answered.
        ballot: Ballot,
        /// What the sender has promised to somebody else.
        promised: Ballot,
    },
    /// Accept this cluster.
    Accept {
        /// The attempt; its device is the sender.
        ballot: Ballot,
        /// The proposed cluster.
        genesis: Genesis,
    },
    /// The cluster of this attempt is accepted and on disk.
    Accepted {
        /// The attempt that is answered.
        ballot: Ballot,
    },
    /// A majority accepted this cluster: it is the one.
    Decided {
        /// The founded cluster.
        genesis: Genesis,
    },
}

/// Introduces a device to another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// `devices` of the sender's config.
    pub devices: u32,
    /// The cluster that the sender is a member of.
    pub cluster: Option<ClusterHello>,
    /// The receiver is asked to introduce itself in turn.
    pub answer: bool,
    /// The sender will never take this place, which the receiver's cluster has for it. Not told by builds from
    /// before this was said.
    #[serde(default)]
    pub declined: Option<Place>,
}

/// A device's place in a cluster: the cluster lists it with this store, and takes it with no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The device's store.
    pub storage: StorageId,
}

/// What a member tells about its cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClusterHello {
    /// The sender's cluster.
    pub id: ClusterId,
    /// One member, no deployment and no model: such a cluster gives way to another.
    pub lone: bool,
    /// The leader, as far as the sender knows.
    pub leader: Option<DeviceId>,
    /// The receiver is a member, with the device id that the sender sees.
    pub yours: bool,
    /// The store that it is listed with. Not told by builds from before this was said.
    #[serde(default)]
    pub your_storage: Option<StorageId>,
    /// The entry that this is the state of, or an earlier one with the same members. Not told by builds from before this
    /// was said.
    #[serde(default)]
    pub applied: Option<u64>,
}

impl Hello {
    pub(super) fn cluster_id(&self) -> Option<ClusterId> {
        self.cluster.as_ref().map(|cluster| cluster.id)
    }
}

impl Message {
    /// Encodes the message for the wire.
    ///
    /// # Panics
    /// Never: writing CBOR of plain data to memory cannot fail.
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(MESSAGE_VERSION, self)
    }

    /// Decodes a message and checks every limit that the protocol relies on.
    ///
    /// # Errors
    /// [`FoundingError`] when the bytes are too long, of another version, damaged, or out of limits.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FoundingError> {
        let message: Self = decode("founding message", MESSAGE_VERSION, MESSAGE_BYTES_MAX, bytes)?;
        match message.check() {
            Ok(()) => Ok(message),
            Err(why) => Err(FoundingError::Damaged { what: "founding message", why: why.to_owned() }),
        }
    }

    /// What is wrong with the message, if anything.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        match self {
            Self::Hello(Hello { devices: _, cluster: _, answer: _, declined: _ }) => Ok(()),
            Self::Prepare { ballot, devices: _ } | Self::Accepted { ballot } => check_ballot(ballot),
            Self::Promise { ballot, candidate, accepted, seen } => {
                check_ballot(ballot)?;
                check_text(&candidate.name)?;
                check_text(&candidate.address)?;
                if seen.len() > SEEN_MAX {
                    return Err("too many devices seen");
                }
                match accepted {
                    Some(accepted) => check_ballot(&accepted.0).and_then(|()| check_genesis(&accepted.1)),
                    None => Ok(()),
                }
            }
            Self::Refuse { ballot, promised } => check_ballot(ballot).and_then(|()| check_ballot(promised)),
            Self::Accept { ballot, genesis } => check_ballot(ballot).and_then(|()| check_genesis(genesis)),
            Self::Decided { genesis } => check_genesis(genesis),
        }
    }
}

fn check_ballot(ballot: &Ballot) -> Result<(), &'static str> {
    if ballot.round == 0 || ballot.round > ROUND_MAX { Err("attempt number out of range") } else { Ok(()) }
}

fn check_text(text: &str) -> Result<(), &'static str> {
    if text.len() > TEXT_BYTES_MAX { Err("text too long") } else { Ok(()) }
}

/// A genesis lists different devices with Raft ids 1, 2, …, of which the first 1, 3 or 5 vote.
fn check_genesis(genesis: &Genesis) -> Result<(), &'static str> {
    let Genesis { cluster_id: _, cluster_name, members, voters } = genesis;
    check_text(cluster_name)?;
    if members.len() > FOUNDERS_MAX {
        return Err("too many founding members");
    }
    if !matches!(voters.len(), 1 | 3 | 5) || voters.len() > members.len() {
        return Err("a cluster starts with 1, 3 or 5 voters");
    }
    if !voters.iter().copied().eq(1..=voters.len() as u64) {
        return Err("the first members of a genesis vote");
    }
    for (index, member) in members.iter().enumerate() {
        if member.raft_id != index as u64 + 1 {
            return Err("Raft ids of a genesis count from 1");
        }
        if members[..index].iter().any(|other| other.device == member.device) {
            return Err("a device is listed twice");
        }
        check_text(&member.name)?;
        check_text(&member.address)?;
    }
    Ok(())
}
