//! A problem in numbers: devices by index, prefix sums and rates ready for the solvers.

use std::collections::BTreeMap;

use crate::problem::Problem;

/// The tables that solvers and the evaluation read. Built from a valid problem.
#[derive(Debug)]
pub(crate) struct Instance<'a> {
    pub(crate) problem: &'a Problem,
    /// Number of blocks.
    pub(crate) blocks: usize,
    /// Per device: seconds of the blocks before each position; `None` when its class was not profiled.
    prefix_s: Vec<Option<Vec<f64>>>,
    /// Weight bytes of the blocks before each position.
    prefix_weight: Vec<u64>,
    /// Level k: the largest peak of 2^k blocks from each position on.
    peaks: Vec<Vec<u64>>,
    rates: Vec<(f64, f64)>,
    /// Fraction of requests that enters at each device; all 0 when end transfers are free.
    pub(crate) ingress: Vec<f64>,
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
        let mut prefix_weight = vec![0u64];
        for block in &problem.blocks {
            prefix_weight.push(prefix_weight[prefix_weight.len() - 1].saturating_add(block.weight_bytes));
        }
        let prefix_s =
            devices.iter().map(|device| prefix_seconds(problem, &device.class, device.speed)).collect();
        Self {
            problem,
            blocks: problem.blocks.len(),
            prefix_s,
            prefix_weight,
            peaks: peak_levels(problem),
            rates,
            ingress,
        }
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

    pub(crate) fn weight(&self, first: usize, end: usize) -> u64 {
        self.prefix_weight[end] - self.prefix_weight[first]
    }

    pub(crate) fn peak(&self, first: usize, end: usize) -> u64 {
        let Some(level) = (end - first).checked_ilog2() else { return 0 };
        let level_peaks = &self.peaks[level as usize];
        level_peaks[first].max(level_peaks[end - (1 << level)])
    }

    pub(crate) fn memory(&self, device: usize) -> u64 {
        self.problem.devices[device].memory_bytes
    }

    /// Bytes of a stage `first..end` alone on a device: weights, largest peak, and its two cut buffers.
    pub(crate) fn stage_bytes(&self, first: usize, end: usize) -> u64 {
        let buffers = self.problem.cuts[first].saturating_add(self.problem.cuts[end]);
        self.weight(first, end).saturating_add(self.peak(first, end)).saturating_add(buffers)
    }

    /// Bytes that any stage with this block needs: its cuts may lie inside the stage, so they do not count.
    pub(crate) fn block_bytes(&self, block: usize) -> u64 {
        let block = &self.problem.blocks[block];
        block.weight_bytes.saturating_add(block.peak_bytes)
    }

    pub(crate) fn cut(&self, position: usize) -> f64 {
        self.problem.cuts[position] as f64
    }

    /// Seconds that a link is busy with so many bytes.
    pub(crate) fn link_s(&self, from: usize, to: usize, bytes: f64) -> f64 {
        over(bytes, self.rates[from * self.devices() + to].0)
    }

    pub(crate) fn link(&self, from: usize, to: usize) -> (f64, f64) {
        self.rates[from * self.devices() + to]
    }

    /// Seconds that a device's card is busy with so many bytes in one direction.
    pub(crate) fn card_s(&self, device: usize, bytes: f64) -> f64 {
        self.problem.devices[device].card_bytes_per_s.map_or(0.0, |rate| over(bytes, rate))
    }

    /// Seconds until one message has arrived: latency and the slowest of link and cards.
    pub(crate) fn hop_latency(&self, from: usize, to: usize, bytes: f64) -> f64 {
        if from == to {
            return 0.0;
        }
        let slowest = self.link_s(from, to, bytes).max(self.card_s(from, bytes)).max(self.card_s(to, bytes));
        slowest + self.rates[from * self.devices() + to].1
    }

    /// Least and greatest number of stages that were asked for and that the blocks allow.
    pub(crate) fn stage_limits(&self) -> (usize, usize) {
        let min = self.problem.min_stages.unwrap_or(1);
        (min, self.problem.max_stages.unwrap_or(usize::MAX).min(self.blocks))
    }
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

/// Bytes over a rate. No link at all is infinitely slow, also for nothing: a hop still has to be made.
fn over(bytes: f64, rate: f64) -> f64 {
    if rate > 0.0 { bytes / rate } else { f64::INFINITY }
}
