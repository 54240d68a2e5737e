//! The agreement itself: proposer, acceptor, learner of single-decree Paxos.

use std::collections::{BTreeMap, BTreeSet};

use super::message::{FOUNDERS_MAX, Message, SEEN_MAX};
use super::record::Ballot;
use super::{
    ATTEMPT_MS, BACKOFF_MS, BACKOFF_MS_MAX, Candidate, Founding, GATHER_MS, PATIENCE_MS, PATIENCE_TOTAL_MS,
    RESEND_MS, SETTLE_MS, STEP_IN_MS, Stage,
};
use crate::{ClusterId, DeviceId, Genesis, Member};

/// An attempt of this device to found a cluster.
#[derive(Debug)]
pub(super) struct Proposal {
    ballot: Ballot,
    started_ms: u64,
    resend_ms: u64,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    /// Collecting promises.
    Preparing(BTreeMap<DeviceId, Promise>),
    /// Collecting acceptances of this cluster.
    Accepting(Genesis, BTreeSet<DeviceId>),
}

#[derive(Debug)]
struct Promise {
    candidate: Candidate,
    accepted: Option<(Ballot, Genesis)>,
}

impl Proposal {
    /// When the proposer has something to do.
    pub(super) fn due_ms(&self) -> u64 {
        let gathered_ms = self.started_ms + GATHER_MS;
        match &self.phase {
            Phase::Preparing(_) if gathered_ms > self.resend_ms - RESEND_MS => {
                self.resend_ms.min(gathered_ms)
            }
            Phase::Preparing(_) | Phase::Accepting(..) => self.resend_ms,
        }
    }
}

// When to propose.
impl Founding {
    /// Devices that could found a cluster together now, this one included.
    pub(super) fn candidates(&self) -> BTreeSet<DeviceId> {
        let alike = |hello: &super::Hello| hello.cluster.is_none() && hello.devices == self.devices;
        let peers = self.peers.iter().filter(|(_, peer)| peer.hello.as_ref().is_some_and(alike));
        peers.map(|(device, _)| device.clone()).chain([self.me.device.clone()]).collect()
    }

    /// A majority of all devices that there are to be, or of those that there are if they are more.
    pub(super) fn quorum(&self) -> usize {
        let devices = usize::try_from(self.devices).unwrap_or(usize::MAX);
        devices.max(self.seen.len()) / 2 + 1
    }

    pub(super) fn note_seen(&mut self, device: DeviceId) {
        if self.seen.len() < SEEN_MAX {
            self.seen.insert(device);
        }
    }

    /// Restarts the waiting times when the candidates change.
    pub(super) fn notice_candidates(&mut self) {
        let present = self.candidates();
        if present.len() < self.quorum() {
            self.majority_since_ms = None;
        } else if self.majority_since_ms.is_none() {
            self.majority_since_ms = Some(self.now_ms);
        }
        if present != self.present {
            self.present = present;
            self.present_since_ms = self.now_ms;
        }
    }

    /// When this device starts an attempt if nothing else happens; `None` without a majority.
    pub(super) fn propose_at_ms(&self) -> Option<u64> {
        let majority_since_ms = self.majority_since_ms?;
        let everybody = self.present.len() as u64 >= u64::from(self.devices);
        let wait_ms = match (everybody, self.quorum()) {
            (true, 1) => 0,
            (true, _) => SETTLE_MS,
            (false, _) => PATIENCE_MS,
        };
        let settled_ms = (self.present_since_ms + wait_ms).min(majority_since_ms + PATIENCE_TOTAL_MS);
        let smallest = self.present.first() == Some(&self.me.device);
        let own_turn_ms = if smallest {
            settled_ms
        } else {
            settled_ms.max(self.activity_ms) + STEP_IN_MS + self.step_in_extra_ms
        };
        Some(own_turn_ms.max(self.backoff_until_ms))
    }

    /// Starts, repeats, completes or gives up this device's attempt, whatever is due.
    pub(super) fn advance_proposal(&mut self) {
        if self.proposal.is_none() {
            if self.propose_at_ms().is_some_and(|at_ms| self.now_ms >= at_ms) {
                self.start_attempt();
            }
            return;
        }
        self.complete_phase();
        let Some(proposal) = &mut self.proposal else { return };
        if self.now_ms >= proposal.started_ms + ATTEMPT_MS {
            self.abandon_attempt();
        } else if self.now_ms >= proposal.resend_ms {
            proposal.resend_ms = self.now_ms + RESEND_MS;
            self.ask_again();
        }
    }

