//! The open loop: arrivals drawn from a seed, handed to clients at the moment they are due.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::SyncSender,
    },
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::{clients::Job, record::Shared};

/// One entrance with its clients.
#[derive(Debug)]
pub(super) struct Door {
    jobs: SyncSender<Job>,
    busy: Arc<AtomicUsize>,
    clients: usize,
}

impl Door {
    pub(super) fn new(jobs: SyncSender<Job>, clients: usize) -> Self {
        Self { jobs, busy: Arc::new(AtomicUsize::new(0)), clients }
    }

    /// Clients that have a job, for them to lower.
    pub(super) fn busy(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.busy)
    }

    /// Takes a job if a client is free.
    fn take(&self, scheduled: Instant, input: usize) -> bool {
        if self.busy.load(Ordering::Acquire) >= self.clients {
            return false;
        }
        self.busy.fetch_add(1, Ordering::AcqRel);
        self.jobs.try_send(Job { scheduled, input }).is_ok()
    }
}

/// Moments of a Poisson process, as time since its start.
#[derive(Debug)]
pub(super) struct Moments {
    random: ChaCha8Rng,
    rate_per_s: f64,
    at: f64,
}

impl Moments {
    pub(super) fn new(rate_per_s: f64, seed: u64) -> Self {
        Self { random: ChaCha8Rng::seed_from_u64(seed), rate_per_s, at: 0.0 }
    }
}

impl Iterator for Moments {
    type Item = Duration;

    /// Gaps are exponential: the inverse of their distribution at a uniform number below 1.
    fn next(&mut self) -> Option<Duration> {
        let uniform: f64 = self.random.random();
        self.at += -(1.0 - uniform).ln() / self.rate_per_s;
        Duration::try_from_secs_f64(self.at).ok()
    }
}

/// Hands out arrivals until the load stops. Each goes to an entrance by lot; where that one has no free client, to
/// the next that has; else it is dropped.
pub(super) fn dispatch(rate_per_s: f64, seed: u64, inputs: usize, doors: &[Door], shared: &Shared) {
    let mut random = ChaCha8Rng::seed_from_u64(seed ^ 0x6c6f_6164);
    for moment in Moments::new(rate_per_s, seed) {
        let scheduled = shared.origin() + moment;
        while let Some(wait) = scheduled.checked_duration_since(Instant::now()).filter(|w| !w.is_zero()) {
            if shared.is_stopped() {
                return;
            }
            std::thread::park_timeout(wait);
        }
        if shared.is_stopped() {
            return;
        }
        let (first, input) = (random.random_range(0..doors.len()), random.random_range(0..inputs));
        let mut in_turn = doors.iter().cycle().skip(first).take(doors.len());
        if !in_turn.any(|door| door.take(scheduled, input)) {
            shared.dropped();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_exponential_and_the_seed_decides() {
        let moments: Vec<f64> = Moments::new(50.0, 7).take(20_000).map(|m| m.as_secs_f64()).collect();
        assert_eq!(Moments::new(50.0, 7).nth(99).map(|m| m.as_secs_f64()), Some(moments[99]));
        assert_ne!(Moments::new(50.0, 8).nth(99).map(|m| m.as_secs_f64()), Some(moments[99]));
        let gaps: Vec<f64> = moments.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let deviation = (gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        // Mean and standard deviation of an exponential distribution are equal; 20,000 draws come within 3 %.
        assert!((mean / 0.02 - 1.0).abs() < 0.03, "{mean}");
        assert!((deviation / 0.02 - 1.0).abs() < 0.05, "{deviation}");
    }
}
