//! What goes into the founding protocol and comes out of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Conflict, Message, Place, Record};
use crate::{ClusterId, DeviceId, Genesis, Listed, StorageId};

/// Why bytes are not a message or a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FoundingError {
    /// Longer than any honest one.
    #[error("a {what} of {bytes} bytes is over the limit of {bytes_max}; it was ignored")]
    TooLong {
        /// What was read.
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// No bytes at all.
    #[error("a {what} is empty; it was ignored")]
    Empty {
        /// What was read.
        what: &'static str,
    },
    /// Written by another version of Mesh.
    #[error(
        "a {what} has version {found}, this daemon speaks {expected}; install the same release on every device"
    )]
    Version {
        /// What was read.
        what: &'static str,
        /// Its version byte.
        found: u8,
        /// The version byte that this code writes.
        expected: u8,
    },
    /// Not what was written.
    #[error("a {what} cannot be read ({why}); it was ignored")]
    Damaged {
        /// What was read.
        what: &'static str,
        /// Where reading failed.
        why: String,
    },
}

/// A device that may become a founding member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// The device's identity, proved by the transport.
    pub device: DeviceId,
    /// Identifies the device's store: a wiped disk is another candidate.
    pub storage: StorageId,
    /// Name for people.
    pub name: String,
    /// Where the device listens, `host:port`.
    pub address: String,
}

/// What the device's own replicated state says about its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MembershipView {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// All members, each with the store that the cluster lists it with.
    pub members: BTreeMap<DeviceId, StorageId>,
    /// There is a deployment or a model: the cluster is worth keeping.
    pub in_use: bool,
    /// The leader, if one is known.
    pub leader: Option<DeviceId>,
    /// This replica votes. Until it leads, its log may hold more than its state tells.
    pub votes: bool,
    /// The entry that this is the state of, or an earlier one with the same members.
    pub applied: u64,
}

/// Something happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// An admitted peer is connected. Comes before the first message from it.
    PeerUp(DeviceId),
    /// The last connection to a peer is gone.
    PeerDown(DeviceId),
    /// A peer sent a message.
    Message {
        /// The sender, proved by the transport.
        from: DeviceId,
        /// What it says.
        message: Message,
    },
    /// Time has passed.
    Tick,
    /// The replicated state, its members or the leader changed; or a [`Effect::GiveWay`] was dropped
    /// because the cluster is no longer alone.
    MembershipChanged(MembershipView),
    /// The answer to an [`Effect::Join`] of a member: this place is committed in the other cluster.
    Admitted(Place),
    /// The cluster has removed this device: it has no say in anything any more.
    Removed,
}

/// Something the daemon does, in the order given.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Make the record durable before any later effect is carried out.
    Persist(Record),
    /// Send a message to a connected peer. May be lost.
    Send {
        /// The receiver.
        to: DeviceId,
        /// What to say.
        message: Message,
    },
    /// Install the cluster in the empty store and start Raft with this id; campaign at once if asked.
    Found {
        /// The agreed cluster.
        genesis: Genesis,
        /// This device's Raft id.
        raft_id: u64,
        /// This device alone is a majority of the voters.
        campaign: bool,
    },
    /// The voters of a new cluster are there and have no leader yet: campaign now.
    Campaign,
    /// Ask to be added to a running cluster, as the device with this store. Repeated until
    /// [`Event::MembershipChanged`], and by a member, whose answer is [`Event::Admitted`], until
    /// [`Effect::GiveWay`] or a change of mind.
    Join {
        /// The cluster, and the store to be listed with: a member asks for the one that it will have then.
        place: Place,
        /// How the cluster lists this device now, as far as it has said.
        listed: Listed,
        /// Connected members to ask, the likely leader first.
        via: Vec<DeviceId>,
    },
    /// This device is a lone founder and has its place in another cluster. If [`Founding::may_give_way`](super::Founding::may_give_way) still
    /// allows it for the replicated state as it is now: in one transaction empty the store, make it the one of
    /// that place, write `record`; then start founding anew, which takes the place. Otherwise report
    /// [`Event::MembershipChanged`].
    GiveWay {
        /// The cluster that stays, and the id of the new store.
        to: Place,
        /// What the new store starts with.
        record: Record,
    },
    /// Another cluster of the same name and key exists and neither gives way: a person must choose.
    /// See [`Founding::conflicts`](super::Founding::conflicts).
    Conflict(Conflict),
}

/// Where the device stands, for `mesh status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Looking for devices to found a cluster with.
    Seeking {
        /// Devices without a cluster that are here, this one included.
        present: usize,
        /// Devices that are needed.
        needed: usize,
    },
    /// Waiting to be added to a cluster.
    Joining(ClusterId),
    /// A member of a cluster.
    Member(ClusterId),
}
