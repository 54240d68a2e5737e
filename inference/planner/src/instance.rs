//! A problem in numbers: devices by index, prefix sums and rates ready for the solvers.

use std::cell::OnceCell;
use std::collections::BTreeMap;

use crate::bound::Bound;
use crate::problem::{Block, Problem, TransferCost};

/// Seconds over a link that does not exist. A number, so that searches see which of two such plans is nearer to one
/// that works: even the least fraction of the requests takes more than `UNREACHABLE_S`.
const NO_LINK_S: f64 = 1e24;
/// What takes longer than this does not work.
pub(crate) const UNREACHABLE_S: f64 = 1e11;

/// The tables that solvers and the evaluation read. Built from a valid problem.
#[derive(Debug)]
pub(crate) struct Instance<'a> {
    pub(crate) problem: &'a Problem,
    /// Number of blocks.
    pub(crate) blocks: usize,
    /// Per device: seconds of the blocks before each position; `None` when its class was not profiled.
    prefix_s: Vec<Option<Vec<f64>>>,
    /// Weight bytes of the blocks before each position, and what they take once loaded.
    prefix_weight: Vec<u64>,
    prefix_held: Vec<u64>,
    /// Level k: the largest peak of 2^k blocks from each position on.
    peaks: Vec<Vec<u64>>,
    rates: Vec<(f64, f64)>,
    /// Per device: what moving data costs it when it runs one stage alone; `None` when that is nothing.
    moves: Vec<Option<Moves>>,
    /// By device: see `compute_share`.
    compute_shares: Vec<f64>,
    /// Fraction of requests that enters at each device; all 0 when end transfers are free.
    pub(crate) ingress: Vec<f64>,
    /// Of the same, what comes over the device's card, in the same order.
    pub(crate) arriving: Vec<f64>,
    /// Computed when it is first asked for.
    bound: OnceCell<Bound>,
}

/// Processor seconds that a device alone in its stage spends on moving data, by the stage's two ends. What it does
/// as an ingress is in it.
#[derive(Debug)]
struct Moves {
    /// By the stage's first block.
    arrive: Vec<f64>,
    /// By the block after the stage's last one.
    leave: Vec<f64>,
    /// No stage has more.
    most: f64,
}

impl<'a> Instance<'a> {
    pub(crate) fn new(problem: &'a Problem) -> Self {
        let devices = &problem.devices;
        let index: BTreeMap<&str, usize> =
            devices.iter().enumerate().map(|(i, device)| (device.id.as_str(), i)).collect();
        let default = (problem.links.default.bytes_per_s, problem.links.default.latency_s);
        let mut rates = vec![default; devices.len() * devices.len()];
        for pair in &problem.links.pairs {
            if let (Some(from), Some(to)) = (index.get(pair.from.as_str()), index.get(pair.to.as_str())) {
                rates[from * devices.len() + to] = (pair.bytes_per_s, pair.latency_s);
            }
        }
        let mut ingress = vec![0.0; devices.len()];
        for (id, &share) in problem.ingress.iter().flatten() {
            if let Some(&device) = index.get(id.as_str()) {
                ingress[device] = share;
            }
        }
        let mut arriving: Vec<f64> =
            devices.iter().map(|device| problem.arriving.get(&device.id).copied().unwrap_or(0.0)).collect();
        let entering: f64 = ingress.iter().sum();
        if entering > 0.0 {
            ingress.iter_mut().chain(&mut arriving).for_each(|share| *share /= entering);
        }
        let prefix_s =
            devices.iter().map(|device| prefix_seconds(problem, &device.class, device.speed)).collect();
        Self {
            problem,
            blocks: problem.blocks.len(),
            prefix_s,
            prefix_weight: prefix_sums(problem.blocks.iter().map(|block| block.weight_bytes)),
            prefix_held: prefix_sums(problem.blocks.iter().map(held_bytes)),
            peaks: peak_levels(problem),
            rates,
            moves: (0..devices.len()).map(|device| Moves::new(problem, device, &ingress)).collect(),
            compute_shares: devices.iter().map(|device| compute_share(&device.transfer)).collect(),
            ingress,
            arriving,
            bound: OnceCell::new(),
        }
    }

    pub(crate) fn bound(&self) -> &Bound {
        self.bound.get_or_init(|| Bound::new(self))
    }

    pub(crate) fn devices(&self) -> usize {
        self.problem.devices.len()
    }

    pub(crate) fn id(&self, device: usize) -> &str {
        &self.problem.devices[device].id
    }

    /// Devices whose class has been profiled, in the problem's order.
    pub(crate) fn usable(&self) -> Vec<usize> {
        (0..self.devices()).filter(|&device| self.prefix_s[device].is_some()).collect()
    }

    pub(crate) fn is_profiled(&self, device: usize) -> bool {
        self.prefix_s[device].is_some()
    }

