//! How long a fetch goes on asking. Pure: time comes as an argument.

use std::time::{Duration, Instant};

/// Rounds in a row in which nobody holds what is missing, before a fetch gives up; its caller tries again later.
const ROUNDS: u32 = 3;
/// After a round that brought nothing a fetch waits this long...
const PAUSE_MIN: Duration = Duration::from_millis(300);
/// ...and twice as long after each further one, up to this.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Somebody holds what is missing, and nothing has come for so long: a holder serves a number of fetches at a time, and
/// each of those takes as long as a large blob does on a slow link.
const STUCK: Duration = Duration::from_secs(120);

/// What to do after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Ask around again, after this time.
    Again(Duration),
    /// Nobody holds what is missing.
    Missing,
    /// Those who hold it do not give it.
    Stuck,
}

/// Of one fetch.
#[derive(Debug)]
pub(super) struct Patience {
    /// What has arrived so far: whole blobs, and bytes of others.
    arrived: (usize, u64),
    since: Instant,
    nobody: u32,
    pause: Duration,
}

impl Patience {
    pub(super) fn new(now: Instant) -> Self {
        Self { arrived: (0, 0), since: now, nobody: 0, pause: PAUSE_MIN }
    }

    /// After a round that somebody was asked in, if `is_held`, and that left so much in the store. Only more than ever
    /// before renews the patience: what comes and is lost again does not.
    pub(super) fn next(&mut self, is_held: bool, arrived: (usize, u64), now: Instant) -> Next {
        if arrived > self.arrived {
            *self = Self { arrived, ..Self::new(now) };
            return Next::Again(Duration::ZERO);
        }
        self.nobody = if is_held { 0 } else { self.nobody + 1 };
        if self.nobody >= ROUNDS {
            return Next::Missing;
        }
        if now.saturating_duration_since(self.since) >= STUCK {
            return Next::Stuck;
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSE_MAX);
        Next::Again(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn what_nobody_holds_is_given_up_soon() {
        let start = Instant::now();
        let mut patience = Patience::new(start);
        assert_eq!(patience.next(false, (0, 0), start), Next::Again(PAUSE_MIN));
        assert_eq!(patience.next(false, (0, 0), start), Next::Again(PAUSE_MIN * 2));
        assert_eq!(patience.next(false, (0, 0), start), Next::Missing);
    }

    #[test]
    fn a_holder_that_is_busy_is_waited_for() {
        let start = Instant::now();
        let mut patience = Patience::new(start);
        let mut now = start;
        let mut rounds = 0;
        while let Next::Again(pause) = patience.next(true, (0, 0), now) {
            assert!((PAUSE_MIN..=PAUSE_MAX).contains(&pause));
            now += pause;
            rounds += 1;
        }
        assert_eq!(patience.next(true, (0, 0), now), Next::Stuck);
        assert!(now - start >= STUCK && now - start < STUCK + PAUSE_MAX && rounds > 20);
    }

    #[test]
    fn whatever_comes_renews_it() {
        let start = Instant::now();
        let mut patience = Patience::new(start);
        for second in 0..1000 {
            let now = start + seconds(second);
            assert_eq!(patience.next(second % 7 < 5, (0, second / 10), now).is_final(), None, "{second}");
        }
    }

    #[test]
    fn what_comes_and_is_lost_again_does_not_renew_it() {
        let mut now = Instant::now();
        let mut patience = Patience::new(now);
        let start = now;
        let mut turn = 0;
        while let Next::Again(pause) = patience.next(true, (0, turn % 2), now) {
            now += pause;
            turn += 1;
        }
        assert!(now - start < STUCK + 2 * PAUSE_MAX, "{turn}");
    }

    impl Next {
        fn is_final(self) -> Option<Self> {
            (!matches!(self, Self::Again(_))).then_some(self)
        }
    }
}
