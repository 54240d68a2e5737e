//! Shapes of plans on problems whose answer is known beforehand, and the words that go with them.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::collections::BTreeMap;

use mesh_planner::{
    Block, CheckError, DEFAULT_STEPS, Device, LinkRate, Links, Objective, PinnedStage, Plan, Problem,
    ProblemError, TransferCost, check, evaluate, lifts, replan, solve, solve_lighter, with_standbys,
};

use common::{is_close, solved};

const MIB: u64 = 1 << 20;

/// `blocks` equal blocks of 1 s and 10 MiB, small cuts, equal devices, fast links.
fn even(blocks: usize, devices: usize, memory_bytes: u64) -> Problem {
    let block = Block {
        weight_bytes: 10 * MIB,
        overhead_bytes: 0,
        peak_bytes: MIB,
        seconds: BTreeMap::from([("pi".to_owned(), 1.0)]),
    };
    let device = |index| Device {
        id: format!("pi-{index}"),
        class: "pi".to_owned(),
        speed: 1.0,
        memory_bytes,
        card_bytes_per_s: None,
        transfer: TransferCost::default(),
    };
    Problem {
        blocks: vec![block; blocks],
        cuts: vec![1000; blocks + 1],
        devices: (0..devices).map(device).collect(),
        links: Links { default: LinkRate { bytes_per_s: 1e8, latency_s: 1e-3 }, pairs: Vec::new() },
        ingress: None,
        arriving: BTreeMap::new(),
        objective: Objective::Throughput,
        replication: true,
        min_stages: None,
        max_stages: None,
        pin: None,
    }
}

#[test]
fn equal_devices_that_hold_the_model_serve_at_the_sum_of_their_rates() {
    for devices in [1, 2, 5, 8, 30] {
        let plan = solved(&even(12, devices, 1024 * MIB));
        assert!(is_close(plan.throughput_rps, devices as f64 / 12.0), "{plan:?}");
        assert!(plan.optimal, "{plan:?}");
    }
}

#[test]
fn what_clients_bring_fills_the_card_where_requests_enter() {
    let mut problem = even(4, 2, 1024 * MIB);
    problem.devices[1].card_bytes_per_s = Some(100.0);
    problem.ingress = Some(BTreeMap::from([("pi-0".to_owned(), 0.5), ("pi-1".to_owned(), 0.5)]));
    problem.pin = Some(vec![PinnedStage { first_block: 0, last_block: 3, devices: vec!["pi-1".to_owned()] }]);
    let plan = solved(&problem);
    // Half of the requests come from the other device, and half from clients, which may be on this device.
    assert!(is_close(evaluate(&problem, &plan).unwrap().bottleneck_s, 5.0));
    problem.arriving = BTreeMap::from([("pi-1".to_owned(), 0.25)]);
    assert!(is_close(evaluate(&problem, &plan).unwrap().bottleneck_s, 7.5));
}

#[test]
fn a_third_of_the_memory_each_loses_almost_nothing() {
    for devices in [3, 6, 7, 9, 12] {
        let plan = solved(&even(12, devices, 45 * MIB));
        let bound = 12.0 / devices as f64;
        assert!(plan.bottleneck_s <= bound * 1.34, "{devices}: {plan:?}");
        if devices % 3 == 0 {
            assert!(plan.optimal, "{devices}: {plan:?}");
        }
    }
}

#[test]
fn mixed_speeds_are_shared_by_speed() {
    let mut problem = even(4, 3, 1024 * MIB);
    problem.devices[1].speed = 2.0;
    problem.devices[2].speed = 5.0;
    let plan = solved(&problem);
    assert!(is_close(plan.bottleneck_s, 0.5), "{plan:?}");
    assert!(plan.optimal);
}