    fn abandon_attempt(&mut self) {
        self.proposal = None;
        self.refusals = self.refusals.saturating_add(1);
        let limit_ms = (BACKOFF_MS << self.refusals.min(8)).min(BACKOFF_MS_MAX);
        self.backoff_until_ms = self.now_ms + BACKOFF_MS + self.random_below(limit_ms);
        self.step_in_extra_ms = self.random_below(STEP_IN_MS);
    }
}

// The proposer.
impl Founding {
    pub(super) fn start_attempt(&mut self) {
        self.round_max += 1;
        let ballot = Ballot { round: self.round_max, device: self.me.device.clone() };
        self.record.promised = Some(ballot.clone());
        self.persist();
        let own = Promise { candidate: self.me.clone(), accepted: self.record.accepted.clone() };
        self.proposal = Some(Proposal {
            ballot,
            started_ms: self.now_ms,
            resend_ms: self.now_ms + RESEND_MS,
            phase: Phase::Preparing(BTreeMap::from([(self.me.device.clone(), own)])),
        });
        self.ask_again();
        self.complete_phase();
    }

    /// Asks every candidate that has not answered.
    fn ask_again(&mut self) {
        let Some(proposal) = &self.proposal else { return };
        let ballot = proposal.ballot.clone();
        let (message, answered): (Message, BTreeSet<DeviceId>) = match &proposal.phase {
            Phase::Preparing(promises) => {
                (Message::Prepare { ballot, devices: self.devices }, promises.keys().cloned().collect())
            }
            Phase::Accepting(genesis, accepted) => {
                (Message::Accept { ballot, genesis: genesis.clone() }, accepted.clone())
            }
        };
        for device in self.candidates().difference(&answered) {
            self.send(device, message.clone());
        }
    }

    /// Goes on to the next phase if this one has what it needs.
    fn complete_phase(&mut self) {
        let quorum = self.quorum();
        let Some(proposal) = &self.proposal else { return };
        match &proposal.phase {
            Phase::Preparing(promises) => {
                let everybody = self.candidates().iter().all(|device| promises.contains_key(device));
                let waited = self.now_ms >= proposal.started_ms + GATHER_MS;
                if promises.len() >= quorum && (everybody || waited) {
                    self.propose_value();
                }
            }
            Phase::Accepting(genesis, accepted) => {
                if accepted.len() >= quorum {
                    let genesis = genesis.clone();
                    self.proposal = None;
                    self.decide(genesis, true);
                }
            }
        }
    }

    /// Second phase: the cluster accepted in the highest attempt, if any, else a new one.
    fn propose_value(&mut self) {
        let fresh_id = self.fresh_cluster_id();
        let Some(proposal) = &mut self.proposal else { return };
        let Phase::Preparing(promises) = &proposal.phase else { return };
        let before = promises
            .values()
            .filter_map(|promise| promise.accepted.as_ref())
            .max_by_key(|(ballot, _)| ballot);
        let genesis = match before {
            Some((_, genesis)) => genesis.clone(),
            None => new_genesis(fresh_id, &self.cluster_name, self.devices, &self.me, promises),
        };
        let ballot = proposal.ballot.clone();
        proposal.phase = Phase::Accepting(genesis.clone(), BTreeSet::from([self.me.device.clone()]));
        proposal.resend_ms = self.now_ms + RESEND_MS;
        self.record.accepted = Some((ballot, genesis));
        self.persist();
        self.ask_again();
        self.complete_phase();
    }

    fn fresh_cluster_id(&mut self) -> ClusterId {
        let mut id = [0; 16];
        self.fresh_bits("mesh founding 1: cluster id").fill(&mut id);
        ClusterId(id)
    }

    /// Bits that nobody else has: the seed is mixed with what names this device and store.
    pub(super) fn fresh_bits(&mut self, purpose: &'static str) -> blake3::OutputReader {
        let mut hasher = blake3::Hasher::new_derive_key(purpose);
        for part in [self.random(), self.random(), self.round_max] {
            hasher.update(&part.to_le_bytes());
        }
        hasher.update(self.me.device.to_string().as_bytes());
        hasher.update(self.me.storage.to_string().as_bytes());
        hasher.finalize_xof()
    }

    pub(super) fn hear_promise(
        &mut self,
        from: &DeviceId,
        ballot: &Ballot,
        candidate: Candidate,
        accepted: Option<Box<(Ballot, Genesis)>>,
        seen: Vec<DeviceId>,
    ) {
        let Some(proposal) = &mut self.proposal else { return };
        let Phase::Preparing(promises) = &mut proposal.phase else { return };
        if proposal.ballot != *ballot || candidate.device != *from {
            return;
        }
        promises.insert(from.clone(), Promise { candidate, accepted: accepted.map(|accepted| *accepted) });
        for device in seen {
            self.note_seen(device);
        }
    }

