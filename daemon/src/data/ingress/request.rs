//! One request of the ingress.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use libp2p::PeerId;

use super::{Gone, PAUSE_MAX, PAUSE_MIN};
use crate::data::{
    balance::Avoid,
    frame::{Address, Named},
    route::Route,
};

/// Attempts whose late results are still taken.
const ATTEMPTS_KEPT: usize = 8;
/// Devices that a request keeps away from.
const AVOIDED_MAX: usize = 16;
/// Devices whose processes may end one after another with the request in one and the same stage: it may be what kills
/// them. One that falls silent, for which there are many other reasons, counts half.
const LOST_MAX: usize = 4;

/// A request from its acceptance to its answer.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) deployment: Arc<str>,
    /// Kept until the answer is there.
    inputs: Vec<Named>,
    /// Outputs wanted; empty for all.
    wanted: Vec<String>,
    /// The plan that it has been found to fit: names are compared once for each.
    fits: u64,
    pub(super) accepted: Instant,
    pub(super) deadline: Instant,
    pub(super) state: State,
    /// The newest attempts, the current one last.
    pub(super) attempts: Vec<Sent>,
    pub(super) attempts_made: u32,
    pub(super) timeouts: u32,
    pauses: u32,
    pub(super) avoided: Vec<PeerId>,
    pub(super) run_failures: Vec<String>,
    /// The devices of its routes that went down, each with the stage that it was there for, and how.
    lost: Vec<(usize, PeerId, Gone)>,
    pub(super) last_error: Option<String>,
    /// The time that stands for this request among the ingress's timers.
    pub(super) timer: Instant,
}

/// Where a request is.
#[derive(Debug)]
pub(super) enum State {
    /// Waits for a slot of the window.
    InLine,
    /// Has a slot and no route: until a time, or until routes or peers change. `missing` is the stage that has no
    /// live device.
    Held { until: Option<Instant>, missing: Option<usize> },
    /// On its way.
    Sent(Sent),
}

/// An attempt.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    pub(super) address: Address,
    pub(super) at: Instant,
    /// When it is looked at next: it may go to others as well, or is given up.
    pub(super) until: Instant,
    /// When the request goes out again in any case.
    pub(super) gives_up: Instant,
    /// The route that says what the outputs are.
    pub(super) outputs: Arc<Route>,
}

impl Sent {
    /// Whether a frame is about this attempt.
    pub(super) fn is_at(&self, address: &Address) -> bool {
        self.address.attempt == address.attempt && self.address.epoch == address.epoch
    }
}

impl Request {
    pub(super) fn new(
        deployment: Arc<str>,
        inputs: Vec<Named>,
        wanted: Vec<String>,
        epoch: u64,
        accepted: Instant,
        deadline: Instant,
    ) -> Self {
        Self {
            deployment,
            inputs,
            wanted,
            fits: epoch,
            accepted,
            deadline,
            state: State::InLine,
            attempts: Vec::new(),
            attempts_made: 0,
            timeouts: 0,
            pauses: 0,
            avoided: Vec::new(),
            run_failures: Vec::new(),
            lost: Vec::new(),
            last_error: None,
            timer: deadline,
        }
    }

    /// Bytes of the inputs that are kept.
    pub(super) fn input_bytes(&self) -> usize {
        self.inputs.iter().map(|(_, tensor)| tensor.bytes().len()).sum()
    }

    /// Times that the request was sent again.
    pub(super) fn retries(&self) -> u32 {
        self.attempts_made.saturating_sub(1)
    }

    pub(super) fn set_sent(&mut self, sent: Sent) {
        if self.attempts.len() == ATTEMPTS_KEPT {
            self.attempts.remove(0);
        }
        self.attempts.push(sent.clone());
        self.state = State::Sent(sent);
    }

