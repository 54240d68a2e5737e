//! Activations between simulated devices: the checks and steps of the daemon's data plane, without its streams.

use std::time::Duration;

use mesh_daemon::{
    control::prepare::SessionKey,
    data::{Address, Detour, Dispatch, Failure, FailureKind, Named, StageKey},
};

use super::{Serving, ServingDeed, index_of, model};

/// What devices have told of their jobs is believed for so long.
const TOLD: Duration = Duration::from_secs(1);

/// What travels.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(super) address: Address,
    pub(super) body: Body,
}

#[derive(Debug, Clone)]
pub(super) enum Body {
    Activation {
        stage: usize,
        /// Time to the deadline.
        left_ms: u64,
        tensors: Vec<Named>,
    },
    Result(Vec<Named>),
    /// Another device runs this stage than was picked.
    Moved(usize),
    Failed(Failure),
}

/// A run that goes on.
pub(super) struct Job {
    due_ms: u64,
    deadline_ms: u64,
    address: Address,
    stage: usize,
    session: SessionKey,
    tensors: Vec<Named>,
}

impl Frame {
    /// A few words for the log.
    pub(crate) fn kind(&self) -> String {
        let Address { request, attempt, deployment, epoch, .. } = &self.address;
        let what = match &self.body {
            Body::Activation { stage, .. } => format!("activation for stage {stage}"),
            Body::Result(_) => "result".to_owned(),
            Body::Moved(stage) => format!("detour at stage {stage}"),
            Body::Failed(failure) => format!("failure {:?} at stage {}", failure.kind, failure.stage),
        };
        format!("{what} of {deployment}, epoch {epoch}, request {request:x}.{attempt}")
    }
}

impl Serving {
    pub(super) fn dispatch(&mut self, now_ms: u64, dispatch: Dispatch) {
        let Dispatch { address, inputs, deadline } = dispatch;
        let Some(first) = address.devices.first().copied() else { return };
        let left = deadline.saturating_duration_since(self.at(now_ms));
        let left_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        let body = Body::Activation { stage: 0, left_ms, tensors: inputs };
        self.send(now_ms, index_of(&first), Frame { address, body });
    }

    fn send(&mut self, now_ms: u64, to: usize, frame: Frame) {
        if to == self.index {
            self.frame(now_ms, self.index, frame);
        } else if self.up.contains(&to) {
            self.deeds.push(ServingDeed::Send { to, frame: Box::new(frame) });
        } else if let Body::Activation { stage, .. } = &frame.body {
            let failure = Failure {
                kind: FailureKind::Unreachable,
                stage: *stage,
                blame: super::peer(to),
                message: "the device cannot be reached: it is not connected".to_owned(),
            };
            self.fail(now_ms, frame.address, failure);
        }
    }

    fn fail(&mut self, now_ms: u64, address: Address, failure: Failure) {
        let ingress = index_of(&address.ingress);
        self.send(now_ms, ingress, Frame { address, body: Body::Failed(failure) });
    }

    /// A frame has come.
    pub(crate) fn frame(&mut self, now_ms: u64, from: usize, frame: Frame) {
        let Frame { address, body } = frame;
        let now = self.at(now_ms);
        match body {
            Body::Activation { stage, left_ms, tensors } => {
                self.activation(now_ms, (stage, left_ms), address, tensors);
            }
            Body::Result(tensors) if address.ingress == self.me => {
                self.ingress.on_result(now, super::peer(from), &address, tensors);
            }
            Body::Failed(failure) if address.ingress == self.me => {
                self.ingress.on_failure(now, super::peer(from), &address, failure);
            }
            Body::Moved(stage) if address.ingress == self.me => {
                self.ingress.on_moved(now, super::peer(from), &address, stage);
            }
            Body::Result(_) | Body::Moved(_) | Body::Failed(_) => {}
        }
        self.carry_out(now_ms);
    }

    fn activation(
        &mut self,
        now_ms: u64,
        (stage, left_ms): (usize, u64),
        address: Address,
        tensors: Vec<Named>,
    ) {
        if left_ms == 0 {
            return;
        }
        let blame = self.me;
        if address.devices.get(stage) != Some(&self.me) {
            let message = "the route names another device".to_owned();
            self.fail(now_ms, address, Failure { kind: FailureKind::UnknownStage, stage, blame, message });
            return;
        }
        let key = StageKey { deployment: address.deployment.to_string(), epoch: address.epoch, stage };
        let other = || {
            let same = |(other, _): &(&StageKey, &SessionKey)| {
                self.is_lax && other.deployment == key.deployment && other.stage == stage
            };
            self.reachable.iter().find(same).map(|(_, session)| session)
        };
        let Some(session) = self.stages.get(&key).or_else(other).cloned() else {
            let (kind, message) = self.stages.refusal(&key, self.ingress.epoch(&key.deployment));
            self.fail(now_ms, address, Failure { kind, stage, blame, message });
            return;
        };
        let due_ms = now_ms + self.dice.between(1, 60);
        let deadline_ms = now_ms + left_ms;
        self.jobs.push(Job { due_ms, deadline_ms, address, stage, session, tensors });
    }

    /// The request may go to another device than was picked when it entered.
    fn detour(&mut self, now_ms: u64, address: &mut Address, stage: usize) {
        let by = Detour { fresh: TOLD, is_near: &|_| true };
        self.ingress.set_own_jobs(u32::try_from(self.jobs.len()).unwrap_or(u32::MAX));
        let Some(other) = self.ingress.detour(self.at(now_ms), address, stage, &by) else { return };
        let mut devices = address.devices.to_vec();
        devices[stage] = other;
        address.devices = devices.into();
        let moved = Frame { address: address.clone(), body: Body::Moved(stage) };
        self.send(now_ms, index_of(&address.ingress), moved);
    }

    /// Ends the runs that are due.
    pub(super) fn run_jobs(&mut self, now_ms: u64) {
        let (due, rest) = std::mem::take(&mut self.jobs).into_iter().partition(|job| job.due_ms <= now_ms);
        self.jobs = rest;
        let due: Vec<Job> = due;
        for job in due {
            self.run(now_ms, job);
        }
    }

    fn run(&mut self, now_ms: u64, job: Job) {
        let Job { deadline_ms, mut address, stage, session, tensors, .. } = job;
        let SessionKey { model, first_block, last_block } = &session;
        let wanted = model::tensor_before(*first_block);
        let value = tensors.iter().find(|(name, _)| *name == wanted).and_then(|(_, t)| model::number(t));
        let Some(value) = value else {
            let names: Vec<&str> = tensors.iter().map(|(name, _)| name.as_str()).collect();
            let what = format!(
                "blocks {first_block} to {last_block} got {names:?} by a frame of epoch {} of {}",
                address.epoch, address.deployment
            );
            self.deeds.push(ServingDeed::Broken(what));
            return;
        };
        let output = model::run(model, *first_block, *last_block, value);
        let tensors = vec![(model::tensor_before(last_block + 1), model::tensor(output))];
        if address.backlog.len() == stage {
            address.backlog.push(u32::try_from(self.jobs.len()).unwrap_or(u32::MAX));
        }
        let left_ms = Duration::from_millis(deadline_ms.saturating_sub(now_ms)).as_millis() as u64;
        self.detour(now_ms, &mut address, stage + 1);
        let (to, body) = match address.devices.get(stage + 1) {
            Some(next) => (index_of(next), Body::Activation { stage: stage + 1, left_ms, tensors }),
            None => (index_of(&address.ingress), Body::Result(tensors)),
        };
        self.send(now_ms, to, Frame { address, body });
    }
}