#[test]
fn latency_takes_the_fastest_device_alone() {
    let mut problem = Problem { objective: Objective::Latency, ..even(6, 4, 1024 * MIB) };
    problem.devices[2].speed = 1.5;
    let plan = solved(&problem);
    assert_eq!(plan.stages.len(), 1);
    assert_eq!(plan.stages[0].replicas[0].device, "pi-2");
    assert!(is_close(plan.latency_s, 4.0) && plan.optimal);
    assert_eq!(plan.unused.len(), 3);
    assert_eq!(plan.unused[0].reason, "a further hop would make each request slower");
}

#[test]
fn requests_that_enter_elsewhere_pay_for_the_way() {
    let mut problem = even(4, 2, 1024 * MIB);
    problem.links.default.bytes_per_s = 100.0;
    problem.ingress = Some(BTreeMap::from([("pi-0".to_owned(), 1.0)]));
    let plan = solved(&problem);
    // 10 s to send a request away, 4 s to run it here: a part is sent as long as the link keeps up.
    assert!(is_close(plan.throughput_rps, 0.25 + 0.1), "{plan:?}");
}

/// A device whose processors work 20 ms on moving 1 MB: 1 ms for the message and 19 for the bytes.
fn costly(share: f64) -> TransferCost {
    TransferCost {
        send_s_per_byte: 19e-9,
        receive_s_per_byte: 19e-9,
        request_s: 1e-3,
        entry_s_per_byte: 0.0,
        rest_share: 0.0,
        compute_share: share,
    }
}

#[test]
fn what_runs_everywhere_moves_nothing() {
    let mut problem = even(4, 5, 1024 * MIB);
    problem.cuts = vec![1_000_000; 5];
    problem.links.default = LinkRate { bytes_per_s: 1e3, latency_s: 1.0 };
    problem.ingress = Some((0..5).map(|device| (format!("pi-{device}"), 0.2)).collect());
    problem.devices.iter_mut().for_each(|device| device.transfer = costly(1.0));
    let plan = solved(&problem);
    assert!(is_close(plan.bottleneck_s, 0.8) && is_close(plan.latency_s, 4.0) && plan.optimal, "{plan:?}");
    let evaluation = evaluate(&problem, &plan).unwrap();
    assert!(evaluation.processors.iter().all(|work| work.transfer_s == 0.0 && is_close(work.busy_s, 0.8)));
}

#[test]
fn moving_data_costs_the_processors_of_both_ends() {
    let mut problem = Problem { replication: false, ..even(4, 2, 30 * MIB) };
    problem.cuts = vec![1_000_000; 5];
    problem.links.default = LinkRate { bytes_per_s: 1e9, latency_s: 0.0 };
    problem.ingress = Some([("pi-0".to_owned(), 1.0)].into());
    problem.devices.iter_mut().for_each(|device| device.transfer = costly(1.0));
    let plan = solved(&problem);
    // Each sends once and receives once, whichever runs first.
    assert!(is_close(plan.bottleneck_s, 2.04), "{plan:?}");
    assert!(
        plan.why.contains("2040.0 ms per request (2000.0 ms compute, 40.0 ms moving data)"),
        "{}",
        plan.why
    );
    assert!(is_close(plan.latency_s, 4.0 + 2.0 * (0.001 + 0.04)), "{plan:?}");
    // A stage on one core of two leaves room for it.
    problem.devices.iter_mut().for_each(|device| device.transfer = costly(0.5));
    assert!(is_close(solved(&problem).bottleneck_s, 2.0));
    // An ingress without a stage works as well.
    problem.ingress = Some([("pi-2".to_owned(), 1.0)].into());
    let far = Device { id: "pi-2".into(), memory_bytes: MIB, speed: 0.01, ..problem.devices[0].clone() };
    problem.devices.push(far);
    problem.devices[2].transfer.request_s = 3.0;
    let plan = solved(&problem);
    assert!(is_close(plan.bottleneck_s, 6.038) && plan.bottleneck.device == "pi-2", "{plan:?}");
}

