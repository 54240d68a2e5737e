//! Links that may have become slow together: those of one device share its card, and all of a place its radio channel.
//! Pure.
//!
//! Where one link has become far slower, a plan that avoids it would go over the next one, which is known as it was
//! before. So the others of this device are probed, too, before they carry anything; the way there counts as slow at once
//! where the way back has become so. Each device does this for its own links; that it was told of by the devices at the
//! other ends takes the news through the cluster.

use std::collections::BTreeMap;

use crate::net::PeerId;

use super::watch::{FAR_SLOWER, Ground, Suspicion};

/// Links that are probed at one look; the others wait for the next.
const PROBES_MAX: usize = 8;
/// Probes that came to nothing: after so many the link counts as slow.
const TRIES_MAX: u32 = 5;

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
    due: BTreeMap<PeerId, Due>,
}

/// A link to probe.
#[derive(Debug, Clone, Copy)]
struct Due {
    /// Bytes per second of one that has become slow.
    slow: f64,
    /// Bytes per second of this one, before.
    before: f64,
    /// It is the way back of this one that has become slow: this one counts as slow until a probe shows more.
    is_way_back: bool,
    tries: u32,
}

/// What there is to do.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Found {
    /// Links that count as slow as this from now on, in bytes per second.
    pub(super) assumed: Vec<(PeerId, f64)>,
    /// Links to probe.
    pub(super) suspicions: Vec<Suspicion>,
}

impl Nearby {
    /// What there is to do now that the links of live peers have these rates.
    pub(super) fn look(
        &mut self,
        rates: BTreeMap<PeerId, Rates>,
        is_at_rest: impl Fn(PeerId) -> bool,
    ) -> Found {
        let fallen = |before: Option<f64>, now: Option<f64>| {
            let (before, now) = before.zip(now)?;
            (now * FAR_SLOWER < before).then_some(now)
        };
        let mut found = Found::default();
        for (peer, now) in &rates {
            let before = self.rates.get(peer).copied().unwrap_or_default();
            let (to, back) = (fallen(before.to, now.to), fallen(before.back, now.back));
            let Some(slow) = to.or(back) else { continue };
            for (other, rates) in &rates {
                let is_way_back = other == peer;
                // That link itself is measured already, in the one direction or in the other. What carries something
                // shows by itself how fast it is.
                let is_known = is_way_back && to.is_some();
                let Some(before) = rates.to.filter(|to| slow * FAR_SLOWER < *to) else { continue };
                if is_known || !is_at_rest(*other) || self.due.contains_key(other) {
                    continue;
                }
                self.due.insert(*other, Due { slow, before, is_way_back, tries: 0 });
                if is_way_back {
                    found.assumed.push((*other, slow));
                }
            }
        }
        self.rates = rates;
        for (peer, slow) in &found.assumed {
            if let Some(rates) = self.rates.get_mut(peer) {
                rates.to = Some(*slow);
            }
        }
        let live = &self.rates;
        self.due.retain(|peer, due| live.contains_key(peer) && (due.is_way_back || is_at_rest(*peer)));
        for (&peer, due) in self.due.iter_mut().take(PROBES_MAX) {
            due.tries += 1;
            let ground = Ground::Nearby { slow: due.slow, before: due.before };
            found.suspicions.push(Suspicion { peer, ground });
        }
        found
    }

