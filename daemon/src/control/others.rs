//! What other programs leave of this device's processors, by watching what they use. Pure: time comes as an argument.
//!
//! What a stage costs is told in processor time, which is the same beside other programs: it only takes longer to get.

use std::time::{Duration, Instant};

/// Length of a stretch.
const STRETCH: Duration = Duration::from_secs(4);
/// A program that takes what nobody else wants leaves this part when somebody does.
const FAIR: f64 = 0.5;
/// Beside programs that take more than half while stages wait for the processors, this part is left at least.
const LEAST: f64 = 0.1;
/// Less than this part is not told: clocks differ, and somebody looks at a status now and then.
const LEAST_NEWS: f64 = 0.05;

/// What has been used so far.
#[derive(Debug, Clone, Copy)]
pub struct Used {
    /// When.
    pub at: Instant,
    /// Processor seconds of all programs that share the processors with this process, and of itself; `None` where the
    /// system does not tell.
    pub all_s: Option<f64>,
    /// Processor seconds of this process.
    pub own_s: f64,
    /// Jobs of stages that wait or run.
    pub jobs: usize,
}

/// Watches other programs.
#[derive(Debug, Default)]
pub struct Others {
    last: Option<Used>,
    /// The part that they used in the stretch before.
    before: Option<f64>,
    told: f64,
    /// What they had of the processors while stages waited, where that was more than half.
    contested: Option<f64>,
}

impl Others {
    /// Whether a stretch is over, so that a look shows something.
    pub fn is_due(&self, now: Instant) -> bool {
        self.last.is_none_or(|last| now.saturating_duration_since(last.at) >= STRETCH)
    }

    /// The part of the processors that is not there for stages, as found at the last look: 0 for none.
    pub fn told(&self) -> f64 {
        self.told
    }

    /// The part of `cores` processors that is not there for stages: 0 for none.
    pub fn look(&mut self, now: Used, cores: f64) -> f64 {
        let Some(last) = self.last.filter(|last| last.all_s.is_some()) else {
            self.last = Some(now);
            return self.told;
        };
        if !self.is_due(now.at) {
            return self.told;
        }
        let seconds = now.at.saturating_duration_since(last.at).as_secs_f64();
        self.last = Some(now);
        let (Some(all), Some(all_before)) = (now.all_s, last.all_s) else { return self.told };
        let used = (all - all_before - (now.own_s - last.own_s)) / (seconds * cores);
        let used = used.clamp(0.0, 1.0 - LEAST);
        // What is over after one stretch was no reason to do anything.
        let lasting = self.before.replace(used).map_or(0.0, |before| before.min(used));
        let is_contest = last.jobs > 0 && now.jobs > 0;
        if is_contest && lasting > FAIR {
            self.contested = Some(lasting);
        } else if self.contested.is_some_and(|contested| used < contested - LEAST_NEWS) {
            self.contested = None;
        }
        let share = lasting.min(self.contested.unwrap_or(FAIR));
        let share = if share < LEAST_NEWS { 0.0 } else { share };
        if share == 0.0 || (share - self.told).abs() > LEAST_NEWS {
            self.told = share;
        }
        self.told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CORES: f64 = 2.0;

    struct Device {
        others: Others,
        now: Used,
    }

    impl Device {
        fn new() -> Self {
            let now = Used { at: Instant::now(), all_s: Some(100.0), own_s: 50.0, jobs: 0 };
            let mut others = Others::default();
            assert_eq!(others.look(now, CORES), 0.0);
            Self { others, now }
        }

        /// Four seconds in which the mesh and others use these parts of all processors.
        fn look(&mut self, own: f64, others: f64, jobs: usize) -> f64 {
            let all = STRETCH.as_secs_f64() * CORES;
            self.now.at += STRETCH;
            self.now.own_s += own * all;
            self.now.all_s = self.now.all_s.map(|before| before + (own + others) * all);
            self.now.jobs = jobs;
            self.others.look(self.now, CORES)
        }
    }

    #[test]
    fn what_lasts_is_told_and_what_is_over_soon_is_not() {
        let mut device = Device::new();
        assert_eq!(device.look(0.3, 0.02, 1), 0.0);
        assert_eq!(device.look(0.3, 0.4, 1), 0.0);
        assert_eq!(device.look(0.3, 0.02, 1), 0.0, "it was one stretch");
        assert_eq!(device.look(0.3, 0.4, 1), 0.0);
        assert!((device.look(0.3, 0.4, 1) - 0.4).abs() < 1e-9);
        assert!((device.look(0.3, 0.42, 1) - 0.4).abs() < 1e-9, "no news");
        assert_eq!(device.look(0.3, 0.0, 1), 0.0, "it is there again at once");
    }

    #[test]
    fn of_what_nobody_else_wants_half_is_there() {
        let mut device = Device::new();
        for _ in 0..5 {
            device.look(0.01, 0.98, 0);
        }
        assert_eq!(device.look(0.01, 0.98, 0), FAIR);
    }

    #[test]
    fn who_takes_more_than_half_of_what_stages_want_is_believed_until_it_takes_less() {
        let mut device = Device::new();
        let told = (0..4).map(|_| device.look(0.35, 0.65, 3)).last().unwrap();
        assert!((told - 0.65).abs() < 1e-9, "{told}");
        // Stages that were moved away leave more to it.
        let told = (0..4).map(|_| device.look(0.1, 0.9, 0)).last().unwrap();
        assert!((told - 0.65).abs() < 1e-9, "{told}");
        let told = (0..4).map(|_| device.look(0.1, 0.5, 0)).last().unwrap();
        assert!((told - 0.5).abs() < 1e-9, "{told}");
        assert_eq!(device.others.contested, None);
    }

    #[test]
    fn a_system_that_does_not_tell_has_no_others() {
        let mut device = Device::new();
        device.now.all_s = None;
        for _ in 0..4 {
            assert_eq!(device.look(0.3, 0.5, 1), 0.0);
        }
    }
}