    /// Seconds of blocks `first..end` on a device; infinite when it cannot be known.
    pub(crate) fn seconds(&self, device: usize, first: usize, end: usize) -> f64 {
        match &self.prefix_s[device] {
            // Prefix sums can round below zero where the blocks take no time.
            Some(prefix) => (prefix[end] - prefix[first]).max(0.0),
            None => f64::INFINITY,
        }
    }

    /// Bytes of the weights of a stage `first..end`: what has to be fetched for it.
    pub(crate) fn weight(&self, first: usize, end: usize) -> u64 {
        self.prefix_weight[end] - self.prefix_weight[first]
    }

    /// Bytes of memory that they take once they are loaded.
    pub(crate) fn held(&self, first: usize, end: usize) -> u64 {
        self.prefix_held[end] - self.prefix_held[first]
    }

    pub(crate) fn peak(&self, first: usize, end: usize) -> u64 {
        let Some(level) = (end - first).checked_ilog2() else { return 0 };
        let level_peaks = &self.peaks[level as usize];
        level_peaks[first].max(level_peaks[end - (1 << level)])
    }

    pub(crate) fn memory(&self, device: usize) -> u64 {
        self.problem.devices[device].memory_bytes
    }

    /// Bytes of a stage `first..end` alone on a device: loaded weights, largest peak, and its two cut buffers.
    pub(crate) fn stage_bytes(&self, first: usize, end: usize) -> u64 {
        let buffers = self.problem.cuts[first].saturating_add(self.problem.cuts[end]);
        self.held(first, end).saturating_add(self.peak(first, end)).saturating_add(buffers)
    }

    /// Bytes that any stage with this block needs: its cuts may lie inside the stage, so they do not count.
    pub(crate) fn block_bytes(&self, block: usize) -> u64 {
        let block = &self.problem.blocks[block];
        held_bytes(block).saturating_add(block.peak_bytes)
    }

    pub(crate) fn cut(&self, position: usize) -> f64 {
        self.problem.cuts[position] as f64
    }

    /// Seconds that a link is busy with so many bytes.
    pub(crate) fn link_s(&self, from: usize, to: usize, bytes: f64) -> f64 {
        over(bytes, self.rates[from * self.devices() + to].0)
    }

    /// Between some two devices there is no link in one direction or the other.
    pub(crate) fn lacks_links(&self) -> bool {
        let devices = self.devices();
        let mut pairs = (0..devices).flat_map(|from| (0..devices).map(move |to| (from, to)));
        pairs.any(|(from, to)| from != to && self.link(from, to).0 <= 0.0)
    }

    pub(crate) fn link(&self, from: usize, to: usize) -> (f64, f64) {
        self.rates[from * self.devices() + to]
    }

    /// Seconds that a device's card is busy with so many bytes in one direction.
    pub(crate) fn card_s(&self, device: usize, bytes: f64) -> f64 {
        self.problem.devices[device].card_bytes_per_s.map_or(0.0, |rate| over(bytes, rate))
    }

    /// Seconds until one message has arrived: latency, the slowest of link and cards, and the work at both ends.
    pub(crate) fn hop_latency(&self, from: usize, to: usize, bytes: f64) -> f64 {
        if from == to {
            return 0.0;
        }
        let slowest = self.link_s(from, to, bytes).max(self.card_s(from, bytes)).max(self.card_s(to, bytes));
        let work = self.send_s(from, bytes) + self.receive_s(to, bytes);
        slowest + work + self.rates[from * self.devices() + to].1
    }

    /// Processor seconds of sending one message.
    pub(crate) fn send_s(&self, device: usize, bytes: f64) -> f64 {
        send_s(&self.problem.devices[device].transfer, bytes)
    }

    /// Processor seconds of receiving one message.
    pub(crate) fn receive_s(&self, device: usize, bytes: f64) -> f64 {
        receive_s(&self.problem.devices[device].transfer, bytes)
    }

    /// Seconds that a device is busy with so much compute and moving of data.
    pub(crate) fn processor_s(&self, device: usize, compute_s: f64, transfer_s: f64) -> f64 {
        compute_s.max(compute_s * self.compute_share(device) + transfer_s)
    }

    /// The part of what is left of the processors that a running stage keeps busy; more than 1 where it would like more.
    pub(crate) fn compute_share(&self, device: usize) -> f64 {
        self.compute_shares[device]
    }

    /// Seconds that a device is busy with when it alone runs the blocks `first..end` and nothing else.
    pub(crate) fn alone_s(&self, device: usize, first: usize, end: usize) -> f64 {
        let compute_s = self.seconds(device, first, end);
        match &self.moves[device] {
            Some(moves) => self.processor_s(device, compute_s, moves.arrive[first] + moves.leave[end]),
            None => compute_s,
        }
    }

    /// No less than `alone_s` of any stage that takes so many seconds of compute.
    pub(crate) fn most_alone_s(&self, device: usize, compute_s: f64) -> f64 {
        let most = self.moves[device].as_ref().map_or(0.0, |moves| moves.most);
        self.processor_s(device, compute_s, most).max(compute_s)
    }

