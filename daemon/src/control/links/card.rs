//! What this device's network card carries in all: a probe of two links at once tells whether they share it. Pure.

use crate::net::{PeerId, Probe};

use super::apart;

/// Two links that carry so many times what the faster one carries alone do not share a card that is full.
const APART: f64 = 1.5;
/// Probes of two links that showed nothing are repeated so often.
const TRIES: u32 = 4;

/// What is known of the card.
#[derive(Debug, Default)]
pub(super) struct CardWatch {
    /// The rates of the two fastest links that this was found for.
    rates: Option<(f64, f64)>,
    tries: u32,
}

/// What a probe of two links at once has shown.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Shown {
    /// Both share a card of so many bytes per second.
    Shared(f64),
    /// Each has its own way, as far as this goes.
    Apart,
    /// Processors set the rates.
    Nothing,
}

impl CardWatch {
    /// The two fastest links, with what is known of them, when it is to be found out what they carry together. Rates are
    /// in bytes per second.
    pub(super) fn look(&mut self, links: &[(PeerId, f64)]) -> Option<[(PeerId, f64); 2]> {
        let mut links = links.to_vec();
        links.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let [first, second, ..] = links[..] else { return None };
        if self.rates.is_some_and(|(a, b)| apart(a, first.1) || apart(b, second.1)) {
            *self = Self::default();
        }
        let due = self.rates.is_none() && self.tries < TRIES;
        due.then_some([first, second])
    }

    /// Takes what the probe of two links showed; `None`: it failed.
    pub(super) fn note(&mut self, links: [(PeerId, f64); 2], probes: Option<[Probe; 2]>) -> Shown {
        self.tries += 1;
        let shown = probes.map_or(Shown::Nothing, |probes| shown(links.map(|(_, rate)| rate), probes));
        if shown != Shown::Nothing {
            self.rates = Some((links[0].1, links[1].1));
        }
        shown
    }
}

fn shown(alone: [f64; 2], together: [Probe; 2]) -> Shown {
    let (most, sum) = (alone[0].max(alone[1]), together[0].bytes_per_s + together[1].bytes_per_s);
    if sum >= APART * most {
        Shown::Apart
    } else if together.iter().any(|probe| probe.processor_bound) {
        Shown::Nothing
    } else {
        Shown::Shared(sum.max(most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probes(a: f64, b: f64, processor_bound: bool) -> Option<[Probe; 2]> {
        Some([a, b].map(|bytes_per_s| Probe { bytes_per_s, processor_bound }))
    }

    fn links(rates: [f64; 3]) -> Vec<(PeerId, f64)> {
        rates.map(|rate| (PeerId::random(), rate)).to_vec()
    }

    #[test]
    fn two_links_tell_whether_they_share_a_card() {
        for (together, expected) in [
            (probes(3e5, 3.2e5, false), Shown::Shared(6.25e5)),
            (probes(6e5, 6e5, false), Shown::Apart),
            (probes(6e5, 6e5, true), Shown::Apart),
            (probes(1e5, 1e5, true), Shown::Nothing),
            (None, Shown::Nothing),
        ] {
            let mut watch = CardWatch::default();
            let asked = watch.look(&links([6.25e5, 6.2e5, 1e5])).unwrap();
            assert_eq!(asked.map(|(_, rate)| rate), [6.25e5, 6.2e5]);
            assert_eq!(watch.note(asked, together), expected);
        }
        assert!(
            CardWatch::default().look(&links([1.0, 1.0, 1.0])[..1]).is_none(),
            "one link has the card to itself"
        );
    }

    #[test]
    fn what_was_found_stands_until_the_links_change() {
        let mut watch = CardWatch::default();
        let mut links = links([6e5, 6e5, 6e5]);
        let asked = watch.look(&links).unwrap();
        watch.note(asked, probes(3e5, 3e5, false));
        assert!(watch.look(&links).is_none());
        links[1].1 = 9e5;
        assert!(watch.look(&links).is_some(), "a card that carries more than was thought");
        for _ in 0..TRIES {
            let asked = watch.look(&links).unwrap();
            watch.note(asked, None);
        }
        assert!(watch.look(&links).is_none(), "it cannot be found out");
    }
}
