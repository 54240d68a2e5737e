//! Watching what links carry: which of them carry more or less than is known. Pure: time comes as an argument.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::net::{PeerId, Probe};

/// A link whose writer was at work for this part of the time carries what it can...
const FULL: f64 = 0.8;
/// ...unless this device's processors were busy for this part of the time, or weights went over it as well...
pub(super) const PROCESSOR_BOUND: f64 = 0.6;
/// ...which does not make it so many times slower: then it need not be full for more than this part of the time, nor have
/// carried more than these bytes. A link that waits for others is not full, however slow it is; a plan that is made
/// meanwhile would take it for a fast one.
pub const FAR_SLOWER: f64 = 8.0;
const FAR_SLOWER_FULL: f64 = 0.05;
pub(super) const FAR_SLOWER_BYTES: u64 = 128 * 1024;
/// Fewer bytes say nothing...
pub(super) const BYTES_MIN: u64 = 512 * 1024;
/// ...and are waited for up to this long: then what has been seen of the link is forgotten.
pub(super) const LOOK_MAX: Duration = Duration::from_secs(10);
/// More bytes than buffers hold, over all looks in a row, show that a link is faster than was known.
const BYTES_FAST: u64 = 8 * 1024 * 1024;
/// A rate that differs by this part is another one.
pub(super) const NEWS: f64 = 0.25;
/// So many looks in a row have to show it; one does where it is far slower.
const LOOKS: u32 = 2;
/// A link of which the last frame shows so many times less than all that it carried has become slow meanwhile: what went
/// before, and what its buffers took at once, says nothing of it any more.
const SLOWER_LAST: f64 = 2.0;
/// A link that was found as it was known is left alone for this long; doubles each time.
const PAUSE_MIN: Duration = Duration::from_secs(20);
const PAUSE_MAX: Duration = Duration::from_secs(640);
/// ...unless it carries so many times less than it did then.
const LOWER: f64 = 2.0;
/// A link that was found slower and carries little any more is probed again this often: it may have recovered, and no plan
/// would use it to find out.
const RECOVERED_EVERY: Duration = Duration::from_secs(60);
/// It carries little when it could carry so many times as much.
const LITTLE: f64 = 2.0;
/// A link at rest is probed again after this long: what was measured once, perhaps in a bad moment, is not true for ever.
pub(super) const STALE: Duration = Duration::from_secs(600);

/// What a link has carried so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Flow {
    /// Bytes sent.
    pub(super) sent: u64,
    /// Seconds that writes of large frames have taken.
    pub(super) busy_s: f64,
    /// Bytes per second of the last large frame of each stream; 0 before the first.
    pub(super) last: f64,
}

impl Flow {
    /// Bytes per second of a link that carries `carried` on an average, as it is now.
    fn latest(&self, carried: f64) -> f64 {
        if self.last > 0.0 && self.last * SLOWER_LAST < carried { self.last } else { carried }
    }
}

/// What else may make a link look slow.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Beside {
    /// This device's processors are busy.
    pub(super) processors: bool,
    /// Weights go out.
    pub(super) weights: bool,
}

impl Beside {
    fn or(self, other: Self) -> Self {
        Self { processors: self.processors || other.processors, weights: self.weights || other.weights }
    }
}

/// A link that seems to have another rate than the one known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Suspicion {
    pub(super) peer: PeerId,
    pub(super) ground: Ground,
}

/// Why a link is suspected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Ground {
    /// It carried so many bytes per second, full or not.
    Carried(f64),
    /// It was slow and carries little now, or was measured long ago and carries nothing: it may be faster than is known.
    AtRest,
    /// It carries next to nothing, and a link that it shares an end with has become far slower.
    Nearby {
        /// As slow as this, in bytes per second.
        slow: f64,
        /// Of this link before, in bytes per second.
        before: f64,
    },
}

impl Suspicion {
    /// The link's rate after a probe, where it is another one.
    pub(super) fn rate(&self, known: f64, probe: Probe) -> Option<f64> {
        let (rate, may_be_slow) = match self.ground {
            // The probe had to share the link with the activations, and the activations with the probe.
            Ground::Carried(seen) => (seen.max(probe.bytes_per_s), true),
            Ground::AtRest => (probe.bytes_per_s, false),
            // The probe had to share with what fills the other one: it may be as slow as that, not slower.
            Ground::Nearby { slow, .. } => {
                (slow.max(probe.bytes_per_s), probe.bytes_per_s * FAR_SLOWER < known)
            }
        };
        let is_slow = rate < known && may_be_slow && !probe.processor_bound;
        ((is_slow || rate > known) && apart(rate, known)).then_some(rate)
    }
}

/// Finds links that carry more or less than is known of them.
#[derive(Debug, Default)]
pub(super) struct LinkWatch {
    pub(super) links: BTreeMap<PeerId, Watched>,
    /// Links that were found slower than they had been, and what they had carried.
    pub(super) slowed: BTreeMap<PeerId, f64>,
}

#[derive(Debug)]
pub(super) struct Watched {
    at: Instant,
    flow: Flow,
    /// At any time since then.
    beside: Beside,
    /// Where the looks began that show another rate, and how many they are.
    since: Option<(Instant, Flow, u32)>,
    pause: Duration,
    not_before: Instant,
    /// Bytes per second that it carried when it was last found as it was known.
    cleared: f64,
    /// When it was probed, or the peer came.
    probed: Instant,
}

