//! What a daemon cannot go on without: the consensus thread and the core's tasks. None of them ends before the daemon
//! is told to. One that does, whether by an error, by a panic or by itself, ends the daemon, so that systemd starts it
//! again: a daemon without its leader's duties or its reconcile loop looks well and is not.

use std::{
    collections::HashMap,
    future::{Future, pending},
    time::Duration,
};

use tokio::{
    sync::oneshot,
    task::{Id, JoinSet},
};

use super::{
    consensus::{ConsensusError, End},
    run::RunError,
};

/// Tasks end when the consensus thread has ended; its own word is waited for this long, because it says more.
const LAST_WORD: Duration = Duration::from_secs(1);

/// A task of the core ended although the daemon goes on.
#[derive(Debug, thiserror::Error)]
#[error(
    "the daemon's {name} task {how}: start the daemon again, and report this with its log if it happens again"
)]
pub struct TaskEnded {
    name: &'static str,
    how: &'static str,
}

/// The tasks of the core, by name.
#[derive(Debug, Default)]
pub struct Tasks {
    running: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

impl Tasks {
    /// Starts one.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let id = self.running.spawn(task).id();
        self.names.insert(id, name);
    }

    /// The first that ends; pends while all run.
    async fn ended(&mut self) -> TaskEnded {
        let (id, how) = match self.running.join_next_with_id().await {
            Some(Ok((id, ()))) => (id, "ended early"),
            Some(Err(error)) if error.is_panic() => (error.id(), "panicked"),
            Some(Err(error)) => (error.id(), "was stopped"),
            None => return pending().await,
        };
        TaskEnded { name: self.names.get(&id).copied().unwrap_or("core"), how }
    }

    /// Ends all; those that do not within this time are left behind.
    pub async fn end(mut self, limit: Duration) {
        self.running.abort_all();
        let _ =
            tokio::time::timeout(limit, async { while self.running.join_next().await.is_some() {} }).await;
    }
}

/// Watches over them.
#[derive(Debug)]
pub struct Vitals {
    /// How the consensus thread ended; `None` once that is known.
    consensus: Option<oneshot::Receiver<End>>,
    /// The tasks.
    pub tasks: Tasks,
}

impl Vitals {
    /// Of a daemon whose consensus thread tells here how it ends.
    pub fn new(consensus: oneshot::Receiver<End>) -> Self {
        Self { consensus: Some(consensus), tasks: Tasks::default() }
    }

    /// Why the daemon cannot go on; pends while it can.
    pub async fn failure(&mut self) -> RunError {
        let ended = tokio::select! {
            biased;
            error = thread_failure(&mut self.consensus) => return error.into(),
            ended = self.tasks.ended() => ended,
        };
        match tokio::time::timeout(LAST_WORD, thread_failure(&mut self.consensus)).await {
            Ok(error) => error.into(),
            Err(_) => ended.into(),
        }
    }
}

/// How the thread failed; pends while it runs, and when it has ended as it was told to.
async fn thread_failure(consensus: &mut Option<oneshot::Receiver<End>>) -> ConsensusError {
    let Some(end) = consensus.as_mut() else { return pending().await };
    let end = end.await;
    *consensus = None;
    match end {
        Ok(Err(error)) => error,
        Ok(Ok(())) => pending().await,
        // It says how it ends, unless it unwinds.
        Err(_) => ConsensusError::Panicked,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::consensus::spawn, *};

    const PATIENCE: Duration = Duration::from_secs(20);
    const MOMENT: Duration = Duration::from_millis(100);

    /// Watches over a thread that does this.
    fn watched(work: impl FnOnce() -> End + Send + 'static) -> Vitals {
        let (ended, end) = oneshot::channel();
        spawn(work, ended).unwrap();
        Vitals::new(end)
    }

    async fn failure(vitals: &mut Vitals) -> RunError {
        tokio::time::timeout(PATIENCE, vitals.failure()).await.unwrap()
    }

    #[tokio::test]
    async fn a_consensus_thread_that_panics_ends_the_daemon() {
        let mut vitals = watched(|| panic!("on purpose"));
        vitals.tasks.spawn("leader", pending());
        let error = failure(&mut vitals).await;
        assert!(matches!(error, RunError::Consensus(ConsensusError::Panicked)), "{error:?}");
    }

    #[tokio::test]
    async fn its_own_error_is_told_and_not_that_tasks_ended_for_it() {
        let (held, gone) = oneshot::channel::<()>();
        let mut vitals = watched(move || {
            drop(held);
            std::thread::sleep(MOMENT);
            Err(ConsensusError::Thread(std::io::Error::other("a reason")))
        });
        vitals.tasks.spawn("leader", async { drop(gone.await) });
        let error = failure(&mut vitals).await;
        assert!(matches!(error, RunError::Consensus(ConsensusError::Thread(_))), "{error:?}");
    }

    #[tokio::test]
    async fn a_task_that_ends_or_panics_ends_the_daemon() {
        type Spawn = fn(&mut Tasks);
        let tasks: [(Spawn, &str); 2] = [
            (|tasks| tasks.spawn("upkeep", async {}), "ended early"),
            (|tasks| tasks.spawn("upkeep", async { panic!("on purpose") }), "panicked"),
        ];
        for (spawn, how) in tasks {
            let (_runs, end) = oneshot::channel();
            let mut vitals = Vitals::new(end);
            vitals.tasks.spawn("leader", pending());
            spawn(&mut vitals.tasks);
            let error = failure(&mut vitals).await.to_string();
            assert!(error.contains(&format!("upkeep task {how}")), "{error}");
        }
    }

    #[tokio::test]
    async fn an_end_that_was_asked_for_is_no_failure() {
        let mut vitals = watched(|| Ok(()));
        for _ in 0..2 {
            assert!(tokio::time::timeout(MOMENT, vitals.failure()).await.is_err());
        }
        vitals.tasks.spawn("leader", pending());
        tokio::time::timeout(PATIENCE, vitals.tasks.end(PATIENCE)).await.unwrap();
    }
}
