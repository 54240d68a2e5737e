//! What both chain solvers share: the cost of extending a chain by one stage, and the tables to read it back.
//!
//! A chain gives every stage to one device and every device at most one stage.

use crate::evaluate::{Draft, DraftStage};
use crate::instance::{Instance, UNREACHABLE_S};

/// Counts work, so that equal input gives equal output on any machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Steps {
    left: u64,
}

impl Steps {
    pub(super) fn new(left: u64) -> Self {
        Self { left }
    }

    pub(super) fn left(self) -> u64 {
        self.left
    }

    /// Pays for work that has been done or will be; false when the budget is used up.
    pub(super) fn pay(&mut self, steps: u64) -> bool {
        self.left = self.left.saturating_sub(steps);
        self.left > 0
    }
}

/// What a chain is made for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Goal {
    /// Sum up latencies; else take the largest load.
    pub(super) latency: bool,
    /// No resource may be busy for longer than this.
    pub(super) cap_s: f64,
    /// With `latency`: chains that take longer are of no interest.
    pub(super) longest_s: f64,
}

impl Goal {
    fn add(self, value: f64, load: f64, latency: f64) -> f64 {
        if load > self.cap_s {
            f64::INFINITY
        } else if self.latency {
            value + latency
        } else {
            value.max(load)
        }
    }
}

/// The best chains that end with one device, by the position they have reached.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) value: Vec<f64>,
    start: Vec<u32>,
    before: Vec<u32>,
    /// First and last position that is reached; the first is beyond the last when none is.
    range: (usize, usize),
}

/// The best ways to hand over to a device, by position: on to further stages, or as the last stage.
#[derive(Debug)]
pub(super) struct Arrivals {
    middle: Vec<(f64, u32)>,
    last: Vec<(f64, u32)>,
}

/// Marks a chain's first stage in `Row::before`.
const NOBODY: u32 = u32::MAX;

/// Transitions of chains over one instance towards one goal.
#[derive(Debug)]
pub(super) struct Chains<'a> {
    pub(super) instance: &'a Instance<'a>,
    pub(super) goal: Goal,
    pub(super) steps: Steps,
    /// The chain's first device, where that matters: requests from the last device's own ingress go to it over the
    /// link that returns outputs to its ingress. Without it that sum is left out, and values are lower bounds.
    pub(super) first: Option<usize>,
    /// By position: the latency that the blocks from there on add at least; 0 when latency does not matter.
    rest_s: Vec<f64>,
}

impl<'a> Chains<'a> {
    pub(super) fn new(instance: &'a Instance<'a>, goal: Goal, steps: Steps) -> Self {
        let usable = instance.usable();
        let mut rest_s = vec![0.0; instance.blocks + 1];
        for block in (0..instance.blocks).rev().filter(|_| goal.latency) {
            let seconds = usable.iter().map(|&device| instance.seconds(device, block, block + 1));
            rest_s[block] = rest_s[block + 1] + seconds.fold(f64::INFINITY, f64::min);
        }
        // Sums of many small numbers may come out a little too long.
        rest_s.iter_mut().for_each(|rest| *rest *= 1.0 - 1e-9);
        Self { instance, goal, steps, first: None, rest_s }
    }

    fn share(&self, device: usize) -> f64 {
        self.instance.ingress[device]
    }

    /// Fraction of the requests that enters elsewhere.
    fn remote(&self, device: usize) -> f64 {
        if self.instance.problem.ingress.is_some() { 1.0 - self.share(device) } else { 0.0 }
    }

