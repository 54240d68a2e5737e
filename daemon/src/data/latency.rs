//! Recent latencies and rates, in bounded memory.

use std::time::{Duration, Instant};

/// Seconds that a rate looks back.
const RATE_SECONDS: u64 = 10;

/// The last latencies, with percentiles of them.
#[derive(Debug)]
pub(super) struct Recent {
    micros: Vec<u32>,
    next: usize,
    most: usize,
}

impl Recent {
    /// Remembers the last `most`, one at least.
    pub(super) fn last(most: usize) -> Self {
        Self { micros: Vec::new(), next: 0, most: most.max(1) }
    }

    pub(super) fn record(&mut self, latency: Duration) {
        let micros = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX);
        if self.micros.len() < self.most {
            self.micros.push(micros);
        } else {
            self.micros[self.next] = micros;
        }
        self.next = (self.next + 1) % self.most;
    }

    pub(super) fn len(&self) -> usize {
        self.micros.len()
    }

    /// The `q`-quantile (0 to 1) by the nearest rank; `None` while nothing was recorded.
    pub(super) fn quantile(&self, q: f64) -> Option<Duration> {
        self.quantiles([q]).map(|[value]| value)
    }

    /// Several quantiles of the same moment.
    pub(super) fn quantiles<const N: usize>(&self, of: [f64; N]) -> Option<[Duration; N]> {
        if self.micros.is_empty() {
            return None;
        }
        let mut sorted = self.micros.clone();
        Some(of.map(|q| {
            let rank = ((sorted.len() as f64 * q).ceil() as usize).clamp(1, sorted.len()) - 1;
            let (_, value, _) = sorted.select_nth_unstable(rank);
            Duration::from_micros(u64::from(*value))
        }))
    }
}

/// Events per second over the last ten seconds.
#[derive(Debug)]
pub(super) struct Rate {
    start: Instant,
    /// Count per second since `start`, in a ring; the second that each slot is about stands beside it.
    slots: [(u64, u64); RATE_SECONDS as usize],
}

impl Rate {
    pub(super) fn new(now: Instant) -> Self {
        Self { start: now, slots: [(0, 0); RATE_SECONDS as usize] }
    }

    pub(super) fn record(&mut self, now: Instant) {
        let second = now.saturating_duration_since(self.start).as_secs();
        let slot = &mut self.slots[(second % RATE_SECONDS) as usize];
        if slot.0 != second {
            *slot = (second, 0);
        }
        slot.1 += 1;
    }

    /// Events per second; over the time since the start while that is shorter than the window.
    pub(super) fn per_second(&self, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.start);
        let second = elapsed.as_secs();
        let oldest = (second + 1).saturating_sub(RATE_SECONDS);
        let count: u64 =
            self.slots.iter().filter(|(s, _)| *s >= oldest && *s <= second).map(|(_, n)| n).sum();
        let covered = (elapsed.as_secs_f64() - oldest as f64).max(1.0);
        count as f64 / covered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECENT: usize = 512;

    #[test]
    fn quantiles_are_nearest_ranks_of_the_last_values() {
        let mut recent = Recent::last(RECENT);
        assert_eq!(recent.quantile(0.5), None);
        for i in 1..=100u64 {
            recent.record(Duration::from_micros(i));
        }
        assert_eq!(recent.quantile(0.5), Some(Duration::from_micros(50)));
        assert_eq!(recent.quantile(0.99), Some(Duration::from_micros(99)));
        assert_eq!(recent.quantile(1.0), Some(Duration::from_micros(100)));
        for _ in 0..RECENT {
            recent.record(Duration::from_micros(7));
        }
        assert_eq!((recent.len(), recent.quantile(0.01)), (RECENT, Some(Duration::from_micros(7))));
    }

    #[test]
    fn a_rate_forgets_what_is_older_than_ten_seconds() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        for i in 0..100u64 {
            rate.record(start + Duration::from_millis(i * 100));
        }
        let per_second = rate.per_second(start + Duration::from_millis(9_999));
        assert!((per_second - 10.0).abs() < 0.1, "{per_second}");
        assert_eq!(rate.per_second(start + Duration::from_secs(25)), 0.0);
    }
}
