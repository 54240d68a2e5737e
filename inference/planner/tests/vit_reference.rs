//! Published profiles of two real boards: the planner finds the known optimum in every case.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;

use mesh_planner::{
    Block, DEFAULT_STEPS, Device, LinkRate, Links, Objective, Problem, TransferCost, check, solve,
};
use serde::Deserialize;

const MICRO_BATCH: u64 = 8;
const FLOAT_BYTES: u64 = 4;
const MIB: f64 = 1_048_576.0;

#[derive(Deserialize)]
struct Profiles {
    models: BTreeMap<String, Model>,
    devices: BTreeMap<String, Board>,
}

#[derive(Deserialize)]
struct Model {
    memory_mb: Vec<f64>,
    elements_in: u64,
    elements_out: Vec<u64>,
}

#[derive(Deserialize)]
struct Board {
    memory_mb: f64,
    seconds: BTreeMap<String, Vec<f64>>,
}

#[derive(Deserialize, Debug)]
struct Case {
    model: String,
    devices: BTreeMap<String, usize>,
    mbps: f64,
    bottleneck_s: Option<f64>,
    published_tool_s: Option<f64>,
}

fn profiles() -> Profiles {
    serde_json::from_str(include_str!("data/vit_profiles.json")).unwrap()
}

fn problem(profiles: &Profiles, case: &Case) -> Problem {
    let model = &profiles.models[&case.model];
    let block = |index: usize| Block {
        weight_bytes: (model.memory_mb[index] * MIB) as u64,
        overhead_bytes: 0,
        peak_bytes: 0,
        seconds: profiles
            .devices
            .iter()
            .map(|(class, board)| (class.clone(), board.seconds[&case.model][index]))
            .collect(),
    };
    let device = |class: &String, index: usize| Device {
        id: format!("{class}-{index}"),
        class: class.clone(),
        speed: 1.0,
        memory_bytes: (profiles.devices[class].memory_mb * MIB) as u64,
        card_bytes_per_s: None,
        transfer: TransferCost::default(),
    };
    let elements = std::iter::once(&model.elements_in).chain(&model.elements_out);
    Problem {
        blocks: (0..model.memory_mb.len()).map(block).collect(),
        cuts: elements.map(|elements| elements * MICRO_BATCH * FLOAT_BYTES).collect(),
        devices: case
            .devices
            .iter()
            .flat_map(|(class, &count)| (0..count).map(move |i| device(class, i)))
            .collect(),
        links: Links {
            default: LinkRate { bytes_per_s: case.mbps * MIB / 8.0, latency_s: 0.0 },
            pairs: Vec::new(),
        },
        ingress: None,
        arriving: BTreeMap::new(),
        objective: Objective::Throughput,
        replication: false,
        min_stages: None,
        max_stages: None,
        pin: None,
    }
}

#[test]
fn every_known_optimum_is_found() {
    let profiles = profiles();
    let cases: Vec<Case> = serde_json::from_str(include_str!("data/vit_reference.json")).unwrap();
    assert_eq!(cases.len(), 62);
    for case in &cases {
        let problem = problem(&profiles, case);
        match (solve(&problem, DEFAULT_STEPS), case.bottleneck_s) {
            (Ok(plan), Some(best)) => {
                check(&problem, &plan).unwrap();
                assert!((plan.bottleneck_s - best).abs() <= 1e-6 * best, "{case:?}: {}", plan.bottleneck_s);
                assert!(plan.optimal, "{case:?}");
                if let Some(published) = case.published_tool_s {
                    assert!(plan.bottleneck_s <= published * (1.0 + 1e-9), "{case:?}");
                }
            }
            (Err(_), None) => {}
            (found, _) => panic!("{case:?}: {found:?}"),
        }
    }
}

/// Sixteen boards that all differ: the published tool was stopped after a minute.
#[test]
fn sixteen_different_boards_are_planned_for_exactly() {
    let profiles = profiles();
    let case = Case {
        model: "google/vit-base-patch16-224".into(),
        devices: BTreeMap::from([("mb".into(), 8), ("rcc".into(), 8)]),
        mbps: 1000.0,
        bottleneck_s: None,
        published_tool_s: None,
    };
    let mut problem = problem(&profiles, &case);
    for (index, device) in problem.devices.iter_mut().enumerate() {
        device.speed = 1.0 - 0.03 * index as f64;
    }
    let plan = solve(&problem, DEFAULT_STEPS).unwrap();
    check(&problem, &plan).unwrap();
    println!("bottleneck {} bound {}", plan.bottleneck_s, plan.lower_bound_s);
    assert!(plan.optimal, "{} {}", plan.bottleneck_s, plan.lower_bound_s);
}

fn mixed(model: &str, devices: &[(&str, usize)]) -> Case {
    Case {
        model: model.into(),
        devices: devices.iter().map(|&(class, count)| (class.to_owned(), count)).collect(),
        mbps: 1000.0,
        bottleneck_s: None,
        published_tool_s: None,
    }
}

/// Two boards of 8 GB and one of 384 MB: the published tool gives the small one 412 MB.
#[test]
fn a_small_board_gets_what_it_can_hold() {
    let profiles = profiles();
    let mut problem = problem(&profiles, &mixed("google/vit-base-patch16-224", &[("rcc", 2), ("mb", 1)]));
    let small = problem.devices.iter_mut().find(|device| device.class == "mb").unwrap();
    small.memory_bytes = 384 * MIB as u64;
    let plan = solve(&problem, DEFAULT_STEPS).unwrap();
    check(&problem, &plan).unwrap();
    assert!(plan.optimal && plan.stages.len() == 3, "{plan:?}");
}

/// One board each of two classes and none of a third, which has a profile all the same: the published tool crashes.
#[test]
fn a_class_without_boards_does_no_harm() {
    let profiles = profiles();
    let mut problem = problem(&profiles, &mixed("google/vit-base-patch16-224", &[("rcc", 1), ("mb", 0)]));
    let mut other = problem.devices[0].clone();
    (other.id, other.class, other.speed) = ("c-0".into(), "c".into(), 1.0);
    for block in &mut problem.blocks {
        let seconds = block.seconds["rcc"] * 1.5;
        block.seconds.insert("c".into(), seconds);
    }
    problem.devices.push(other);
    let plan = solve(&problem, DEFAULT_STEPS).unwrap();
    check(&problem, &plan).unwrap();
    assert!(plan.optimal && plan.stages.len() == 2, "{plan:?}");
}

/// Boards whose class name has no profile are left out by the published tool without a word.
#[test]
fn boards_without_a_profile_are_named() {
    let profiles = profiles();
    let mut problem = problem(&profiles, &mixed("google/vit-base-patch16-224", &[("rcc", 4), ("mb", 4)]));
    let renamed = problem.devices.iter_mut().filter(|device| device.class == "rcc");
    renamed.for_each(|device| device.class = "RCC-VE-C2558".into());
    let plan = solve(&problem, DEFAULT_STEPS).unwrap();
    check(&problem, &plan).unwrap();
    assert_eq!(plan.unused.len(), 4);
    assert!(plan.unused.iter().all(|unused| unused.reason.contains("\"RCC-VE-C2558\" has no profile")));
}
