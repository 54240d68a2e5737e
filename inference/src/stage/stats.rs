//! A stage's counters, written on the run path and read from anywhere, without locks.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Weight of the newest run in the moving average: a change shows within some ten runs, one odd run hardly.
const NEWEST: f64 = 0.1;

#[derive(Debug, Default)]
pub(super) struct Counters {
    queued: AtomicUsize,
    runs: AtomicU64,
    failures: AtomicU64,
    pub(super) expired: AtomicU64,
    busy_nanos: AtomicU64,
    /// Moving average of the compute time in seconds, as bits.
    average: AtomicU64,
    pub(super) closing: AtomicBool,
}

/// What a stage has done since it started.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StageStats {
    /// Runs that gave outputs.
    pub runs: u64,
    /// Runs that failed or were cancelled.
    pub failures: u64,
    /// Requests that had expired when their turn came.
    pub expired: u64,
    /// Requests that wait now.
    pub queued: usize,
    /// Time spent in the session, over all runs.
    pub busy: Duration,
    /// Moving average of the time of a successful run; zero before the first.
    pub compute: Duration,
}

impl Counters {
    pub(super) fn entered(&self) {
        self.queued.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn left(&self) {
        self.queued.fetch_sub(1, Ordering::Relaxed);
    }

    /// Called by the stage's thread alone.
    pub(super) fn ran(&self, time: Duration, ok: bool) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.busy_nanos.fetch_add(nanos, Ordering::Relaxed);
        if !ok {
            self.failures.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let seconds = time.as_secs_f64();
        let before = f64::from_bits(self.average.load(Ordering::Relaxed));
        let first = self.runs.fetch_add(1, Ordering::Relaxed) == 0;
        let average = if first { seconds } else { before + NEWEST * (seconds - before) };
        self.average.store(average.to_bits(), Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> StageStats {
        StageStats {
            runs: self.runs.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            expired: self.expired.load(Ordering::Relaxed),
            queued: self.queued.load(Ordering::Relaxed),
            busy: Duration::from_nanos(self.busy_nanos.load(Ordering::Relaxed)),
            compute: Duration::from_secs_f64(f64::from_bits(self.average.load(Ordering::Relaxed))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_follows_the_runs() {
        let counters = Counters::default();
        counters.ran(Duration::from_millis(10), true);
        assert_eq!(counters.read().compute, Duration::from_millis(10));
        counters.ran(Duration::from_secs(1), false);
        for _ in 0..100 {
            counters.ran(Duration::from_millis(20), true);
        }
        let stats = counters.read();
        assert!((19.9..=20.0).contains(&(stats.compute.as_secs_f64() * 1e3)), "{stats:?}");
        assert_eq!((stats.runs, stats.failures), (101, 1));
        assert_eq!(stats.busy, Duration::from_millis(3010));
    }
}
