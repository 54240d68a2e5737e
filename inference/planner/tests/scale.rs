//! Large problems: how long they take and how far from the bound they end. Times are printed, not judged.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;
use std::time::Instant;

use mesh_planner::{
    Block, DEFAULT_STEPS, Device, LinkRate, Links, Objective, PairLink, Plan, Problem, TransferCost, check,
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
        objective: Objective::Throughput,
        replication: false,
        min_stages: None,
        max_stages: None,
        pin: None,
    }
}

fn measured(name: &str, problem: &Problem) -> Plan {
    let start = Instant::now();
    let plan = solve(problem, DEFAULT_STEPS).unwrap();
    let took = start.elapsed();
    check(problem, &plan).unwrap();
    let gap = (plan.bottleneck_s / plan.lower_bound_s - 1.0) * 100.0;
    println!(
        "{name}: {took:?}, {:.4} s, gap {gap:.2} %, {} stages, {}",
        plan.bottleneck_s,
        plan.stages.len(),
        plan.optimal
    );
    plan
}

#[test]
fn sixteen_devices() {
    for replication in [false, true] {
        for random_links in [false, true] {
            let problem = Problem { replication, ..problem(16, 300, random_links, 1) };
            measured(&format!("16 devices, replication {replication}, random {random_links}"), &problem);
        }
    }
}

#[test]
fn a_hundred_devices() {
    for replication in [false, true] {
        for random_links in [false, true] {
            let problem = Problem { replication, ..problem(100, 300, random_links, 1) };
            measured(&format!("100 devices, replication {replication}, random {random_links}"), &problem);
        }
    }
}

#[test]
#[ignore = "a million links: seconds"]
fn a_thousand_devices() {
    for replication in [false, true] {
        let problem = Problem { replication, ..problem(1000, 300, true, 1) };
        measured(&format!("1000 devices, replication {replication}"), &problem);
    }
}
