//! Devices that failed requests a moment ago and are back: for a while others are asked first. A link that loses three
//! of ten packets loses its device every few seconds, and every time what was sent to it; routers damp routes that flap
//! for the same reason (RFC 2439).

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use libp2p::PeerId;

/// How long a device is doubted after it was lost once. Twice as long after every further time.
const FIRST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(40);
/// What was not doubted, or was lost, for so long is forgotten.
const FORGET: Duration = Duration::from_secs(60);

/// Devices to be asked after others. Holds those that were lost in the last minutes only.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    of: BTreeMap<PeerId, Doubt>,
    /// Those that are doubted now.
    now: Vec<PeerId>,
    /// When the next of them is trusted again.
    ends: Option<Instant>,
}

#[derive(Debug)]
struct Doubt {
    times: u32,
    /// It is not heard of: as long as that lasts, it counts for more than a doubt.
    is_lost: bool,
    /// When it is trusted again; while it is lost, since when.
    until: Instant,
}

impl Doubts {
    /// Nothing is heard of a device.
    pub(super) fn lost(&mut self, now: Instant, device: PeerId) {
        self.of.retain(|_, doubt| now < doubt.until + FORGET);
        let doubt = self.of.entry(device).or_insert(Doubt { times: 0, is_lost: false, until: now });
        if !doubt.is_lost {
            *doubt = Doubt { times: doubt.times.saturating_add(1), is_lost: true, until: now };
        }
    }

    /// It is heard again.
    pub(super) fn found(&mut self, now: Instant, device: PeerId) {
        if let Some(doubt) = self.of.get_mut(&device).filter(|doubt| doubt.is_lost) {
            let doubled = FIRST.saturating_mul(2_u32.saturating_pow(doubt.times.saturating_sub(1)));
            (doubt.is_lost, doubt.until) = (false, now + doubled.min(LONGEST));
            self.look(now);
        }
    }

    /// A request that had waited for long for this device was answered by others at once.
    pub(super) fn suspected(&mut self, now: Instant, device: PeerId) {
        let is_doubted = self.of.get(&device).is_some_and(|doubt| doubt.is_lost || now < doubt.until);
        if !is_doubted {
            self.lost(now, device);
            self.found(now, device);
        }
    }

    /// The devices that are heard of and doubted.
    pub(super) fn list(&mut self, now: Instant) -> &[PeerId] {
        if self.ends.is_some_and(|at| at <= now) {
            self.look(now);
        }
        &self.now
    }

    fn look(&mut self, now: Instant) {
        let doubted = || self.of.iter().filter(|(_, doubt)| !doubt.is_lost && now < doubt.until);
        self.ends = doubted().map(|(_, doubt)| doubt.until).min();
        self.now = doubted().map(|(device, _)| *device).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubt_lasts_longer_every_time_and_is_forgotten() {
        let (device, start) = (PeerId::random(), Instant::now());
        let mut doubts = Doubts::default();
        let mut now = start;
        for seconds in [5, 10, 20, 40, 40] {
            doubts.lost(now, device);
            doubts.lost(now, device);
            assert!(doubts.list(now).is_empty(), "it is lost, and whoever asks knows that");
            now += Duration::from_secs(3);
            doubts.found(now, device);
            doubts.found(now + Duration::from_secs(1), device);
            now += Duration::from_secs(seconds);
            assert_eq!(doubts.list(now - Duration::from_millis(1)), [device]);
            assert!(doubts.list(now).is_empty());
        }
        now += FORGET;
        doubts.lost(now, device);
        doubts.found(now, device);
        assert_eq!(doubts.list(now + FIRST - Duration::from_millis(1)), [device]);
        assert!(doubts.list(now + FIRST).is_empty());
    }

    #[test]
    fn who_does_not_come_back_is_forgotten() {
        let now = Instant::now();
        let mut doubts = Doubts::default();
        (0..9).for_each(|_| doubts.lost(now, PeerId::random()));
        assert_eq!(doubts.of.len(), 9);
        doubts.lost(now + FORGET, PeerId::random());
        assert_eq!(doubts.of.len(), 1);
    }

    #[test]
    fn a_suspicion_is_a_doubt_unless_there_is_one() {
        let (device, now) = (PeerId::random(), Instant::now());
        let mut doubts = Doubts::default();
        (0..9).for_each(|_| doubts.suspected(now, device));
        assert_eq!(doubts.list(now), [device]);
        assert!(doubts.list(now + FIRST).is_empty());
    }
}
