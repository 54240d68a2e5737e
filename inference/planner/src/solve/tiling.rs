//! What chains can do at most, as a fractional tiling, and prices that say where devices are worth most.
//!
//! In a chain with bottleneck `t` each device runs at most one window of consecutive blocks that it can run, hold, be
//! handed and hand on within `t`, and every block lies in exactly one window. Give the blocks weights with sum 1, of
//! any sign. Then the heaviest windows of all devices together weigh at least 1; weights for which they weigh less
//! prove that there is no such chain. That is the dual of the linear programme in which devices take fractions of
//! windows. It is solved by factors while it is open which blocks matter at all, then by subgradients with Polyak's
//! steps (B. T. Polyak, Minimization of unsmooth functionals, 1969): blocks that many heaviest windows cover get
//! lighter.

use super::chain::Steps;
use crate::bound::prices;
use crate::evaluate::entrances;
use crate::instance::Instance;

/// A difference that rounding cannot explain.
const MARGIN: f64 = 1e-9;
/// Sums of weights that are larger prove nothing.
const LARGEST: f64 = 100.0;
/// Coarse work that leaves so much leads to no proof.
const HOPELESS: f64 = 1.5;
/// Rounds of coarse work in which what is over has to be halved.
const LOOK: usize = 20;
/// How much of the last direction the next step keeps.
const KEPT: f64 = 0.5;
/// Steps are meant to take off what the total is above 1, and this.
const LEAST_GAIN: f64 = 1e-3;
/// Steps in a row without anything better before they get shorter.
const PATIENCE: usize = 8;

/// The windows that one device can run within a limit.
#[derive(Debug)]
struct Spans {
    /// By first block: all ends up to this one are possible; the first block itself when none is.
    runs: Vec<u32>,
    /// First blocks and ends beyond the runs, sorted.
    others: Vec<(u32, u32)>,
    /// By first block: where in `others` its ends begin; one entry more than there are blocks.
    at: Vec<u32>,
}

/// The windows that each device can run within a limit.
#[derive(Debug)]
pub(super) struct Windows {
    /// By device of the tiling.
    spans: Vec<Spans>,
    /// By first block: the longest run of any device.
    longest: Vec<u32>,
}

impl Windows {
    /// Ends of the windows of a device that begin with this block, the last first.
    pub(super) fn ends(&self, index: usize, first: usize) -> impl Iterator<Item = usize> + '_ {
        let Spans { runs, others, at } = &self.spans[index];
        let beyond = &others[at[first] as usize..at[first + 1] as usize];
        beyond.iter().rev().map(|&(_, end)| end as usize).chain((first + 1..=runs[first] as usize).rev())
    }

    /// Steps that a look at all of them is worth.
    fn work(&self) -> u64 {
        let others: usize = self.spans.iter().map(|spans| spans.others.len()).sum();
        let runs = self.spans.len() * self.longest.len();
        let longest: usize = self.longest.iter().enumerate().map(|(start, &end)| end as usize - start).sum();
        ((others + runs + longest) / 16) as u64
    }
}

/// Weights of blocks, and what follows from them.
#[derive(Debug, Clone)]
pub(super) struct Priced {
    /// Weights of the blocks before each position; the last is 1.
    pub(super) before: Vec<f64>,
    /// By device of the tiling: the weight of its heaviest window.
    pub(super) heaviest: Vec<f64>,
    /// Their sum.
    pub(super) total: f64,
    /// No weight is negative.
    pub(super) is_rising: bool,
}

impl Priced {
    /// The windows cannot cover all blocks.
    pub(super) fn is_too_little(&self) -> bool {
        self.total < 1.0 - MARGIN && self.is_sound()
    }

    /// No weights so large that rounding could matter.
    fn is_sound(&self) -> bool {
        let last = self.before.last().copied().unwrap_or(0.0);
        (last - 1.0).abs() < MARGIN / 4.0 && self.before.iter().all(|weight| weight.abs() < LARGEST)
    }
}

/// The best weights so far, and how many heaviest windows cover each block.
struct Best {
    weights: Vec<f64>,
    priced: Priced,
    covered: Vec<i32>,
}

/// Where the fine search is.
struct Descent {
    direction: Vec<f64>,
    covered: Vec<i32>,
    /// How much each step is meant to take off the total.
    gain: f64,
    /// Steps in a row that found nothing better.
    failures: usize,
}

impl Descent {
    fn new(best: &Best, gain: f64) -> Self {
        let direction = vec![0.0; best.weights.len()];
        Self { direction, covered: best.covered.clone(), gain, failures: 0 }
    }
}

/// The heaviest windows of runs.
struct Tops<'a> {
    before: &'a [f64],
    /// By first block, where some weight is negative: where in `tops` its runs begin.
    at: Vec<usize>,
    /// By first block, then by the run's length.
    tops: Vec<(f64, u32)>,
}

