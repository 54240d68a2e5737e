//! Small cases with known answers, and what must hold for every policy.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use mesh_planner::{LinkRate, Links, Objective, PairLink, Problem, check};
use proptest::prelude::*;
use serde_json::json;

use super::{edgepipe::own_cost, *};

/// Blocks of `(weight bytes, seconds)`, devices of `(speed, memory)`, links of 10 bytes per second.
pub(super) fn problem(blocks: &[(u64, f64)], cuts: &[u64], devices: &[(f64, u64)]) -> Problem {
    let block = |&(bytes, seconds): &(u64, f64)| json!({"weight_bytes": bytes, "peak_bytes": 0, "seconds": {"pi": seconds}});
    let device = |(index, &(speed, memory)): (usize, &(f64, u64))| json!({"id": format!("d{index}"), "class": "pi", "speed": speed, "memory_bytes": memory});
    Problem {
        blocks: blocks.iter().map(|b| serde_json::from_value(block(b)).unwrap()).collect(),
        cuts: cuts.to_vec(),
        devices: devices.iter().enumerate().map(|d| serde_json::from_value(device(d)).unwrap()).collect(),
        links: Links { default: LinkRate { bytes_per_s: 10.0, latency_s: 0.0 }, pairs: Vec::new() },
        ingress: None,
        arriving: std::collections::BTreeMap::new(),
        objective: Objective::Throughput,
        replication: false,
        min_stages: None,
        max_stages: None,
        pin: None,
    }
}

fn pair(from: &str, to: &str, bytes_per_s: f64) -> [PairLink; 2] {
    let link =
        |from: &str, to: &str| PairLink { from: from.into(), to: to.into(), bytes_per_s, latency_s: 0.0 };
    [link(from, to), link(to, from)]
}

/// `(last block, device)` of every stage.
fn short(stages: &[PinnedStage]) -> Vec<(usize, &str)> {
    stages.iter().map(|stage| (stage.last_block, stage.devices[0].as_str())).collect()
}

/// Four equal blocks on four devices; the second is twice as fast, the third is small.
fn four() -> Problem {
    problem(&[(10, 1.0); 4], &[4, 4, 2, 4, 4], &[(1.0, 100), (2.0, 100), (1.0, 20), (1.0, 40)])
}

#[test]
fn single_takes_the_fastest_that_holds_the_model() {
    assert_eq!(short(&single(&four()).unwrap()), [(3, "d1")]);
    let mut small = four();
    small.devices[1].memory_bytes = 47;
    assert_eq!(short(&single(&small).unwrap()), [(3, "d0")]);
    small.devices[0].memory_bytes = 47;
    assert!(single(&small).unwrap_err().contains("48 bytes"));
}

#[test]
fn defer_is_a_chain_in_list_order_that_looks_at_nothing() {
    let stages = defer(&four(), None).unwrap();
    assert_eq!(short(&stages), [(0, "d0"), (1, "d1"), (2, "d2"), (3, "d3")]);
    assert_eq!(short(&defer(&four(), Some(&[1])).unwrap()), [(0, "d0"), (3, "d1")]);
    assert!(defer(&four(), Some(&[2, 2])).is_err());
    assert!(defer(&four(), Some(&[0])).is_err());
    assert!(defer(&four(), Some(&[4])).is_err());
    // The third device cannot hold two blocks, which DEFER does not know.
    let tight = defer(&four(), Some(&[1, 2])).unwrap();
    assert!(cost(&four(), tight).unwrap_err().contains("d2"));
}

#[test]
fn seifer_cuts_where_the_sum_of_transfers_is_least() {
    // The smallest device holds one block, so four parts; with room for two, the cheapest cut alone.
    let mut four = four();
    assert_eq!(seifer(&four, 20, 0).unwrap().len(), 4);
    four.devices[2].memory_bytes = 30;
    let stages = seifer(&four, 20, 0).unwrap();
    assert_eq!(stages.iter().map(|stage| stage.last_block).collect::<Vec<_>>(), [1, 3]);
    four.devices[2].memory_bytes = 9;
    assert!(seifer(&four, 20, 0).unwrap_err().contains("9 bytes"));
}

#[test]
fn seifer_and_greedy_take_the_fast_links() {
    let mut two = problem(&[(10, 1.0); 2], &[1, 5, 1], &[(1.0, 17); 4]);
    two.links.pairs = pair("d1", "d3", 99.0).into();
    for stages in [seifer(&two, 20, 0).unwrap(), greedy(&two).unwrap()] {
        let mut devices: Vec<&str> = stages.iter().map(|stage| stage.devices[0].as_str()).collect();
        devices.sort_unstable();
        assert_eq!(devices, ["d1", "d3"]);
    }
}

