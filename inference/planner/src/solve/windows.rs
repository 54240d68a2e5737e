//! A lower bound on chains: what the devices can cover at most when each runs one window of consecutive blocks.
//!
//! Give every block a weight. In a chain with bottleneck `t` each device runs at most one window that takes no longer
//! than `t`, that it can hold and that it can be handed, so the heaviest such windows of all devices together weigh at
//! least as much as all blocks. Weights for which they do not prove that there is no such chain. They are found by
//! making blocks lighter that many windows cover; bisection over `t` gives the bound.

use super::chain::Steps;
use crate::bound::{lower_bound, prices};
use crate::evaluate::entrances;
use crate::instance::Instance;

/// Bottlenecks that are tried.
const TRIES: usize = 10;
/// Changes of the weights per try.
const ROUNDS: usize = 80;
/// A difference that rounding cannot explain.
const MARGIN: f64 = 1e-9;

/// No chain's bottleneck is shorter than this, for a chain that is known to take `known` seconds.
pub(super) fn bound(instance: &Instance<'_>, known: f64, steps: &mut Steps) -> f64 {
    let (mut low, mut high) = (lower_bound(instance), known);
    let mut windows = Windows::new(instance);
    for attempt in 0..TRIES {
        if low >= high * (1.0 - 1e-4) && attempt > 0 {
            break;
        }
        // At first a trace below what is known: when that cannot be, the known chain is the best.
        let limit = if attempt == 0 { known * (1.0 - MARGIN) } else { (low + high) / 2.0 };
        if !steps.pay((windows.devices.len() * instance.blocks * ROUNDS / 4) as u64) {
            break;
        }
        if windows.cannot_cover(limit) {
            low = low.max(limit);
            if attempt == 0 {
                return known;
            }
        } else {
            high = limit;
        }
    }
    low
}

struct Windows<'a> {
    instance: &'a Instance<'a>,
    devices: Vec<usize>,
    /// By device: bytes per second of the fastest link in, and out.
    rates: Vec<(f64, f64)>,
    entrances: Vec<(usize, f64)>,
    /// By block; their sum is 1.
    weights: Vec<f64>,
}

impl<'a> Windows<'a> {
    fn new(instance: &'a Instance<'a>) -> Self {
        let devices = instance.usable();
        let rates = devices.iter().map(|&device| {
            let others = devices.iter().filter(|&&other| other != device);
            others.fold((0.0f64, 0.0f64), |(into, out), &other| {
                (into.max(instance.link(other, device).0), out.max(instance.link(device, other).0))
            })
        });
        let (_, cost) = prices(instance);
        let total = cost[instance.blocks];
        let even = 1.0 / instance.blocks as f64;
        let weights = cost.windows(2).map(|pair| {
            let priced = if total > 0.0 { (pair[1] - pair[0]) / total } else { even };
            0.9 * priced + 0.1 * even
        });
        Self {
            instance,
            rates: rates.collect(),
            weights: weights.collect(),
            entrances: entrances(instance),
            devices,
        }
    }

    /// True when weights are found that prove it.
    fn cannot_cover(&mut self, limit: f64) -> bool {
        let blocks = self.instance.blocks;
        let ends: Vec<Vec<usize>> = (0..self.devices.len()).map(|index| self.ends(index, limit)).collect();
        for round in 0..ROUNDS {
            let mut before = vec![0.0; blocks + 1];
            for (block, weight) in self.weights.iter().enumerate() {
                before[block + 1] = before[block] + weight;
            }
            let mut covered = 0.0;
            // Changes in how many windows cover a block, by block.
            let mut changes = vec![0i32; blocks + 1];
            for ends in &ends {
                let mut heaviest = (0.0, 0, 0);
                for (start, &end) in ends.iter().enumerate() {
                    let weight = before[end] - before[start];
                    if weight > heaviest.0 {
                        heaviest = (weight, start, end);
                    }
                }
                covered += heaviest.0;
                changes[heaviest.1] += 1;
                changes[heaviest.2] -= 1;
            }
            if covered < before[blocks] * (1.0 - MARGIN) {
                return true;
            }
            self.reweigh(&changes, round);
        }
        false
    }

    fn reweigh(&mut self, changes: &[i32], round: usize) {
        let step = 0.5 / (1.0 + round as f64).sqrt();
        let mut windows = 0;
        for (weight, change) in self.weights.iter_mut().zip(changes) {
            windows += change;
            *weight *= (step * (1.0 - f64::from(windows)).max(-4.0)).exp();
        }
        let total: f64 = self.weights.iter().sum();
        self.weights.iter_mut().for_each(|weight| *weight /= total);
    }

    /// By first block: the end of the longest window that a device can run; the first block itself when none.
    fn ends(&self, index: usize, limit: f64) -> Vec<usize> {
        let (instance, device) = (self.instance, self.devices[index]);
        let mut reach = 0;
        let mut ends = Vec::with_capacity(instance.blocks);
        for start in 0..instance.blocks {
            reach = reach.max(start);
            let fits = |end: usize| {
                instance.seconds(device, start, end) <= limit
                    && instance.weight(start, end).saturating_add(instance.peak(start, end))
                        <= instance.memory(device)
            };
            while reach < instance.blocks && fits(reach + 1) {
                reach += 1;
            }
            let can_begin = self.is_handed(index, start, limit);
            let end =
                (start + 1..=reach).rev().find(|&end| can_begin && self.works(index, (start, end), limit));
            ends.push(end.unwrap_or(start));
        }
        ends
    }

    /// Some device can hand over the window's inputs in time.
    fn is_handed(&self, index: usize, start: usize, limit: f64) -> bool {
        let (instance, device) = (self.instance, self.devices[index]);
        let bytes = instance.cut(start);
        if start == 0 {
            let far = |&&(from, _): &&(usize, f64)| from != device;
            let loads = self.entrances.iter().filter(far);
            return loads
                .map(|&(from, share)| instance.link_s(from, device, share * bytes))
                .all(|load| load <= limit);
        }
        let rate = self.rates[index].0;
        rate > 0.0 && bytes / rate <= limit && instance.card_s(device, bytes) <= limit
    }

    fn works(&self, index: usize, (start, end): (usize, usize), limit: f64) -> bool {
        let (instance, device) = (self.instance, self.devices[index]);
        let bytes = instance.cut(end);
        let is_passed_on = if end == instance.blocks {
            let far = |&&(to, _): &&(usize, f64)| to != device;
            let loads = self.entrances.iter().filter(far);
            loads.map(|&(to, share)| instance.link_s(device, to, share * bytes)).all(|load| load <= limit)
        } else {
            let rate = self.rates[index].1;
            rate > 0.0 && bytes / rate <= limit && instance.card_s(device, bytes) <= limit
        };
        is_passed_on
            && instance.alone_s(device, start, end) <= limit
            && instance.stage_bytes(start, end) <= instance.memory(device)
    }
}