#[test]
fn speeds_are_shared_so_that_processors_meet() {
    let mut problem = even(4, 2, 1024 * MIB);
    problem.cuts = vec![1_000_000; 5];
    problem.links.default = LinkRate { bytes_per_s: 1e9, latency_s: 0.0 };
    problem.ingress = Some([("pi-0".to_owned(), 1.0)].into());
    let slow = TransferCost { request_s: 0.5, ..TransferCost::default() };
    problem.devices.iter_mut().for_each(|device| device.transfer = slow);
    // pi-0: 4 (1 - x) + 1 x, pi-1: 4 x + 1 x, for a share x of pi-1.
    let plan = solved(&problem);
    assert!(is_close(plan.bottleneck_s, 2.5), "{plan:?}");
}

#[test]
fn as_many_stages_as_asked_for_on_distinct_devices() {
    for stages in 1..=4 {
        for replication in [true, false] {
            let mut problem = even(9, 4, 1024 * MIB);
            (problem.replication, problem.min_stages, problem.max_stages) =
                (replication, Some(stages), Some(stages));
            let plan = solved(&problem);
            assert_eq!(plan.stages.len(), stages);
            let mut used: Vec<&str> =
                plan.stages.iter().flat_map(|s| s.replicas.iter().map(|r| r.device.as_str())).collect();
            used.sort_unstable();
            used.dedup();
            assert_eq!(used.len(), plan.stages.iter().map(|stage| stage.replicas.len()).sum::<usize>());
        }
    }
}

#[test]
fn more_stages_than_devices_are_put_together_and_said_so() {
    let mut problem = Problem { replication: false, ..even(9, 2, 1024 * MIB) };
    (problem.min_stages, problem.max_stages) = (Some(4), Some(4));
    let plan = solved(&problem);
    assert_eq!(plan.stages.len(), 4);
    assert!(plan.why.contains("4 stages were asked for and 2 devices can run them"), "{}", plan.why);
    (problem.min_stages, problem.max_stages) = (Some(10), Some(10));
    let error = solve(&problem, DEFAULT_STEPS).unwrap_err();
    assert_eq!(error.reason, "10 stages were asked for; the model has 9 blocks, ask for at most that many");
}

#[test]
fn what_does_not_fit_is_said_in_bytes() {
    let error = solve(&even(40, 4, 50 * MIB), DEFAULT_STEPS).unwrap_err();
    assert_eq!(
        error.reason,
        "the model needs 401.0 MiB for weights and activations; the 4 devices offer 200.0 MiB together; raise \
         limits.memory or add a device"
    );
    assert_eq!((error.needed_bytes, error.available_bytes), (401 * MIB, 200 * MIB));
    let error = solve(&even(2, 4, 5 * MIB), DEFAULT_STEPS).unwrap_err();
    assert!(error.reason.starts_with("block 0 alone needs 11.0 MiB"), "{}", error.reason);
    let mut split = even(4, 4, 25 * MIB);
    split.links.default.bytes_per_s = 0.0;
    let error = solve(&split, DEFAULT_STEPS).unwrap_err();
    assert!(error.reason.starts_with("no division of the model"), "{}", error.reason);
    assert!(error.reason.contains("no link to each other"), "{}", error.reason);
    let mut short = even(40, 5, 50 * MIB);
    short.devices[1].class = "new".to_owned();
    let error = solve(&short, DEFAULT_STEPS).unwrap_err();
    let left_out = format!("({} is left out: its class has no profile)", short.devices[1].id);
    assert!(error.reason.contains(&left_out), "{}", error.reason);
    short.devices[2].class = "new".to_owned();
    let error = solve(&short, DEFAULT_STEPS).unwrap_err();
    assert!(error.reason.contains("(2 devices are left out"), "{}", error.reason);
    let mut unknown = even(4, 2, 1024 * MIB);
    unknown.devices.iter_mut().for_each(|device| device.class = "new".to_owned());
    assert!(
        solve(&unknown, DEFAULT_STEPS).unwrap_err().reason.starts_with("no device's class has a profile")
    );
}