    pub(super) fn hear_accepted(&mut self, from: &DeviceId, ballot: &Ballot) {
        let Some(proposal) = &mut self.proposal else { return };
        if let Phase::Accepting(_, accepted) = &mut proposal.phase
            && proposal.ballot == *ballot
        {
            accepted.insert(from.clone());
        }
    }

    pub(super) fn hear_refuse(&mut self, ballot: &Ballot, promised: &Ballot) {
        self.round_max = self.round_max.max(promised.round);
        if self.proposal.as_ref().is_some_and(|proposal| proposal.ballot == *ballot) {
            self.abandon_attempt();
        }
    }
}

// The acceptor and the learner.
impl Founding {
    pub(super) fn hear_prepare(&mut self, from: &DeviceId, ballot: Ballot, devices: u32) {
        if !self.may_vote(from, &ballot) || devices != self.devices {
            return;
        }
        if let Some(promised) = self.record.promised.clone().filter(|promised| *promised > ballot) {
            return self.send(from, Message::Refuse { ballot, promised });
        }
        self.promise(&ballot);
        let message = Message::Promise {
            ballot,
            candidate: self.me.clone(),
            accepted: self.record.accepted.clone().map(Box::new),
            seen: self.seen.iter().take(SEEN_MAX).cloned().collect(),
        };
        self.send(from, message);
    }

    pub(super) fn hear_accept(&mut self, from: &DeviceId, ballot: Ballot, genesis: Genesis) {
        if !self.may_vote(from, &ballot) {
            return;
        }
        if let Some(promised) = self.record.promised.clone().filter(|promised| *promised > ballot) {
            return self.send(from, Message::Refuse { ballot, promised });
        }
        if self.record.accepted.as_ref().map(|(accepted, _)| accepted) != Some(&ballot) {
            self.note_attempt(&ballot);
            self.record.promised = Some(ballot.clone());
            self.record.accepted = Some((ballot.clone(), genesis));
            self.persist();
        }
        self.send(from, Message::Accepted { ballot });
    }

    /// Whether this device may answer an attempt. If it knows better, it tells.
    fn may_vote(&mut self, from: &DeviceId, ballot: &Ballot) -> bool {
        if ballot.device != *from {
            return false;
        }
        if self.stage != Stage::Seeking {
            self.say_hello(from, false);
            self.tell_decided(from);
            return false;
        }
        if self.record.decided.is_some() {
            self.tell_decided(from);
            return false;
        }
        !self.knows_running_cluster()
    }

    /// Records a promise that is at least as high as any before.
    fn promise(&mut self, ballot: &Ballot) {
        self.note_attempt(ballot);
        if self.record.promised.as_ref() != Some(ballot) {
            self.record.promised = Some(ballot.clone());
            self.persist();
        }
    }

    /// Somebody else is at it: this device holds its own attempts back.
    fn note_attempt(&mut self, ballot: &Ballot) {
        self.round_max = self.round_max.max(ballot.round);
        self.activity_ms = self.now_ms;
        if self.proposal.as_ref().is_some_and(|proposal| proposal.ballot < *ballot) {
            self.abandon_attempt();
        }
    }

    pub(super) fn hear_decided(&mut self, genesis: Genesis) {
        if self.stage == Stage::Seeking && self.record.decided.is_none() {
            self.decide(genesis, false);
        }
    }

    fn decide(&mut self, genesis: Genesis, tell: bool) {
        self.proposal = None;
        self.record.decided = Some(genesis.clone());
        self.persist();
        if tell {
            let peers: Vec<DeviceId> = self.peers.keys().cloned().collect();
            for device in peers {
                self.send(&device, Message::Decided { genesis: genesis.clone() });
            }
        }
    }
}

/// A new cluster of the devices that promised: the proposer first, the others by device id. The first 5,
/// 3 or 1 of them vote: never 2, and five only where at least five devices are meant to be.
fn new_genesis(
    cluster_id: ClusterId,
    cluster_name: &str,
    devices: u32,
    proposer: &Candidate,
    promises: &BTreeMap<DeviceId, Promise>,
) -> Genesis {
    let voters = match promises.len() {
        0..=2 => 1,
        3 | 4 => 3,
        _ if devices >= 5 => 5,
        _ => 3,
    };
    let others =
        promises.values().map(|promise| &promise.candidate).filter(|other| other.device != proposer.device);
    let members = std::iter::once(proposer)
        .chain(others)
        .take(FOUNDERS_MAX)
        .zip(1..)
        .map(|(candidate, raft_id)| Member {
            raft_id,
            device: candidate.device.clone(),
            storage: candidate.storage,
            name: candidate.name.clone(),
            address: candidate.address.clone(),
            draining: false,
        })
        .collect();
    Genesis { cluster_id, cluster_name: cluster_name.to_owned(), members, voters: (1..=voters).collect() }
}
