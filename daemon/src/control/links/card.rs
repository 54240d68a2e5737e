//! What this device's network card carries in all: two links alone and both at once tell whether they share it. Pure.
//!
//! Two transfers at once take as long as the slower one alone where each has its own way, and as long as one after the
//! other where they share one. The same transfers alone are what they are compared with, so that what opening a stream
//! and buffers cost does not matter.

use std::time::Duration;

use crate::net::{PeerId, Probe};

use super::watch::apart;

/// Two links are compared when the slower one carries this part of what the faster one does: else both ways to share
/// take nearly as long.
const ALIKE: f64 = 0.65;
/// Where the two ways to share differ by less than this, nothing is shown.
const CLEAR: f64 = 1.2;
/// Rounds that showed nothing are repeated so often.
const TRIES: u32 = 8;

/// One or two probes at the same time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Round {
    /// Bytes sent over each link.
    pub(super) bytes: [u64; 2],
    /// From the first byte to the last answer.
    pub(super) took: Duration,
    /// Whether a processor set the rate.
    pub(super) processor_bound: bool,
}

impl Round {
    pub(super) fn new(probes: [Option<Probe>; 2], took: Duration) -> Self {
        let sent = |probe: Option<Probe>| probe.map_or(0, |probe| probe.sent);
        let processor_bound = probes.iter().flatten().any(|probe| probe.processor_bound);
        Self { bytes: probes.map(sent), took, processor_bound }
    }
}

/// Each link alone, then both at once.
pub(super) type Rounds = [Round; 3];

/// What is known of the card.
#[derive(Debug, Default)]
pub(super) struct CardWatch {
    /// The rate of the fastest link that this was found for.
    found_for: Option<f64>,
    tries: u32,
}

/// What the rounds have shown.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Shown {
    /// Both links share a card that carries so many times what the faster one does alone.
    Shared(f64),
    /// Each has its own way, as far as this goes.
    Apart,
    /// Something else set the rates.
    Nothing,
}

impl CardWatch {
    /// Two links to compare, when it is to be found out what they carry together: of those that are about as fast as
    /// the fastest one, two that `dice` picks, so that not all devices ask the same ones. Rates are in bytes per second.
    pub(super) fn look(
        &mut self,
        links: &[(PeerId, f64)],
        mut dice: impl FnMut(usize) -> usize,
    ) -> Option<[PeerId; 2]> {
        let fastest = links.iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
        if self.found_for.is_some_and(|rate| apart(rate, fastest)) {
            *self = Self::default();
        }
        if self.found_for.is_some() || self.tries >= TRIES {
            return None;
        }
        let alike = links.iter().filter(|(_, rate)| *rate >= ALIKE * fastest);
        let mut alike: Vec<PeerId> = alike.map(|(peer, _)| *peer).collect();
        if alike.len() < 2 {
            return None;
        }
        let first = alike.swap_remove(dice(alike.len()) % alike.len());
        let second = alike[dice(alike.len()) % alike.len()];
        Some([first, second])
    }

    /// Takes what the rounds with two of `links` showed; `None`: a probe failed, or something else went on.
    pub(super) fn note(&mut self, links: &[(PeerId, f64)], rounds: Option<Rounds>) -> Shown {
        self.tries += 1;
        let shown = rounds.map_or(Shown::Nothing, shown);
        if shown != Shown::Nothing {
            self.found_for = Some(links.iter().map(|(_, rate)| *rate).fold(0.0, f64::max));
        }
        shown
    }
}