#[test]
fn devices_left_out_have_their_reason() {
    let mut problem = even(4, 3, 1024 * MIB);
    problem.devices[0].class = "new".to_owned();
    problem.devices[1].memory_bytes = MIB;
    let plan = solved(&problem);
    let reasons: Vec<(&str, &str)> =
        plan.unused.iter().map(|u| (u.device.as_str(), u.reason.as_str())).collect();
    assert_eq!(
        reasons,
        [
            ("pi-0", "its class \"new\" has no profile of this model yet"),
            ("pi-1", "it offers 1.0 MiB, the smallest block needs 11.0 MiB"),
        ]
    );
    assert_eq!(plan.alternatives[0].what, "one device");
    assert!(is_close(plan.alternatives[0].throughput_rps, 0.25));
}

#[test]
fn pinned_stages_stay_as_they_are() {
    let mut problem = even(4, 3, 1024 * MIB);
    let stage = |first_block, last_block, devices: &[&str]| PinnedStage {
        first_block,
        last_block,
        devices: devices.iter().map(|id| (*id).to_owned()).collect(),
    };
    problem.pin = Some(vec![stage(0, 0, &["pi-2"]), stage(1, 3, &["pi-0", "pi-1"])]);
    let plan = solved(&problem);
    assert_eq!(plan.stages.len(), 2);
    assert!(is_close(plan.bottleneck_s, 1.5));
    let mut other = plan.clone();
    other.stages[0].replicas[0].device = "pi-1".to_owned();
    assert!(matches!(check(&problem, &other), Err(CheckError::Pin { stage: 0 } | CheckError::Number { .. })));
    problem.pin = Some(vec![stage(0, 0, &["pi-2"]), stage(2, 3, &["pi-0"])]);
    assert!(matches!(problem.validate(), Err(ProblemError::Pin { stage: 1, .. })));
    problem.pin = Some(vec![stage(0, 3, &["pi-2"])]);
    problem.devices[2].memory_bytes = 30 * MIB;
    let error = solve(&problem, DEFAULT_STEPS).unwrap_err();
    assert!(error.reason.starts_with("the pinned stages need 41.0 MiB on pi-2"), "{}", error.reason);
}

#[test]
fn check_refuses_plans_that_are_not_true() {
    let problem = Problem { replication: false, ..even(6, 3, 45 * MIB) };
    let good = solved(&problem);
    let spoilt = |spoil: &dyn Fn(&mut Plan)| {
        let mut plan = good.clone();
        spoil(&mut plan);
        check(&problem, &plan).unwrap_err()
    };
    assert!(matches!(spoilt(&|plan| plan.stages[1].first_block += 1), CheckError::Cover { stage: 1, .. }));
    assert!(matches!(spoilt(&|plan| drop(plan.stages.pop())), CheckError::Short { .. }));
    assert!(matches!(spoilt(&|plan| plan.stages[0].replicas[0].share = 0.5), CheckError::Replicas { .. }));
    assert!(matches!(
        spoilt(&|plan| plan.stages[0].replicas[0].share = f64::NAN),
        CheckError::Replicas { .. }
    ));
    assert!(matches!(
        spoilt(&|plan| plan.stages[0].replicas[0].device = "x".into()),
        CheckError::Replicas { .. }
    ));
    assert!(matches!(spoilt(&|plan| plan.stages[0].replicas.clear()), CheckError::Replicas { .. }));
    assert!(matches!(spoilt(&|plan| plan.throughput_rps *= 2.0), CheckError::Number { .. }));
    assert!(matches!(spoilt(&|plan| plan.bottleneck_s = f64::NAN), CheckError::Number { .. }));
    assert!(matches!(spoilt(&|plan| plan.lower_bound_s *= 2.0), CheckError::Number { .. }));
    let one = spoilt(&|plan| {
        plan.stages.truncate(1);
        plan.stages[0].last_block = 5;
    });
    assert!(matches!(one, CheckError::Memory { needed, .. } if needed > 45 * MIB), "{one:?}");
    let limited = Problem { max_stages: Some(2), ..problem.clone() };
    assert!(matches!(check(&limited, &good), Err(CheckError::StageCount { got: 3, .. })));
}

