//! Devices that failed requests a moment ago and are back: for a while others are asked first. A link that loses three
//! of ten packets loses its device every few seconds, and every time what was sent to it; routers damp routes that flap
//! for the same reason (RFC 2439). Then one request tries it, as in the half-open state of a circuit breaker (Nygard,
//! Release It!); when that is answered, the others follow.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use libp2p::PeerId;

/// How long a device is doubted after it was lost once. Twice as long after every further time.
const FIRST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(40);
/// A device is tried again when the first try was not heard of for so long.
const TRIAL: Duration = Duration::from_secs(10);
/// What was not doubted, or was lost, for so long is forgotten.
const FORGET: Duration = Duration::from_secs(60);

/// Devices to be asked after others. Holds those that were lost in the last minutes only.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    of: BTreeMap<PeerId, Doubt>,
    /// Those that are doubted now.
    now: Vec<PeerId>,
    /// When the next of them may be tried.
    ends: Option<Instant>,
}

#[derive(Debug)]
struct Doubt {
    times: u32,
    state: State,
    /// When the state began.
    since: Instant,
    /// When it ends; of one without an end the same.
    at: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It is not heard of: as long as that lasts, it counts for more than a doubt.
    Lost,
    /// Others are asked first. Then one request tries it.
    Doubted,
    /// That request is on its way.
    Tried,
    /// It has answered.
    Trusted,
}

impl Doubts {
    /// Nothing is heard of a device.
    pub(super) fn lost(&mut self, now: Instant, device: PeerId) {
        self.of.retain(|_, doubt| now < doubt.at + FORGET);
        let doubt =
            self.of.entry(device).or_insert(Doubt { times: 0, state: State::Trusted, since: now, at: now });
        if doubt.state != State::Lost {
            *doubt = Doubt { times: doubt.times.saturating_add(1), state: State::Lost, since: now, at: now };
            self.look(now);
        }
    }

    /// It is heard again.
    pub(super) fn found(&mut self, now: Instant, device: PeerId) {
        if let Some(doubt) = self.of.get_mut(&device).filter(|doubt| doubt.state == State::Lost) {
            let doubled = FIRST.saturating_mul(2_u32.saturating_pow(doubt.times.saturating_sub(1)));
            (doubt.state, doubt.since, doubt.at) = (State::Doubted, now, now + doubled.min(LONGEST));
            self.look(now);
        }
    }

    /// A request that had waited for long for this device was answered by others. True if it was not doubted.
    pub(super) fn suspected(&mut self, now: Instant, device: PeerId) -> bool {
        let is_doubted = self.of.get(&device).is_some_and(|doubt| match doubt.state {
            State::Lost => true,
            State::Doubted => now < doubt.at,
            State::Tried | State::Trusted => false,
        });
        if !is_doubted {
            self.lost(now, device);
            self.found(now, device);
        }
        !is_doubted
    }

    /// A request is sent to a device. If that was doubted until now, others wait for what becomes of this one.
    pub(super) fn tried(&mut self, now: Instant, device: PeerId) {
        let is_due =
            |doubt: &&mut Doubt| matches!(doubt.state, State::Doubted | State::Tried) && doubt.at <= now;
        if let Some(doubt) = self.of.get_mut(&device).filter(is_due) {
            (doubt.state, doubt.since, doubt.at) = (State::Tried, now, now + TRIAL);
            self.look(now);
        }
    }

    /// A request that was `sent` then was answered through a device, which is proof unless that was before the doubt.
    pub(super) fn answered(&mut self, now: Instant, device: PeerId, sent: Instant) {
        let is_proven = |doubt: &&mut Doubt| match doubt.state {
            State::Lost | State::Trusted => false,
            State::Doubted => sent >= doubt.since,
            State::Tried => true,
        };
        if let Some(doubt) = self.of.get_mut(&device).filter(is_proven) {
            (doubt.state, doubt.since, doubt.at) = (State::Trusted, now, now);
            self.look(now);
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
        let is_doubted = |doubt: &Doubt| match doubt.state {
            State::Lost | State::Trusted => false,
            State::Doubted | State::Tried => now < doubt.at,
        };
        let doubted = || self.of.iter().filter(|(_, doubt)| is_doubted(doubt));
        self.ends = doubted().map(|(_, doubt)| doubt.at).min();
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
        let new = (0..9).filter(|_| doubts.suspected(now, device)).count();
        assert_eq!(new, 1);
        assert_eq!(doubts.list(now), [device]);
        assert!(doubts.list(now + FIRST).is_empty());
    }

    #[test]
    fn one_request_tries_who_was_doubted() {
        let (device, start) = (PeerId::random(), Instant::now());
        let mut doubts = Doubts::default();
        doubts.tried(start, device);
        assert!(doubts.of.is_empty(), "who is not doubted needs no trial");
        assert!(doubts.suspected(start, device));
        doubts.answered(start, device, start - Duration::from_millis(1));
        assert_eq!(doubts.list(start), [device], "that was on its way before");
        doubts.answered(start, device, start);
        assert!(doubts.list(start).is_empty(), "it was asked for want of others, and answered");
        assert!(doubts.suspected(start, device));
        let mut now = start + 2 * FIRST;
        assert!(doubts.list(now).is_empty());
        doubts.tried(now, device);
        assert_eq!(doubts.list(now), [device]);
        now += TRIAL;
        assert!(doubts.list(now).is_empty(), "nothing is known of the first try");
        doubts.tried(now, device);
        assert!(doubts.suspected(now, device), "the try was in vain");
        assert_eq!(doubts.list(now + 4 * FIRST - Duration::from_millis(1)), [device]);
        now += 4 * FIRST;
        doubts.tried(now, device);
        doubts.answered(now, device, start);
        assert!(doubts.list(now).is_empty());
        doubts.tried(now, device);
        assert!(doubts.list(now).is_empty(), "it is trusted");
    }
}
