//! What is under way on a link: frames in the order in which they come out.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::Impairment;

/// What happened to a frame at its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Held,
    Doubled,
    Lost,
    Overflowed,
    Cut,
}

#[derive(Debug)]
struct Held {
    due: Instant,
    number: u64,
    frame: Box<[u8]>,
}

/// Frames under way, at most so many, with their dice.
#[derive(Debug)]
pub(super) struct DelayLine {
    held: BinaryHeap<Reverse<Held>>,
    most: usize,
    /// When the last frame that keeps its place comes out.
    last_due: Option<Instant>,
    entered: u64,
    random: ChaCha8Rng,
}

impl DelayLine {
    pub(super) fn new(most: usize, seed: u64) -> Self {
        let random = ChaCha8Rng::seed_from_u64(seed);
        Self { held: BinaryHeap::new(), most, last_due: None, entered: 0, random }
    }

    /// A frame enters.
    pub(super) fn push(&mut self, now: Instant, frame: &[u8], link: &Impairment) -> Fate {
        if link.cut {
            return Fate::Cut;
        }
        if self.falls(link.loss) {
            return Fate::Lost;
        }
        if self.held.len() >= self.most {
            return Fate::Overflowed;
        }
        let due = self.due(now, link);
        let twice = self.falls(link.duplicate) && self.held.len() + 1 < self.most;
        if twice {
            self.hold(due, frame);
        }
        self.hold(due, frame);
        if twice { Fate::Doubled } else { Fate::Held }
    }

    /// A frame that has come out by now.
    pub(super) fn take(&mut self, now: Instant) -> Option<Box<[u8]>> {
        if self.next_due()? > now {
            return None;
        }
        self.held.pop().map(|Reverse(held)| held.frame)
    }

    /// When the next one comes out.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.held.peek().map(|Reverse(held)| held.due)
    }

    fn due(&mut self, now: Instant, link: &Impairment) -> Instant {
        if self.falls(link.reorder) {
            return now;
        }
        let jitter = if link.jitter_ms > 0.0 {
            self.random.random_range(-link.jitter_ms..=link.jitter_ms)
        } else {
            0.0
        };
        let delay = Duration::from_secs_f64((link.delay_ms + jitter).max(0.0) / 1e3);
        // A frame never overtakes one that was sent before it.
        let due = self.last_due.map_or(now + delay, |last| last.max(now + delay));
        self.last_due = Some(due);
        due
    }

    fn falls(&mut self, chance: f64) -> bool {
        chance > 0.0 && self.random.random_bool(chance.min(1.0))
    }

    fn hold(&mut self, due: Instant, frame: &[u8]) {
        self.entered += 1;
        self.held.push(Reverse(Held { due, number: self.entered, frame: frame.into() }));
    }
}

impl Ord for Held {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Held {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Sends numbered frames, one per millisecond: when each came out, in milliseconds, in the order of coming out.
    fn through(line: &mut DelayLine, link: &Impairment, frames: u32) -> Vec<(u32, f64)> {
        let start = Instant::now();
        let mut out = Vec::new();
        for ms in 0..frames + 200 {
            let now = start + Duration::from_millis(u64::from(ms));
            if ms < frames {
                line.push(now, &ms.to_be_bytes(), link);
            }
            while let Some(due) = line.next_due().filter(|due| *due <= now) {
                let frame = line.take(now).expect("it is due");
                let number = u32::from_be_bytes(frame[..].try_into().expect("four bytes"));
                out.push((number, (due - start).as_secs_f64() * 1e3));
            }
        }
        out
    }

    proptest! {
        #[test]
        fn order_is_kept_and_each_delay_is_within_the_jitter(
            delay_ms in 0.0f64..50.0, jitter_ms in 0.0f64..20.0, seed: u64,
        ) {
            let link = Impairment { delay_ms, jitter_ms, ..Impairment::default() };
            let out = through(&mut DelayLine::new(1000, seed), &link, 300);
            prop_assert_eq!(out.len(), 300);
            for (place, (number, at)) in out.iter().enumerate() {
                prop_assert_eq!(*number as usize, place);
                let delay = at - f64::from(*number);
                prop_assert!(delay >= (delay_ms - jitter_ms).max(0.0) - 1e-3, "{}", delay);
                // Waiting for the one before can add to a frame's own delay, never beyond the largest delay.
                prop_assert!(delay <= delay_ms + jitter_ms + 1e-3, "{}", delay);
            }
        }

        #[test]
        fn losses_come_in_the_part_that_was_asked_for(loss in 0.05f64..0.95, seed: u64) {
            let mut line = DelayLine::new(10, seed);
            let link = Impairment { loss, ..Impairment::default() };
            let now = Instant::now();
            let mut lost = 0u32;
            for _ in 0..4000 {
                lost += u32::from(line.push(now, b"x", &link) == Fate::Lost);
                line.take(now);
            }
            let part = f64::from(lost) / 4000.0;
            prop_assert!((part - loss).abs() < 0.05, "{part} for {loss}");
        }
    }

    #[test]
    fn a_full_line_drops_at_its_tail_and_a_cut_takes_nothing() {
        let mut line = DelayLine::new(3, 0);
        let link = Impairment { delay_ms: 10.0, ..Impairment::default() };
        let now = Instant::now();
        let fates: Vec<Fate> = (0..5u8).map(|n| line.push(now, &[n], &link)).collect();
        assert_eq!(fates, [Fate::Held, Fate::Held, Fate::Held, Fate::Overflowed, Fate::Overflowed]);
        assert_eq!(line.take(now), None);
        let later = now + Duration::from_millis(10);
        let out: Vec<u8> = std::iter::from_fn(|| line.take(later)).map(|frame| frame[0]).collect();
        assert_eq!(out, [0, 1, 2]);
        assert_eq!(line.push(later, &[9], &Impairment { cut: true, ..link }), Fate::Cut);
    }

    #[test]
    fn doubled_and_reordered_frames_come_when_asked_for() {
        let link = Impairment { delay_ms: 20.0, duplicate: 0.5, ..Impairment::default() };
        let twice = through(&mut DelayLine::new(1000, 1), &link, 300);
        assert!(twice.len() > 400 && twice.len() < 500, "{}", twice.len());
        assert!(twice.is_sorted_by_key(|(number, _)| *number));
        let link = Impairment { delay_ms: 20.0, reorder: 0.2, ..Impairment::default() };
        let out = through(&mut DelayLine::new(1000, 1), &link, 300);
        assert_eq!(out.len(), 300);
        assert!(!out.is_sorted_by_key(|(number, _)| *number));
    }

    #[test]
    fn a_shorter_delay_does_not_let_later_frames_pass_earlier_ones() {
        let mut line = DelayLine::new(10, 0);
        let now = Instant::now();
        line.push(now, &[0], &Impairment { delay_ms: 100.0, ..Impairment::default() });
        line.push(now, &[1], &Impairment::default());
        assert_eq!(line.take(now), None);
        let later = now + Duration::from_millis(100);
        assert_eq!(line.take(later).as_deref(), Some(&[0][..]));
        assert_eq!(line.take(later).as_deref(), Some(&[1][..]));
    }
}
