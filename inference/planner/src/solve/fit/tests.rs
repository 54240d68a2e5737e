//! Bounds, windows and chains against a look at every chain.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;

use super::*;
use crate::evaluate::{Draft, DraftStage};
use crate::plan::Objective;
use crate::problem::{Block, Device, LinkRate, Links, PairLink, Problem, TransferCost};
use crate::solve::exact;
use crate::solve::order::Dice;
use crate::solve::rates::least_busy_s;
use crate::solve::shares::{by_speed, polish};

/// `MESH_PLANNER_CASES` asks for more.
fn cases() -> u64 {
    std::env::var("MESH_PLANNER_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(400)
}

/// Up to 9 blocks and 4 devices. Whole numbers, so that ties are frequent.
fn problem(seed: u64) -> Problem {
    let mut dice = Dice::new(seed);
    let mut number = |low: usize, high: usize| (low + dice.below(high - low + 1)) as f64;
    let (blocks, devices) = (number(1, 9) as usize, number(1, 4) as usize);
    let block = |number: &mut dyn FnMut(usize, usize) -> f64| Block {
        weight_bytes: number(0, 6) as u64,
        overhead_bytes: 0,
        peak_bytes: number(0, 3) as u64,
        seconds: BTreeMap::from([("a".to_owned(), number(0, 9)), ("b".to_owned(), number(1, 9))]),
    };
    let blocks: Vec<Block> = (0..blocks).map(|_| block(&mut number)).collect();
    let cuts = (0..=blocks.len()).map(|_| number(0, 9) as u64).collect();
    let is_costly = number(0, 1) > 0.0;
    let device = |index: usize, number: &mut dyn FnMut(usize, usize) -> f64| Device {
        id: format!("d{index}"),
        class: if number(0, 2) > 0.0 { "a" } else { "b" }.to_owned(),
        speed: number(1, 3),
        memory_bytes: number(8, 50) as u64,
        card_bytes_per_s: (number(0, 3) < 1.0).then(|| number(1, 6)),
        transfer: TransferCost {
            send_s_per_byte: if is_costly { number(0, 3) / 10.0 } else { 0.0 },
            receive_s_per_byte: if is_costly { number(0, 3) / 10.0 } else { 0.0 },
            request_s: if is_costly { number(0, 2) / 10.0 } else { 0.0 },
            compute_share: number(1, 2) / 2.0,
            ..TransferCost::default()
        },
    };
    let devices: Vec<Device> = (0..devices).map(|index| device(index, &mut number)).collect();
    let mut pairs = Vec::new();
    for (from, to) in devices.iter().flat_map(|from| devices.iter().map(move |to| (from, to))) {
        if from.id != to.id && number(0, 1) > 0.0 {
            let bytes_per_s = number(0, 12);
            pairs.push(PairLink { from: from.id.clone(), to: to.id.clone(), bytes_per_s, latency_s: 0.5 });
        }
    }
    let ingress = match number(0, 2) as usize {
        0 => None,
        1 => Some(BTreeMap::from([(devices[0].id.clone(), 1.0)])),
        _ => Some(devices.iter().map(|device| (device.id.clone(), 1.0 / devices.len() as f64)).collect()),
    };
    Problem {
        blocks,
        cuts,
        devices,
        links: Links { default: LinkRate { bytes_per_s: 6.0, latency_s: 0.5 }, pairs },
        ingress,
        arriving: BTreeMap::new(),
        objective: Objective::Throughput,
        replication: false,
        min_stages: None,
        max_stages: (number(0, 2) < 1.0).then(|| number(1, 4) as usize),
        pin: None,
    }
}

/// Every chain that fits, with its bottleneck.
fn chains(instance: &Instance<'_>, stages: &mut Vec<DraftStage>, all: &mut Vec<(Draft, f64)>) {
    let first = stages.last().map_or(0, |stage| stage.end);
    if first == instance.blocks {
        let draft = Draft { stages: stages.clone() };
        let evaluation = evaluate_draft(instance, &draft);
        let (min, max) = instance.stage_limits();
        if evaluation.is_served() && fits(instance, &draft) && (min..=max).contains(&stages.len()) {
            all.push((draft, evaluation.bottleneck_s));
        }
        return;
    }
    for device in 0..instance.devices() {
        if stages.iter().any(|stage| stage.replicas[0].0 == device) {
            continue;
        }
        for end in first + 1..=instance.blocks {
            stages.push(DraftStage { first, end, replicas: vec![(device, 1.0)] });
            chains(instance, stages, all);
            stages.pop();
        }
    }
}

fn best(all: &[(Draft, f64)]) -> f64 {
    all.iter().map(|(_, value)| *value).fold(f64::INFINITY, f64::min)
}

#[test]
fn no_chain_is_below_the_bound_and_none_found_is_better_than_the_best() {
    let (mut found, mut nearest) = (0u64, 0u64);
    for seed in 0..cases() {
        let problem = problem(seed);
        let instance = Instance::new(&problem);
        let mut all = Vec::new();
        chains(&instance, &mut Vec::new(), &mut all);
        let best = best(&all);
        for effort in [Effort::FULL, Effort::SOME, Effort::GLANCE] {
            let before = Fit::new(&instance);
            let fit = search(&instance, f64::INFINITY, before, effort, &mut Steps::new(1_000_000));
            assert!(fit.bound <= best * (1.0 + 1e-9), "seed {seed}: {best} below {}", fit.bound);
            if let Some((draft, value)) = fit.chain {
                assert!(value >= best * (1.0 - 1e-9), "seed {seed}: {draft:?} {value} instead of {best}");
                assert!(all.iter().any(|(other, _)| *other == draft), "seed {seed}: {draft:?}");
                found += 1;
                nearest += u64::from(value <= best * (1.0 + 1e-3));
            }
        }
    }
    // Most beams find the best chain of so few devices.
    println!("{found} found, {nearest} of them nearly the best");
    assert!(nearest * 10 > found * 8, "{nearest} of {found}");
}

/// With limits from just above the best chain on, so that what is left out matters.
#[test]
fn the_table_finds_the_best_chain_whatever_limit_it_is_given() {
    for seed in 0..cases() {
        let problem = problem(seed);
        let instance = Instance::new(&problem);
        let mut all = Vec::new();
        chains(&instance, &mut Vec::new(), &mut all);
        let best = best(&all);
        if !best.is_finite() {
            continue;
        }
        for factor in [1.0 + 1e-9, 1.2, 2.0, 1e6] {
            let goal = Goal { latency: false, cap_s: best * factor, longest_s: f64::INFINITY };
            let exact = exact::best_chain(&instance, goal, &mut Steps::new(10_000_000)).unwrap();
            let value = evaluate_draft(&instance, &exact.draft.unwrap()).bottleneck_s;
            assert!((value - best).abs() <= 1e-9 * best.max(1.0), "seed {seed}: {value}, not {best}");
        }
    }
}

/// What a known chain takes may come out as the bound, but never more.
#[test]
fn a_known_chain_is_no_bound_on_better_ones() {
    for seed in 0..cases() {
        let problem = problem(seed);
        let instance = Instance::new(&problem);
        let mut all = Vec::new();
        chains(&instance, &mut Vec::new(), &mut all);
        let best = best(&all);
        for (_, known) in all.iter().step_by(all.len() / 4 + 1) {
            let before = Fit::new(&instance);
            let fit = search(&instance, *known, before, Effort::FULL, &mut Steps::new(1_000_000));
            assert!(fit.bound <= best * (1.0 + 1e-9), "seed {seed}: {best} below {}", fit.bound);
        }
    }
}

/// The windows are the ones that every chain below a limit is made of, and they are listed once each.
#[test]
fn chains_are_made_of_windows() {
    for seed in 0..cases() {
        let problem = problem(seed);
        let instance = Instance::new(&problem);
        let mut all = Vec::new();
        chains(&instance, &mut Vec::new(), &mut all);
        let tiling = Tiling::new(&instance);
        for (draft, value) in all.iter().step_by(all.len() / 8 + 1) {
            let windows = tiling.windows(value * (1.0 + 1e-9));
            for stage in &draft.stages {
                let index = tiling.devices.iter().position(|&device| device == stage.replicas[0].0).unwrap();
                let times = windows.ends(index, stage.first).filter(|&end| end == stage.end).count();
                assert_eq!(times, 1, "seed {seed}: {stage:?}");
            }
        }
    }
}

/// Weights that prove something weigh all that they should.
#[test]
fn the_heaviest_windows_are_the_heaviest() {
    for seed in 0..cases() {
        let problem = problem(seed);
        let instance = Instance::new(&problem);
        let mut tiling = Tiling::new(&instance);
        let limit = Fit::new(&instance).bound.max(1.0) * 1.5;
        let windows = tiling.windows(limit);
        let priced =
            tiling.priced(&windows, (seed as usize % 7, seed as usize % 50), &mut Steps::new(100_000));
        let mut total = 0.0;
        for index in 0..tiling.devices.len() {
            let starts = 0..instance.blocks;
            let weights = starts.flat_map(|start| {
                let before = &priced.before;
                windows.ends(index, start).map(move |end| before[end] - before[start])
            });
            let heaviest = weights.fold(0.0, f64::max);
            assert!((heaviest - priced.heaviest[index]).abs() < 1e-9, "seed {seed}");
            total += heaviest;
        }
        assert!((total - priced.total).abs() < 1e-9, "seed {seed}");
    }
}

/// No shares make a stage faster than the bound that saves polishing them.
#[test]
fn polished_shares_stay_above_their_bound() {
    for seed in 0..cases() {
        let problem = Problem { replication: true, ..problem(seed) };
        let instance = Instance::new(&problem);
        let mut dice = Dice::new(seed + 7);
        let middle = dice.below(instance.blocks);
        let of_first = |dice: &mut Dice| dice.below(2) == 0;
        let (front, back): (Vec<usize>, Vec<usize>) =
            instance.usable().iter().partition(|_| of_first(&mut dice));
        let stage = |devices: &[usize], first, end| DraftStage {
            first,
            end,
            replicas: by_speed(&instance, devices, first, end),
        };
        let stages = if middle == 0 || front.is_empty() || back.is_empty() {
            vec![stage(&instance.usable(), 0, instance.blocks)]
        } else {
            vec![stage(&front, 0, middle), stage(&back, middle, instance.blocks)]
        };
        let draft = Draft { stages };
        if !fits(&instance, &draft) {
            continue;
        }
        let bound = least_busy_s(&instance, &draft);
        let polished = polish(&instance, draft.clone(), true).1.bottleneck_s;
        for value in [polished, evaluate_draft(&instance, &draft).bottleneck_s] {
            assert!(value >= bound * (1.0 - 1e-9) - 1e-9, "seed {seed}: {value} below {bound}: {draft:?}");
        }
    }
}
