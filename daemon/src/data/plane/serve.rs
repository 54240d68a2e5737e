//! What the data plane does for others: runs stages, hands activations on, reads streams, keeps time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::Ordering};

use libp2p::PeerId;
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        frame::{Address, Body, Failure, FailureKind, Frame},
        hosting::{Done, Hosted, Job},
        limits::DataLimits,
        route::StageKey,
        transport::DataStream,
        wire::{now, read_frame},
    },
    Shared,
};

impl Shared {
    /// Runs a stage for somebody, or tells the ingress why not.
    pub(super) fn activation(self: &Arc<Self>, stage: usize, job: Job) {
        if job.deadline <= now() {
            // Its ingress has given up by itself.
            return;
        }
        let address = job.address.clone();
        if let Err((blame, kind, message)) = self.try_activation(stage, job) {
            self.fail(address, Failure { kind, stage, blame, message });
        }
    }

    fn try_activation(self: &Arc<Self>, stage: usize, job: Job) -> Result<(), (PeerId, FailureKind, String)> {
        let Address { deployment, epoch, devices, ingress, .. } = &job.address;
        if devices.get(stage) != Some(&self.me) {
            return Err((self.me, FailureKind::UnknownStage, "the route names another device".into()));
        }
        let key = StageKey { deployment: deployment.to_string(), epoch: *epoch, stage };
        let hosted = self.hosted(&key).map_err(|(kind, message)| (self.me, kind, message))?;
        // Work whose result would have nowhere to go is not begun.
        let next = devices.get(stage + 1).copied().unwrap_or(*ingress);
        if next != self.me {
            let Some(link) = self.link(next) else {
                let message = format!("the next device, {next}, is not connected here");
                return Err((next, FailureKind::Unreachable, message));
            };
            if !link.has_room() {
                let message = format!("too much waits to be sent to the next device, {next}");
                return Err((next, FailureKind::Busy, message));
            }
        }
        hosted.offer(job).map_err(|(kind, message)| (self.me, kind, message))
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
            Done::Outputs(mut address, deadline, tensors) => {
                let next = key.stage + 1;
                // Only where every stage before has said so too does the place in the list tell the stage.
                if address.backlog.len() == key.stage {
                    address.backlog.push(self.busy.jobs());
                }
                match address.devices.get(next).copied() {
                    Some(device) => {
                        let body = Body::Activation { stage: next, deadline, tensors };
                        self.send(device, Frame { address, body });
                    }
                    None => self.send(address.ingress, Frame { address, body: Body::Result { tensors } }),
                }
            }
        }
    }
}

/// Reads frames until the stream ends, breaks, or carries something that is no frame.
pub(super) async fn read_stream(
    shared: Weak<Shared>,
    peer: PeerId,
    mut stream: impl DataStream,
    limits: DataLimits,
) {
    let mut buffer = Vec::new();
    loop {
        match read_frame(&mut stream, &mut buffer, &limits).await {
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
