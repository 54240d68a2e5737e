//! What a device holds for the plans: which sessions it makes, which stages frames can reach, and what it lets go of.
//! Pure: it is told the time and what is wanted, and says what to do. [`super::reconcile`] does it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use mesh_consensus::{ClusterState, Deployment};
use mesh_planner::Stage;

use super::{
    memory::{session_of, stage_bytes},
    prepare::SessionKey,
};
use crate::data::StageKey;

/// A stage of a plan that is no longer wanted still answers for this long: until all have told what is under way...
const RETIRE: Duration = Duration::from_secs(2);
/// ...and as long as requests are on that plan, which may be minutes with a large model on slow devices, up to this.
const DRAIN: Duration = Duration::from_secs(300);
/// A stage that could not be prepared is tried again after this long, while it is still wanted.
const RETRY: Duration = Duration::from_secs(5);

/// A session is loaded beside what is to leave where three halves of its bytes are free (a fraction): while it is loaded
/// it takes more than in the end, and others need memory, too.
const FREE: (u64, u64) = (3, 2);

/// Sessions on their way or at work, and the stages that they answer for.
#[derive(Debug, Default)]
pub struct Holdings {
    sessions: BTreeMap<SessionKey, Held>,
    hosted: BTreeMap<StageKey, Hosted>,
    /// Stages that have given way to the next plan's. They stay away until that serves or is given up.
    yielded: BTreeSet<StageKey>,
}

/// A stage that a plan gives to this device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What serves it.
    pub session: SessionKey,
    /// Bytes that the session takes.
    pub bytes: u64,
    /// Whether another may have its memory.
    pub claim: Claim,
}

/// How firmly a stage is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// It stays.
    Firm,
    /// It is of a plan that is about to be replaced...
    Old,
    /// ...and the next one needs nothing more but memory, or this one cannot serve: where both do not fit, it gives way.
    GivesWay,
}

#[derive(Debug)]
struct Held {
    session: Session,
    bytes: u64,
}

/// The memory of a device.
pub struct Room<'a> {
    /// Bytes that stages may take.
    pub budget: u64,
    /// Bytes that are free on the device now: beyond the budget they may be taken only until plans have changed.
    pub spare: &'a dyn Fn() -> u64,
}

impl std::fmt::Debug for Room<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Room").field("budget", &self.budget).finish_non_exhaustive()
    }
}

/// A session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Session {
    /// Its weights are being fetched.
    Fetching,
    /// Its weights are here; it waits for memory.
    Waiting,
    /// Being made.
    Loading,
    /// Can answer.
    Ready,
    /// Could not be made.
    Failed {
        /// Why, for people.
        reason: String,
        /// When.
        at: Instant,
    },
}

/// A stage that frames can reach.
#[derive(Debug)]
struct Hosted {
    session: SessionKey,
    /// When it was last wanted by a plan.
    wanted: Instant,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Fetch a session's weights; [`Holdings::fetched`] or, where that fails, [`Holdings::finished`] is told.
    Fetch(SessionKey),
    /// Make a session, once those that are let go are gone; [`Holdings::finished`] is told of its end.
    Load(SessionKey),
    /// Let frames reach a stage, by a session that is ready.
    Host(StageKey, SessionKey),
    /// Take a stage out of reach.
    Unhost(StageKey),
    /// Let a session go, ready or not.
    Drop(SessionKey),
}

impl Holdings {
    /// What to do so that this device holds what is wanted, in this order, within the room that there is where that is
    /// possible. `is_under_way`: requests are still on the plan that a stage is of.
    pub fn look(
        &mut self,
        now: Instant,
        wanted: &BTreeMap<StageKey, Wanted>,
        room: &Room<'_>,
        is_under_way: impl Fn(&StageKey) -> bool,
    ) -> Vec<Act> {
        let mut acts = Vec::new();
        self.yielded.retain(|key| wanted.get(key).is_some_and(|wanted| wanted.claim != Claim::Firm));
        let wanted: BTreeMap<&StageKey, &Wanted> =
            wanted.iter().filter(|(key, _)| !self.yielded.contains(*key)).collect();
        for (&key, Wanted { session, bytes, .. }) in &wanted {
            if self.is_to_be_made(now, session) {
                self.sessions.insert(session.clone(), Held { session: Session::Fetching, bytes: *bytes });
                acts.push(Act::Fetch(session.clone()));
            }
            if self.has(session) {
                let is_fresh = self.hosted.get(key).is_none_or(|hosted| hosted.session != *session);
                if is_fresh {
                    acts.push(Act::Host(key.clone(), session.clone()));
                }
                self.hosted.insert(key.clone(), Hosted { session: session.clone(), wanted: now });
            }
        }
        self.hosted.retain(|key, hosted| {
            let unwanted = now.saturating_duration_since(hosted.wanted);
            let keep = unwanted <= RETIRE || (unwanted <= DRAIN && is_under_way(key));
            if !keep {
                acts.push(Act::Unhost(key.clone()));
            }
            keep
        });
        let hosted = self.hosted.values().map(|hosted| &hosted.session);
        let needed: BTreeSet<&SessionKey> =
            wanted.values().map(|wanted| &wanted.session).chain(hosted).collect();
        self.sessions.retain(|key, _| {
            let keep = needed.contains(key);
            if !keep {
                acts.push(Act::Drop(key.clone()));
            }
            keep
        });
        self.load(&wanted, room, &mut acts);
        acts
    }

