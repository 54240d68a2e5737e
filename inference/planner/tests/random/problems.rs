//! Random small problems and a naive search over all chains, to compare the planner with.

use std::collections::BTreeMap;

use mesh_planner::{
    Block, Bottleneck, BottleneckKind, Device, LinkRate, Links, Objective, PairLink, Plan, Problem, Replica,
    Stage, TransferCost, evaluate,
};
use proptest::prelude::*;

pub(crate) const CLASSES: [&str; 2] = ["pi", "jetson"];

fn block() -> impl Strategy<Value = Block> {
    (0u64..8, 0u64..4, 0u32..10, 0u32..10).prop_map(|(weight_bytes, peak_bytes, pi, jetson)| Block {
        weight_bytes,
        // Every other one takes more once loaded, the same in every run.
        overhead_bytes: if pi % 2 == 0 { weight_bytes / 2 } else { 0 },
        peak_bytes,
        seconds: CLASSES
            .iter()
            .zip([pi, jetson])
            .map(|(class, s)| ((*class).to_owned(), f64::from(s)))
            .collect(),
    })
}

fn device(index: usize) -> impl Strategy<Value = Device> {
    let card = prop_oneof![Just(None), Just(None), (1u32..20).prop_map(|rate| Some(f64::from(rate)))];
    let facts = (0usize..2, 1u32..4, 4u64..60, card, transfer());
    facts.prop_map(move |(class, speed, memory_bytes, card_bytes_per_s, transfer)| Device {
        id: format!("d{index}"),
        class: CLASSES[class].to_owned(),
        speed: f64::from(speed),
        memory_bytes,
        card_bytes_per_s,
        transfer,
    })
}

/// Half of the devices move data for nothing.
fn transfer() -> impl Strategy<Value = TransferCost> {
    let cost = (0u32..4, 0u32..4, 0u32..3, 0u32..3, 1u32..3, 0u32..2).prop_map(
        |(send, receive, request, entry, share, rest)| TransferCost {
            send_s_per_byte: f64::from(send) / 4.0,
            receive_s_per_byte: f64::from(receive) / 4.0,
            request_s: f64::from(request),
            entry_s_per_byte: f64::from(entry) / 4.0,
            rest_share: f64::from(rest) / 4.0,
            compute_share: f64::from(share) / 2.0,
        },
    );
    prop_oneof![Just(TransferCost::default()), cost]
}

fn pairs(devices: usize) -> impl Strategy<Value = Vec<PairLink>> {
    let rates = prop::collection::vec(prop::option::of((0u32..12, 0u32..3)), devices * devices);
    rates.prop_map(move |rates| {
        let pair = |(index, rate): (usize, Option<(u32, u32)>)| {
            let (from, to) = (index / devices, index % devices);
            let (bytes_per_s, latency_s) = rate.filter(|_| from != to)?;
            Some(PairLink {
                from: format!("d{from}"),
                to: format!("d{to}"),
                bytes_per_s: f64::from(bytes_per_s),
                latency_s: f64::from(latency_s),
            })
        };
        rates.into_iter().enumerate().filter_map(pair).collect()
    })
}

/// Nowhere, at one device, evenly, or at random.
fn ingress(devices: usize) -> impl Strategy<Value = Option<BTreeMap<String, f64>>> {
    let shares = prop_oneof![
        (0..devices).prop_map(move |at| (0..devices).map(|device| u32::from(device == at)).collect()),
        Just(vec![1u32; devices]),
        prop::collection::vec(1u32..5, devices),
    ];
    prop::option::of(shares).prop_map(|shares: Option<Vec<u32>>| {
        let shares = shares?;
        let total: u32 = shares.iter().sum();
        let share =
            |(device, &part): (usize, &u32)| (format!("d{device}"), f64::from(part) / f64::from(total));
        Some(shares.iter().enumerate().map(share).collect())
    })
}

/// A problem with whole numbers, so that ties are frequent.
pub(crate) fn problem(max_blocks: usize, max_devices: usize) -> impl Strategy<Value = Problem> {
    (1..=max_blocks, 1..=max_devices).prop_flat_map(|(blocks, devices)| {
        (
            prop::collection::vec(block(), blocks),
            prop::collection::vec(0u64..12, blocks + 1),
            (0..devices).map(device).collect::<Vec<_>>(),
            prop_oneof![Just(Vec::new()), pairs(devices)],
            ingress(devices),
            prop::bool::ANY,
            prop::option::of(1usize..4),
        )
            .prop_map(|(blocks, cuts, devices, pairs, ingress, replication, max_stages)| Problem {
                ingress,
                arriving: BTreeMap::new(),
                links: Links { default: LinkRate { bytes_per_s: 5.0, latency_s: 0.5 }, pairs },
                objective: Objective::Throughput,
                min_stages: None,
                pin: None,
                blocks,
                cuts,
                devices,
                replication,
                max_stages,
            })
    })
}

/// A chain as a plan without numbers: `(device, first, last)` per stage.
pub(crate) fn bare_plan(problem: &Problem, stages: &[(usize, usize, usize)]) -> Plan {
    let stage = |&(device, first_block, last_block): &(usize, usize, usize)| Stage {
        first_block,
        last_block,
        replicas: vec![Replica { device: problem.devices[device].id.clone(), share: 1.0 }],
        standbys: Vec::new(),
        compute_s: 0.0,
        hop_s: 0.0,
        output_bytes: 0,
        weight_bytes: 0,
        memory_bytes: 0,
    };
    Plan {
        stages: stages.iter().map(stage).collect(),
        bottleneck_s: 0.0,
        bottleneck: Bottleneck { kind: BottleneckKind::Compute, stage: 0, device: String::new() },
        throughput_rps: 0.0,
        latency_s: 0.0,
        lower_bound_s: 0.0,
        optimal: false,
        why: String::new(),
        unused: Vec::new(),
        alternatives: Vec::new(),
    }
}

/// The least bottleneck and the least latency over all plans with one device for each stage that fit.
pub(crate) fn best_of_all_chains(problem: &Problem) -> Option<(f64, f64)> {
    let mut best = None;
    visit(problem, &mut Vec::new(), &mut best);
    best
}

fn visit(problem: &Problem, stages: &mut Vec<(usize, usize, usize)>, best: &mut Option<(f64, f64)>) {
    let next = stages.last().map_or(0, |&(.., last)| last + 1);
    if next == problem.blocks.len() {
        let count = stages.len();
        if count >= problem.min_stages.unwrap_or(1) && count <= problem.max_stages.unwrap_or(usize::MAX) {
            rate(problem, stages, best);
        }
        return;
    }
    for device in 0..problem.devices.len() {
        // Neighbouring stages of one device are one stage.
        if stages.last().is_some_and(|&(used, ..)| used == device) {
            continue;
        }
        for last in next..problem.blocks.len() {
            stages.push((device, next, last));
            visit(problem, stages, best);
            stages.pop();
        }
    }
}

fn rate(problem: &Problem, stages: &[(usize, usize, usize)], best: &mut Option<(f64, f64)>) {
    let evaluation = evaluate(problem, &bare_plan(problem, stages)).unwrap();
    let held =
        evaluation.memory_bytes.iter().zip(&problem.devices).all(|(bytes, d)| *bytes <= d.memory_bytes);
    if held && evaluation.bottleneck_s.is_finite() && evaluation.latency_s.is_finite() {
        let (bottleneck, latency) = best.unwrap_or((f64::INFINITY, f64::INFINITY));
        *best = Some((bottleneck.min(evaluation.bottleneck_s), latency.min(evaluation.latency_s)));
    }
}
