//! All test images through the mesh, from several ingresses at once, while a device dies.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    NAME,
    cluster::{Cluster, DEVICES},
    digits::{Digits, best},
};
use crate::cli::{bench::difference, client::ClientError, exit::CliError};

/// Largest difference from the whole model's answer, relative to its largest magnitude.
pub(super) const TOLERANCE: f64 = 1e-5;
/// Clients per ingress.
const CLIENTS: usize = 2;
/// Time for one image, over all tries.
const IMAGE_LIMIT: Duration = Duration::from_secs(60);
/// Pause before an image that was turned away is sent again.
const PAUSE: Duration = Duration::from_millis(50);

/// The device that dies.
#[derive(Debug)]
pub(super) struct Victim {
    pub(super) name: String,
    pub(super) leads: bool,
}

/// What happened.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) right: usize,
    /// Answers that equal the whole model's.
    pub(super) equal: usize,
    pub(super) largest_difference: f64,
    /// Requests that were accepted and got no answer, or never found a place.
    pub(super) lost: usize,
    /// Requests that a device did not accept (503), so that they were sent again from outside.
    pub(super) turned_away: usize,
    /// Requests that the mesh sent again inside.
    pub(super) retries: u64,
    /// Answers when the device died.
    pub(super) killed_at: usize,
    /// From the death to the first answer to a request that was sent after it.
    pub(super) recovery: Option<Duration>,
    pub(super) last_epoch: u64,
    pub(super) last_error: Option<String>,
    answered: usize,
    killed: Option<Instant>,
}

struct Run<'a> {
    cluster: &'a Cluster,
    digits: &'a Digits,
    victim: usize,
    next: AtomicUsize,
    outcome: Mutex<Outcome>,
}

/// Classifies every image. The ingresses are the devices that stay.
pub(super) fn run(cluster: &Cluster, digits: &Digits, victim: &Victim) -> Result<Outcome, CliError> {
    let index = cluster.index_of(&victim.name);
    let index = index.ok_or_else(|| CliError::failed(format!("{} is no device of the demo", victim.name)))?;
    let run = Run {
        cluster,
        digits,
        victim: index,
        next: AtomicUsize::new(0),
        outcome: Mutex::new(Outcome::default()),
    };
    thread::scope(|scope| {
        let ingresses = (0..DEVICES).filter(|&device| device != index);
        let clients = ingresses.flat_map(|device| (0..CLIENTS).map(move |client| (device, client)));
        let started: Result<Vec<_>, _> = clients
            .map(|(device, client)| {
                let name = format!("client-{device}-{client}");
                let run = &run;
                thread::Builder::new().name(name).spawn_scoped(scope, move || run.client(device))
            })
            .collect();
        let started = started.map_err(|error| CliError::failed(format!("no clients: {error}")))?;
        started.into_iter().try_for_each(|client| {
            client.join().unwrap_or_else(|_| Err(CliError::failed("a client of the demo broke down")))
        })
    })?;
    Ok(run.outcome.into_inner().unwrap_or_else(PoisonError::into_inner))
}

impl Run<'_> {
    /// Sends image after image through one ingress.
    fn client(&self, device: usize) -> Result<(), CliError> {
        let client = self.cluster.client(device);
        loop {
            let image = self.next.fetch_add(1, Ordering::Relaxed);
            if image >= self.digits.len() {
                return Ok(());
            }
            let inputs = [("image".to_owned(), self.digits.image(image))];
            let start = Instant::now();
            loop {
                let sent = Instant::now();
                match client.infer(NAME, &inputs, IMAGE_LIMIT) {
                    Ok(answer) => break self.answered(image, sent, answer)?,
                    Err(ClientError::Refused { status: 503, message }) if start.elapsed() < IMAGE_LIMIT => {
                        let mut outcome = self.lock();
                        outcome.turned_away += 1;
                        outcome.last_error = Some(message);
                        drop(outcome);
                        thread::sleep(PAUSE);
                    }
                    Err(error) => {
                        let mut outcome = self.lock();
                        outcome.lost += 1;
                        outcome.last_error = Some(error.to_string());
                        break;
                    }
                }
            }
        }
    }

    /// Judges an answer; the one in the middle of all pulls the plug.
    fn answered(
        &self,
        image: usize,
        sent: Instant,
        answer: crate::app::InferResponse,
    ) -> Result<(), CliError> {
        let logits = answer.outputs.iter().find(|(name, _)| name == "logits").map(|(_, tensor)| tensor);
        let reference = self.digits.reference(image);
        let logits = logits.filter(|logits| logits.shape() == reference.shape());
        let distance = logits.map_or(f64::INFINITY, |logits| difference(logits, reference));
        let class = logits.and_then(best);
        let mut outcome = self.lock();
        outcome.answered += 1;
        outcome.right += usize::from(class == Some(self.digits.label(image)));
        outcome.equal += usize::from(distance <= TOLERANCE && class == best(reference));
        outcome.largest_difference = outcome.largest_difference.max(distance);
        outcome.retries += u64::from(answer.retries);
        outcome.last_epoch = outcome.last_epoch.max(answer.epoch);
        if let (Some(killed), None) = (outcome.killed, outcome.recovery)
            && sent >= killed
        {
            outcome.recovery = Some(killed.elapsed());
        }
        if outcome.killed.is_none() && outcome.answered >= self.digits.len() / 2 {
            outcome.killed_at = outcome.answered;
            self.cluster.kill(self.victim)?;
            outcome.killed = Some(Instant::now());
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
