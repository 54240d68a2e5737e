//! A member that its own cluster does not list, or lists with another store.
//!
//! A data directory that comes back from a copy, after the device has joined anew with another one, holds a replica that
//! nobody talks to any more. So does the one of a device that joined after the copy was made that a cluster was
//! recovered from. Such a device cannot find that out from its log. The others tell it with every greeting how they list
//! it. They may be behind, so that a word counts only from one that has applied as much as this device has, or leads; and
//! only when it is repeated for a while, because the log may be about to say the same, or better.

use super::message::Hello;
use super::{Founding, MembershipView, Stage, UNLISTED_MS};
use crate::DeviceId;

/// How a device is out of its own cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unlisted {
    /// It is no member.
    Absent,
    /// It is a member with another store.
    OtherStore,
}

impl Unlisted {
    /// What is wrong and what to do, for people. `data_dir` is the data directory as the config names it.
    pub fn reason(self, data_dir: &str) -> String {
        let what = match self {
            Self::Absent => "its cluster does not list it",
            Self::OtherStore => "its cluster lists it with another data directory",
        };
        format!(
            "{what}; to let it join anew, move {data_dir}/cluster.redb away and restart it; if it is not to come back, \
             `mesh node remove` it on another device"
        )
    }
}

/// What a peer says about this device's place in the cluster that both belong to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Denial {
    kind: Unlisted,
    first_ms: u64,
    last_ms: u64,
}

impl MembershipView {
    /// Whether the same is told, though perhaps of a later entry.
    pub fn tells_the_same(&self, other: &Self) -> bool {
        let Self { cluster_id, members, in_use, leader, votes, applied: _ } = self;
        *cluster_id == other.cluster_id
            && *members == other.members
            && *in_use == other.in_use
            && *leader == other.leader
            && *votes == other.votes
    }
}

impl Founding {
    /// How this device is out of its own cluster, if a connected member has said so for a while.
    pub fn unlisted(&self) -> Option<Unlisted> {
        let mut denials = self.peers.values().filter_map(|peer| peer.denial);
        denials.find(|denial| denial.last_ms >= denial.first_ms + UNLISTED_MS).map(|denial| denial.kind)
    }

    /// A peer has greeted: notes what it says of this device's place.
    pub(super) fn note_denial(&mut self, from: &DeviceId, hello: &Hello) {
        let (now, said) = (self.now_ms, self.denied_by(from, hello));
        let Some(peer) = self.peers.get_mut(from) else { return };
        let before = peer.denial.filter(|denial| Some(denial.kind) == said);
        let first_ms = before.map_or(now, |denial| denial.first_ms);
        peer.denial = said.map(|kind| Denial { kind, first_ms, last_ms: now });
    }

    /// The membership has changed: forgets what does not hold beside it.
    pub(super) fn review_denials(&mut self) {
        let stands = |(device, peer): (&DeviceId, &super::Peer)| {
            let said = self.denied_by(device, peer.hello.as_ref()?);
            (peer.denial.map(|denial| denial.kind) == said).then(|| device.clone())
        };
        let standing: Vec<DeviceId> = self.peers.iter().filter_map(stands).collect();
        for (device, peer) in &mut self.peers {
            peer.denial = peer.denial.filter(|_| standing.contains(device));
        }
    }

    /// How a member that knows better lists this device, if not as this device is.
    fn denied_by(&self, from: &DeviceId, hello: &Hello) -> Option<Unlisted> {
        let (Stage::Member(view), Some(theirs)) = (&self.stage, &hello.cluster) else { return None };
        if theirs.id != view.cluster_id || theirs.leader.is_none() {
            return None;
        }
        // Where this device is listed in its own state, a state that is later and does not list it says that it was
        // taken out since. A device that has just joined may not be in its own state yet, and in that of others later.
        let knows_better = match view.members.get(&self.me.device) == Some(&self.me.storage) {
            true => theirs.applied.is_some_and(|applied| applied >= view.applied),
            false => theirs.leader.as_ref() == Some(from),
        };
        match (theirs.yours, theirs.your_storage) {
            (false, _) if knows_better => Some(Unlisted::Absent),
            (true, Some(storage)) if knows_better && storage != self.me.storage => Some(Unlisted::OtherStore),
            (true | false, _) => None,
        }
    }
}