impl LinkWatch {
    /// Looks at all links of live peers.
    pub(super) fn look(
        &mut self,
        now: Instant,
        beside: Beside,
        flows: &BTreeMap<PeerId, Flow>,
        known: impl Fn(PeerId) -> f64,
    ) -> Vec<Suspicion> {
        self.links.retain(|peer, _| flows.contains_key(peer));
        self.slowed.retain(|peer, _| flows.contains_key(peer));
        let mut suspicions = Vec::new();
        for (&peer, &flow) in flows {
            let link = self.links.entry(peer).or_insert_with(|| Watched::new(now, flow));
            link.beside = link.beside.or(beside);
            let seen = link.look(now, flow, known(peer), self.slowed.contains_key(&peer));
            if seen != Look::TooSoon {
                (link.at, link.flow, link.beside) = (now, flow, Beside::default());
            }
            if let Look::Suspicious(ground) = seen {
                suspicions.push(Suspicion { peer, ground });
            }
        }
        suspicions
    }

    /// A suspicion was looked into: the link's rate before and now, where it is another one.
    pub(super) fn cleared_up(&mut self, suspicion: &Suspicion, change: Option<(f64, f64)>, now: Instant) {
        let Some(link) = self.links.get_mut(&suspicion.peer) else { return };
        (link.since, link.probed) = (None, now);
        link.pause = match (suspicion.ground, change) {
            (_, Some(_)) => PAUSE_MIN,
            (Ground::Carried(_), None) => (link.pause * 2).min(PAUSE_MAX),
            (Ground::AtRest | Ground::Nearby { .. }, None) => link.pause,
        };
        link.not_before = match (suspicion.ground, change) {
            (Ground::Carried(_), _) | (Ground::Nearby { .. }, Some(_)) => now + link.pause,
            (Ground::AtRest, _) => now + RECOVERED_EVERY,
            (Ground::Nearby { .. }, None) => link.not_before,
        };
        link.cleared = match (suspicion.ground, change) {
            (Ground::Carried(carried), None) => carried,
            (_, Some((_, rate))) => rate,
            (Ground::AtRest | Ground::Nearby { .. }, None) => link.cleared,
        };
        let Some((known, rate)) = change else { return };
        let before = *self.slowed.entry(suspicion.peer).or_insert(known);
        if rate >= before * (1.0 - NEWS) {
            self.slowed.remove(&suspicion.peer);
        }
    }
}

/// What a look at a link shows.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Look {
    /// It has carried too little yet.
    TooSoon,
    /// Nothing new, or not often enough in a row.
    Nothing,
    /// It is worth a probe.
    Suspicious(Ground),
}

impl Watched {
    fn new(now: Instant, flow: Flow) -> Self {
        let beside = Beside::default();
        let (pause, cleared) = (PAUSE_MIN, f64::INFINITY);
        Self { at: now, flow, beside, since: None, pause, not_before: now, cleared, probed: now }
    }

    /// What there is to see since the last look that showed something.
    fn look(&mut self, now: Instant, flow: Flow, known: f64, was_slowed: bool) -> Look {
        let (sent, took) = between((self.at, self.flow), (now, flow));
        let is_long = took >= LOOK_MAX.as_secs_f64();
        let is_stale = now.saturating_duration_since(self.probed) >= STALE;
        let is_light = if sent == 0 { is_long } else { sent as f64 / took * LITTLE < known };
        let may_have_recovered = (was_slowed && is_light) || (sent == 0 && is_long && is_stale);
        let busy_s = flow.busy_s - self.flow.busy_s;
        let (rate, full) = (sent as f64 / busy_s, busy_s / took);
        let is_slower = sent >= BYTES_MIN && full >= FULL && rate < known * (1.0 - NEWS);
        let is_far_slower = sent >= FAR_SLOWER_BYTES && full >= FAR_SLOWER_FULL && rate * FAR_SLOWER < known;
        let is_slow = is_far_slower || (is_slower && !self.beside.processors && !self.beside.weights);
        let is_fast = sent as f64 / took > known * (1.0 + NEWS);
        if !is_slow && !is_fast {
            if may_have_recovered && now >= self.not_before {
                return Look::Suspicious(Ground::AtRest);
            }
            if sent < BYTES_MIN && !is_long {
                return Look::TooSoon;
            }
            self.since = None;
            return Look::Nothing;
        }
        let (start, at_start, looks) = self.since.unwrap_or((self.at, self.flow, 0));
        self.since = Some((start, at_start, looks + 1));
        let (sent, took) = between((start, at_start), (now, flow));
        let is_often = looks + 1 >= LOOKS || (is_slow && is_far_slower);
        let is_shown = is_often && (is_slow || sent >= BYTES_FAST);
        let carried = if is_slow {
            flow.latest(sent as f64 / (flow.busy_s - at_start.busy_s))
        } else {
            sent as f64 / took
        };
        let is_lower = is_slow && carried * LOWER < self.cleared;
        if !is_shown {
            return Look::Nothing;
        }
        if now < self.not_before && !is_lower {
            // What it carries when the pause is over counts, not what it did all the time.
            self.since = None;
            return Look::Nothing;
        }
        Look::Suspicious(Ground::Carried(carried))
    }
}

/// Bytes and seconds between two moments.
fn between(before: (Instant, Flow), now: (Instant, Flow)) -> (u64, f64) {
    let took = now.0.saturating_duration_since(before.0).as_secs_f64();
    // A stream that began anew counts from nothing.
    (now.1.sent.saturating_sub(before.1.sent), took.max(1e-3))
}

pub(super) fn apart(a: f64, b: f64) -> bool {
    (a - b).abs() > NEWS * a.max(b)
}
