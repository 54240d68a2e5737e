//! Devices that are left out of a deployment's plans for a while after they failed to load a stage. Pure.
//!
//! A device that fails once may do better at once (the network hiccuped), and a deployment may not be possible without it;
//! one that fails again and again must not cost a plan every few seconds.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// A device that failed to prepare a stage is left out for this long, twice as long after every further time...
const FIRST: Duration = Duration::from_secs(5);
/// ...up to this, until it has loaded one...
const LONGEST: Duration = Duration::from_secs(60);
/// ...or has not failed for this long.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// One that has lost a stage that it served is left out for this long after it was last seen so.
const LOST: Duration = Duration::from_secs(30);

/// By deployment and device.
#[derive(Debug, Default)]
pub(super) struct Exclusions(BTreeMap<(String, String), Exclusion>);

#[derive(Debug)]
struct Exclusion {
    until: Instant,
    failures: u32,
    /// As of the last look.
    is_out: bool,
}

impl Exclusions {
    /// Begins a look: who has been out for long enough is back. What is deployed anew under an old name is another thing.
    pub(super) fn look(&mut self, now: Instant, is_deployed: impl Fn(&str) -> bool) {
        self.0.retain(|(name, _), exclusion| is_deployed(name) && exclusion.until + FORGOTTEN > now);
        self.0.values_mut().for_each(|exclusion| exclusion.is_out = exclusion.until > now);
    }

    /// A device could not prepare a stage.
    pub(super) fn failed(&mut self, now: Instant, deployment: &str, device: String) {
        let exclusion = self.of(now, deployment, device);
        let pause = FIRST * 2_u32.saturating_pow(exclusion.failures.min(16));
        exclusion.failures += 1;
        exclusion.until = exclusion.until.max(now + pause.min(LONGEST));
    }

    /// A device does not have a stage that it serves, and cannot load it.
    pub(super) fn lost(&mut self, now: Instant, deployment: &str, device: String) {
        let exclusion = self.of(now, deployment, device);
        exclusion.until = exclusion.until.max(now + LOST);
    }

    fn of(&mut self, now: Instant, deployment: &str, device: String) -> &mut Exclusion {
        let fresh = Exclusion { until: now, failures: 0, is_out: true };
        let exclusion = self.0.entry((deployment.to_owned(), device)).or_insert(fresh);
        exclusion.is_out = true;
        exclusion
    }

    /// A device has loaded a stage.
    pub(super) fn recovered(&mut self, deployment: &str, device: &str) {
        if !self.0.is_empty() {
            self.0.remove(&(deployment.to_owned(), device.to_owned()));
        }
    }

    /// Whether plans for a deployment leave a device out.
    pub(super) fn is_out(&self, deployment: &str, device: &str) -> bool {
        let of = self.0.get(&(deployment.to_owned(), device.to_owned()));
        of.is_some_and(|exclusion| exclusion.is_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds until the device is back.
    fn out(exclusions: &mut Exclusions, now: &mut Instant) -> u64 {
        let start = *now;
        while exclusions.is_out("a", "x") {
            *now += Duration::from_secs(1);
            exclusions.look(*now, |_| true);
        }
        now.saturating_duration_since(start).as_secs()
    }

    #[test]
    fn who_fails_again_and_again_is_left_out_for_longer_and_longer() {
        let (mut exclusions, mut now) = (Exclusions::default(), Instant::now());
        assert!(!exclusions.is_out("a", "x"));
        let mut fail = |exclusions: &mut Exclusions, later: Duration| {
            now += later;
            exclusions.look(now, |_| true);
            exclusions.failed(now, "a", "x".to_owned());
            out(exclusions, &mut now)
        };
        let times: Vec<u64> = (0..6).map(|_| fail(&mut exclusions, Duration::ZERO)).collect();
        assert_eq!(times, [5, 10, 20, 40, 60, 60]);
        exclusions.recovered("a", "x");
        assert_eq!(fail(&mut exclusions, Duration::ZERO), 5, "it had loaded one");
        assert_eq!(fail(&mut exclusions, FORGOTTEN), 5, "that was long ago");
        exclusions.failed(Instant::now() + FORGOTTEN, "a", "x".to_owned());
        exclusions.look(Instant::now(), |_| false);
        assert!(!exclusions.is_out("a", "x"), "it is not deployed any more");
    }

    #[test]
    fn a_stage_that_stays_lost_keeps_its_device_out() {
        let (mut exclusions, mut now) = (Exclusions::default(), Instant::now());
        for _ in 0..100 {
            exclusions.lost(now, "a", "x".to_owned());
            now += Duration::from_secs(1);
            exclusions.look(now, |_| true);
            assert!(exclusions.is_out("a", "x") && !exclusions.is_out("b", "x"));
        }
        assert_eq!(out(&mut exclusions, &mut now), 29);
    }
}
