//! The one cost model: what a plan costs on every device, link and network card.
//!
//! All resources work at the same time (receive, run and send overlap), so the busiest one sets the rate. A device's
//! processors run stages and move data; a stage may leave a part of them free, where data can move meanwhile.

use crate::flow::Remote;
use crate::instance::{Instance, UNREACHABLE_S};
use crate::plan::{Bottleneck, BottleneckKind};

/// A rate is predicted for at least this much work per request, so that it stays a finite number.
const SHORTEST_S: f64 = 1e-9;

/// Something that can be busy. The order decides ties: compute is named before links and cards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// The processors of a device.
    Compute(usize),
    /// The path from one device to another.
    Link(usize, usize),
    /// What a device's card sends.
    CardOut(usize),
    /// What a device's card receives.
    CardIn(usize),
}

/// How busy a resource is with one request, on average.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Seconds per request.
    pub seconds: f64,
    /// The stage that causes most of it; for transfers, the stage that sends.
    pub stage: usize,
    largest_part: f64,
}

impl Load {
    const NONE: Self = Self { seconds: 0.0, stage: 0, largest_part: f64::NEG_INFINITY };

    fn add(&mut self, seconds: f64, stage: usize) {
        self.seconds += seconds;
        if seconds > self.largest_part {
            (self.largest_part, self.stage) = (seconds, stage);
        }
    }

    fn is_used(&self) -> bool {
        self.largest_part > f64::NEG_INFINITY
    }
}

/// What a device's processors do per request, on average.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ProcessorLoad {
    /// Seconds that its stages run.
    pub compute_s: f64,
    /// Seconds of the whole device for data that it sends and receives.
    pub transfer_s: f64,
    /// Seconds that it is busy: never less than `compute_s`, and the transfers where stages leave no room for them.
    pub busy_s: f64,
}

/// A plan by device index, as the solvers build it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Draft {
    pub(crate) stages: Vec<DraftStage>,
}

/// Blocks `first..end` on replicas of `(device, share)`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DraftStage {
    pub(crate) first: usize,
    pub(crate) end: usize,
    pub(crate) replicas: Vec<(usize, f64)>,
}

/// Predicted numbers of one stage.
#[derive(Debug, Clone, PartialEq)]
pub struct StageCost {
    /// Seconds of one request on the slowest replica.
    pub compute_s: f64,
    /// Expected seconds to hand one request's activations on.
    pub hop_s: f64,
    /// Bytes that leave the stage per request.
    pub output_bytes: u64,
    /// Weight bytes on each replica.
    pub weight_bytes: u64,
    /// Bytes that each replica needs, were it alone on its device.
    pub memory_bytes: u64,
}

/// What a plan costs.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Busy seconds per request of every resource in use, in the order of `Resource`.
    pub loads: Vec<(Resource, Load)>,
    /// What each device's processors do, by the problem's order.
    pub processors: Vec<ProcessorLoad>,
    /// Bytes that the plan needs on each device, by the problem's order.
    pub memory_bytes: Vec<u64>,
    /// Seconds of the busiest resource.
    pub bottleneck_s: f64,
    /// The busiest resource.
    pub bottleneck: Bottleneck,
    /// Requests per second.
    pub throughput_rps: f64,
    /// Expected seconds of one request through an idle pipeline, from when the ingress has it until it has the answer.
    pub latency_s: f64,
    /// Numbers per stage.
    pub stages: Vec<StageCost>,
}

impl Evaluation {
    /// Every hop has its link.
    pub(crate) fn is_served(&self) -> bool {
        self.bottleneck_s < UNREACHABLE_S && self.latency_s < UNREACHABLE_S
    }
}

