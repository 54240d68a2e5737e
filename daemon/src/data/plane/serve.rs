//! What the data plane does for others: runs stages, hands activations on, reads streams, keeps time.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::Ordering},
    time::Duration,
};

use libp2p::PeerId;
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        balance::Detour,
        frame::{Address, Body, Failure, FailureKind, Frame},
        hosting::{Done, Hosted, Job, bytes_of},
        limits::DataLimits,
        route::StageKey,
        transport::DataStream,
        underway::UnderWay,
        wire::{now, read_frame},
    },
    Shared,
};

/// Where jobs take less time, what devices have told of theirs is too old to go by.
const DETOUR_MIN: Duration = Duration::from_millis(50);

impl Shared {
    /// Runs a stage for somebody, or tells the ingress why not.
    pub(super) fn activation(self: &Arc<Self>, stage: usize, job: Job) {
        if job.deadline <= now() {
            // Its ingress has given up by itself.
            return;
        }
        let address = job.address.clone();
        if let Err(failure) = self.try_activation(stage, job) {
            self.fail(address, failure);
        }
    }

    fn try_activation(self: &Arc<Self>, stage: usize, job: Job) -> Result<(), Failure> {
        let Address { deployment, epoch, devices, ingress, .. } = &job.address;
        let refused = |(kind, message)| Failure { kind, stage, blame: self.me, message };
        if devices.get(stage) != Some(&self.me) {
            return Err(refused((FailureKind::UnknownStage, "the route names another device".into())));
        }
        let key = StageKey { deployment: deployment.to_string(), epoch: *epoch, stage };
        let hosted = self.hosted(&key).map_err(refused)?;
        // Work whose result would have nowhere to go is not begun.
        let next = devices.get(stage + 1).copied();
        let to = next.unwrap_or(*ingress);
        // It is the next stage that may have other devices. The ingress has none; another device may have a better way to
        // it than this one.
        let no_way = |kind, message| match next {
            Some(next) => Failure { kind, stage: stage + 1, blame: next, message },
            None => refused((kind, message)),
        };
        if to != self.me {
            let Some(link) = self.link(to) else {
                if self.detour(&job.address, stage + 1, Duration::ZERO, 0).is_some() {
                    return hosted.offer(job).map_err(refused);
                }
                let message = format!("the next device, {to}, is not connected here");
                return Err(no_way(FailureKind::Unreachable, message));
            };
            if !link.has_room() {
                let message = format!("too much waits to be sent to the next device, {to}");
                return Err(no_way(FailureKind::Busy, message));
            }
        }
        hosted.offer(job).map_err(refused)
    }

    fn hosted(&self, key: &StageKey) -> Result<Arc<Hosted>, (FailureKind, String)> {
        if let Some(hosted) = lock(&self.stages).get(key) {
            return Ok(Arc::clone(hosted));
        }
        let newest = lock(&self.desk).ingress.epoch(&key.deployment);
        Err(lock(&self.stages).refusal(key, newest))
    }

    /// A stage of this device is done with a job. On any thread.
    pub(super) fn stage_done(self: &Arc<Self>, key: &StageKey, done: Done) {
        match done {
            Done::Expired => {}
            Done::Failed(address, kind, message) => {
                self.fail(address, Failure { kind, stage: key.stage, blame: self.me, message });
            }
            Done::Outputs(mut address, deadline, tensors, cost) => {
                let next = key.stage + 1;
                // Only where every stage before has said so too does the place in the list tell the stage.
                if address.backlog.len() == key.stage {
                    address.backlog.push(self.busy.jobs());
                }
                match self.way_on(&mut address, next, cost, bytes_of(&tensors)) {
                    Some(device) => {
                        let body = Body::Activation { stage: next, deadline, tensors };
                        self.send(device, Frame { address, body });
                    }
                    None => self.send(address.ingress, Frame { address, body: Body::Result { tensors } }),
                }
            }
        }
    }

    /// The device that runs the next stage of a request; nothing when there is none. The one that was picked when the
    /// request entered may be gone or have much to do by now: its ingress is told of another.
    fn way_on(
        self: &Arc<Self>,
        address: &mut Address,
        stage: usize,
        cost: Duration,
        bytes: usize,
    ) -> Option<PeerId> {
        let picked = address.devices.get(stage).copied()?;
        if cost < DETOUR_MIN && (picked == self.me || self.link(picked).is_some()) {
            return Some(picked);
        }
        let Some(other) = self.detour(address, stage, cost, bytes) else { return Some(picked) };
        let mut devices = address.devices.to_vec();
        devices[stage] = other;
        address.devices = devices.into();
        self.send(address.ingress, Frame { address: address.clone(), body: Body::Moved { stage } });
        Some(other)
    }

    fn detour(&self, address: &Address, stage: usize, cost: Duration, bytes: usize) -> Option<PeerId> {
        let rates = lock(&self.rates).clone();
        let takes_s = |peer: PeerId| match rates.get(&peer).filter(|rate| **rate > 0.0) {
            Some(rate) if peer != self.me => bytes as f64 / rate,
            Some(_) | None => 0.0,
        };
        let picked_s = takes_s(address.devices.get(stage).copied()?);
        let is_near = |peer: PeerId| takes_s(peer) <= picked_s + cost.as_secs_f64() / 2.0;
        let mut desk = lock(&self.desk);
        desk.ingress.set_own_jobs(self.busy.jobs());
        desk.ingress.detour(now(), address, stage, &Detour { fresh: cost, is_near: &is_near })
    }
}

/// Reads frames until the stream ends, breaks, or carries something that is no frame.
pub(super) async fn read_stream(
    shared: Weak<Shared>,
    peer: PeerId,
    mut stream: impl DataStream,
    limits: DataLimits,
    under_way: UnderWay,
) {
    let mut buffer = Vec::new();
    loop {
        match read_frame(&mut stream, &mut buffer, &limits, &under_way).await {
            Ok(Some((frame, bytes))) => match shared.upgrade() {
                Some(shared) => {
                    shared.received.fetch_add(bytes, Ordering::Relaxed);
                    shared.receive(peer, frame);
                }
                None => return,
            },
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%peer, %error, "closed a data stream");
                return;
            }
        }
    }
}

/// Wakes the ingress when its earliest timer is due.
pub(super) async fn keep_time(shared: Weak<Shared>, stop: CancellationToken) {
    loop {
        let Some(strong) = shared.upgrade() else { return };
        strong.drive(|ingress, now| ingress.tick(now));
        let next = lock(&strong.desk).ingress.next_timer();
        let wake = strong.wake.clone();
        drop(strong);
        let due = async {
            match next {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = wake.notified() => {}
            () = due => {}
        }
    }
}

/// Locks; what a panicking holder left is still whole, for every change is made in one piece.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
