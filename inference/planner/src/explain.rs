//! Words for people: why this plan, why a device is left out, what else was considered.

use crate::evaluate::{Draft, Evaluation};
use crate::instance::Instance;
use crate::plan::{Alternative, BottleneckKind, Objective, Plan, Replica, Stage, Unused};
use crate::size::size;
use crate::solve::Solution;

/// A shape of plan that was tried.
#[derive(Debug)]
pub(crate) struct Considered {
    what: &'static str,
    pub(crate) found: Option<(Draft, Evaluation)>,
}

impl Considered {
    pub(crate) fn new(what: &'static str, found: Option<(Draft, Evaluation)>) -> Self {
        Self { what, found }
    }
}

/// The plan with its numbers and reasons.
pub(crate) fn plan_of(instance: &Instance<'_>, solution: Solution, considered: &[Considered]) -> Plan {
    let why = why(instance, &solution, considered);
    let unused = unused(instance, &solution);
    let Solution { draft, evaluation, optimal, lower_bound_s, remark: _ } = solution;
    let stages = draft.stages.iter().zip(&evaluation.stages).map(|(stage, cost)| Stage {
        first_block: stage.first,
        last_block: stage.end - 1,
        replicas: stage
            .replicas
            .iter()
            .map(|&(device, share)| Replica { device: instance.id(device).to_owned(), share })
            .collect(),
        standbys: Vec::new(),
        compute_s: cost.compute_s,
        hop_s: cost.hop_s,
        output_bytes: cost.output_bytes,
        weight_bytes: cost.weight_bytes,
        memory_bytes: cost.memory_bytes,
    });
    Plan {
        stages: stages.collect(),
        bottleneck_s: evaluation.bottleneck_s,
        bottleneck: evaluation.bottleneck.clone(),
        throughput_rps: evaluation.throughput_rps,
        latency_s: evaluation.latency_s,
        lower_bound_s,
        optimal,
        why,
        unused,
        alternatives: considered.iter().map(|considered| alternative(instance, considered)).collect(),
    }
}

fn why(instance: &Instance<'_>, solution: &Solution, considered: &[Considered]) -> String {
    let evaluation = &solution.evaluation;
    let stages = solution.draft.stages.len();
    let mut devices: Vec<usize> = solution
        .draft
        .stages
        .iter()
        .flat_map(|stage| stage.replicas.iter().map(|&(device, _)| device))
        .collect();
    devices.sort_unstable();
    devices.dedup();
    let mut text = format!(
        "{} on {}: {:.3} requests/s, {:.1} ms for one.",
        plural(stages, "stage"),
        plural(devices.len(), "device"),
        evaluation.throughput_rps,
        evaluation.latency_s * 1e3
    );
    let bottleneck = &evaluation.bottleneck;
    let what = match bottleneck.kind {
        BottleneckKind::Compute => "The processor of",
        BottleneckKind::Link => "A link from",
        BottleneckKind::Card => "The network card of",
    };
    text += &format!(
        " {what} {} in stage {} sets the rate with {:.1} ms per request{}.",
        bottleneck.device,
        bottleneck.stage,
        evaluation.bottleneck_s * 1e3,
        moving(instance, evaluation)
    );
    text += &against_one_device(instance, evaluation, considered);
    text += &certainty(solution);
    if let Some(remark) = &solution.remark {
        text += " ";
        text += remark;
    }
    text
}

/// What the busiest processors do beside the stages; nothing where moving data costs nothing.
fn moving(instance: &Instance<'_>, evaluation: &Evaluation) -> String {
    let bottleneck = &evaluation.bottleneck;
    let device = (0..instance.devices()).find(|&device| instance.id(device) == bottleneck.device);
    let work = device.map(|device| evaluation.processors[device]).unwrap_or_default();
    if bottleneck.kind != BottleneckKind::Compute || work.transfer_s == 0.0 {
        return String::new();
    }
    format!(" ({:.1} ms compute, {:.1} ms moving data)", work.compute_s * 1e3, work.transfer_s * 1e3)
}

