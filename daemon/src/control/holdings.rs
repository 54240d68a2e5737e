//! What a device holds for the plans: which sessions it makes, which stages frames can reach, and what it lets go of.
//! Pure: it is told the time and what is wanted, and says what to do. [`super::reconcile`] does it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use mesh_consensus::ClusterState;

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

/// Sessions on their way or at work, and the stages that they answer for.
#[derive(Debug, Default)]
pub struct Holdings {
    sessions: BTreeMap<SessionKey, Session>,
    hosted: BTreeMap<StageKey, Hosted>,
}

/// A session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Session {
    /// Being made.
    Preparing,
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
    /// Make a session; [`Holdings::finished`] is told of its end.
    Prepare(SessionKey),
    /// Let frames reach a stage, by a session that is ready.
    Host(StageKey, SessionKey),
    /// Take a stage out of reach.
    Unhost(StageKey),
    /// Let a session go, ready or not.
    Drop(SessionKey),
}

impl Holdings {
    /// What to do so that this device holds what is wanted, in this order. `is_under_way`: requests are still on the
    /// plan that a stage is of.
    pub fn look(
        &mut self,
        now: Instant,
        wanted: &BTreeMap<StageKey, SessionKey>,
        is_under_way: impl Fn(&StageKey) -> bool,
    ) -> Vec<Act> {
        let mut acts = Vec::new();
        for (key, session) in wanted {
            if self.is_to_be_made(now, session) {
                self.sessions.insert(session.clone(), Session::Preparing);
                acts.push(Act::Prepare(session.clone()));
            }
            if self.sessions.get(session) == Some(&Session::Ready) {
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
        let needed: BTreeSet<&SessionKey> = wanted.values().chain(hosted).collect();
        self.sessions.retain(|key, _| {
            let keep = needed.contains(key);
            if !keep {
                acts.push(Act::Drop(key.clone()));
            }
            keep
        });
        acts
    }

    fn is_to_be_made(&self, now: Instant, session: &SessionKey) -> bool {
        match self.sessions.get(session) {
            Some(Session::Preparing | Session::Ready) => false,
            Some(Session::Failed { at, .. }) => now.saturating_duration_since(*at) >= RETRY,
            None => true,
        }
    }

    /// A session that was to be made is ready or cannot be had. False when nobody wants it any more.
    pub fn finished(&mut self, now: Instant, key: &SessionKey, result: Result<(), String>) -> bool {
        let Some(session) = self.sessions.get_mut(key) else { return false };
        *session = match result {
            Ok(()) => Session::Ready,
            Err(reason) => Session::Failed { reason, at: now },
        };
        true
    }

    /// Whether a session can answer.
    pub fn has(&self, key: &SessionKey) -> bool {
        self.sessions.get(key) == Some(&Session::Ready)
    }

    /// How far a session is; `None` when it is not wanted.
    pub fn session(&self, key: &SessionKey) -> Option<&Session> {
        self.sessions.get(key)
    }

    /// Whether frames reach a stage.
    pub fn is_hosted(&self, key: &StageKey) -> bool {
        self.hosted.contains_key(key)
    }

    /// Whether all sessions that are wanted are ready.
    pub fn is_settled(&self) -> bool {
        self.sessions.values().all(|session| *session == Session::Ready)
    }
}

/// The stages that active and prepared plans give to a device, with the session that serves each.
///
/// A device stands by within `budget`, its bytes for stages: another deployment, or the next plan, may have been given
/// what was spare when the plan was made. While the next plan is prepared it stands by for the active one with what it
/// `has` already, and makes nothing for it but for a stage that nobody else has.
pub fn wanted_here(
    state: &ClusterState,
    me: &str,
    budget: u64,
    is_live: impl Fn(&str) -> bool,
    has: impl Fn(&SessionKey) -> bool,
) -> BTreeMap<StageKey, SessionKey> {
    let (mut wanted, mut insured) = (BTreeMap::new(), Vec::new());
    let mut held: BTreeMap<SessionKey, u64> = BTreeMap::new();
    for deployment in state.deployments.values() {
        for plan in deployment.active.iter().chain(deployment.preparing.iter()) {
            for (index, stage) in plan.plan.stages.iter().enumerate() {
                let lost = || !stage.replicas.iter().any(|r| is_live(&r.device));
                let key = StageKey { deployment: deployment.name.clone(), epoch: plan.epoch, stage: index };
                let session = session_of(&plan.model, stage);
                let is_active = deployment.active.as_ref().is_some_and(|active| active.epoch == plan.epoch);
                if stage.replicas.iter().any(|r| r.device == me) {
                    held.insert(session.clone(), stage_bytes(stage));
                    wanted.insert(key, session);
                } else if stage.standbys.iter().any(|id| id == me)
                    && (deployment.preparing.is_none() || is_active && has(&session) || lost())
                {
                    insured.push((key, session, stage_bytes(stage)));
                }
            }
        }
    }
    for (key, session, bytes) in insured {
        let others = held.iter().filter(|(other, _)| **other != session).map(|(_, bytes)| *bytes);
        if others.fold(bytes, u64::saturating_add) <= budget {
            held.insert(session.clone(), bytes);
            wanted.insert(key, session);
        }
    }
    wanted
}

#[cfg(test)]
mod tests;
