//! The one cost model: what a plan costs on every device, link and network card.
//!
//! All resources work at the same time (receive, run and send overlap), so the busiest one sets the rate.

use std::collections::BTreeMap;

use crate::instance::Instance;
use crate::plan::{Bottleneck, BottleneckKind};

/// A rate is predicted for at least this much work per request, so that it stays a finite number.
const SHORTEST_S: f64 = 1e-9;

/// Something that can be busy. The order decides ties: compute is named before links and cards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// The processor of a device.
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
}

/// What a plan costs.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Busy seconds per request of every resource in use.
    pub loads: BTreeMap<Resource, Load>,
    /// Bytes that the plan needs on each device, by the problem's order.
    pub memory_bytes: Vec<u64>,
    /// Seconds of the busiest resource.
    pub bottleneck_s: f64,
    /// The busiest resource.
    pub bottleneck: Bottleneck,
    /// Requests per second.
    pub throughput_rps: f64,
    /// Expected seconds of one request through an idle pipeline.
    pub latency_s: f64,
    /// Numbers per stage.
    pub stages: Vec<StageCost>,
}

/// Costs of a draft.
pub(crate) fn evaluate_draft(instance: &Instance<'_>, draft: &Draft) -> Evaluation {
    let mut sum = Sum { instance, loads: BTreeMap::new(), latency_s: 0.0 };
    let stages = draft.stages.iter().enumerate().map(|(index, stage)| sum.compute(index, stage)).collect();
    let mut stages: Vec<StageCost> = stages;
    sum.input(draft);
    for (index, cost) in stages.iter_mut().enumerate() {
        cost.hop_s = sum.output(index, draft);
        sum.latency_s += cost.hop_s;
    }
    let (bottleneck_s, bottleneck) = busiest(instance, &sum.loads);
    Evaluation {
        bottleneck_s,
        bottleneck,
        throughput_rps: 1.0 / bottleneck_s.max(SHORTEST_S),
        latency_s: sum.latency_s,
        memory_bytes: memory(instance, draft),
        loads: sum.loads,
        stages,
    }
}

struct Sum<'a> {
    instance: &'a Instance<'a>,
    loads: BTreeMap<Resource, Load>,
    latency_s: f64,
}

impl Sum<'_> {
    fn add(&mut self, resource: Resource, seconds: f64, stage: usize) {
        let load = self.loads.entry(resource).or_insert(Load {
            seconds: 0.0,
            stage,
            largest_part: f64::NEG_INFINITY,
        });
        load.seconds += seconds;
        if seconds > load.largest_part {
            (load.largest_part, load.stage) = (seconds, stage);
        }
    }

    fn compute(&mut self, index: usize, stage: &DraftStage) -> StageCost {
        let mut slowest = 0.0f64;
        for &(device, share) in &stage.replicas {
            let seconds = self.instance.seconds(device, stage.first, stage.end);
            self.add(Resource::Compute(device), share * seconds, index);
            self.latency_s += share * seconds;
            slowest = slowest.max(seconds);
        }
        StageCost {
            compute_s: slowest,
            hop_s: 0.0,
            output_bytes: self.instance.problem.cuts[stage.end],
            weight_bytes: self.instance.weight(stage.first, stage.end),
        }
    }

    /// Books `fraction` of the requests with `bytes` each; returns the expected seconds.
    fn transfer(&mut self, from: usize, to: usize, fraction: f64, bytes: f64, stage: usize) -> f64 {
        if from == to || fraction <= 0.0 {
            return 0.0;
        }
        self.add(Resource::Link(from, to), fraction * self.instance.link_s(from, to, bytes), stage);
        self.add(Resource::CardOut(from), self.instance.card_s(from, fraction * bytes), stage);
        self.add(Resource::CardIn(to), self.instance.card_s(to, fraction * bytes), stage);
        fraction * self.instance.hop_latency(from, to, bytes)
    }

    fn input(&mut self, draft: &Draft) {
        let bytes = self.instance.cut(0);
        for &(device, share) in draft.stages.first().map_or(&[][..], |stage| &stage.replicas) {
            for (ingress, entering) in entrances(self.instance) {
                self.latency_s += self.transfer(ingress, device, entering * share, bytes, 0);
            }
        }
    }

    fn output(&mut self, index: usize, draft: &Draft) -> f64 {
        let stage = &draft.stages[index];
        let bytes = self.instance.cut(stage.end);
        let mut hop_s = 0.0;
        let entrances;
        let receivers = match draft.stages.get(index + 1) {
            Some(next) => &next.replicas,
            None => {
                entrances = self::entrances(self.instance);
                &entrances
            }
        };
        for &(from, from_share) in &stage.replicas {
            for &(to, to_share) in receivers {
                hop_s += self.transfer(from, to, from_share * to_share, bytes, index);
            }
        }
        hop_s
    }
}

/// Devices that requests enter by, with their fractions.
fn entrances(instance: &Instance<'_>) -> Vec<(usize, f64)> {
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

fn busiest(instance: &Instance<'_>, loads: &BTreeMap<Resource, Load>) -> (f64, Bottleneck) {
    let mut worst: Option<(Resource, Load)> = None;
    for (&resource, &load) in loads {
        if worst.is_none_or(|(_, other)| load.seconds > other.seconds) {
            worst = Some((resource, load));
        }
    }
    let (resource, load) =
        worst.unwrap_or((Resource::Compute(0), Load { seconds: 0.0, stage: 0, largest_part: 0.0 }));
    let (kind, device) = match resource {
        Resource::Compute(device) => (BottleneckKind::Compute, device),
        Resource::Link(from, _) => (BottleneckKind::Link, from),
        Resource::CardOut(device) | Resource::CardIn(device) => (BottleneckKind::Card, device),
    };
    let device = instance.id(device).to_owned();
    (load.seconds, Bottleneck { kind, stage: load.stage, device })
}