/// Costs of a draft.
pub(crate) fn evaluate_draft(instance: &Instance<'_>, draft: &Draft) -> Evaluation {
    let mut sum = Sum::new(instance);
    let stages = draft.stages.iter().enumerate().map(|(index, stage)| sum.compute(index, stage)).collect();
    let mut stages: Vec<StageCost> = stages;
    let entrances = entrances(instance);
    sum.enter(&entrances);
    if let Some(first) = draft.stages.first() {
        sum.latency_s += sum.hop(&entrances, &first.replicas, instance.cut(0), 0);
    }
    for (index, cost) in stages.iter_mut().enumerate() {
        let receivers = draft.stages.get(index + 1).map_or(&entrances, |next| &next.replicas);
        let stage = &draft.stages[index];
        cost.hop_s = sum.hop(&stage.replicas, receivers, instance.cut(stage.end), index);
        sum.latency_s += cost.hop_s;
    }
    let latency_s = sum.latency_s;
    let (processors, loads) = sum.finish();
    let (bottleneck_s, bottleneck) = busiest(instance, &loads);
    Evaluation {
        bottleneck_s,
        bottleneck,
        throughput_rps: 1.0 / bottleneck_s.max(SHORTEST_S),
        latency_s,
        memory_bytes: memory(instance, draft),
        loads,
        processors,
        stages,
    }
}

struct Sum<'a> {
    instance: &'a Instance<'a>,
    /// By device.
    compute: Vec<Load>,
    moving: Vec<Load>,
    card_out: Vec<Load>,
    card_in: Vec<Load>,
    /// Not merged yet: one link may serve several hops.
    links: Vec<(Resource, Load)>,
    latency_s: f64,
}

impl<'a> Sum<'a> {
    fn new(instance: &'a Instance<'a>) -> Self {
        let none = vec![Load::NONE; instance.devices()];
        Self {
            instance,
            compute: none.clone(),
            moving: none.clone(),
            card_out: none.clone(),
            card_in: none,
            links: Vec::new(),
            latency_s: 0.0,
        }
    }

    fn compute(&mut self, index: usize, stage: &DraftStage) -> StageCost {
        let mut slowest = 0.0f64;
        for &(device, share) in &stage.replicas {
            let seconds = self.instance.seconds(device, stage.first, stage.end);
            self.compute[device].add(share * seconds, index);
            self.latency_s += share * seconds;
            slowest = slowest.max(seconds);
        }
        StageCost {
            compute_s: slowest,
            hop_s: 0.0,
            output_bytes: self.instance.problem.cuts[stage.end],
            weight_bytes: self.instance.weight(stage.first, stage.end),
            memory_bytes: self.instance.stage_bytes(stage.first, stage.end),
        }
    }

    /// Books what requests cost where they enter. It adds to no latency: that runs from the moment a request is there.
    fn enter(&mut self, entrances: &[(usize, f64)]) {
        let instance = self.instance;
        let cuts = &instance.problem.cuts;
        for &(device, part) in entrances {
            let arriving = instance.arriving[device].min(part);
            if arriving > 0.0
                && let (Some(&inputs), Some(&outputs)) = (cuts.first(), cuts.last())
            {
                self.card_in[device].add(instance.card_s(device, arriving * inputs as f64), 0);
                self.card_out[device].add(instance.card_s(device, arriving * outputs as f64), 0);
            }
            let seconds = part * self.instance.entry_s(device);
            if seconds > 0.0 {
                self.moving[device].add(seconds, 0);
            }
        }
    }

    /// Books what goes over links between two distributions of requests, with `bytes` each; returns the expected
    /// seconds of one request.
    fn hop(&mut self, senders: &[(usize, f64)], receivers: &[(usize, f64)], bytes: f64, stage: usize) -> f64 {
        if senders.is_empty() || receivers.is_empty() {
            return 0.0;
        }
        let remote = Remote::between(senders, receivers);
        for &(device, part) in &remote.senders {
            self.moving[device].add(part * self.instance.send_s(device, bytes), stage);
            self.card_out[device].add(self.instance.card_s(device, part * bytes), stage);
        }
        for &(device, part) in &remote.receivers {
            self.moving[device].add(part * self.instance.receive_s(device, bytes), stage);
            self.card_in[device].add(self.instance.card_s(device, part * bytes), stage);
        }
        let mut hop_s = 0.0;
        for (from, to, part) in remote.flows() {
            let seconds = part * self.instance.link_s(from, to, bytes);
            self.links.push((Resource::Link(from, to), Load { seconds, stage, largest_part: seconds }));
            hop_s += part * self.instance.hop_latency(from, to, bytes);
        }
        hop_s
    }