    /// Has the sessions made whose weights are here, as far as memory goes. Stages that are not wanted any more, or that
    /// give way, leave where that makes room, unless there is memory to spare until they leave by themselves. What fits in
    /// no case is made all the same (it is counted twice), unless it is of a plan that is about to be replaced.
    fn load(&mut self, wanted: &BTreeMap<&StageKey, &Wanted>, room: &Room<'_>, acts: &mut Vec<Act>) {
        let budget = room.budget;
        let waits = |(key, held): (&SessionKey, &Held)| {
            (held.session == Session::Waiting).then(|| (key.clone(), held.bytes))
        };
        let waiting: Vec<(SessionKey, u64)> = self.sessions.iter().filter_map(waits).collect();
        for (key, bytes) in waiting {
            if self.taken().saturating_add(bytes) > budget && self.has_spare(bytes, room) {
                self.begin(key, acts);
                continue;
            }
            let mut leave = Vec::new();
            let mut taken = self.taken().saturating_add(bytes);
            for (other, held) in self.leaving(wanted, |claim| claim == Claim::GivesWay) {
                if taken <= budget {
                    break;
                }
                taken = taken.saturating_sub(held);
                leave.push(other);
            }
            if taken > budget {
                leave.clear();
                let later = self.leaving(wanted, |claim| claim != Claim::Firm);
                let freed = later.iter().map(|(_, bytes)| *bytes).fold(0, u64::saturating_add);
                let fits_later = self.taken().saturating_add(bytes).saturating_sub(freed) <= budget;
                let mut of_it = wanted.values().filter(|wanted| wanted.session == key);
                if fits_later || of_it.all(|wanted| wanted.claim != Claim::Firm) {
                    continue;
                }
            }
            leave.iter().for_each(|session| self.let_go(session, wanted, acts));
            self.begin(key, acts);
        }
    }

    fn begin(&mut self, key: SessionKey, acts: &mut Vec<Act>) {
        if let Some(held) = self.sessions.get_mut(&key) {
            held.session = Session::Loading;
        }
        acts.push(Act::Load(key));
    }

    /// Whether there is memory free for one more that is loaded, beside those that are being loaded.
    fn has_spare(&self, bytes: u64, room: &Room<'_>) -> bool {
        let loading = self.sessions.values().filter(|held| held.session == Session::Loading);
        let all = loading.map(|held| held.bytes).fold(bytes, u64::saturating_add);
        all.saturating_mul(FREE.0) / FREE.1 <= (room.spare)()
    }

    /// Bytes of the sessions that are made or being made.
    pub fn taken(&self) -> u64 {
        let takes = |held: &&Held| matches!(held.session, Session::Loading | Session::Ready);
        self.sessions.values().filter(takes).map(|held| held.bytes).fold(0, u64::saturating_add)
    }

    /// Sessions that take memory and serve only stages that may go, with their bytes.
    fn leaving(
        &self,
        wanted: &BTreeMap<&StageKey, &Wanted>,
        may_go: impl Fn(Claim) -> bool,
    ) -> Vec<(SessionKey, u64)> {
        let stay: BTreeSet<&SessionKey> =
            wanted.values().filter(|wanted| !may_go(wanted.claim)).map(|wanted| &wanted.session).collect();
        let takes = |held: &Held| matches!(held.session, Session::Loading | Session::Ready);
        let leaves = |(key, held): &(&SessionKey, &Held)| takes(held) && !stay.contains(key);
        self.sessions.iter().filter(leaves).map(|(key, held)| (key.clone(), held.bytes)).collect()
    }

    fn let_go(&mut self, session: &SessionKey, wanted: &BTreeMap<&StageKey, &Wanted>, acts: &mut Vec<Act>) {
        let of_it = wanted.iter().filter(|(_, wanted)| wanted.session == *session);
        self.yielded.extend(of_it.map(|(key, _)| (*key).clone()));
        self.hosted.retain(|key, hosted| {
            let keep = hosted.session != *session;
            if !keep {
                acts.push(Act::Unhost(key.clone()));
            }
            keep
        });
        self.sessions.remove(session);
        acts.push(Act::Drop(session.clone()));
    }

    fn is_to_be_made(&self, now: Instant, session: &SessionKey) -> bool {
        match self.session(session) {
            Some(Session::Fetching | Session::Waiting | Session::Loading | Session::Ready) => false,
            Some(Session::Failed { at, .. }) => now.saturating_duration_since(*at) >= RETRY,
            None => true,
        }
    }

    /// A session's weights are here.
    pub fn fetched(&mut self, key: &SessionKey) {
        if let Some(held) = self.sessions.get_mut(key).filter(|held| held.session == Session::Fetching) {
            held.session = Session::Waiting;
        }
    }

