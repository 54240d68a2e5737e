//! How much this device's stages compute: share of the time, and jobs at hand.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

/// Time over which compute time is added up.
const WINDOW: Duration = Duration::from_secs(2);

/// Share of the time that the device computes, and the jobs of all its stages that wait or run.
#[derive(Debug)]
pub(super) struct Busy {
    window: Mutex<Window>,
    jobs: Arc<AtomicU32>,
}

#[derive(Debug)]
struct Window {
    start: Instant,
    computed: Duration,
    last: f64,
}

impl Busy {
    pub(super) fn new(now: Instant) -> Self {
        let window = Mutex::new(Window { start: now, computed: Duration::ZERO, last: 0.0 });
        Self { window, jobs: Arc::default() }
    }

    /// A job has come.
    pub(super) fn enter(&self) {
        self.jobs.fetch_add(1, Ordering::Relaxed);
    }

    /// As many jobs as came by [`Busy::enter`] are done with or dropped.
    pub(super) fn leave(&self, jobs: u32) {
        self.jobs.fetch_sub(jobs, Ordering::Relaxed);
    }

    /// Jobs that wait or run.
    pub(super) fn jobs(&self) -> u32 {
        self.jobs.load(Ordering::Relaxed)
    }

    /// The counter of jobs, for others to read.
    pub(super) fn counter(&self) -> Arc<AtomicU32> {
        self.jobs.clone()
    }

    /// A run has ended.
    pub(super) fn record(&self, now: Instant, compute: Duration) {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        window.roll(now);
        window.computed += compute;
    }

    /// 0 to 1, over the last whole window.
    pub(super) fn share(&self, now: Instant) -> f64 {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        window.roll(now);
        window.last
    }
}

impl Window {
    fn roll(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.start);
        if elapsed >= WINDOW {
            self.last = (self.computed.as_secs_f64() / elapsed.as_secs_f64()).min(1.0);
            self.computed = Duration::ZERO;
            self.start = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_that_of_the_last_window_and_fades() {
        let start = Instant::now();
        let busy = Busy::new(start);
        for i in 1..=20u32 {
            busy.record(start + Duration::from_millis(100) * i, Duration::from_millis(50));
        }
        let share = busy.share(start + Duration::from_millis(2100));
        assert!((share - 0.475).abs() < 0.05, "{share}");
        busy.share(start + Duration::from_secs(10));
        assert!(busy.share(start + Duration::from_secs(20)) < 0.01);
    }
}
