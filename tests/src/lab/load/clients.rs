//! Clients: one thread each, inside the namespace of their entrance.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc::Receiver,
    },
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::{
    Entrance, Expected, LoadSpec,
    record::{Outcome, Shared},
};
use crate::rack::{Answer, Client, NoAnswer, move_into};

/// After an error a client of a closed loop waits so long: it would ask again at once otherwise.
const AFTER_ERROR: Duration = Duration::from_millis(20);

/// One arrival of an open loop.
#[derive(Debug)]
pub(super) struct Job {
    /// When it was to be sent.
    pub(super) scheduled: Instant,
    /// Which question.
    pub(super) input: usize,
}

/// One client.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) number: usize,
    pub(super) entrance: Entrance,
    /// Where a request goes that the first entrance does not take or answer.
    pub(super) second: Option<Entrance>,
    pub(super) spec: LoadSpec,
    pub(super) expected: Arc<Expected>,
    pub(super) shared: Arc<Shared>,
}

impl Worker {
    /// Asks again and again until the load stops.
    pub(super) fn closed_loop(&self) {
        let Some(client) = self.client() else { return };
        let mut random =
            ChaCha8Rng::seed_from_u64(self.spec.seed.wrapping_mul(8191).wrapping_add(self.number as u64));
        while !self.shared.is_stopped() {
            let input = random.random_range(0..self.expected.len());
            if !self.ask(&client, input, Instant::now()) {
                std::thread::park_timeout(AFTER_ERROR);
            }
        }
    }

    /// Answers jobs until there are none to come. `busy` is lowered after each.
    pub(super) fn open_loop(&self, jobs: &Mutex<Receiver<Job>>, busy: &AtomicUsize) {
        let client = self.client();
        loop {
            // One client waits for the next job, the others for the lock: the job goes to whoever holds it.
            let job = jobs.lock().unwrap_or_else(std::sync::PoisonError::into_inner).recv();
            let Ok(job) = job else { return };
            match &client {
                // Also when the load has stopped since: the job was due before.
                Some(client) => {
                    self.ask(client, job.input, job.scheduled);
                }
                None => self.shared.done(
                    job.scheduled,
                    false,
                    Outcome::Failed,
                    Some("there is no such namespace".into()),
                ),
            }
            busy.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// The client, with this thread inside the namespace.
    fn client(&self) -> Option<Client> {
        if let Some(name) = &self.entrance.namespace
            && let Err(error) = move_into(name)
        {
            let why = format!("the namespace {name} cannot be entered: {error}");
            self.shared.done(Instant::now(), false, Outcome::Failed, Some(why));
            return None;
        }
        Some(self.client_at(&self.entrance))
    }

    fn client_at(&self, entrance: &Entrance) -> Client {
        let timeout = Duration::from_secs_f64(self.spec.timeout_s);
        Client::at(&entrance.url, timeout, self.spec.keep_connections)
    }

    /// The same question at the second entrance, if there is one. Its connection is not kept.
    fn ask_second(&self, input: usize) -> Option<Result<Answer, NoAnswer>> {
        let second = self.second.as_ref()?;
        self.shared.turned();
        let enter = |entrance: &Entrance| entrance.namespace.as_ref().map_or(Ok(()), |name| move_into(name));
        if let Err(error) = enter(second) {
            return Some(Err(NoAnswer::Broken(format!("the namespace cannot be entered: {error}"))));
        }
        let client = self.client_at(second);
        let answer = client.infer_encoded(&self.spec.deployment, self.expected.request(input));
        let back = enter(&self.entrance);
        Some(back.map_err(|error| NoAnswer::Broken(error.to_string())).and(answer))
    }

    /// One request. Whether there was an answer with tensors.
    fn ask(&self, client: &Client, input: usize, since: Instant) -> bool {
        self.shared.begun(self.number, since);
        let answer = match client.infer_encoded(&self.spec.deployment, self.expected.request(input)) {
            Err(why) => self.ask_second(input).unwrap_or(Err(why)),
            answer => answer,
        };
        let is_resent = answer.as_ref().is_ok_and(|answer| answer.retries > 0);
        let (outcome, said) = match answer {
            Ok(answer) => match self.expected.check(input, &answer.outputs) {
                Ok(()) => (Outcome::Right, None),
                Err(why) => (Outcome::Wrong, Some(why)),
            },
            Err(why @ NoAnswer::Refused { status: 429 | 503, .. }) => {
                (Outcome::Refused, Some(why.to_string()))
            }
            Err(why) => (Outcome::Failed, Some(why.to_string())),
        };
        let said = said.map(|said| format!("{}: {said}", self.entrance.url));
        self.shared.done(since, is_resent, outcome, said);
        self.shared.ended(self.number);
        matches!(outcome, Outcome::Right | Outcome::Wrong)
    }
}