impl<'a> Tops<'a> {
    fn new(before: &'a [f64], longest: &[u32], has_negative: bool) -> Self {
        let (mut at, mut tops) = (Vec::new(), Vec::new());
        for (start, &longest) in longest.iter().enumerate().filter(|_| has_negative) {
            at.push(tops.len());
            let mut top = (f64::NEG_INFINITY, start as u32);
            for end in start as u32 + 1..=longest {
                let weight = before[end as usize] - before[start];
                if weight > top.0 {
                    top = (weight, end);
                }
                tops.push(top);
            }
        }
        Self { before, at, tops }
    }

    /// Weight and end of the heaviest window that begins here and ends no later than there.
    fn of_run(&self, start: usize, end: usize) -> (f64, usize) {
        match self.at.get(start) {
            Some(at) => {
                let (weight, end) = self.tops[at + end - start - 1];
                (weight, end as usize)
            }
            // Nothing is negative: the longest is the heaviest.
            None => (self.before[end] - self.before[start], end),
        }
    }
}

/// The devices and weights, which get better from limit to limit.
#[derive(Debug)]
pub(super) struct Tiling<'a> {
    pub(super) instance: &'a Instance<'a>,
    pub(super) devices: Vec<usize>,
    /// By device: bytes per second of the fastest link in, and out.
    rates: Vec<(f64, f64)>,
    entrances: Vec<(usize, f64)>,
    largest_cut: u64,
    /// By block; their sum is 1.
    weights: Vec<f64>,
}

