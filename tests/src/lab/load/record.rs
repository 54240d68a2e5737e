//! What the clients saw, while it happens.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Most requests whose times are kept, 24 bytes each. Later ones are counted only.
const MOST_TIMES: usize = 1 << 20;
/// Most texts of errors kept.
const MOST_TEXTS: usize = 20;
/// Longest text of an error, in characters.
const LONGEST_TEXT: usize = 500;
const MOST_MARKS: usize = 1000;

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Right,
    Wrong,
    Refused,
    Failed,
}

/// One request that ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Event {
    /// When it ended, since the start of the load.
    pub(super) at: Duration,
    /// Time since it arrived.
    pub(super) latency_us: u32,
    /// The mesh sent it again.
    pub(super) is_resent: bool,
    pub(super) outcome: Outcome,
}

#[derive(Debug, Default, Clone)]
pub(super) struct Record {
    pub(super) events: Vec<Event>,
    /// Requests that ended when there was no more room for their times.
    pub(super) untimed: u64,
    pub(super) right: u64,
    pub(super) wrong: u64,
    pub(super) refused: u64,
    pub(super) failed: u64,
    pub(super) dropped: u64,
    pub(super) turned: u64,
    pub(super) failures: Vec<String>,
    pub(super) marks: Vec<(Duration, String)>,
}

/// Shared by the clients of a load.
#[derive(Debug)]
pub(super) struct Shared {
    origin: Instant,
    stop: AtomicBool,
    answers: AtomicU64,
    /// When the request arrived that a client is waiting for, by the client's number.
    under_way: Mutex<BTreeMap<usize, Instant>>,
    record: Mutex<Record>,
}

impl Shared {
    pub(super) fn new(origin: Instant) -> Self {
        Self {
            origin,
            stop: AtomicBool::new(false),
            answers: AtomicU64::new(0),
            under_way: Mutex::default(),
            record: Mutex::default(),
        }
    }

    pub(super) fn origin(&self) -> Instant {
        self.origin
    }

    pub(super) fn seconds(&self) -> f64 {
        self.origin.elapsed().as_secs_f64()
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Right and wrong answers so far.
    pub(super) fn answers(&self) -> u64 {
        self.answers.load(Ordering::Acquire)
    }

    pub(super) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn mark(&self, label: &str) -> f64 {
        let at = self.origin.elapsed();
        let mut record = self.record();
        if record.marks.len() < MOST_MARKS {
            record.marks.push((at, label.to_owned()));
        }
        at.as_secs_f64()
    }

    pub(super) fn dropped(&self) {
        self.record().dropped += 1;
    }

    /// A request goes to the second entrance.
    pub(super) fn turned(&self) {
        self.record().turned += 1;
    }

    /// A client sends a request that arrived at `since`.
    pub(super) fn begun(&self, client: usize, since: Instant) {
        self.waiting().insert(client, since);
    }

    /// Whether a request that arrived before this time is still waited for.
    pub(super) fn waits_since(&self, seconds: f64) -> bool {
        let arrived = |since: &Instant| since.saturating_duration_since(self.origin).as_secs_f64();
        self.waiting().values().any(|since| arrived(since) < seconds)
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<usize, Instant>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a client sent has ended, and is on record.
    pub(super) fn ended(&self, client: usize) {
        self.waiting().remove(&client);
    }

    /// A request that arrived at `since` has ended.
    pub(super) fn done(&self, since: Instant, is_resent: bool, outcome: Outcome, said: Option<String>) {
        let mut record = self.record();
        // Taken under the lock, so that events lie in the order of their times.
        let now = Instant::now();
        let latency = now.saturating_duration_since(since).as_micros();
        let latency_us = u32::try_from(latency).unwrap_or(u32::MAX);
        let at = now.saturating_duration_since(self.origin);
        record.add(Event { at, latency_us, is_resent, outcome }, said);
        if matches!(outcome, Outcome::Right | Outcome::Wrong) {
            self.answers.fetch_add(1, Ordering::Release);
        }
    }
}

impl Record {
    pub(super) fn add(&mut self, event: Event, said: Option<String>) {
        match event.outcome {
            Outcome::Right => self.right += 1,
            Outcome::Wrong => self.wrong += 1,
            Outcome::Refused => self.refused += 1,
            Outcome::Failed => self.failed += 1,
        }
        if self.events.len() < MOST_TIMES {
            self.events.push(event);
        } else {
            self.untimed += 1;
        }
        if let Some(said) = said.filter(|_| self.failures.len() < MOST_TEXTS) {
            let short: String = said.chars().take(LONGEST_TEXT).collect();
            self.failures.push(format!("{:.3} s: {short}", event.at.as_secs_f64()));
        }
    }
}
