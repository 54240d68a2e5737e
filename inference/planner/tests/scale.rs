//! Large problems: how long they take and how far from the bound they end. Times are printed, not judged.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;
use std::time::Instant;

use mesh_planner::{
    Block, DEFAULT_STEPS, Device, LinkRate, Links, Objective, PairLink, Problem, TransferCost, check, replan,
    solve,
};

/// A fixed sequence of numbers in 0..1 (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn between(&mut self, low: f64, high: f64) -> f64 {
        low + self.next() * (high - low)
    }
}

const MIB: f64 = 1_048_576.0;

/// A model of 300 blocks, about 3 s and 600 MiB in all; every device another speed and memory for a fifth of it or
/// more. Links between 5 and 1,000 Mbit/s per pair, or all 1 Gbit/s.
fn problem(devices: usize, blocks: usize, random_links: bool, seed: u64) -> Problem {
    let mut random = Random(seed);
    let block = |random: &mut Random| Block {
        weight_bytes: (random.between(0.5, 3.5) * MIB) as u64,
        overhead_bytes: 0,
        peak_bytes: (random.between(0.5, 2.0) * MIB) as u64,
        seconds: BTreeMap::from([("pi".to_owned(), random.between(0.002, 0.018))]),
    };
    let blocks: Vec<Block> = (0..blocks).map(|_| block(&mut random)).collect();
    let cuts = (0..=blocks.len()).map(|_| (random.between(0.02, 0.6) * MIB) as u64).collect();
    let device = |index: usize, random: &mut Random| Device {
        id: format!("d{index}"),
        class: "pi".to_owned(),
        speed: random.between(0.3, 1.5),
        memory_bytes: (random.between(120.0, 400.0) * MIB) as u64,
        card_bytes_per_s: None,
        transfer: TransferCost::default(),
    };
    let devices: Vec<Device> = (0..devices).map(|index| device(index, &mut random)).collect();
    let mut pairs = Vec::new();
    if random_links {
        for from in &devices {
            for to in devices.iter().filter(|to| to.id != from.id) {
                let bytes_per_s = random.between(5e6, 1e9) / 8.0;
                pairs.push(PairLink {
                    from: from.id.clone(),
                    to: to.id.clone(),
                    bytes_per_s,
                    latency_s: 0.001,
                });
            }
        }
    }
    Problem {
        blocks,
        cuts,
        devices,
        links: Links { default: LinkRate { bytes_per_s: 125e6, latency_s: 5e-4 }, pairs },
        ingress: None,
        arriving: BTreeMap::new(),
        objective: Objective::Throughput,
        replication: false,
        min_stages: None,
        max_stages: None,
        pin: None,
    }
}

/// Solves and checks; the gap to the bound in percent, and a line to print.
fn measured(devices: usize, replication: bool, random_links: bool) -> (f64, String) {
    let problem = Problem { replication, ..problem(devices, 300, random_links, 1) };
    let start = Instant::now();
    let plan = solve(&problem, DEFAULT_STEPS).unwrap();
    let took = start.elapsed();
    check(&problem, &plan).unwrap();
    let gap = (plan.bottleneck_s / plan.lower_bound_s - 1.0) * 100.0;
    let links = if random_links { "random" } else { "equal" };
    let line = format!(
        "{devices} devices, {links} links, replication {replication}: {took:?}, {} stages, gap {gap:.2} %",
        plan.stages.len()
    );
    (gap, line)
}

#[test]
fn sixteen_devices_end_near_the_bound() {
    for (replication, random_links) in [(false, false), (false, true), (true, false), (true, true)] {
        let (gap, line) = measured(16, replication, random_links);
        println!("{line}");
        assert!(gap < 2.0, "{line}");
    }
}

/// A chain over every device of a rack whose devices differ by what measurements do: there is always one.
#[test]
fn as_many_stages_as_devices() {
    for seed in 1..=12 {
        let mut random = Random(seed);
        let mut problem = problem(16, 220, true, seed);
        for device in &mut problem.devices {
            device.speed = random.between(0.97, 1.03);
            device.memory_bytes = 15 << 30;
            device.transfer = TransferCost {
                send_s_per_byte: random.between(8e-9, 10e-9),
                receive_s_per_byte: random.between(11e-9, 13e-9),
                request_s: 1e-4,
                entry_s_per_byte: 5e-9,
                rest_share: 0.02,
                compute_share: 1.0,
            };
        }
        for pair in &mut problem.links.pairs {
            (pair.bytes_per_s, pair.latency_s) = (random.between(112e6, 125e6), random.between(2e-4, 5e-3));
        }
        problem.ingress =
            Some(problem.devices.iter().map(|device| (device.id.clone(), 1.0 / 16.0)).collect());
        for cut in &mut problem.cuts {
            *cut = [605_184, 1_210_368, 3_025_920][(random.next() * 3.0) as usize];
        }
        (problem.min_stages, problem.max_stages) = (Some(16), Some(16));
        let plan = solve(&problem, DEFAULT_STEPS).unwrap();
        check(&problem, &plan).unwrap();
        let gap = (plan.bottleneck_s / plan.lower_bound_s - 1.0) * 100.0;
        println!("16 stages on 16 devices, seed {seed}: gap {gap:.2} %");
        assert_eq!(plan.stages.len(), 16);
    }
}

