//! The sessions of a device that are on their way or at work: weights are fetched, a session is loaded when it may, and
//! what is let go is gone before another takes its memory. [`super::holdings`] decides what happens to which.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use mesh_inference::stage::Ending;
use tokio::{
    sync::{mpsc, oneshot},
    task::AbortHandle,
};

use super::prepare::{Prepared, Preparer, SessionKey};

/// A stage that was let go ends with the run that it is at; another is loaded in its place after this long in any case.
const ENDING: Duration = Duration::from_secs(10);

/// Sessions on their way or at work.
pub struct Sessions {
    preparer: Preparer,
    slots: HashMap<SessionKey, Slot>,
    /// Stages that were let go, until their memory is free.
    ending: Vec<(Ending, Instant)>,
    /// Preparations begun so far.
    begun: u64,
    done: mpsc::Sender<(SessionKey, Progress)>,
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let keys: Vec<String> = self.slots.keys().map(ToString::to_string).collect();
        f.debug_struct("Sessions").field("slots", &keys).finish_non_exhaustive()
    }
}

enum Slot {
    Preparing {
        number: u64,
        done: Arc<AtomicU64>,
        total: Arc<AtomicU64>,
        task: AbortHandle,
        /// Lets it be loaded.
        room: Option<oneshot::Sender<()>>,
        /// It may be loaded as soon as the memory is free.
        is_due: bool,
    },
    Ready(Prepared),
}

/// How far a session has come.
#[derive(Debug)]
pub struct Progress {
    /// Of which preparation: what is told by one that was let go since says nothing.
    number: u64,
    /// What has happened.
    pub step: Step,
}

/// What happens to a session on its way.
#[derive(Debug)]
pub enum Step {
    /// The weights are here.
    Fetched,
    /// It is ready or cannot be had.
    Ended(Result<Prepared, String>),
}

impl Sessions {
    /// None yet; and where their progress is told.
    pub fn new(preparer: Preparer) -> (Self, mpsc::Receiver<(SessionKey, Progress)>) {
        let (done, progress) = mpsc::channel(64);
        (Self { preparer, slots: HashMap::new(), ending: Vec::new(), begun: 0, done }, progress)
    }

    /// Fetches the weights of a session, and loads it when [`Sessions::let_load`] says so.
    pub fn fetch(&mut self, key: SessionKey) {
        let (done, total) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (preparer, answer) = (self.preparer.clone(), self.done.clone());
        let work = (key.clone(), Arc::clone(&done), Arc::clone(&total));
        let (room, has_room) = oneshot::channel();
        self.begun += 1;
        let number = self.begun;
        let task = tokio::spawn(async move {
            let (key, done, total) = work;
            let result = match preparer.fetch(&key, &done, &total).await {
                Ok(stage) => {
                    let _ = answer.send((key.clone(), Progress { number, step: Step::Fetched })).await;
                    // The sender goes with the slot, and this task with it.
                    let _ = has_room.await;
                    preparer.load(&key, stage).await
                }
                Err(error) => Err(error),
            };
            let result = result.map_err(|error| super::chain(&error));
            let _ = answer.send((key, Progress { number, step: Step::Ended(result) })).await;
        });
        let task = task.abort_handle();
        let slot = Slot::Preparing { number, done, total, task, room: Some(room), is_due: false };
        self.slots.insert(key, slot);
    }

    /// Whether what a preparation tells is of the one that is under way.
    pub fn is_current(&self, key: &SessionKey, progress: &Progress) -> bool {
        matches!(self.slots.get(key), Some(Slot::Preparing { number, .. }) if *number == progress.number)
    }

    /// A session whose weights are here may be loaded.
    pub fn let_load(&mut self, key: &SessionKey) {
        if let Some(Slot::Preparing { is_due, .. }) = self.slots.get_mut(key) {
            *is_due = true;
        }
    }

    /// Has those loaded that may be, unless memory of others is not free yet. To be called again until all are.
    pub fn load(&mut self, now: Instant) {
        self.ending
            .retain(|(ending, since)| !ending.is_over() && now.saturating_duration_since(*since) < ENDING);
        if !self.ending.is_empty() {
            return;
        }
        for slot in self.slots.values_mut() {
            if let Slot::Preparing { room, is_due: true, .. } = slot
                && let Some(room) = room.take()
            {
                // Nobody waits for it where the task has ended, which it tells.
                let _ = room.send(());
            }
        }
    }

    /// Ends a session, or its preparation.
    pub fn let_go(&mut self, key: &SessionKey, now: Instant) {
        match self.slots.remove(key) {
            Some(Slot::Preparing { task, .. }) => task.abort(),
            Some(Slot::Ready(prepared)) => self.ending.push((prepared.runner.ending(), now)),
            None => {}
        }
    }

    /// A session is ready, or cannot be had.
    pub fn ended(&mut self, key: SessionKey, result: Result<Prepared, String>) {
        match result {
            Ok(prepared) => {
                tracing::info!(stage = %key, "stage is ready");
                self.slots.insert(key, Slot::Ready(prepared));
            }
            Err(reason) => {
                tracing::warn!(stage = %key, %reason, "stage cannot be prepared");
                self.slots.remove(&key);
            }
        }
    }

    /// A session that can answer.
    pub fn ready(&self, key: &SessionKey) -> Option<&Prepared> {
        match self.slots.get(key) {
            Some(Slot::Ready(prepared)) => Some(prepared),
            Some(Slot::Preparing { .. }) | None => None,
        }
    }

    /// Bytes of weights that are here and that are needed, of one that is being prepared. Equal, and not 0, once all are
    /// here.
    pub fn fetched(&self, key: &SessionKey) -> Option<(u64, u64)> {
        match self.slots.get(key) {
            Some(Slot::Preparing { done, total, .. }) => {
                Some((done.load(Ordering::Relaxed), total.load(Ordering::Relaxed)))
            }
            Some(Slot::Ready(_)) | None => None,
        }
    }
}