#[test]
fn senseless_problems_are_refused() {
    let good = even(2, 2, 1024 * MIB);
    let spoilt = |spoil: &dyn Fn(&mut Problem)| {
        let mut problem = good.clone();
        spoil(&mut problem);
        assert!(solve(&problem, 10).is_err());
        problem.validate().unwrap_err()
    };
    assert_eq!(spoilt(&|p| p.blocks.clear()), ProblemError::NoBlocks);
    assert_eq!(spoilt(&|p| p.devices.clear()), ProblemError::NoDevices);
    assert!(matches!(spoilt(&|p| p.cuts.push(1)), ProblemError::CutCount { got: 4, blocks: 2 }));
    assert!(matches!(spoilt(&|p| p.devices[0].speed = 0.0), ProblemError::Number { .. }));
    assert!(matches!(spoilt(&|p| p.devices[0].speed = f64::NAN), ProblemError::Number { .. }));
    assert!(matches!(spoilt(&|p| p.links.default.latency_s = -1.0), ProblemError::Number { .. }));
    assert!(matches!(spoilt(&|p| p.devices[1].id = "pi-0".into()), ProblemError::Duplicate { .. }));
    assert!(matches!(
        spoilt(&|p| p.ingress = Some([("x".into(), 1.0)].into())),
        ProblemError::UnknownDevice { .. }
    ));
    assert!(matches!(
        spoilt(&|p| p.ingress = Some([("pi-0".into(), 0.5)].into())),
        ProblemError::IngressSum { .. }
    ));
    assert!(matches!(
        spoilt(&|p| p.devices[0].transfer.compute_share = 0.0),
        ProblemError::Number { must: "above 0 and at most 1", .. }
    ));
    assert!(matches!(spoilt(&|p| p.devices[1].transfer.request_s = f64::NAN), ProblemError::Number { .. }));
    assert!(matches!(spoilt(&|p| p.max_stages = Some(0)), ProblemError::StageCounts { .. }));
    let infinite = f64::INFINITY;
    assert!(matches!(
        spoilt(&|p| p.blocks[1].seconds = BTreeMap::from([("pi".into(), infinite)])),
        ProblemError::Number { .. }
    ));
}

#[test]
fn the_json_of_a_problem_and_its_answer() {
    let text = r#"{"blocks": [{"weight_bytes": 1, "peak_bytes": 0, "seconds": {"rcc": 0.1, "mb": 0.2}}],
        "cuts": [602112, 4000],
        "devices": [{"id": "rcc-0", "class": "rcc", "speed": 1.0, "memory_bytes": 8589934592, "card_bytes_per_s": null}],
        "links": {"default": {"bytes_per_s": 125000000.0, "latency_s": 0.0}, "pairs": []},
        "ingress": null, "objective": "throughput", "replication": true, "min_stages": null, "max_stages": null}"#;
    let problem: Problem = serde_json::from_str(text).unwrap();
    let plan = solved(&problem);
    assert!(is_close(plan.bottleneck_s, 0.1) && is_close(plan.throughput_rps, 10.0) && plan.optimal);
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!(json["stages"][0]["replicas"][0]["device"], "rcc-0");
    assert_eq!(serde_json::from_value::<Plan>(json).unwrap(), plan);
}

#[test]
fn a_better_link_to_a_device_behind_a_slow_one_is_what_lifts() {
    let mut problem = even(4, 2, 1024 * MIB);
    problem.cuts = vec![1_000_000; 5];
    // A request takes 8 s over the slow link and 4 s on either device.
    problem.links.default.bytes_per_s = 125e3;
    problem.ingress = Some([("pi-0".to_owned(), 1.0)].into());
    let plan = solved(&problem);
    assert!(is_close(plan.throughput_rps, 0.25 + 0.125), "{plan:?}");
    let lifts = lifts(&problem, &plan, DEFAULT_STEPS);
    let of = |what: &str| lifts.iter().find(|lift| lift.what == what).map(|lift| lift.gain);
    // Both devices at their full rate: 0.5 instead of 0.375.
    assert!(is_close(of("a 100 Mbit/s link to pi-1").unwrap(), 1.0 / 3.0), "{lifts:?}");
    assert!(is_close(of("pi-0 twice as fast").unwrap(), 2.0 / 3.0), "{lifts:?}");
    assert_eq!(lifts[0].to_string(), "pi-0 twice as fast: +67 %");
}

