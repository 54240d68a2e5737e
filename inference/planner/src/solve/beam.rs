//! Chains over many devices: a beam search for a chain below a given bottleneck, led by the prices of the tiling.
//!
//! All heaviest windows together weigh a bit more than the blocks do; what is over is all that a chain may waste. A
//! device that runs a window wastes what the window weighs less than its heaviest one. So partial chains that have
//! come equally far are ranked by what they have wasted, and those that have wasted too much cannot become chains.

use super::chain::{Steps, draft_of};
use super::tiling::{Priced, Tiling, Windows};
use crate::evaluate::Draft;

/// Ways to go on that each partial chain offers at most.
const OFFERS: usize = 12;

/// A partial chain: its last stage, and the way back.
#[derive(Debug, Clone)]
struct Partial {
    index: usize,
    first: usize,
    end: usize,
    stages: usize,
    wasted: f64,
    used: Vec<u64>,
    /// A hash of `used`.
    key: u64,
    before: Option<usize>,
}

/// One more stage.
#[derive(Debug, Clone, Copy)]
struct Offer {
    wasted: f64,
    from: Option<usize>,
    index: usize,
    first: usize,
}

/// Looks for chains that keep one limit.
pub(super) struct Beam<'a> {
    pub(super) tiling: &'a Tiling<'a>,
    pub(super) windows: &'a Windows,
    pub(super) priced: &'a Priced,
    pub(super) limit: f64,
    /// Partial chains that are kept per position.
    pub(super) width: usize,
}

impl Beam<'_> {
    pub(super) fn chain(&self, steps: &mut Steps) -> Option<Draft> {
        let blocks = self.tiling.instance.blocks;
        let mut all: Vec<Partial> = Vec::new();
        let mut arriving: Vec<Vec<Offer>> = vec![Vec::new(); blocks + 1];
        let mut offers = Vec::new();
        self.offer(None, &all, &mut offers, &mut arriving);
        for position in 1..blocks {
            let arrived = std::mem::take(&mut arriving[position]);
            for from in self.keep(arrived, position, &mut all) {
                self.offer(Some(from), &all, &mut offers, &mut arriving);
                if !steps.pay(self.tiling.devices.len() as u64 / 4 + 1) {
                    return None;
                }
            }
        }
        let last = std::mem::take(&mut arriving[blocks]);
        let last = self.keep(last, blocks, &mut all).first().copied()?;
        Some(self.read_back(&all, last))
    }

    /// The stages that waste least after a partial chain.
    fn offer(
        &self,
        from: Option<usize>,
        all: &[Partial],
        offers: &mut Vec<(Offer, usize)>,
        arriving: &mut [Vec<Offer>],
    ) {
        let before = from.map(|from| &all[from]);
        let first = before.map_or(0, |before| before.end);
        let wasted = before.map_or(0.0, |before| before.wasted);
        let instance = self.tiling.instance;
        let allowance = (self.priced.total - 1.0) * (1.0 + 1e-9) + 1e-9;
        let weight = &self.priced.before;
        let (min, max) = instance.stage_limits();
        let stages = before.map_or(0, |before| before.stages) + 1;
        let stages_left = |end: usize| {
            let (least, most) = (usize::from(end < instance.blocks), instance.blocks - end);
            stages + least <= max && stages + most >= min
        };
        offers.clear();
        for (index, &device) in self.tiling.devices.iter().enumerate() {
            if before.is_some_and(|before| before.used[index / 64] >> (index % 64) & 1 == 1) {
                continue;
            }
            let begin = offers.len();
            let could_weigh = wasted + self.priced.heaviest[index] + weight[first];
            for end in self.windows.ends(index, first) {
                let wasted = could_weigh - weight[end];
                if wasted > allowance && self.priced.is_rising {
                    // A shorter window wastes more.
                    break;
                }
                if wasted <= allowance && stages_left(end) {
                    offers.push((Offer { wasted, from, index, first }, end));
                }
            }
            if offers.len() > begin && before.is_some_and(|before| !self.is_reached(before, device)) {
                offers.truncate(begin);
            }
        }
        if offers.len() > OFFERS {
            offers.select_nth_unstable_by(OFFERS, |(a, a_end), (b, b_end)| {
                a.wasted.total_cmp(&b.wasted).then(a.index.cmp(&b.index)).then(a_end.cmp(b_end))
            });
            offers.truncate(OFFERS);
        }
        for (offer, end) in offers.drain(..) {
            arriving[end].push(offer);
        }
    }

    /// Can the device take over from the partial chain in time?
    fn is_reached(&self, before: &Partial, device: usize) -> bool {
        let instance = self.tiling.instance;
        let sender = self.tiling.devices[before.index];
        instance.link_s(sender, device, instance.cut(before.end)) <= self.limit
    }

    /// The best offers become partial chains; of those that use the same devices only one.
    fn keep(&self, mut offers: Vec<Offer>, end: usize, all: &mut Vec<Partial>) -> Vec<usize> {
        let order = |a: &Offer, b: &Offer| {
            a.wasted.total_cmp(&b.wasted).then(a.index.cmp(&b.index)).then(a.from.cmp(&b.from))
        };
        offers.sort_unstable_by(order);
        let words = self.tiling.devices.len().div_ceil(64);
        let begin = all.len();
        for offer in offers {
            let Offer { from: before, index, first, wasted } = offer;
            let stages = before.map_or(0, |before| all[before].stages) + 1;
            let mut used = before.map_or_else(|| vec![0; words], |before| all[before].used.clone());
            used[index / 64] |= 1 << (index % 64);
            let key = before.map_or(0, |before| all[before].key) ^ mixed(index as u64);
            if all[begin..].iter().any(|other| other.key == key && other.used == used) {
                continue;
            }
            all.push(Partial { index, first, end, stages, wasted, used, key, before });
            if all.len() - begin == self.width {
                break;
            }
        }
        (begin..all.len()).collect()
    }

    fn read_back(&self, all: &[Partial], last: usize) -> Draft {
        let mut stages = Vec::new();
        let mut at = Some(last);
        while let Some(index) = at {
            let partial = &all[index];
            stages.push((self.tiling.devices[partial.index], partial.first, partial.end));
            at = partial.before;
        }
        draft_of(stages)
    }
}

/// A number that differs from others' in about half of its bits (SplitMix64).
fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