fn against_one_device(instance: &Instance<'_>, evaluation: &Evaluation, considered: &[Considered]) -> String {
    let single = considered.iter().find(|considered| considered.what == "one device");
    match single.and_then(|single| single.found.as_ref()) {
        Some((draft, single)) => {
            let id = instance.id(draft.stages[0].replicas[0].0);
            match instance.problem.objective {
                Objective::Throughput => format!(
                    " The best single device, {id}, would do {:.3} requests/s ({:.2} times less).",
                    single.throughput_rps,
                    evaluation.throughput_rps / single.throughput_rps
                ),
                Objective::Latency => {
                    format!(" The best single device, {id}, takes {:.1} ms.", single.latency_s * 1e3)
                }
            }
        }
        None => String::new(),
    }
}

fn certainty(solution: &Solution) -> String {
    if solution.optimal {
        return " No plan of this kind is better.".to_owned();
    }
    let (bound, value) = (solution.lower_bound_s, solution.evaluation.bottleneck_s);
    if bound > 0.0 {
        format!(" At most {:.1} % more rate could be possible.", (value / bound - 1.0) * 100.0)
    } else {
        String::new()
    }
}

fn plural(count: usize, word: &str) -> String {
    if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") }
}

fn unused(instance: &Instance<'_>, solution: &Solution) -> Vec<Unused> {
    let is_used = |device: usize| {
        solution.draft.stages.iter().any(|stage| stage.replicas.iter().any(|&(other, _)| other == device))
    };
    let reason = |device: usize| Unused {
        device: instance.id(device).to_owned(),
        reason: unused_reason(instance, solution, device),
    };
    (0..instance.devices()).filter(|&device| !is_used(device)).map(reason).collect()
}

fn unused_reason(instance: &Instance<'_>, solution: &Solution, device: usize) -> String {
    if !instance.is_profiled(device) {
        let class = &instance.problem.devices[device].class;
        return format!("its class {class:?} has no profile of this model yet");
    }
    if instance.problem.pin.is_some() {
        return "the pinned stages do not name it".to_owned();
    }
    let smallest = (0..instance.blocks).map(|block| instance.block_bytes(block)).min().unwrap_or(0);
    let memory = instance.memory(device);
    if memory < smallest {
        return format!("it offers {}, the smallest block needs {}", size(memory), size(smallest));
    }
    let reached = (0..instance.devices()).any(|other| {
        other != device && instance.link(other, device).0 > 0.0 && instance.link(device, other).0 > 0.0
    });
    if instance.devices() > 1 && !reached {
        return "no link leads to it and back".to_owned();
    }
    if instance.problem.objective == Objective::Latency {
        return "a further hop would make each request slower".to_owned();
    }
    let (_, max) = instance.stage_limits();
    if !instance.problem.replication && solution.draft.stages.len() >= max {
        return format!("every one of the {} has its device", plural(max, "stage"));
    }
    let bytes = instance.stage_bytes(0, instance.blocks);
    let short = if memory < bytes { " and it cannot hold the whole model" } else { "" };
    format!("no plan found with it is faster: it does not relieve what sets the rate{short}")
}

fn alternative(instance: &Instance<'_>, considered: &Considered) -> Alternative {
    let what = considered.what.to_owned();
    if let Some((_, evaluation)) = &considered.found {
        let (throughput_rps, latency_s) = (evaluation.throughput_rps, evaluation.latency_s);
        return Alternative { what, throughput_rps, latency_s, infeasible: None };
    }
    let reason = infeasible_reason(instance, considered.what);
    Alternative { what, throughput_rps: 0.0, latency_s: 0.0, infeasible: Some(reason) }
}

fn infeasible_reason(instance: &Instance<'_>, what: &str) -> String {
    let (min, _) = instance.stage_limits();
    if !instance.problem.replication && what == "replicate everywhere" {
        return "replication is off".to_owned();
    }
    let whole = what == "one device" || what == "replicate everywhere";
    if whole && min > 1 {
        return format!("at least {min} stages were asked for");
    }
    let largest = instance.usable().into_iter().map(|device| instance.memory(device)).max().unwrap_or(0);
    let bytes = instance.stage_bytes(0, instance.blocks);
    if whole && bytes > largest {
        return format!("the model needs {}; the largest device offers {}", size(bytes), size(largest));
    }
    "nothing of this shape fits the devices and their links".to_owned()
}