    fn finish(mut self) -> (Vec<ProcessorLoad>, Vec<(Resource, Load)>) {
        let mut processors = Vec::with_capacity(self.compute.len());
        let mut loads = Vec::new();
        for (device, (compute, moving)) in self.compute.iter().zip(&self.moving).enumerate() {
            let (compute_s, transfer_s) = (compute.seconds, moving.seconds);
            let busy_s = self.instance.processor_s(device, compute_s, transfer_s);
            processors.push(ProcessorLoad { compute_s, transfer_s, busy_s });
            let main = if compute.is_used() { compute } else { moving };
            if main.is_used() {
                loads.push((Resource::Compute(device), Load { seconds: busy_s, ..*main }));
            }
        }
        self.links.sort_by_key(|&(resource, _)| resource);
        for (resource, load) in self.links {
            match loads.last_mut().filter(|(last, _)| *last == resource) {
                Some((_, merged)) => merged.add(load.seconds, load.stage),
                None => loads.push((resource, load)),
            }
        }
        let used = |(_, load): &(usize, Load)| load.is_used();
        let out = self.card_out.into_iter().enumerate().filter(used);
        loads.extend(out.map(|(device, load)| (Resource::CardOut(device), load)));
        let into = self.card_in.into_iter().enumerate().filter(used);
        loads.extend(into.map(|(device, load)| (Resource::CardIn(device), load)));
        (processors, loads)
    }
}

/// Devices that requests enter by, with their fractions.
pub(crate) fn entrances(instance: &Instance<'_>) -> Vec<(usize, f64)> {
    instance.ingress.iter().copied().enumerate().filter(|&(_, share)| share > 0.0).collect()
}

/// Weights and cut buffers of all stages of a device, and the largest peak among them: stages take turns.
pub(crate) fn memory(instance: &Instance<'_>, draft: &Draft) -> Vec<u64> {
    let mut held = vec![0u64; instance.devices()];
    let mut peaks = vec![0u64; instance.devices()];
    for stage in &draft.stages {
        let peak = instance.peak(stage.first, stage.end);
        for &(device, _) in &stage.replicas {
            held[device] = held[device].saturating_add(instance.stage_bytes(stage.first, stage.end) - peak);
            peaks[device] = peaks[device].max(peak);
        }
    }
    held.iter().zip(&peaks).map(|(held, peak)| held.saturating_add(*peak)).collect()
}

/// Does every device hold what the draft gives it?
pub(crate) fn fits(instance: &Instance<'_>, draft: &Draft) -> bool {
    memory(instance, draft).iter().enumerate().all(|(device, &bytes)| bytes <= instance.memory(device))
}

fn busiest(instance: &Instance<'_>, loads: &[(Resource, Load)]) -> (f64, Bottleneck) {
    let mut worst = (Resource::Compute(0), Load { seconds: 0.0, ..Load::NONE });
    let mut is_first = true;
    for &(resource, load) in loads {
        if is_first || load.seconds > worst.1.seconds {
            (worst, is_first) = ((resource, load), false);
        }
    }
    let (resource, load) = worst;
    let (kind, device) = match resource {
        Resource::Compute(device) => (BottleneckKind::Compute, device),
        Resource::Link(from, _) => (BottleneckKind::Link, from),
        Resource::CardOut(device) | Resource::CardIn(device) => (BottleneckKind::Card, device),
    };
    let device = instance.id(device).to_owned();
    (load.seconds, Bottleneck { kind, stage: load.stage, device })
}