    /// What it keeps away from, beside what all do.
    pub(super) fn avoid_also<'a>(&'a self, late: &'a [PeerId], doubted: &'a [PeerId]) -> Avoid<'a> {
        let left = self.attempts.last().map_or(&[][..], |sent| &sent.address.devices[..]);
        Avoid { hurt: &self.avoided, left, late, doubted }
    }

    /// The current attempt has gone to another device of a stage: the one that it had been meant for, if it is another.
    pub(super) fn set_device(&mut self, stage: usize, to: PeerId) -> Option<PeerId> {
        let State::Sent(sent) = &mut self.state else { return None };
        let from = sent.address.devices.get(stage).copied().filter(|from| *from != to)?;
        let mut devices = sent.address.devices.to_vec();
        devices[stage] = to;
        sent.address.devices = devices.into();
        let attempt = self.attempts.iter_mut().find(|other| other.address.attempt == sent.address.attempt);
        if let Some(attempt) = attempt {
            attempt.address.devices = sent.address.devices.clone();
        }
        Some(from)
    }

    /// A device of its route went down. The stage that as many devices have now gone down in as may: the request is not
    /// to be sent to more. One that comes and goes counts once.
    pub(super) fn lose(&mut self, device: PeerId, gone: Gone) -> Option<usize> {
        let State::Sent(sent) = &self.state else { return None };
        for (stage, _) in sent.address.devices.iter().enumerate().filter(|(_, at)| **at == device) {
            match self.lost.iter_mut().find(|(at, lost, _)| (*at, *lost) == (stage, device)) {
                Some((_, _, before)) if gone == Gone::Closed => *before = gone,
                Some(_) => {}
                None => self.lost.push((stage, device, gone)),
            }
        }
        let halves = |gone: Gone| if gone == Gone::Closed { 2 } else { 1 };
        let of = |stage: usize| self.lost.iter().filter(move |(at, ..)| *at == stage);
        let count = |stage: usize| of(stage).map(|(.., gone)| halves(*gone)).sum::<usize>();
        self.lost.iter().map(|(stage, ..)| *stage).find(|stage| count(*stage) >= 2 * LOST_MAX)
    }

    /// Keeps away from a device from now on, wherever there is another.
    pub(super) fn avoid(&mut self, device: PeerId) {
        self.avoided.retain(|peer| *peer != device);
        if self.avoided.len() == AVOIDED_MAX {
            self.avoided.remove(0);
        }
        self.avoided.push(device);
    }

    /// The next pause: short at first, for another device may well be free.
    pub(super) fn next_pause(&mut self) -> Duration {
        let pause = PAUSE_MIN * 2u32.saturating_pow(self.pauses.min(10));
        self.pauses += 1;
        pause.min(PAUSE_MAX)
    }

    /// Whether the model still has the inputs and outputs that it had when the request came.
    pub(super) fn fits(&mut self, route: &Route) -> bool {
        // A plan that is not there yet says so by itself.
        if self.fits != route.epoch && !route.stages.is_empty() {
            let has_all = self.inputs.iter().all(|(name, _)| route.inputs.contains(name))
                && self.inputs.len() == route.inputs.len()
                && self.wanted.iter().all(|name| route.outputs.contains(name));
            if !has_all {
                return false;
            }
            self.fits = route.epoch;
        }
        true
    }

    /// What the first stage takes, and what later stages take of the model's inputs.
    pub(super) fn inputs_of(&self, route: &Route) -> Vec<Named> {
        let enters = |name: &String| route.stages.first().is_some_and(|stage| stage.inputs.contains(name));
        self.inputs.iter().filter(|(name, _)| enters(name)).cloned().collect()
    }

    /// The wanted outputs in graph order; `Err` names one that is missing.
    pub(super) fn select_outputs(
        &self,
        route: &Route,
        mut tensors: Vec<Named>,
    ) -> Result<Vec<Named>, String> {
        let mut outputs = Vec::with_capacity(route.outputs.len());
        for name in &route.outputs {
            if !self.wanted.is_empty() && !self.wanted.contains(name) {
                continue;
            }
            match tensors.iter().position(|(n, _)| n == name) {
                Some(at) => outputs.push(tensors.swap_remove(at)),
                None => return Err(name.clone()),
            }
        }
        Ok(outputs)
    }
}