#[test]
fn a_hundred_devices_end_near_the_bound() {
    for (replication, random_links) in [(false, false), (false, true), (true, false), (true, true)] {
        let (gap, line) = measured(100, replication, random_links);
        println!("{line}");
        assert!(gap < 5.0, "{line}");
    }
}

/// Equal devices, each with memory for a bit more than a third of the model, requests entering evenly, and data that
/// costs processor time to move.
#[test]
fn a_third_of_the_model_each() {
    for devices in [3, 4, 5, 6, 8, 9, 12, 16, 24] {
        for costly in [false, true] {
            let mut problem = Problem { replication: true, ..problem(devices, 90, false, 3) };
            let whole: u64 = problem.blocks.iter().map(|block| block.weight_bytes).sum();
            let transfer = TransferCost {
                send_s_per_byte: 1e-8,
                receive_s_per_byte: 1e-8,
                request_s: 2e-4,
                entry_s_per_byte: 5e-9,
                rest_share: 0.02,
                compute_share: 1.0,
            };
            for device in &mut problem.devices {
                (device.speed, device.memory_bytes) = (1.0, whole * 2 / 5);
                device.transfer = if costly { transfer } else { TransferCost::default() };
            }
            let share = |device: &Device| (device.id.clone(), 1.0 / devices as f64);
            problem.ingress = Some(problem.devices.iter().map(share).collect());
            let start = Instant::now();
            let plan = solve(&problem, DEFAULT_STEPS).unwrap();
            let took = start.elapsed();
            check(&problem, &plan).unwrap();
            let gap = (plan.bottleneck_s / plan.lower_bound_s - 1.0) * 100.0;
            println!(
                "a third each, {devices} devices, costly {costly}: {took:?}, {} stages, gap {gap:.2} %",
                plan.stages.len()
            );
            // Where moving costs something, the bound does not know who can take requests where they enter.
            assert!(gap < if costly { 8.0 } else { 5.0 }, "{devices} devices: {}", plan.why);
        }
    }
}

/// A chain of as many stages as devices has to move much; groups move a few devices.
#[test]
fn one_of_a_hundred_devices_is_lost() {
    for (replication, random_links) in [(true, true), (true, false), (false, true)] {
        let mut problem = Problem { replication, ..problem(100, 300, random_links, 1) };
        let running = solve(&problem, DEFAULT_STEPS).unwrap();
        let id = running.stages[0].replicas[0].device.clone();
        problem.devices.retain(|device| device.id != id);
        problem.links.pairs.retain(|pair| pair.from != id && pair.to != id);
        let start = Instant::now();
        let next = replan(&problem, &running, DEFAULT_STEPS).unwrap();
        let took = start.elapsed();
        check(&problem, &next.plan).unwrap();
        let (moved, replicas) = (next.moved_bytes as f64 / MIB, next.moved_replicas);
        println!(
            "a device lost, replication {replication}: {took:?}, {moved:.0} MiB, {replicas} replicas move"
        );
        assert!(next.gain.is_none());
        assert!(!replication || (moved < 500.0 && replicas <= 6), "{moved} MiB: {}", next.plan.why);
        // In haste what need not be loaded; then, while that serves, nearly the best.
        assert!(next.plan.bottleneck_s < running.bottleneck_s * 1.25, "{}", next.plan.why);
        let calm = replan(&problem, &next.plan, DEFAULT_STEPS).unwrap();
        check(&problem, &calm.plan).unwrap();
        let (moved, replicas) = (calm.moved_bytes as f64 / MIB, calm.moved_replicas);
        println!("then {moved:.0} MiB, {replicas} replicas");
        assert!(!calm.is_hasty() && calm.gain.is_some());
        assert!(!replication || (moved < 500.0 && replicas <= 6), "{moved} MiB: {}", calm.plan.why);
        assert!(calm.plan.bottleneck_s < running.bottleneck_s * 1.06, "{}", calm.plan.why);
    }
}

#[test]
fn a_thousand_devices_are_planned_for() {
    for (replication, most) in [(false, 30.0), (true, 5.0)] {
        let (gap, line) = measured(1000, replication, true);
        println!("{line}");
        assert!(gap < most, "{line}");
    }
}