impl<'a> Tiling<'a> {
    pub(super) fn new(instance: &'a Instance<'a>) -> Self {
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
            largest_cut: instance.problem.cuts.iter().copied().max().unwrap_or(0),
            devices,
        }
    }

    /// Makes the weights better for a limit, in so many coarse and fine rounds, and keeps the best ones. Ends with a
    /// proof that no chain keeps the limit.
    pub(super) fn priced(
        &mut self,
        windows: &Windows,
        (coarse, fine): (usize, usize),
        steps: &mut Steps,
    ) -> Priced {
        let (priced, covered) = self.heaviest(windows);
        let mut best = Best { weights: self.weights.clone(), priced, covered };
        let work = windows.work();
        let mut covered = best.covered.clone();
        let mut before = f64::INFINITY;
        for round in 0..coarse {
            let over = best.priced.total - 1.0;
            if best.priced.is_too_little() || !steps.pay(work) {
                break;
            }
            if round % LOOK == 0 {
                // At this pace there is no proof in what is left.
                if over > before / 2.0 {
                    break;
                }
                before = over;
            }
            self.multiply(&covered, round);
            covered = self.compare(windows, &mut best);
        }
        self.weights.clone_from(&best.weights);
        let mut descent = Descent::new(&best, best.priced.total - 1.0 + LEAST_GAIN);
        for _ in 0..fine {
            let is_settled = best.priced.is_too_little() || best.priced.total > HOPELESS;
            if is_settled || !steps.pay(work) {
                break;
            }
            let before = best.priced.total;
            self.descend(&mut descent, &best);
            descent.covered = self.compare(windows, &mut best);
            descent.failures = if best.priced.total < before { 0 } else { descent.failures + 1 };
        }
        self.weights = best.weights;
        best.priced
    }

    /// Keeps the weights when they are the best so far; how many heaviest windows cover each block.
    fn compare(&self, windows: &Windows, best: &mut Best) -> Vec<i32> {
        let (priced, covered) = self.heaviest(windows);
        if priced.total < best.priced.total && priced.is_sound() {
            *best = Best { weights: self.weights.clone(), priced, covered: covered.clone() };
        }
        covered
    }

    /// Everybody's heaviest window, and how many of them cover each block.
    fn heaviest(&self, windows: &Windows) -> (Priced, Vec<i32>) {
        let blocks = self.instance.blocks;
        let mut before = vec![0.0; blocks + 1];
        for (block, weight) in self.weights.iter().enumerate() {
            before[block + 1] = before[block] + weight;
        }
        let is_rising = self.weights.iter().all(|&weight| weight >= 0.0);
        let tops = Tops::new(&before, &windows.longest, !is_rising);
        let mut covered = vec![0i32; blocks + 1];
        let of_device = |spans: &Spans| {
            let mut best = (0.0, 0, 0);
            for (start, &end) in spans.runs.iter().enumerate().filter(|&(start, &end)| end as usize > start) {
                let (weight, end) = tops.of_run(start, end as usize);
                if weight > best.0 {
                    best = (weight, start, end);
                }
            }
            for &(start, end) in &spans.others {
                let weight = before[end as usize] - before[start as usize];
                if weight > best.0 {
                    best = (weight, start as usize, end as usize);
                }
            }
            covered[best.1] += 1;
            covered[best.2] -= 1;
            best.0
        };
        let heaviest: Vec<f64> = windows.spans.iter().map(of_device).collect();
        for block in 0..blocks {
            covered[block + 1] += covered[block];
        }
        let total = heaviest.iter().sum();
        (Priced { before, heaviest, total, is_rising }, covered)
    }

    /// Blocks that many windows cover get lighter by a factor.
    fn multiply(&mut self, covered: &[i32], round: usize) {
        let step = 0.5 / (1.0 + round as f64).sqrt();
        for (weight, &count) in self.weights.iter_mut().zip(covered) {
            *weight = weight.max(0.0) * (step * (1.0 - f64::from(count)).max(-4.0)).exp();
        }
        let total: f64 = self.weights.iter().sum();
        self.weights.iter_mut().for_each(|weight| *weight /= total);
    }

    /// A step against the direction in which the total grows, so long that it would gain what it is meant to if the
    /// total went on as it begins. Where steps fail that was too much, and the search goes on from the best.
    fn descend(&mut self, descent: &mut Descent, best: &Best) {
        if descent.failures >= PATIENCE {
            *descent = Descent::new(best, descent.gain / 2.0);
            self.weights.clone_from(&best.weights);
        }
        let blocks = descent.direction.len();
        let covered = &descent.covered[..blocks];
        let mean = covered.iter().map(|&count| f64::from(count)).sum::<f64>() / blocks as f64;
        for (direction, &count) in descent.direction.iter_mut().zip(covered) {
            *direction = KEPT * *direction + (1.0 - KEPT) * (f64::from(count) - mean);
        }
        let length: f64 = descent.direction.iter().map(|part| part * part).sum();
        if length <= 0.0 {
            return;
        }
        let step = descent.gain / length;
        self.weights.iter_mut().zip(&descent.direction).for_each(|(weight, part)| *weight -= step * *part);
        // Their sum stays 1 but for rounding.
        let over = (self.weights.iter().sum::<f64>() - 1.0) / blocks as f64;
        self.weights.iter_mut().for_each(|weight| *weight -= over);
    }

    /// What each device can run within a limit.
    pub(super) fn windows(&self, limit: f64) -> Windows {
        let spans: Vec<Spans> = (0..self.devices.len()).map(|index| self.spans(index, limit)).collect();
        let longest = |start: usize| spans.iter().map(|spans| spans.runs[start]).max().unwrap_or(0);
        Windows { longest: (0..self.instance.blocks).map(longest).collect(), spans }
    }

    fn spans(&self, index: usize, limit: f64) -> Spans {
        let (instance, device) = (self.instance, self.devices[index]);
        let blocks = instance.blocks;
        let leaves: Vec<bool> = (0..=blocks).map(|end| self.is_passed_on(index, end, limit)).collect();
        let buffers = self.largest_cut.saturating_mul(2);
        let all_leave = leaves.iter().skip(1).all(|&leaves| leaves);
        // Whatever its ends are, such a window works.
        let is_safe = |start: usize, end: usize| {
            let held = instance.held(start, end).saturating_add(instance.peak(start, end));
            held.saturating_add(buffers) <= instance.memory(device)
                && instance.most_alone_s(device, instance.seconds(device, start, end)) <= limit
        };
        let runs = (0..blocks as u32).collect();
        let mut spans = Spans { runs, others: Vec::new(), at: Vec::with_capacity(blocks + 1) };
        let mut safe = 0;
        for start in 0..blocks {
            spans.at.push(spans.others.len() as u32);
            if !self.is_handed(index, start, limit) {
                continue;
            }
            safe = safe.max(start);
            while all_leave && safe < blocks && is_safe(start, safe + 1) {
                safe += 1;
            }
            spans.runs[start] = safe as u32;
            for (end, &leaves) in leaves.iter().enumerate().skip(safe + 1) {
                let held = instance.held(start, end).saturating_add(instance.peak(start, end));
                if instance.seconds(device, start, end) > limit || held > instance.memory(device) {
                    break;
                }
                let works = leaves
                    && instance.alone_s(device, start, end) <= limit
                    && instance.stage_bytes(start, end) <= instance.memory(device);
                if works && spans.runs[start] as usize + 1 == end {
                    spans.runs[start] = end as u32;
                } else if works {
                    spans.others.push((start as u32, end as u32));
                }
            }
        }
        spans.at.push(spans.others.len() as u32);
        spans
    }

    /// Some device can hand over the window's inputs in time.
    fn is_handed(&self, index: usize, start: usize, limit: f64) -> bool {
        let (instance, device) = (self.instance, self.devices[index]);
        let bytes = instance.cut(start);
        if start == 0 {
            let mut loads = self.entrances.iter().filter(|&&(from, _)| from != device);
            return loads.all(|&(from, share)| instance.link_s(from, device, share * bytes) <= limit);
        }
        let rate = self.rates[index].0;
        rate > 0.0 && bytes / rate <= limit && instance.card_s(device, bytes) <= limit
    }

    /// The device can hand on what leaves it at this position.
    fn is_passed_on(&self, index: usize, end: usize, limit: f64) -> bool {
        let (instance, device) = (self.instance, self.devices[index]);
        let bytes = instance.cut(end);
        if end == instance.blocks {
            let mut loads = self.entrances.iter().filter(|&&(to, _)| to != device);
            return loads.all(|&(to, share)| instance.link_s(device, to, share * bytes) <= limit);
        }
        let rate = self.rates[index].1;
        rate > 0.0 && bytes / rate <= limit && instance.card_s(device, bytes) <= limit
    }
}