#[test]
fn memory_lifts_where_it_is_short() {
    let mut problem = even(4, 2, 30 * MIB);
    problem.cuts = vec![1_000_000; 5];
    problem.links.default.bytes_per_s = 125e3;
    let plan = solved(&problem);
    assert!(is_close(plan.bottleneck_s, 8.0), "{plan:?}");
    let lifts = lifts(&problem, &plan, DEFAULT_STEPS);
    let memory = lifts.iter().find(|lift| lift.what == "12.9 MiB more memory on pi-0");
    assert!(is_close(memory.unwrap().gain, 1.0), "{lifts:?}");
}

/// What is lost is served by who stands by, without loading anything, though since then another cut has become better;
/// that one is moved to when nobody waits for it.
#[test]
fn who_stands_by_goes_on_with_the_old_cuts() {
    let mut problem =
        Problem { replication: false, min_stages: Some(3), max_stages: Some(3), ..even(30, 5, 1024 * MIB) };
    let running = with_standbys(&problem, solved(&problem), None);
    for block in &mut problem.blocks[..10] {
        block.seconds.insert("pi".to_owned(), 1.15);
    }
    problem.devices.retain(|device| device.id != running.stages[1].replicas[0].device);
    let next = replan(&problem, &running, DEFAULT_STEPS).unwrap();
    check(&problem, &next.plan).unwrap();
    assert_eq!((next.moved_bytes, next.moved_replicas, next.gain), (0, 0, None), "{}", next.plan.why);
    assert!(next.is_hasty() && next.behind < 0.1, "{}", next.behind);
    assert_eq!(next.plan.stages[1].first_block, 10);
    assert!(next.plan.why.contains("It moves 0 bytes of weights; the best plan found"), "{}", next.plan.why);

    let calm = replan(&problem, &next.plan, DEFAULT_STEPS).unwrap();
    assert!(!calm.is_hasty() && calm.gain.unwrap() > 0.03 && calm.moved_bytes > 0, "{calm:?}");
}

/// Between the two halves of a transformer's layer four times as many bytes cross as between two layers.
#[test]
fn of_plans_that_are_hardly_slower_the_one_that_sends_less_is_made() {
    let mut problem = even(40, 2, 1 << 40);
    (problem.min_stages, problem.max_stages, problem.replication) = (Some(2), Some(2), false);
    problem.cuts.iter_mut().skip(1).step_by(2).for_each(|bytes| *bytes = 4_000_000);
    (1..40).step_by(2).for_each(|cut| problem.cuts[cut + 1] = 1_000_000);
    // Half of the work lies before block 21, hardly less before block 20, where a layer ends.
    for (block, seconds) in [(0, 0.1), (1, 0.7), (20, 0.2)] {
        problem.blocks[block].seconds.insert("pi".to_owned(), seconds);
    }
    let cut = |plan: &Plan| plan.stages[1].first_block;
    let fastest = solved(&problem);
    assert_eq!(cut(&fastest), 21, "{}", fastest.why);
    let lighter = solve_lighter(&problem, DEFAULT_STEPS, 0.02).unwrap();
    check(&problem, &lighter).unwrap();
    assert_eq!(cut(&lighter), 20, "{}", lighter.why);
    assert!(!lighter.optimal && lighter.why.contains("A plan that is"), "{}", lighter.why);
    assert!(fastest.throughput_rps / lighter.throughput_rps < 1.02);
    assert_eq!(solve_lighter(&problem, DEFAULT_STEPS, 0.001).unwrap(), fastest, "too much slower");
}
