//! Chains over many devices: a beam search for a chain below a given bottleneck, and bisection over the bottleneck.
//!
//! The prices of the compute bound say what a device's time is worth and what each block costs at least. A device
//! with price `p` that runs blocks of cost `c` wastes `p * bottleneck - c`, never less than 0, and all that a chain
//! may waste is what the bottleneck is above the bound. So partial chains are ranked by what they have wasted, and
//! each takes next the devices whose stages fit best.

use super::chain::{Steps, draft_of};
use super::order::Found;
use crate::bound::prices;
use crate::evaluate::{Draft, entrances, evaluate_draft, fits};
use crate::instance::Instance;

/// Partial chains that are kept.
const WIDTH: usize = 24;
/// Ways to go on that each partial chain offers.
const OFFERS: usize = 6;
/// Bisections of the bottleneck.
const BISECTIONS: usize = 12;
/// How many blocks a stage may stop early for a cut that works.
const EARLY: usize = 3;

/// A partial chain: its last stage, and the way back.
#[derive(Debug, Clone)]
struct Partial {
    device: usize,
    first: usize,
    end: usize,
    wasted: f64,
    used: Vec<u64>,
    before: Option<usize>,
}

/// One more stage.
#[derive(Debug, Clone, Copy)]
struct Offer {
    from: Option<usize>,
    device: usize,
    first: usize,
    end: usize,
    wasted: f64,
}

struct Beam<'a> {
    instance: &'a Instance<'a>,
    devices: Vec<usize>,
    /// By device; 0 for what cannot be used.
    price: Vec<f64>,
    /// What the blocks before each position cost at least.
    cost: Vec<f64>,
    entrances: Vec<(usize, f64)>,
    limit: f64,
}

/// The best chain found below `known`, with its bottleneck.
pub(super) fn search(instance: &Instance<'_>, known: f64, steps: &mut Steps) -> Option<Found> {
    let (price, cost) = prices(instance);
    let (devices, entrances) = (instance.usable(), entrances(instance));
    let mut low = cost[instance.blocks];
    let mut high = known.min(if low > 0.0 { 64.0 * low } else { f64::INFINITY });
    if !high.is_finite() || low >= high {
        return None;
    }
    let mut beam = Beam { instance, devices, price, cost, entrances, limit: high };
    let mut best: Option<Found> = None;
    for round in 0..BISECTIONS {
        if high <= low * 1.001 || steps.left() == 0 {
            break;
        }
        // Good chains are near the bound: begin there.
        beam.limit = if round < 4 { low + (high - low) * 0.25 } else { (low + high) / 2.0 };
        let draft = beam.chain(steps).filter(|draft| fits(instance, draft));
        let value =
            draft.as_ref().map_or(f64::INFINITY, |draft| evaluate_draft(instance, draft).bottleneck_s);
        match draft {
            Some(draft) if value < high => {
                (best, high) = (Some((draft, value)), value);
            }
            Some(_) | None => low = beam.limit,
        }
    }
    best
}

