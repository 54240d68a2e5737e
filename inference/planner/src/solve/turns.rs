//! Few devices and few blocks: every division with one device for each stage, a device in several of them where that
//! is better.
//!
//! A device that has two of three turns can even out blocks that do not divide evenly, or hold the two small ends of a
//! model whose middle fits nowhere else. Neighbouring stages of one device are one stage: that is never worse.

use super::Costed;
use super::chain::Steps;
use crate::evaluate::{Draft, DraftStage, Evaluation, entrances, evaluate_draft, fits};
use crate::instance::Instance;

/// Up to so many devices and blocks.
pub(super) const DEVICES_MAX: usize = 6;
const BLOCKS_MAX: usize = 12;

/// What was found.
#[derive(Debug)]
pub(super) struct Turns {
    /// A plan that is better than the one that was known.
    pub(super) better: Option<Costed>,
    /// All were looked at: with one device for each stage there is nothing better than this, or than what was known.
    pub(super) is_complete: bool,
}

/// Whether devices and blocks are few.
pub(super) fn is_small(instance: &Instance<'_>) -> bool {
    instance.usable().len() <= DEVICES_MAX && instance.blocks <= BLOCKS_MAX
}

/// All divisions with a load, or a latency, of less than `limit`.
pub(super) fn search(instance: &Instance<'_>, latency: bool, limit: f64, steps: &mut Steps) -> Turns {
    let devices = instance.usable();
    let mut rest_s = vec![0.0; instance.blocks + 1];
    for block in (0..instance.blocks).rev() {
        let seconds = devices.iter().map(|&device| instance.seconds(device, block, block + 1));
        rest_s[block] = rest_s[block + 1] + seconds.fold(f64::INFINITY, f64::min);
    }
    let mut search = Search {
        instance,
        latency,
        entrances: entrances(instance),
        rest_s,
        limit,
        better: None,
        stages: Vec::new(),
        devices,
        is_cut_short: false,
    };
    let sum = Sum::new(instance.devices());
    search.go_on(0, &sum, steps);
    Turns { better: search.better, is_complete: !search.is_cut_short }
}

fn value(latency: bool, evaluation: &Evaluation) -> f64 {
    if latency { evaluation.latency_s } else { evaluation.bottleneck_s }
}

struct Search<'a> {
    instance: &'a Instance<'a>,
    latency: bool,
    devices: Vec<usize>,
    entrances: Vec<(usize, f64)>,
    /// Latency of the blocks from each position on, at least.
    rest_s: Vec<f64>,
    /// Value of the best plan so far.
    limit: f64,
    better: Option<Costed>,
    /// Device, first block and end of the stages so far.
    stages: Vec<(usize, usize, usize)>,
    is_cut_short: bool,
}

/// What the stages so far add up to, at least.
#[derive(Clone)]
struct Sum {
    compute: Vec<f64>,
    moving: Vec<f64>,
    held: Vec<u64>,
    card_out: Vec<f64>,
    card_in: Vec<f64>,
    /// By sender and receiver, row by sender.
    links: Vec<f64>,
    latency_s: f64,
}

impl Sum {
    fn new(devices: usize) -> Self {
        let none = || vec![0.0; devices];
        Self {
            compute: none(),
            moving: none(),
            held: vec![0; devices],
            card_out: none(),
            card_in: none(),
            links: vec![0.0; devices * devices],
            latency_s: 0.0,
        }
    }

    /// A part of the requests goes from one device to another.
    fn hop(&mut self, instance: &Instance<'_>, (from, to): (usize, usize), part: f64, bytes: f64) {
        if from == to {
            return;
        }
        self.moving[from] += part * instance.send_s(from, bytes);
        self.moving[to] += part * instance.receive_s(to, bytes);
        self.card_out[from] += instance.card_s(from, part * bytes);
        self.card_in[to] += instance.card_s(to, part * bytes);
        self.links[from * instance.devices() + to] += part * instance.link_s(from, to, bytes);
        self.latency_s += part * instance.hop_latency(from, to, bytes);
    }