    /// A link was probed, or could not be. Says whether it is not to be tried again: then it counts as slow.
    pub(super) fn probed(&mut self, peer: PeerId, is_done: bool) -> bool {
        let is_given_up = !is_done && self.due.get(&peer).is_none_or(|due| due.tries >= TRIES_MAX);
        if is_done || is_given_up {
            self.due.remove(&peer);
        }
        is_given_up
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

    /// The peers whose links are probed; the probes come to something.
    fn probed(nearby: &mut Nearby, found: &Found) -> Vec<PeerId> {
        let is_so = |suspicion: &Suspicion| matches!(suspicion.ground, Ground::Nearby { slow, before } if slow == SLOW && before == FAST);
        assert!(found.suspicions.iter().all(is_so));
        let peers: Vec<PeerId> = found.suspicions.iter().map(|suspicion| suspicion.peer).collect();
        assert!(peers.iter().all(|peer| !nearby.probed(*peer, true)));
        peers
    }

    fn nothing() -> Found {
        Found::default()
    }

    #[test]
    fn one_link_that_fell_has_the_others_probed_once() {
        let peers = peers(4);
        let mut nearby = Nearby::default();
        let as_before = rates(&peers, |_| (FAST, FAST));
        assert_eq!(nearby.look(as_before.clone(), |_| true), nothing(), "what is new has not fallen");
        let fell = rates(&peers, |index| (if index == 1 { SLOW } else { FAST }, FAST));
        let found = nearby.look(fell.clone(), |_| true);
        assert_eq!(found.assumed, []);
        assert_eq!(probed(&mut nearby, &found), [peers[0], peers[2], peers[3]]);
        assert_eq!(nearby.look(fell, |_| true), nothing(), "once");
        assert_eq!(
            nearby.look(as_before, |_| true),
            nothing(),
            "what has become faster says nothing of others"
        );
    }

    #[test]
    fn a_way_back_that_fell_makes_the_way_there_count_as_slow_until_it_is_probed() {
        let peers = peers(2);
        let mut nearby = Nearby::default();
        nearby.look(rates(&peers, |_| (FAST, FAST)), |_| true);
        let back = |index| if index == 0 { SLOW } else { FAST };
        let found = nearby.look(rates(&peers, |index| (FAST, back(index))), |_| true);
        assert_eq!(found.assumed, [(peers[0], SLOW)]);
        assert_eq!(probed(&mut nearby, &found), peers);
        let assumed = rates(&peers, |index| (back(index), back(index)));
        assert_eq!(nearby.look(assumed, |_| true), nothing(), "what is assumed has not fallen");
        assert_eq!(nearby.look(rates(&peers, |index| (FAST, back(index))), |_| true), nothing());
    }

    #[test]
    fn a_probe_that_came_to_nothing_is_repeated_a_few_times() {
        let peers = peers(2);
        let mut nearby = Nearby::default();
        nearby.look(rates(&peers, |_| (FAST, FAST)), |_| true);
        let fell = rates(&peers, |index| (if index == 0 { SLOW } else { FAST }, FAST));
        for again in 1..=TRIES_MAX {
            let found = nearby.look(fell.clone(), |_| true);
            assert_eq!(found.suspicions.len(), 1);
            assert_eq!(nearby.probed(peers[1], false), again == TRIES_MAX);
        }
        assert_eq!(nearby.look(fell, |_| true), nothing());
    }

    #[test]
    fn links_that_are_not_far_faster_are_left_alone() {
        let peers = peers(3);
        let mut nearby = Nearby::default();
        let slow = |index| if index == 2 { 4.0 * SLOW } else { FAST };
        nearby.look(rates(&peers, |index| (slow(index), FAST)), |_| true);
        let fell = rates(&peers, |index| (if index == 0 { SLOW } else { slow(index) }, FAST));
        let found = nearby.look(fell, |_| true);
        assert_eq!(probed(&mut nearby, &found), [peers[1]]);
        nearby.look(rates(&peers, |_| (FAST, FAST)), |_| true);
        let less = nearby.look(rates(&peers, |_| (FAST / 4.0, FAST)), |_| true);
        assert_eq!(less, nothing(), "and so is a fall by less");
    }

    #[test]
    fn links_that_carry_something_show_it_themselves() {
        let peers = peers(3);
        let mut nearby = Nearby::default();
        nearby.look(rates(&peers, |_| (FAST, FAST)), |_| true);
        let fell = rates(&peers, |index| (if index == 0 { SLOW } else { FAST }, FAST));
        let found = nearby.look(fell, |peer| peer != peers[1]);
        assert_eq!(probed(&mut nearby, &found), [peers[2]]);
    }

    #[test]
    fn many_links_are_probed_some_at_a_time() {
        let peers = peers(3 * PROBES_MAX + 1);
        let mut nearby = Nearby::default();
        nearby.look(rates(&peers, |_| (FAST, FAST)), |_| true);
        let fell = rates(&peers, |index| (if index == 0 { SLOW } else { FAST }, FAST));
        let mut all = Vec::new();
        for _ in 0..3 {
            let found = nearby.look(fell.clone(), |_| true);
            let some = probed(&mut nearby, &found);
            assert_eq!(some.len(), PROBES_MAX);
            all.extend(some);
        }
        assert_eq!(all, peers[1..]);
        assert_eq!(nearby.look(fell, |_| true), nothing());
    }
}