impl Beam<'_> {
    fn chain(&self, steps: &mut Steps) -> Option<Draft> {
        let (min, max) = self.instance.stage_limits();
        let mut all: Vec<Partial> = Vec::new();
        let mut front: Vec<usize> = Vec::new();
        for depth in 0..max.min(self.devices.len()) {
            let mut offers = Vec::new();
            if depth == 0 {
                self.offers(None, &all, (depth, min), &mut offers);
            }
            for &from in &front {
                self.offers(Some(from), &all, (depth, min), &mut offers);
                steps.pay(self.devices.len() as u64);
            }
            if steps.left() == 0 {
                return None;
            }
            front = self.keep(offers, &mut all);
            let finished = front.iter().copied().find(|&at| all[at].end == self.instance.blocks);
            if let Some(last) = finished {
                return Some(read_back(&all, last));
            }
        }
        None
    }

    /// The stages that fit best after a partial chain.
    fn offers(
        &self,
        from: Option<usize>,
        all: &[Partial],
        (depth, min): (usize, usize),
        offers: &mut Vec<Offer>,
    ) {
        let before = from.map(|from| &all[from]);
        let first = before.map_or(0, |before| before.end);
        let wasted = before.map_or(0.0, |before| before.wasted);
        let last_end =
            self.instance.blocks - (min.saturating_sub(depth + 1)).min(self.instance.blocks - first);
        let allowance = self.limit - self.cost[self.instance.blocks];
        let begin = offers.len();
        for &device in &self.devices {
            let is_used = before.is_some_and(|before| before.used[device / 64] >> (device % 64) & 1 == 1);
            if is_used || !self.is_reached(before, device) {
                continue;
            }
            let Some(end) = self.furthest(device, first, last_end) else { continue };
            let waste = self.price[device] * self.limit - (self.cost[end] - self.cost[first]);
            // The last stage may waste what is left.
            if wasted + waste <= allowance * (1.0 + 1e-9) || end == self.instance.blocks {
                let wasted = if end == self.instance.blocks { -1.0 } else { wasted + waste };
                offers.push(Offer { from, device, first, end, wasted });
            }
        }
        let mine = &mut offers[begin..];
        let kept = OFFERS.min(mine.len());
        if mine.len() > kept {
            mine.select_nth_unstable_by(kept, |a, b| {
                a.wasted.total_cmp(&b.wasted).then(a.device.cmp(&b.device))
            });
        }
        offers.truncate(begin + kept);
    }

    /// Can the device take over from the partial chain, or begin one, in time?
    fn is_reached(&self, before: Option<&Partial>, device: usize) -> bool {
        let instance = self.instance;
        match before {
            Some(before) => {
                let bytes = instance.cut(before.end);
                let slowest =
                    instance.link_s(before.device, device, bytes).max(instance.card_s(device, bytes));
                slowest <= self.limit
            }
            None => {
                self.entrances.iter().filter(|&&(from, _)| from != device).all(|&(from, share)| {
                    instance.link_s(from, device, share * instance.cut(0)) <= self.limit
                })
            }
        }
    }

    /// The end of the longest stage that the device can run in time and hold.
    fn furthest(&self, device: usize, first: usize, last_end: usize) -> Option<usize> {
        let instance = self.instance;
        let is_short = |end: usize| {
            instance.seconds(device, first, end) <= self.limit
                && instance.weight(first, end).saturating_add(instance.peak(first, end))
                    <= instance.memory(device)
        };
        let (mut low, mut high) = (first, last_end);
        while low < high {
            let middle = (low + high).div_ceil(2);
            if is_short(middle) { low = middle } else { high = middle - 1 }
        }
        (low.saturating_sub(EARLY).max(first + 1)..=low).rev().find(|&end| self.works(device, first, end))
    }

    fn works(&self, device: usize, first: usize, end: usize) -> bool {
        let instance = self.instance;
        let leaves = if end == instance.blocks {
            let bytes = instance.cut(end);
            self.entrances
                .iter()
                .filter(|&&(to, _)| to != device)
                .all(|&(to, share)| instance.link_s(device, to, share * bytes) <= self.limit)
        } else {
            instance.card_s(device, instance.cut(end)) <= self.limit
        };
        leaves
            && instance.alone_s(device, first, end) <= self.limit
            && instance.stage_bytes(first, end) <= instance.memory(device)
    }

    /// The best offers become partial chains; of those that cover and use the same only one.
    fn keep(&self, mut offers: Vec<Offer>, all: &mut Vec<Partial>) -> Vec<usize> {
        let order = |a: &Offer, b: &Offer| {
            a.wasted.total_cmp(&b.wasted).then(a.device.cmp(&b.device)).then(a.from.cmp(&b.from))
        };
        offers.sort_unstable_by(order);
        let mut front: Vec<usize> = Vec::new();
        for offer in offers {
            let words = self.instance.devices().div_ceil(64);
            let mut used = offer.from.map_or_else(|| vec![0; words], |from| all[from].used.clone());
            used[offer.device / 64] |= 1 << (offer.device % 64);
            let is_known = front.iter().any(|&other| all[other].end == offer.end && all[other].used == used);
            if is_known {
                continue;
            }
            let Offer { from: before, device, first, end, wasted } = offer;
            all.push(Partial { device, first, end, wasted, used, before });
            front.push(all.len() - 1);
            if front.len() == WIDTH {
                break;
            }
        }
        front
    }
}

fn read_back(all: &[Partial], last: usize) -> Draft {
    let mut stages = Vec::new();
    let mut at = Some(last);
    while let Some(index) = at {
        let partial = &all[index];
        stages.push((partial.device, partial.first, partial.end));
        at = partial.before;
    }
    draft_of(stages)
}
