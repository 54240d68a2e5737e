//! Links that may have become slow together: those of one device share its card, and all of a place its radio channel.
//! Pure.
//!
//! Where one link has become far slower, a plan that avoids it would go over the next one, which is known as it was
//! before. So the others of this device are probed, too, before they carry anything. Each device does this for its own
//! links; that it was told of by the devices at the other ends takes the news through the cluster.

use std::collections::BTreeMap;

use crate::net::PeerId;

use super::watch::{FAR_SLOWER, Ground, Suspicion};

/// Links that are probed at one look; the others wait for the next.
const PROBES_MAX: usize = 8;

/// Rates of a link, in bytes per second, to a peer and back from it, as far as they were measured.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Rates {
    /// As this device measured it.
    pub(super) to: Option<f64>,
    /// As the peer did.
    pub(super) back: Option<f64>,
}

/// Notices links of this device that have become far slower.
#[derive(Debug, Default)]
pub(super) struct Nearby {
    rates: BTreeMap<PeerId, Rates>,
    /// Links to probe, and the rate of one that has become slow.
    due: BTreeMap<PeerId, f64>,
}

impl Nearby {
    /// What there is to probe now that the links of live peers have these rates.
    pub(super) fn look(
        &mut self,
        rates: BTreeMap<PeerId, Rates>,
        is_at_rest: impl Fn(PeerId) -> bool,
    ) -> Vec<Suspicion> {
        let fallen = |before: Option<f64>, now: Option<f64>| {
            let (before, now) = before.zip(now)?;
            (now * FAR_SLOWER < before).then_some(now)
        };
        for (peer, now) in &rates {
            let before = self.rates.get(peer).copied().unwrap_or_default();
            let (to, back) = (fallen(before.to, now.to), fallen(before.back, now.back));
            let Some(rate) = to.or(back) else { continue };
            // That link itself is measured already, in the one direction or in the other.
            let others = rates.keys().filter(|other| *other != peer || to.is_none());
            self.due.extend(others.map(|other| (*other, rate)));
        }
        self.rates = rates;
        let is_fast = |peer: &PeerId, rate: f64| {
            self.rates.get(peer).and_then(|rates| rates.to).is_some_and(|known| rate * FAR_SLOWER < known)
        };
        // What carries something shows by itself how fast it is.
        self.due.retain(|peer, rate| is_fast(peer, *rate) && is_at_rest(*peer));
        let now: Vec<(PeerId, f64)> =
            self.due.iter().take(PROBES_MAX).map(|(peer, rate)| (*peer, *rate)).collect();
        now.iter().for_each(|(peer, _)| {
            self.due.remove(peer);
        });
        now.into_iter().map(|(peer, rate)| Suspicion { peer, ground: Ground::Nearby(rate) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: f64 = 120e6;
    const SLOW: f64 = 1e6;

    fn peers(count: usize) -> Vec<PeerId> {
        let mut peers: Vec<PeerId> = (0..count).map(|_| PeerId::random()).collect();
        peers.sort_unstable();
        peers
    }

    fn rates(peers: &[PeerId], of: impl Fn(usize) -> (f64, f64)) -> BTreeMap<PeerId, Rates> {
        let rates = |(to, back)| Rates { to: Some(to), back: Some(back) };
        peers.iter().enumerate().map(|(index, peer)| (*peer, rates(of(index)))).collect()
    }

    fn probed(suspicions: &[Suspicion]) -> Vec<PeerId> {
        assert!(
            suspicions
                .iter()
                .all(|suspicion| matches!(suspicion.ground, Ground::Nearby(rate) if rate == SLOW))
        );
        suspicions.iter().map(|suspicion| suspicion.peer).collect()
    }

    #[test]
    fn one_link_that_fell_has_the_others_probed_once() {
        let peers = peers(4);
        let mut nearby = Nearby::default();
        let as_before = rates(&peers, |_| (FAST, FAST));
        assert_eq!(nearby.look(as_before.clone(), |_| true), [], "what is new has not fallen");
        let fell = rates(&peers, |index| (if index == 1 { SLOW } else { FAST }, FAST));
        assert_eq!(probed(&nearby.look(fell.clone(), |_| true)), [peers[0], peers[2], peers[3]]);
        assert_eq!(nearby.look(fell, |_| true), [], "once");
        assert_eq!(nearby.look(as_before, |_| true), [], "what has become faster says nothing of others");
    }

    #[test]
    fn a_way_back_that_fell_has_the_way_there_probed_too() {
        let peers = peers(2);
        let mut nearby = Nearby::default();
        nearby.look(rates(&peers, |_| (FAST, FAST)), |_| true);
        let fell = rates(&peers, |index| (FAST, if index == 0 { SLOW } else { FAST }));
        assert_eq!(probed(&nearby.look(fell, |_| true)), peers);
    }

    #[test]
    fn links_that_are_not_far_faster_are_left_alone() {
        let peers = peers(3);
        let mut nearby = Nearby::default();
        let slow = |index| if index == 2 { 4.0 * SLOW } else { FAST };
        nearby.look(rates(&peers, |index| (slow(index), FAST)), |_| true);
        let fell = rates(&peers, |index| (if index == 0 { SLOW } else { slow(index) }, FAST));
        assert_eq!(probed(&nearby.look(fell, |_| true)), [peers[1]]);
        nearby.look(rates(&peers, |_| (FAST, FAST)), |_| true);
        assert_eq!(
            nearby.look(rates(&peers, |_| (FAST / 4.0, FAST)), |_| true),
            [],
            "and so is a fall by less"
        );
    }

    #[test]
    fn links_that_carry_something_show_it_themselves() {
        let peers = peers(3);
        let mut nearby = Nearby::default();
        nearby.look(rates(&peers, |_| (FAST, FAST)), |_| true);
        let fell = rates(&peers, |index| (if index == 0 { SLOW } else { FAST }, FAST));
        assert_eq!(probed(&nearby.look(fell, |peer| peer != peers[1])), [peers[2]]);
    }

    #[test]
    fn many_links_are_probed_some_at_a_time() {
        let peers = peers(3 * PROBES_MAX + 1);
        let mut nearby = Nearby::default();
        nearby.look(rates(&peers, |_| (FAST, FAST)), |_| true);
        let fell = rates(&peers, |index| (if index == 0 { SLOW } else { FAST }, FAST));
        let mut all = Vec::new();
        for _ in 0..3 {
            let some = probed(&nearby.look(fell.clone(), |_| true));
            assert_eq!(some.len(), PROBES_MAX);
            all.extend(some);
        }
        assert_eq!(all, peers[1..]);
        assert_eq!(nearby.look(fell, |_| true), []);
    }
}