    /// The busiest of what a device, and its links to and from these, do.
    fn busiest(&self, instance: &Instance<'_>, device: usize, others: &[usize]) -> f64 {
        let busy = instance.processor_s(device, self.compute[device], self.moving[device]);
        let link = |from: usize, to: usize| self.links[from * instance.devices() + to];
        let links = others.iter().map(|&other| link(other, device).max(link(device, other)));
        links.fold(busy.max(self.card_out[device]).max(self.card_in[device]), f64::max)
    }
}

impl Search<'_> {
    /// All ways on from a block.
    fn go_on(&mut self, first: usize, sum: &Sum, steps: &mut Steps) {
        let (instance, blocks) = (self.instance, self.instance.blocks);
        if first == blocks {
            self.look();
            return;
        }
        let (min, max) = instance.stage_limits();
        if self.stages.len() == max {
            return;
        }
        let last = self.stages.last().map(|&(device, ..)| device);
        for device in self.devices.clone() {
            // Without a wish for more stages, this would be the stage before, and a cut for nothing.
            if last == Some(device) && min == 1 {
                continue;
            }
            for end in first + 1..=blocks {
                if !steps.pay(1) {
                    self.is_cut_short = true;
                    return;
                }
                let is_too_few = end == blocks && self.stages.len() + 1 < min;
                let Some(next) = self.with(sum, last, device, (first, end)) else { break };
                if is_too_few || self.is_beyond(&next, device, end) {
                    continue;
                }
                self.stages.push((device, first, end));
                self.go_on(end, &next, steps);
                self.stages.pop();
            }
        }
    }

    /// The sum with one stage more; `None` when neither it nor any longer one can be part of a better plan.
    fn with(
        &self,
        sum: &Sum,
        last: Option<usize>,
        device: usize,
        (first, end): (usize, usize),
    ) -> Option<Sum> {
        let instance = self.instance;
        let mut next = sum.clone();
        next.compute[device] += instance.seconds(device, first, end);
        next.held[device] = next.held[device].saturating_add(instance.held(first, end));
        next.latency_s += instance.seconds(device, first, end);
        let is_too_long = if self.latency { next.latency_s } else { next.compute[device] } >= self.limit;
        if is_too_long || next.held[device] > instance.memory(device) {
            return None;
        }
        match last {
            Some(last) => next.hop(instance, (last, device), 1.0, instance.cut(first)),
            None => {
                let share = |&(from, part): &(usize, f64)| {
                    next.hop(instance, (from, device), part, instance.cut(0));
                };
                self.entrances.iter().for_each(share);
            }
        }
        if end == instance.blocks {
            let share =
                |&(to, part): &(usize, f64)| next.hop(instance, (device, to), part, instance.cut(end));
            self.entrances.iter().for_each(share);
        }
        Some(next)
    }

    /// No plan that begins so is better than the best so far.
    fn is_beyond(&self, sum: &Sum, device: usize, end: usize) -> bool {
        if self.latency {
            return (sum.latency_s + self.rest_s[end]) * (1.0 - 1e-9) >= self.limit;
        }
        let all: Vec<usize> = (0..self.instance.devices()).collect();
        sum.busiest(self.instance, device, &all) * (1.0 - 1e-9) >= self.limit
    }

    /// Looks at the stages as they are.
    fn look(&mut self) {
        let stage = |&(device, first, end): &(usize, usize, usize)| DraftStage {
            first,
            end,
            replicas: vec![(device, 1.0)],
        };
        let draft = Draft { stages: self.stages.iter().map(stage).collect() };
        let evaluation = evaluate_draft(self.instance, &draft);
        let new = value(self.latency, &evaluation);
        if new < self.limit * (1.0 - 1e-9) && evaluation.is_served() && fits(self.instance, &draft) {
            self.limit = new;
            self.better = Some((draft, evaluation));
        }
    }
}