    /// The chain begins with this device.
    pub(super) fn begin(&self, device: usize) -> Arrivals {
        let blocks = self.instance.blocks;
        let mut arrivals = self.nowhere();
        let bytes = self.instance.cut(0);
        let (mut load, mut latency) = (0.0f64, 0.0);
        for (from, &share) in self.instance.ingress.iter().enumerate().filter(|&(_, &share)| share > 0.0) {
            if from != device {
                load = load.max(share * self.instance.link_s(from, device, bytes));
                latency += share * self.instance.hop_latency(from, device, bytes);
            }
        }
        let inputs = self.remote(device) * bytes;
        let outputs = self.share(device) * self.instance.cut(blocks);
        let middle = load.max(self.instance.card_s(device, inputs + outputs));
        arrivals.middle[0].0 = self.goal.add(0.0, middle, latency);
        arrivals.last[0].0 = self.goal.add(0.0, load.max(self.instance.card_s(device, inputs)), latency);
        arrivals
    }

    /// No way to hand over yet.
    pub(super) fn nowhere(&self) -> Arrivals {
        let none = vec![(f64::INFINITY, NOBODY); self.instance.blocks];
        Arrivals { middle: none.clone(), last: none }
    }

    /// Hands the chains of `row`, which end with `from`, over to `to`.
    pub(super) fn hand_over(&mut self, arrivals: &mut Arrivals, from: From<'_>, to: usize) {
        let blocks = self.instance.blocks;
        let inputs = if from.is_first { 0.0 } else { self.share(from.device) * self.instance.cut(0) };
        let outputs = self.share(to) * self.instance.cut(blocks);
        let (lowest, highest) = from.row.range;
        self.steps.pay((highest + 1).saturating_sub(lowest) as u64 + 1);
        for position in lowest..=highest.min(blocks - 1) {
            let value = from.row.value[position];
            if value >= arrivals.middle[position].0 && value >= arrivals.last[position].0 {
                continue;
            }
            let bytes = self.instance.cut(position);
            let load = self
                .instance
                .link_s(from.device, to, bytes)
                .max(self.instance.card_s(from.device, bytes + inputs))
                .max(self.instance.card_s(to, bytes));
            let latency =
                if self.goal.latency { self.instance.hop_latency(from.device, to, bytes) } else { 0.0 };
            let last = self.goal.add(value, load, latency);
            let middle = self.goal.add(last, self.instance.card_s(to, bytes + outputs), 0.0);
            if middle < arrivals.middle[position].0 {
                arrivals.middle[position] = (middle, from.tag);
            }
            if last < arrivals.last[position].0 {
                arrivals.last[position] = (last, from.tag);
            }
        }
    }

    /// Runs all stages that `device` can take on from the arrivals and that end at `need` or later.
    pub(super) fn extend(&mut self, device: usize, arrivals: &Arrivals, is_first: bool, need: usize) -> Row {
        let blocks = self.instance.blocks;
        let mut row = Row {
            value: vec![f64::INFINITY; blocks + 1],
            start: vec![0; blocks + 1],
            before: vec![NOBODY; blocks + 1],
            range: (blocks + 1, 0),
        };
        // What a stage in the middle can start from, the last stage can start from too.
        let is_reached = |(value, _): &(f64, u32)| *value < UNREACHABLE_S;
        let first = arrivals.last.iter().position(is_reached);
        let Some((lowest, highest)) = first.zip(arrivals.last.iter().rposition(is_reached)) else {
            return row;
        };
        let exit = self.exit(device, is_first);
        for end in need.max(lowest + 1)..=blocks {
            let starts = (lowest, highest.min(end - 1));
            // Later ends can be reached only from later starts, if there are any.
            if end > highest && self.is_too_long(device, highest, end) {
                break;
            }
            let (from, exit) =
                if end == blocks { (&arrivals.last, exit) } else { (&arrivals.middle, (0.0, 0.0)) };
            let (start, value) = self.best_start(device, from, starts, end, exit);
            if value < UNREACHABLE_S {
                row.value[end] = value;
                row.start[end] = start as u32;
                row.before[end] = from[start].1;
                row.range = (row.range.0.min(end), end);
            }
        }
        row
    }

    fn is_too_long(&self, device: usize, start: usize, end: usize) -> bool {
        let held = self.instance.held(start, end).saturating_add(self.instance.peak(start, end));
        held > self.instance.memory(device) || self.instance.seconds(device, start, end) > self.goal.cap_s
    }

