//! Who votes: 1, 3 or 5 replicas, never 2, so that no single loss stops a group that could go on.
//!
//! A pure policy: the leader asks it again and again, and does one step at a time until there is none. Voters
//! that have been out of touch too long give their seat to live learners, in one joint change while there is
//! a quorum; with too few live devices the number of seats shrinks, so that a fleet can lose devices one after
//! another. A learner votes only once it has the whole log.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::RaftId;
use crate::store::Conf;

/// What the leader knows of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerView {
    /// Heard within the grace time.
    pub live: bool,
    /// Heard just now, and its log is as long as the leader's.
    pub ready: bool,
    /// About to be taken away: others are preferred.
    pub draining: bool,
}

/// A change of the Raft configuration, done as one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MembershipChange {
    /// Learners that become voters.
    pub promote: BTreeSet<RaftId>,
    /// Voters that become learners.
    pub demote: BTreeSet<RaftId>,
    /// New learners.
    pub add: BTreeSet<RaftId>,
    /// Voters or learners that leave.
    pub remove: BTreeSet<RaftId>,
}

impl MembershipChange {
    /// The voters after the change.
    pub fn voters_after(&self, conf: &Conf) -> BTreeSet<RaftId> {
        let kept = conf.voters.iter().filter(|id| !self.demote.contains(id) && !self.remove.contains(id));
        kept.chain(&self.promote).copied().collect()
    }

    /// It changes who votes, and so takes two steps: into a joint configuration and out of it.
    pub fn is_joint(&self, conf: &Conf) -> bool {
        self.voters_after(conf) != conf.voters
    }
}

/// What the leader should do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MembershipStep {
    /// Propose this change.
    Change(MembershipChange),
    /// Leave the joint configuration.
    LeaveJoint,
    /// Hand the leadership over, because the leader itself is to go.
    Transfer {
        /// To this voter.
        to: RaftId,
    },
}

/// Seats for so many live devices.
fn seats(live: usize) -> usize {
    match live {
        0 => 0,
        1 | 2 => 1,
        3 | 4 => 3,
        _ => 5,
    }
}

/// The next step towards the right configuration, if there is one to do now. `members` holds a view of every
/// member of the cluster's state, the leader `me` among them unless it was removed.
pub fn next_step(me: RaftId, conf: &Conf, members: &BTreeMap<RaftId, PeerView>) -> Option<MembershipStep> {
    if conf.is_joint() {
        return leave_joint(me, conf, members);
    }
    if let Some(voters) = wanted_voters(me, conf, members) {
        if !voters.contains(&me)
            && let Some(to) = voters.iter().find(|id| conf.voters.contains(id) && is_ready(members, **id))
        {
            return Some(MembershipStep::Transfer { to: *to });
        }
        if voters != conf.voters {
            return Some(MembershipStep::Change(change_voters(conf, members, &voters)));
        }
    }
    change_learners(conf, members).map(MembershipStep::Change)
}

fn is_ready(members: &BTreeMap<RaftId, PeerView>, id: RaftId) -> bool {
    members.get(&id).is_some_and(|peer| peer.ready)
}

fn leave_joint(me: RaftId, conf: &Conf, members: &BTreeMap<RaftId, PeerView>) -> Option<MembershipStep> {
    if conf.voters.contains(&me) {
        return Some(MembershipStep::LeaveJoint);
    }
    let heir = conf.voters.iter().find(|id| is_ready(members, **id));
    heir.map(|to| MembershipStep::Transfer { to: *to })
}

/// The voters to aim at; `None` while it is better to wait for a learner to catch up.
fn wanted_voters(me: RaftId, conf: &Conf, members: &BTreeMap<RaftId, PeerView>) -> Option<BTreeSet<RaftId>> {
    let live = members.iter().filter(|(id, peer)| peer.live || **id == me).count();
    let may_vote = |id: &RaftId, peer: &PeerView| {
        *id == me || conf.voters.contains(id) && peer.live || conf.learners.contains(id) && peer.ready
    };
    let mut candidates: Vec<_> = members
        .iter()
        .filter(|(id, peer)| may_vote(id, peer))
        .map(|(id, peer)| (*id != me, !conf.voters.contains(id), peer.draining, *id))
        .collect();
    candidates.sort_unstable();
    let mut seats_wanted = seats(live);
    if candidates.len() < seats_wanted {
        seats_wanted = seats(candidates.len());
        // With one seat a lost disk would lose the newest entries: rather wait for those that catch up.
        if seats_wanted < 3 && conf.voters.len() > seats_wanted {
            return None;
        }
    }
    let voters: BTreeSet<_> = candidates.iter().take(seats_wanted).map(|(.., id)| *id).collect();
    (!voters.is_empty()).then_some(voters)
}

fn change_voters(
    conf: &Conf,
    members: &BTreeMap<RaftId, PeerView>,
    voters: &BTreeSet<RaftId>,
) -> MembershipChange {
    let (demote, remove) = conf.voters.difference(voters).partition(|id| members.contains_key(id));
    MembershipChange {
        promote: voters.difference(&conf.voters).copied().collect(),
        demote,
        add: BTreeSet::new(),
        remove,
    }
}

/// One learner at a time: single changes need no joint configuration.
fn change_learners(conf: &Conf, members: &BTreeMap<RaftId, PeerView>) -> Option<MembershipChange> {
    let gone = conf.learners.iter().find(|id| !members.contains_key(id));
    if let Some(id) = gone {
        return Some(MembershipChange { remove: [*id].into(), ..MembershipChange::default() });
    }
    let new = members.keys().find(|id| !conf.contains(**id));
    new.map(|id| MembershipChange { add: [*id].into(), ..MembershipChange::default() })
}

#[cfg(test)]
#[path = "membership_tests.rs"]
mod tests;
