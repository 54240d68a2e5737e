//! Who votes: 1, 3 or 5 replicas, never 2, so that no single loss stops a group that could go on.
//!
//! A pure policy: the leader asks it again and again, and does one step at a time until there is none. Voters
//! that have been out of touch too long give their seat to live learners, in one joint change while there is
//! a quorum; with too few live devices the number of seats shrinks, so that a fleet can lose devices one after
//! another. A learner votes only once it has the whole log. A member that is to be removed gives its seat up first,
//! and leaves only when nobody counts on its vote: otherwise the last voter could take the quorum with it.

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
    /// An operator removes it: it must not vote, and counts as gone.
    pub leaving: bool,
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
    let goes = members.get(&me).is_none_or(|own| own.leaving);
    if goes && let Some(to) = heir(me, conf, members) {
        return Some(MembershipStep::Transfer { to });
    }
    if let Some(voters) = wanted_voters(me, conf, members)
        && voters != conf.voters
    {
        return Some(MembershipStep::Change(change_voters(conf, members, &voters)));
    }
    change_learners(conf, members).map(MembershipStep::Change)
}

/// The best voter to hand the leadership to, among those that could take it now.
fn heir(me: RaftId, conf: &Conf, members: &BTreeMap<RaftId, PeerView>) -> Option<RaftId> {
    let ready = conf.voters.iter().filter_map(|id| Some((*id, members.get(id)?)));
    let ready = ready.filter(|(id, peer)| *id != me && peer.ready);
    ready.min_by_key(|(id, peer)| (peer.leaving, peer.draining, *id)).map(|(id, _)| id)
}

fn leave_joint(me: RaftId, conf: &Conf, members: &BTreeMap<RaftId, PeerView>) -> Option<MembershipStep> {
    if conf.voters.contains(&me) {
        return Some(MembershipStep::LeaveJoint);
    }
    heir(me, conf, members).map(|to| MembershipStep::Transfer { to })
}

/// The voters to aim at; `None` while it is better to wait for a replica to catch up.
fn wanted_voters(me: RaftId, conf: &Conf, members: &BTreeMap<RaftId, PeerView>) -> Option<BTreeSet<RaftId>> {
    // One of the other voters has all that is committed, or nothing would be: the leader that leaves waits for it.
    if conf.voters.len() > 1 && members.get(&me).is_some_and(|own| own.leaving) {
        return None;
    }
    let staying = || members.iter().filter(|(_, peer)| !peer.leaving);
    let live = staying().filter(|(id, peer)| peer.live || **id == me).count();
    let may_vote = |id: &RaftId, peer: &PeerView| {
        *id == me || conf.voters.contains(id) && peer.live || conf.learners.contains(id) && peer.ready
    };
    let mut candidates: Vec<_> = staying()
        .filter(|(id, peer)| may_vote(id, peer))
        .map(|(id, peer)| (*id != me, !conf.voters.contains(id), !peer.ready, peer.draining, *id))
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