fn shown([first, second, both]: Rounds) -> Shown {
    let alone = [first.bytes[0] as f64, second.bytes[1] as f64];
    let rate = [alone[0] / first.took.as_secs_f64(), alone[1] / second.took.as_secs_f64()];
    let bytes = both.bytes.map(|bytes| bytes as f64);
    let is_rate = |rate: &f64| rate.is_finite() && *rate > 0.0;
    if !rate.iter().all(is_rate) || bytes.contains(&0.0) {
        return Shown::Nothing;
    }
    let fastest = rate[0].max(rate[1]);
    let took_apart = (bytes[0] / rate[0]).max(bytes[1] / rate[1]);
    let took_shared = (bytes[0] + bytes[1]) / fastest;
    let took = both.took.as_secs_f64();
    if took_shared < CLEAR * took_apart {
        Shown::Nothing
    } else if took < (took_apart * took_shared).sqrt() {
        Shown::Apart
    } else if [first, second, both].iter().any(|round| round.processor_bound) {
        Shown::Nothing
    } else {
        Shown::Shared((took_shared / took).max(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(bytes: [u64; 2], ms: u64, processor_bound: bool) -> Round {
        Round { bytes, took: Duration::from_millis(ms), processor_bound }
    }

    /// Links that carry 500 kB alone in so many milliseconds, and both at once in so many.
    fn rounds(first: u64, second: u64, both: u64, processor_bound: bool) -> Rounds {
        let half = 500_000;
        [
            round([half, 0], first, false),
            round([0, half], second, false),
            round([half, half], both, processor_bound),
        ]
    }

    fn links(rates: [f64; 3]) -> Vec<(PeerId, f64)> {
        rates.map(|rate| (PeerId::random(), rate)).to_vec()
    }

    #[test]
    fn two_links_tell_whether_they_share_a_card() {
        for (rounds, expected) in [
            (rounds(200, 200, 400, false), Shown::Shared(1.0)),
            (rounds(200, 200, 320, false), Shown::Shared(1.25)),
            (rounds(200, 200, 420, false), Shown::Shared(1.0)),
            (rounds(200, 200, 220, false), Shown::Apart),
            (rounds(200, 290, 300, false), Shown::Apart),
            (rounds(200, 200, 220, true), Shown::Apart),
            (rounds(200, 200, 400, true), Shown::Nothing),
            (rounds(200, 390, 400, false), Shown::Nothing),
            (rounds(200, 200, 0, false), Shown::Apart),
            (rounds(0, 200, 400, false), Shown::Nothing),
        ] {
            let links = links([6.25e5, 6.2e5, 1e5]);
            let mut watch = CardWatch::default();
            let asked = watch.look(&links, |_| 0).unwrap();
            assert!(asked.contains(&links[0].0) && asked.contains(&links[1].0), "the fast ones");
            match (watch.note(&links, Some(rounds)), expected) {
                (Shown::Shared(seen), Shown::Shared(wanted)) => {
                    assert!((seen - wanted).abs() < 0.01, "{seen}")
                }
                (seen, wanted) => assert_eq!(seen, wanted, "{rounds:?}"),
            }
        }
    }

    #[test]
    fn what_one_transfer_gets_of_both_does_not_matter() {
        let one_after_the_other = [
            round([500_000, 0], 200, false),
            round([0, 500_000], 200, false),
            round([800_000, 300_000], 440, false),
        ];
        assert_eq!(shown(one_after_the_other), Shown::Shared(1.0));
    }

    #[test]
    fn links_that_differ_much_are_not_compared() {
        assert!(CardWatch::default().look(&links([1e6, 5e5, 1e5]), |_| 0).is_none());
        assert!(CardWatch::default().look(&links([1.0, 1.0, 1.0])[..1], |_| 0).is_none());
        assert!(CardWatch::default().look(&[], |_| 0).is_none());
    }

    #[test]
    fn what_was_found_stands_until_the_links_change() {
        let mut watch = CardWatch::default();
        let mut links = links([6e5, 6e5, 6e5]);
        watch.look(&links, |_| 1).unwrap();
        watch.note(&links, Some(rounds(200, 200, 400, false)));
        assert!(watch.look(&links, |_| 0).is_none());
        links[1].1 = 9e5;
        for _ in 0..TRIES {
            assert!(
                watch.look(&[links[1], links[1]], |_| 0).is_some(),
                "a card that carries more than was thought"
            );
            watch.note(&links, None);
        }
        assert!(watch.look(&links, |_| 0).is_none(), "it cannot be found out");
    }
}