    fn best_start(
        &mut self,
        device: usize,
        arrivals: &[(f64, u32)],
        (lowest, highest): (usize, usize),
        end: usize,
        exit: (f64, f64),
    ) -> (usize, f64) {
        let instance = self.instance;
        let memory = instance.memory(device);
        // Nothing that reaches this position later can still be of interest.
        let mut best = (0, self.goal.longest_s - self.rest_s[end]);
        let mut found = f64::INFINITY;
        let mut peak = instance.peak(highest + 1, end);
        let mut steps = 0;
        for start in (lowest..=highest).rev() {
            steps += 1;
            peak = instance.problem.blocks[start].peak_bytes.max(peak);
            let held = instance.held(start, end).saturating_add(peak);
            let seconds = instance.seconds(device, start, end);
            if held > memory || seconds > self.goal.cap_s || seconds >= best.1 {
                break;
            }
            let buffers = instance.problem.cuts[start].saturating_add(instance.problem.cuts[end]);
            if arrivals[start].0 >= best.1 || held.saturating_add(buffers) > memory {
                continue;
            }
            let busy = instance.alone_s(device, start, end);
            let value = self.goal.add(self.goal.add(arrivals[start].0, busy, seconds), exit.0, exit.1);
            if value < best.1 {
                best = (start, value);
                found = value;
            }
        }
        self.steps.pay(steps);
        (best.0, found)
    }

    /// Load and latency of returning the outputs.
    fn exit(&self, device: usize, is_first: bool) -> (f64, f64) {
        let bytes = self.instance.cut(self.instance.blocks);
        let inputs = if is_first { 0.0 } else { self.share(device) * self.instance.cut(0) };
        let mut load = self.instance.card_s(device, self.remote(device) * bytes + inputs);
        let mut latency = 0.0;
        for (to, &share) in self.instance.ingress.iter().enumerate().filter(|&(_, &share)| share > 0.0) {
            if to != device {
                let entering =
                    if self.first == Some(to) { self.share(device) * self.instance.cut(0) } else { 0.0 };
                load = load.max(self.instance.link_s(device, to, share * bytes + entering));
                latency += share * self.instance.hop_latency(device, to, bytes);
            }
        }
        (load, latency)
    }

    /// Value of a finished chain, with the cards and processors of ingress devices that it does not use.
    pub(super) fn finish(&self, value: f64, is_unused: impl Fn(usize) -> bool) -> f64 {
        let (inputs, outputs) = (self.instance.cut(0), self.instance.cut(self.instance.blocks));
        let mut value = value;
        for (device, &share) in self.instance.ingress.iter().enumerate() {
            if share > 0.0 && is_unused(device) {
                let card = self.instance.card_s(device, share * inputs.max(outputs));
                let load = card.max(self.instance.ingress_s(device));
                value = self.goal.add(value, load, 0.0);
            }
        }
        value
    }
}

/// The end of a chain that is handed over.
#[derive(Debug, Clone, Copy)]
pub(super) struct From<'a> {
    /// The device that runs the last stage so far.
    pub(super) device: usize,
    /// That stage is the first one.
    pub(super) is_first: bool,
    /// Its chains.
    pub(super) row: &'a Row,
    /// How the caller finds this row again.
    pub(super) tag: u32,
}

impl Row {
    /// The last stage of the chain that ends at `end`: its first block, and the tag of the row before it.
    pub(super) fn last_stage(&self, end: usize) -> (usize, Option<u32>) {
        let before = self.before[end];
        (self.start[end] as usize, (before != NOBODY).then_some(before))
    }
}

/// Makes a draft of stages found from the last to the first, as `(device, first, end)`.
pub(super) fn draft_of(mut backwards: Vec<(usize, usize, usize)>) -> Draft {
    backwards.reverse();
    let stage = |(device, first, end)| DraftStage { first, end, replicas: vec![(device, 1.0)] };
    Draft { stages: backwards.into_iter().map(stage).collect() }
}
