//! A problem as the policies look at it: tables by number, profiled devices only.

use mesh_planner::{PinnedStage, Problem};

/// The policies' tables grow with the square of the blocks.
const MAX_BLOCKS: usize = 2_000;

/// Sums and tables over a valid problem. Devices count only when their class is profiled; they are numbered anew.
#[derive(Debug)]
pub(super) struct View<'a> {
    pub(super) problem: &'a Problem,
    /// Number of blocks.
    pub(super) blocks: usize,
    /// Places of the profiled devices in the problem.
    places: Vec<usize>,
    prefix_s: Vec<Vec<f64>>,
    /// Bytes of a stage, by `first * (blocks + 1) + end`.
    stage_bytes: Vec<u64>,
    rates: Vec<f64>,
}

impl<'a> View<'a> {
    pub(super) fn new(problem: &'a Problem) -> Result<Self, String> {
        problem.validate().map_err(|error| error.to_string())?;
        let blocks = problem.blocks.len();
        if blocks > MAX_BLOCKS {
            return Err(format!("the problem has {blocks} blocks; this policy takes at most {MAX_BLOCKS}"));
        }
        let (mut places, mut prefix_s) = (Vec::new(), Vec::new());
        for (place, device) in problem.devices.iter().enumerate() {
            if let Some(prefix) = prefix_seconds(problem, &device.class, device.speed) {
                places.push(place);
                prefix_s.push(prefix);
            }
        }
        if places.is_empty() {
            return Err("no device's class has seconds for every block; give them in `blocks`".into());
        }
        let rates = rates(problem, &places);
        Ok(Self { problem, blocks, places, prefix_s, stage_bytes: stage_bytes(problem), rates })
    }

    /// Number of profiled devices.
    pub(super) fn devices(&self) -> usize {
        self.places.len()
    }

    /// Seconds of blocks `first..end` on a device.
    pub(super) fn seconds(&self, device: usize, first: usize, end: usize) -> f64 {
        (self.prefix_s[device][end] - self.prefix_s[device][first]).max(0.0)
    }

    /// Bytes that a stage of blocks `first..end` takes: loaded weights, largest peak, the buffers of its two cuts.
    pub(super) fn bytes(&self, first: usize, end: usize) -> u64 {
        self.stage_bytes[first * (self.blocks + 1) + end]
    }

    pub(super) fn id(&self, device: usize) -> String {
        self.problem.devices[self.places[device]].id.clone()
    }

    pub(super) fn memory(&self, device: usize) -> u64 {
        self.problem.devices[self.places[device]].memory_bytes
    }

    pub(super) fn class(&self, device: usize) -> (&str, f64) {
        let device = &self.problem.devices[self.places[device]];
        (&device.class, device.speed)
    }

    /// Does the device hold a stage of blocks `first..end`?
    pub(super) fn fits(&self, device: usize, first: usize, end: usize) -> bool {
        self.bytes(first, end) <= self.memory(device)
    }

    pub(super) fn smallest_memory(&self) -> u64 {
        (0..self.devices()).map(|device| self.memory(device)).min().unwrap_or(0)
    }

    /// Bytes that cross at a position.
    pub(super) fn cut(&self, position: usize) -> f64 {
        self.problem.cuts[position] as f64
    }

    /// Bytes per second from one device to another; 0 without a link.
    pub(super) fn rate(&self, from: usize, to: usize) -> f64 {
        self.rates[from * self.devices() + to]
    }

    /// Bytes per second between all pairs, row by sender; 0 from a device to itself.
    pub(super) fn rates(&self) -> &[f64] {
        &self.rates
    }

    /// Least and greatest number of stages: what was asked for, at most one per block and per device.
    pub(super) fn stage_limits(&self) -> (usize, usize) {
        let most = self.problem.max_stages.unwrap_or(usize::MAX).min(self.blocks).min(self.devices());
        (self.problem.min_stages.unwrap_or(1), most)
    }

    /// Stages from their ends and their devices.
    pub(super) fn stages(&self, ends: &[usize], devices: &[usize]) -> Vec<PinnedStage> {
        let mut first = 0;
        let stage = |(&end, &device): (&usize, &usize)| {
            let first_block = std::mem::replace(&mut first, end);
            PinnedStage { first_block, last_block: end - 1, devices: vec![self.id(device)] }
        };
        ends.iter().zip(devices).map(stage).collect()
    }
}

/// Seconds over a rate; no link takes for ever.
pub(super) fn over(bytes: f64, rate: f64) -> f64 {
    if rate > 0.0 { bytes / rate } else { f64::INFINITY }
}

fn prefix_seconds(problem: &Problem, class: &str, speed: f64) -> Option<Vec<f64>> {
    let mut prefix = vec![0.0];
    let mut sum = 0.0;
    for block in &problem.blocks {
        sum += block.seconds.get(class)? / speed;
        prefix.push(sum);
    }
    Some(prefix)
}

fn stage_bytes(problem: &Problem) -> Vec<u64> {
    let blocks = problem.blocks.len();
    let mut table = vec![0; blocks * (blocks + 1)];
    for first in 0..blocks {
        let (mut weights, mut peak) = (0u64, 0);
        for (index, block) in problem.blocks.iter().enumerate().skip(first) {
            weights = weights.saturating_add(block.weight_bytes).saturating_add(block.overhead_bytes);
            peak = peak.max(block.peak_bytes);
            let buffers = problem.cuts[first].saturating_add(problem.cuts[index + 1]);
            table[first * (blocks + 1) + index + 1] = weights.saturating_add(peak).saturating_add(buffers);
        }
    }
    table
}

fn rates(problem: &Problem, places: &[usize]) -> Vec<f64> {
    let count = problem.devices.len();
    let mut all = vec![problem.links.default.bytes_per_s; count * count];
    let place = |id: &str| problem.devices.iter().position(|device| device.id == id);
    for link in &problem.links.pairs {
        if let (Some(from), Some(to)) = (place(&link.from), place(&link.to)) {
            all[from * count + to] = link.bytes_per_s;
        }
    }
    let mut rates = Vec::with_capacity(places.len() * places.len());
    for &from in places {
        rates.extend(places.iter().map(|&to| if from == to { 0.0 } else { all[from * count + to] }));
    }
    rates
}