    /// Moving data costs some device's processors something.
    pub(crate) fn moves_cost(&self) -> bool {
        self.moves.iter().any(Option::is_some)
    }

    /// Processor seconds that a device without a stage spends as an ingress.
    pub(crate) fn ingress_s(&self, device: usize) -> f64 {
        let work = self.send_s(device, self.cut(0)) + self.receive_s(device, self.cut(self.blocks));
        self.ingress[device] * (work + self.entry_s(device))
    }

    /// Processor seconds of taking one request from a client and giving it the answer.
    pub(crate) fn entry_s(&self, device: usize) -> f64 {
        entry_s(self.problem, device)
    }

    /// Least and greatest number of stages that were asked for and that the blocks allow.
    pub(crate) fn stage_limits(&self) -> (usize, usize) {
        let min = self.problem.min_stages.unwrap_or(1);
        (min, self.problem.max_stages.unwrap_or(usize::MAX).min(self.blocks))
    }
}

impl Moves {
    fn new(problem: &Problem, device: usize, ingress: &[f64]) -> Option<Self> {
        let cost = &problem.devices[device].transfer;
        let entering = ingress[device];
        let entry_s = entering * entry_s(problem, device);
        let is_free = cost.send_s_per_byte == 0.0
            && cost.receive_s_per_byte == 0.0
            && cost.request_s == 0.0
            && cost.rest_share == 0.0;
        if is_free && entry_s == 0.0 {
            return None;
        }
        let remote = if problem.ingress.is_some() { 1.0 - entering } else { 0.0 };
        let cuts: Vec<f64> = problem.cuts.iter().map(|&bytes| bytes as f64).collect();
        let last = cuts.len() - 1;
        let taken = |&bytes: &f64| receive_s(cost, bytes) + entering * send_s(cost, cuts[0]);
        let given = |&bytes: &f64| send_s(cost, bytes) + entering * receive_s(cost, cuts[last]);
        let mut arrive: Vec<f64> = cuts.iter().map(taken).collect();
        let mut leave: Vec<f64> = cuts.iter().map(given).collect();
        arrive[0] = remote * receive_s(cost, cuts[0]);
        arrive.iter_mut().for_each(|seconds| *seconds += entry_s);
        leave[last] = remote * send_s(cost, cuts[last]);
        let largest = |seconds: &[f64]| seconds.iter().copied().fold(0.0, f64::max);
        let most = largest(&arrive) + largest(&leave);
        Some(Self { arrive, leave, most })
    }
}

/// The part of the processors that is there for requests.
fn left(cost: &TransferCost) -> f64 {
    1.0 - cost.rest_share
}

fn compute_share(cost: &TransferCost) -> f64 {
    cost.compute_share / left(cost)
}

fn send_s(cost: &TransferCost, bytes: f64) -> f64 {
    (cost.request_s + bytes * cost.send_s_per_byte) / left(cost)
}

fn entry_s(problem: &Problem, device: usize) -> f64 {
    let ends = problem.cuts.first().zip(problem.cuts.last());
    ends.map_or(0.0, |(inputs, outputs)| {
        let cost = &problem.devices[device].transfer;
        (*inputs as f64 + *outputs as f64) * cost.entry_s_per_byte / left(cost)
    })
}

fn receive_s(cost: &TransferCost, bytes: f64) -> f64 {
    (cost.request_s + bytes * cost.receive_s_per_byte) / left(cost)
}

fn held_bytes(block: &Block) -> u64 {
    block.weight_bytes.saturating_add(block.overhead_bytes)
}

/// Sums of all before each position, and of all.
fn prefix_sums(bytes: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut sums = vec![0u64];
    for bytes in bytes {
        sums.push(sums[sums.len() - 1].saturating_add(bytes));
    }
    sums
}

fn peak_levels(problem: &Problem) -> Vec<Vec<u64>> {
    let mut levels = vec![problem.blocks.iter().map(|block| block.peak_bytes).collect::<Vec<_>>()];
    let mut width = 1;
    while 2 * width <= problem.blocks.len() {
        let below = &levels[levels.len() - 1];
        levels.push(below.iter().zip(&below[width..]).map(|(a, b)| *a.max(b)).collect());
        width *= 2;
    }
    levels
}

fn prefix_seconds(problem: &Problem, class: &str, speed: f64) -> Option<Vec<f64>> {
    let mut prefix = Vec::with_capacity(problem.blocks.len() + 1);
    let mut sum = 0.0;
    prefix.push(sum);
    for block in &problem.blocks {
        sum += block.seconds.get(class)? / speed;
        prefix.push(sum);
    }
    Some(prefix)
}

/// Bytes over a rate. No link at all is hopelessly slow, also for nothing: a hop still has to be made.
fn over(bytes: f64, rate: f64) -> f64 {
    if rate > 0.0 { bytes / rate } else { NO_LINK_S }
}
