//! A stage's counters, written on the run path and read from anywhere, without locks.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Seconds: a run counts for the time since the one before, as a part of this.
const MEMORY: f64 = 5.0;

/// One run counts for at least and at most this part of the average: of two runs of some seconds one may take a tenth
/// longer than the other, so that seven have a say.
const LEAST: f64 = 0.02;
const MOST: f64 = 0.25;

/// A typical value of what runs cost: the mean at first, then an average that follows changes within some five seconds
/// however often runs come, or five runs, and that one odd run hardly moves.
#[derive(Debug, Clone, Copy, Default)]
pub struct Typical {
    seconds: f64,
    runs: u64,
    last: Option<Instant>,
}

impl Typical {
    /// A run that ended at `now`. Runs come in the order of time.
    pub fn add(&mut self, cost: Duration, now: Instant) {
        self.runs += 1;
        let since = self.last.map_or(0.0, |last| now.saturating_duration_since(last).as_secs_f64());
        self.last = Some(now);
        let weight = (since / MEMORY).clamp(LEAST, MOST).max(1.0 / self.runs as f64);
        self.seconds += weight * (cost.as_secs_f64() - self.seconds);
    }

    /// Seconds; 0 before the first run.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// Runs so far.
    pub fn runs(&self) -> u64 {
        self.runs
    }
}

/// Weight of the newest run in the counters' moving average.
const NEWEST: f64 = 0.1;

#[derive(Debug, Default)]
pub(super) struct Counters {
    queued: AtomicUsize,
    runs: AtomicU64,
    failures: AtomicU64,
    pub(super) expired: AtomicU64,
    busy_nanos: AtomicU64,
    /// Moving average of the cost in seconds, as bits.
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
    /// Moving average of what a successful run costs; zero before the first.
    pub cost: Duration,
}

impl Counters {
    pub(super) fn entered(&self) {
        self.queued.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn left(&self) {
        self.queued.fetch_sub(1, Ordering::Relaxed);
    }

    /// Called by the stage's thread alone.
    pub(super) fn ran(&self, time: Duration, cost: Duration, ok: bool) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.busy_nanos.fetch_add(nanos, Ordering::Relaxed);
        if !ok {
            self.failures.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let seconds = cost.as_secs_f64();
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
            cost: Duration::from_secs_f64(f64::from_bits(self.average.load(Ordering::Relaxed))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_follows_the_runs() {
        let counters = Counters::default();
        let ms = Duration::from_millis;
        counters.ran(ms(5), ms(10), true);
        assert_eq!(counters.read().cost, ms(10));
        counters.ran(ms(1000), ms(1000), false);
        for _ in 0..100 {
            counters.ran(ms(10), ms(20), true);
        }
        let stats = counters.read();
        assert!((19.9..=20.0).contains(&(stats.cost.as_secs_f64() * 1e3)), "{stats:?}");
        assert_eq!((stats.runs, stats.failures), (101, 1));
        assert_eq!(stats.busy, ms(2005));
    }

    /// Seconds of runs until a doubled cost shows by three quarters, with a run every `pause`.
    fn seconds_to_follow(pause: Duration) -> f64 {
        let (start, mut typical) = (Instant::now(), Typical::default());
        let mut now = start;
        while now.duration_since(start) < Duration::from_secs(60) {
            typical.add(Duration::from_millis(10), now);
            now += pause;
        }
        let slower = now;
        while typical.seconds() < 0.0175 {
            typical.add(Duration::from_millis(20), now);
            now += pause;
        }
        now.duration_since(slower).as_secs_f64()
    }

    #[test]
    fn a_change_shows_in_seconds_or_in_five_runs() {
        for millis in [5, 50, 200, 1000, 3000] {
            let seconds = seconds_to_follow(Duration::from_millis(millis));
            let five_runs = 5.0 * millis as f64 / 1e3;
            assert!(seconds < five_runs.max(11.0) + 0.01, "{millis} ms: {seconds}");
        }
    }

    #[test]
    fn the_first_runs_count_alike() {
        let (now, mut typical) = (Instant::now(), Typical::default());
        assert_eq!((typical.seconds(), typical.runs()), (0.0, 0));
        for cost in [10, 20, 30] {
            typical.add(Duration::from_millis(cost), now);
        }
        assert!((typical.seconds() - 0.02).abs() < 1e-9);
        assert_eq!(typical.runs(), 3);
    }
}
