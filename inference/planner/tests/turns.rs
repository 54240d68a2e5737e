//! Plans that need a device in turns, fewer devices than were asked for, or replicas where requests enter.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::collections::BTreeMap;

use mesh_planner::{
    Block, DEFAULT_STEPS, Device, LinkRate, Links, Objective, PairLink, Problem, TransferCost, solve,
};

use common::{is_close, solved};

/// Blocks of bytes and seconds, devices of one class and so many bytes, links of one rate.
fn problem(blocks: &[(u64, f64)], cuts: &[u64], memories: &[u64], bytes_per_s: f64) -> Problem {
    let block = |&(weight_bytes, seconds): &(u64, f64)| Block {
        weight_bytes,
        overhead_bytes: 0,
        peak_bytes: 0,
        seconds: BTreeMap::from([("pi".to_owned(), seconds)]),
    };
    let device = |(at, &memory_bytes): (usize, &u64)| Device {
        id: name(at),
        class: "pi".to_owned(),
        speed: 1.0,
        memory_bytes,
        card_bytes_per_s: None,
        transfer: TransferCost::default(),
    };
    Problem {
        blocks: blocks.iter().map(block).collect(),
        cuts: cuts.to_vec(),
        devices: memories.iter().enumerate().map(device).collect(),
        links: Links { default: LinkRate { bytes_per_s, latency_s: 0.0 }, pairs: Vec::new() },
        ingress: None,
        arriving: BTreeMap::new(),
        objective: Objective::Throughput,
        replication: false,
        min_stages: None,
        max_stages: None,
        pin: None,
    }
}

fn name(at: usize) -> String {
    format!("d{at}")
}

fn entering(shares: &[f64]) -> Option<BTreeMap<String, f64>> {
    Some(shares.iter().enumerate().map(|(at, &share)| (name(at), share)).collect())
}

fn without_link(from: usize, to: usize) -> PairLink {
    PairLink { from: name(from), to: name(to), bytes_per_s: 0.0, latency_s: 0.0 }
}

#[test]
fn a_device_in_two_turns_evens_out_what_does_not_divide_evenly() {
    let uneven = problem(&[(1, 1.0), (1, 2.0), (1, 1.0)], &[0; 4], &[2, 2], 1e9);
    let plan = solved(&uneven);
    assert!(is_close(plan.bottleneck_s, 2.0) && plan.optimal, "{plan:?}");
    assert_eq!(plan.stages.len(), 3);
    let replicated = solved(&Problem { replication: true, ..uneven });
    assert!(is_close(replicated.bottleneck_s, 2.0) && replicated.optimal, "{replicated:?}");
}

#[test]
fn a_device_in_two_turns_holds_what_does_not_fit_otherwise() {
    let heavy = problem(&[(6, 1.0), (10, 1.0), (6, 1.0)], &[0; 4], &[12, 10], 1e9);
    assert!(is_close(solved(&heavy).bottleneck_s, 2.0));
    let three = Problem { min_stages: Some(3), max_stages: Some(3), ..heavy };
    assert_eq!(solved(&three).stages.len(), 3);
}

#[test]
fn a_device_that_holds_nothing_does_not_keep_the_others_from_more_stages() {
    for stages in [3, 4] {
        let full = problem(&[(10, 1.0); 4], &[0; 5], &[1000, 1000, 5], 1e9);
        let plan = solved(&Problem { min_stages: Some(stages), max_stages: Some(stages), ..full });
        assert_eq!(plan.stages.len(), stages);
        assert!(is_close(plan.bottleneck_s, 2.0), "{plan:?}");
    }
}

#[test]
fn more_stages_than_devices_are_all_on_one_where_that_is_quickest() {
    let slow = problem(&[(10, 1.0); 3], &[100, 100, 100, 1], &[10_000; 2], 1.0);
    let limits = Problem { min_stages: Some(3), max_stages: Some(3), ..slow };
    let plan = solved(&Problem { objective: Objective::Latency, ..limits });
    assert!(is_close(plan.latency_s, 3.0), "{plan:?}");
}

