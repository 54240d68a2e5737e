//! How much of the time this device's stages compute.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Time over which compute time is added up.
const WINDOW: Duration = Duration::from_secs(2);

/// Share of the time that the device computes.
#[derive(Debug)]
pub(super) struct Busy(Mutex<Window>);

#[derive(Debug)]
struct Window {
    start: Instant,
    computed: Duration,
    last: f64,
}

impl Busy {
    pub(super) fn new(now: Instant) -> Self {
        Self(Mutex::new(Window { start: now, computed: Duration::ZERO, last: 0.0 }))
    }

    /// A run has ended.
    pub(super) fn record(&self, now: Instant, compute: Duration) {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        window.roll(now);
        window.computed += compute;
    }

    /// 0 to 1, over the last whole window.
    pub(super) fn share(&self, now: Instant) -> f64 {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