    /// A session that was to be made is ready or cannot be had. False when nobody wants it any more.
    pub fn finished(&mut self, now: Instant, key: &SessionKey, result: Result<(), String>) -> bool {
        let Some(held) = self.sessions.get_mut(key) else { return false };
        held.session = match result {
            Ok(()) => Session::Ready,
            Err(reason) => Session::Failed { reason, at: now },
        };
        true
    }

    /// Whether a session can answer.
    pub fn has(&self, key: &SessionKey) -> bool {
        self.session(key) == Some(&Session::Ready)
    }

    /// How far a session is; `None` when it is not wanted.
    pub fn session(&self, key: &SessionKey) -> Option<&Session> {
        self.sessions.get(key).map(|held| &held.session)
    }

    /// Whether frames reach a stage.
    pub fn is_hosted(&self, key: &StageKey) -> bool {
        self.hosted.contains_key(key)
    }

    /// Whether all sessions that are wanted are ready.
    pub fn is_settled(&self) -> bool {
        self.sessions.values().all(|held| held.session == Session::Ready)
    }
}

/// What a device knows of itself and of the others.
pub struct Known<'a> {
    /// This device.
    pub me: &'a str,
    /// Its bytes for stages.
    pub budget: u64,
    /// Whether a device is there.
    pub is_live: &'a dyn Fn(&str) -> bool,
    /// Whether a session is ready here.
    pub has: &'a dyn Fn(&SessionKey) -> bool,
    /// Whether a device has the weights of a stage, or can serve it.
    pub has_weights: &'a dyn Fn(&str, &StageKey) -> bool,
}

impl std::fmt::Debug for Known<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Known").field("me", &self.me).field("budget", &self.budget).finish_non_exhaustive()
    }
}

/// The stages that active and prepared plans give to a device, with what each wants of it.
///
/// A device stands by within its budget: another deployment, or the next plan, may have been given what was spare when
/// the plan was made. While the next plan is prepared it stands by for the active one with what it `has` already, and
/// makes nothing for it but for a stage that nobody else has.
pub fn wanted_here(state: &ClusterState, known: &Known<'_>) -> BTreeMap<StageKey, Wanted> {
    let (mut wanted, mut insured) = (BTreeMap::new(), Vec::new());
    let mut held: BTreeMap<SessionKey, u64> = BTreeMap::new();
    for deployment in state.deployments.values() {
        let old = old_claim(deployment, known);
        for plan in deployment.active.iter().chain(deployment.preparing.iter()) {
            let is_active = deployment.active.as_ref().is_some_and(|active| active.epoch == plan.epoch);
            let claim = if is_active { old } else { Claim::Firm };
            for (index, stage) in plan.plan.stages.iter().enumerate() {
                let lost = || !stage.replicas.iter().any(|r| (known.is_live)(&r.device));
                let key = StageKey { deployment: deployment.name.clone(), epoch: plan.epoch, stage: index };
                let session = session_of(&plan.model, stage);
                let bytes = stage_bytes(stage);
                if stage.replicas.iter().any(|r| r.device == known.me) {
                    held.insert(session.clone(), bytes);
                    wanted.insert(key, Wanted { session, bytes, claim });
                } else if stage.standbys.iter().any(|id| id == known.me)
                    && (deployment.preparing.is_none() || is_active && (known.has)(&session) || lost())
                {
                    insured.push((key, Wanted { session, bytes, claim }));
                }
            }
        }
    }
    for (key, insurance) in insured {
        let others = held.iter().filter(|(other, _)| **other != insurance.session).map(|(_, bytes)| *bytes);
        if others.fold(insurance.bytes, u64::saturating_add) <= known.budget {
            held.insert(insurance.session.clone(), insurance.bytes);
            wanted.insert(key, insurance);
        }
    }
    wanted
}

/// How firmly a device holds the active plan of a deployment. Its stages give way late, so that the time without them is
/// short: once all weights of the next plan are on their devices, or at once where this plan has lost a stage.
fn old_claim(deployment: &Deployment, known: &Known<'_>) -> Claim {
    let (Some(active), Some(next)) = (&deployment.active, &deployment.preparing) else { return Claim::Firm };
    let ids = |stage: &Stage| {
        let replicas = stage.replicas.iter().map(|replica| replica.device.clone());
        replicas.chain(stage.standbys.iter().cloned()).collect::<Vec<_>>()
    };
    let is_lost = |stage: &Stage| !ids(stage).iter().any(|id| (known.is_live)(id));
    let is_here = |(index, stage): (usize, &Stage)| {
        let key = StageKey { deployment: deployment.name.clone(), epoch: next.epoch, stage: index };
        let mut others = stage.replicas.iter().filter(|replica| replica.device != known.me);
        others.all(|replica| (known.has_weights)(&replica.device, &key))
    };
    let is_due = active.plan.stages.iter().any(is_lost) || next.plan.stages.iter().enumerate().all(is_here);
    if is_due { Claim::GivesWay } else { Claim::Old }
}

#[cfg(test)]
mod tests;