#[test]
fn pipedream_takes_devices_for_equal() {
    // Speeds 4 and 1: Mesh gives the fast one more, PipeDream half each.
    let uneven = problem(&[(10, 1.0); 8], &[1; 9], &[(4.0, 1000), (1.0, 1000)]);
    assert_eq!(short(&pipedream(&uneven).unwrap()), [(3, "d0"), (7, "d1")]);
    let plan = |policy| plan(policy, &uneven, &Choices::default()).unwrap().bottleneck_s;
    assert_eq!(plan(Policy::Pipedream), 4.0);
    assert!(plan(Policy::Mesh) < 2.01);
}

#[test]
fn pipedream_respects_each_devices_memory() {
    let mut tight = problem(&[(10, 1.0); 6], &[1; 7], &[(1.0, 12), (1.0, 5), (1.0, 100)]);
    assert_eq!(short(&pipedream(&tight).unwrap()), [(0, "d0"), (5, "d2")]);
    tight.devices[2].memory_bytes = 12;
    assert!(pipedream(&tight).is_err());
}

#[test]
fn edgepipe_is_the_optimum_of_two_types() {
    let uneven = problem(&[(10, 1.0); 8], &[1; 9], &[(3.0, 1000), (1.0, 1000)]);
    let stages = edgepipe(&uneven).unwrap();
    assert_eq!(own_cost(&uneven, &stages), 2.0);
    let mut many = problem(&[(10, 1.0); 48], &[1; 49], &[(1.0, 1000); 16]);
    assert_eq!(edgepipe(&many).unwrap().len(), 16);
    for (index, device) in many.devices.iter_mut().enumerate() {
        device.speed = 1.0 + index as f64;
    }
    assert!(edgepipe(&many).unwrap_err().contains("16 device types"));
}

#[test]
fn names_are_read_back() {
    for policy in Policy::ALL {
        assert_eq!(policy.name().parse::<Policy>().unwrap(), policy);
    }
    assert!("fastest".parse::<Policy>().unwrap_err().contains("edgepipe"));
}

/// Some device runs several stages.
fn has_turns(plan: &Plan) -> bool {
    let replicas = plan.stages.iter().flat_map(|stage| &stage.replicas);
    let mut devices: Vec<&str> = replicas.map(|replica| replica.device.as_str()).collect();
    let all = devices.len();
    devices.sort_unstable();
    devices.dedup();
    devices.len() < all
}

fn small() -> impl Strategy<Value = Problem> {
    (1usize..7, 1usize..5).prop_flat_map(|(blocks, devices)| {
        let block = (0u64..8, 0u8..10).prop_map(|(bytes, seconds)| (bytes, f64::from(seconds)));
        let device = (1u8..4, 4u64..60).prop_map(|(speed, bytes)| (f64::from(speed), bytes));
        (
            prop::collection::vec(block, blocks),
            prop::collection::vec(0u64..12, blocks + 1),
            prop::collection::vec(device, devices),
        )
            .prop_map(|(blocks, cuts, devices)| problem(&blocks, &cuts, &devices))
    })
}

proptest! {
    /// What respects memory runs, no policy beats a plan that is called optimal, and equal links leave EdgePipe's
    /// model no difference from ours, but that no device of it has two stages.
    #[test]
    fn policies_never_beat_the_optimum(problem in small(), seed in 0u64..100) {
        let choices = Choices { seed, ..Choices::default() };
        let mesh = plan(Policy::Mesh, &problem, &choices);
        let has_turns = mesh.as_ref().is_ok_and(has_turns);
        for policy in Policy::ALL {
            let Ok(stages) = stages(policy, &problem, &choices) else {
                let exact = [Policy::Edgepipe, Policy::Mesh].contains(&policy);
                prop_assert!(!exact || mesh.is_err() || has_turns, "{policy:?} found nothing");
                continue;
            };
            let costed = cost(&problem, stages);
            if policy == Policy::Defer && costed.is_err() {
                continue;
            }
            let costed = costed.unwrap();
            let pinned = Problem { pin: Some(pinned(&costed)), ..problem.clone() };
            check(&pinned, &costed).unwrap();
            let mesh = mesh.as_ref().unwrap();
            prop_assert!(costed.bottleneck_s >= mesh.lower_bound_s * (1.0 - 1e-9), "{policy:?}");
            if policy == Policy::Edgepipe && mesh.optimal && !has_turns {
                prop_assert!(costed.bottleneck_s <= mesh.bottleneck_s * (1.0 + 1e-9));
            }
        }
    }
}