#[test]
fn replicas_where_requests_enter_are_quicker_than_a_chain() {
    let far = Problem {
        objective: Objective::Latency,
        replication: true,
        ingress: entering(&[0.25; 4]),
        ..problem(&[(500_000, 0.1); 2], &[600_000, 100_000, 4_000], &[1_250_000; 4], 1.25e6)
    };
    let plan = solved(&far);
    assert!(plan.latency_s < 0.41, "{plan:?}");
    assert!(plan.stages[0].replicas.len() >= 3);
}

#[test]
fn replicas_without_a_link_between_them_take_what_enters_at_each() {
    for pinned in [false, true] {
        let mut apart = Problem {
            replication: true,
            ingress: entering(&[0.7, 0.3]),
            ..problem(&[(10, 1.0), (30, 1.0)], &[1; 3], &[15, 15, 35], 100.0)
        };
        apart.links.pairs = vec![without_link(0, 1), without_link(1, 0)];
        if pinned {
            let found = solved(&apart);
            let stage = |stage: &mesh_planner::Stage| mesh_planner::PinnedStage {
                first_block: stage.first_block,
                last_block: stage.last_block,
                devices: stage.replicas.iter().map(|replica| replica.device.clone()).collect(),
            };
            apart.pin = Some(found.stages.iter().map(stage).collect());
        }
        let plan = solved(&apart);
        assert!(is_close(plan.bottleneck_s, 1.0), "{plan:?}");
        assert!(is_close(plan.stages[0].replicas[0].share, 0.7), "{plan:?}");
    }
}

#[test]
fn an_entrance_that_only_one_replica_can_be_reached_from_is_served() {
    let mut apart = Problem {
        replication: true,
        objective: Objective::Latency,
        ingress: entering(&[0.3, 0.3, 0.4]),
        ..problem(&[(10, 1.0)], &[1; 2], &[100, 100, 0], 0.0)
    };
    let link = |from, to| PairLink { bytes_per_s: 100.0, ..without_link(from, to) };
    apart.links.pairs = vec![link(2, 0), link(0, 2)];
    assert!(solved(&apart).latency_s < 1.01);
}

/// Sums would lose what is small beside them.
#[test]
fn numbers_that_no_model_has_are_refused() {
    let endless = problem(&[(1, 1e18), (1, 3.0)], &[0; 3], &[10; 2], 1e9);
    assert!(solve(&endless, DEFAULT_STEPS).unwrap_err().reason.contains("at most 1e7"));
    let heavy = problem(&[(u64::MAX, 1.0), (1000, 1.0)], &[0; 3], &[u64::MAX, 10], 1e9);
    assert!(solve(&heavy, DEFAULT_STEPS).unwrap_err().reason.contains("2^60"));
}

/// The first three quarters of the blocks have four fifths of the work and a fourth of the weights.
fn heavy_at_the_end(memories: &[u64]) -> Problem {
    let blocks: Vec<(u64, f64)> = (0..40).map(|at| if at < 30 { (1, 1.0) } else { (10, 0.75) }).collect();
    problem(&blocks, &[0; 41], memories, 1e9)
}

#[test]
fn where_memory_is_short_devices_take_turns_in_long_models_too() {
    for replication in [false, true] {
        for memories in [&[80, 80][..], &[70, 60, 60], &[50, 50, 40, 40], &[40, 40, 40, 30, 30]] {
            let plan = solved(&Problem { replication, ..heavy_at_the_end(memories) });
            let even_s = 37.5 / memories.len() as f64;
            assert!(plan.bottleneck_s < even_s * 1.15, "{memories:?}: {}", plan.why);
            let one_stage_each = solved(&Problem {
                replication,
                max_stages: Some(memories.len()),
                ..heavy_at_the_end(memories)
            });
            assert!(
                plan.bottleneck_s < one_stage_each.bottleneck_s * 0.85,
                "{memories:?}: {}",
                one_stage_each.why
            );
            assert!(
                !plan.optimal || plan.lower_bound_s < even_s * (1.0 + 1e-9),
                "{memories:?}: {}",
                plan.why
            );
        }
    }
}
