//! The lab's load against real daemons on loopback.

#![allow(clippy::print_stderr, reason = "tests say what they measure")]

use std::{sync::Arc, time::Duration};

use mesh_tests::{
    digits,
    lab::load::{Arrivals, Entrance, Expected, Load, LoadSpec, Window, measure_steady},
    loopback::Loopback,
    rack::{Rack, is_root},
};

const PATIENCE: Duration = Duration::from_secs(60);

fn serving() -> (Loopback, Vec<Entrance>, Arc<Expected>) {
    let mut cluster = Loopback::new(2, &[("MESH_LIMITS_THREADS", "1")]);
    cluster.start(PATIENCE);
    let model = digits::model().display().to_string();
    let output = cluster.devices[0].mesh(&["deploy", &model, "--name", "digits"]);
    assert!(output.status.success(), "mesh deploy: {}", String::from_utf8_lossy(&output.stderr));
    let entrance = |api: &String| Entrance { namespace: None, url: format!("http://{api}") };
    let entrances = cluster.devices.iter().map(|d| entrance(&d.api)).collect();
    let expected = Expected::compute(&digits::model(), 1, 0, 4, 11).expect("digits can be checked");
    (cluster, entrances, Arc::new(expected))
}

#[test]
fn closed_and_open_loops_check_answers_and_see_an_outage() {
    let (mut cluster, entrances, expected) = serving();
    closed_loop(&entrances, &expected);
    open_loops(&entrances, &expected);
    let unknown = LoadSpec::new("nothing", Arrivals::Closed { clients: 2 });
    let load = Load::start(&unknown, Arc::clone(&expected), &entrances).expect("it starts");
    assert!(load.wait_for(1, Duration::from_millis(300)).is_err(), "no deployment, no answer");
    let report = load.stop().expect("it ends");
    assert!(report.failed > 0 && report.right == 0, "{report:?}");
    assert!(report.failures[0].contains("404"), "{:?}", report.failures);
    assert!(report.failures.len() <= 20);

    // One entrance goes: its clients fail, the others go on.
    let spec = LoadSpec::new("digits", Arrivals::Closed { clients: 4 });
    let load = Load::start(&spec, expected, &entrances).expect("it starts");
    load.wait_for(50, PATIENCE).expect("answers");
    let killed = load.mark("kill");
    cluster.devices[1].kill();
    load.wait_for(50, PATIENCE).expect("the other device answers");
    let report = load.stop().expect("it ends");
    assert_eq!(report.wrong, 0, "{:?}", report.failures);
    assert!(report.failed > 0, "clients of the killed device get errors");
    assert!(report.errors_between(0.0, killed) == 0, "{:?}", report.failures);
    assert_eq!(report.marks[0].label, "kill");
    eprintln!("longest gap {:.3} s, first error {}", report.longest_gap_s, report.failures[0]);
}

fn closed_loop(entrances: &[Entrance], expected: &Arc<Expected>) {
    for keep_connections in [true, false] {
        let mut spec = LoadSpec::new("digits", Arrivals::Closed { clients: 3 });
        spec.keep_connections = keep_connections;
        let load = Load::start(&spec, Arc::clone(expected), entrances).expect("it starts");
        let window = Window { warmup_answers: 20, answers: 200, seconds: 1.0, bound: PATIENCE };
        let steady = measure_steady(&load, &window, &mut || ()).expect("it is steady");
        let report = load.stop().expect("it ends");
        assert_eq!(report.not_right(), 0, "{:?}", report.failures);
        assert!(steady.answers >= 200 && steady.errors == 0, "{steady:?}");
        assert!(report.right >= steady.answers + 20);
        assert_eq!(report.latency.buckets.iter().map(|b| b.count).sum::<u64>(), report.right);
        assert_eq!(report.timeline.iter().map(|b| b.answers).sum::<u64>(), report.right);
        serde_json::to_string(&report).expect("it is JSON");
        eprintln!(
            "closed, connections kept: {keep_connections}: {:.0}/s, halves {:.0?}, p50 {:.2} ms, p99 {:.2} ms",
            steady.rate_rps, steady.halves_rps, report.latency.p50_ms, report.latency.p99_ms
        );
    }
}

fn open_loops(entrances: &[Entrance], expected: &Arc<Expected>) {
    let spec = LoadSpec::new("digits", Arrivals::Poisson { rate_per_s: 50.0, max_in_flight: 32 });
    let load = Load::start(&spec, Arc::clone(expected), entrances).expect("it starts");
    load.wait_for(100, PATIENCE).expect("answers");
    let report = load.stop().expect("it ends");
    assert_eq!((report.wrong, report.refused, report.failed), (0, 0, 0), "{:?}", report.failures);
    assert!(report.right >= 100);
    eprintln!("open at 50/s: {:.1}/s, {} dropped", report.throughput_rps, report.dropped);

    // Far more than one client can send: what finds it busy is dropped, and nothing queues up.
    let spec = LoadSpec::new("digits", Arrivals::Poisson { rate_per_s: 50_000.0, max_in_flight: 1 });
    let load = Load::start(&spec, Arc::clone(expected), entrances).expect("it starts");
    load.wait_for(50, PATIENCE).expect("answers");
    let report = load.stop().expect("it ends");
    assert_eq!(report.wrong, 0, "{:?}", report.failures);
    assert!(report.dropped > report.right, "{} dropped, {} right", report.dropped, report.right);
    eprintln!("open far beyond: {:.0}/s, {} dropped", report.throughput_rps, report.dropped);
}

#[test]
fn settings_that_cannot_be_met_are_refused() {
    let expected = Arc::new(Expected::compute(&digits::model(), 1, 0, 1, 1).expect("digits can be checked"));
    let here = [Entrance { namespace: None, url: "http://127.0.0.1:1".to_owned() }];
    for arrivals in [
        Arrivals::Closed { clients: 0 },
        Arrivals::Poisson { rate_per_s: 0.0, max_in_flight: 1 },
        Arrivals::Poisson { rate_per_s: f64::NAN, max_in_flight: 1 },
        Arrivals::Poisson { rate_per_s: 1.0, max_in_flight: 0 },
    ] {
        let spec = LoadSpec::new("digits", arrivals);
        assert!(Load::start(&spec, Arc::clone(&expected), &here).is_err(), "{arrivals:?}");
    }
    let spec = LoadSpec::new("digits", Arrivals::Closed { clients: 1 });
    assert!(Load::start(&spec, expected, &[]).is_err(), "no entrance");
}

#[test]
fn clients_run_inside_the_namespaces_of_their_entrances() {
    if !is_root() {
        eprintln!("SKIPPED without root: clients run inside the namespaces of their entrances");
        return;
    }
    let mut rack = Rack::new(2, &[("MESH_LIMITS_THREADS", "1")]);
    rack.start(2);
    rack.wait_for_one_cluster(PATIENCE);
    let output =
        rack.devices[0].mesh(&["deploy", &digits::model().display().to_string(), "--name", "digits"]);
    assert!(output.status.success(), "mesh deploy: {}", String::from_utf8_lossy(&output.stderr));
    let expected = Expected::compute(&digits::model(), 1, 0, 4, 2).expect("digits can be checked");
    let expected = Arc::new(expected);
    let url = "http://127.0.0.1:7401".to_owned();
    let entrances = rack.devices.iter().map(|d| Some(d.namespace().to_owned()));
    let mut entrances: Vec<_> = entrances.map(|namespace| Entrance { namespace, url: url.clone() }).collect();
    for arrivals in
        [Arrivals::Closed { clients: 4 }, Arrivals::Poisson { rate_per_s: 100.0, max_in_flight: 16 }]
    {
        let spec = LoadSpec::new("digits", arrivals);
        let load = Load::start(&spec, Arc::clone(&expected), &entrances).expect("it starts");
        load.wait_for(100, PATIENCE).expect("answers");
        let report = load.stop().expect("it ends");
        assert_eq!((report.wrong, report.refused, report.failed), (0, 0, 0), "{:?}", report.failures);
    }
    // Both devices were asked.
    for device in &rack.devices {
        let status = device.status().expect("status");
        assert!(status.deployments[0].requests > 0, "{}: {:?}", device.name, status.deployments);
    }
    entrances[1].namespace = Some("no-such-namespace".to_owned());
    let spec = LoadSpec::new("digits", Arrivals::Poisson { rate_per_s: 200.0, max_in_flight: 4 });
    let load = Load::start(&spec, expected, &entrances).expect("it starts");
    load.wait_for(20, PATIENCE).expect("the other entrance answers");
    let report = load.stop().expect("it ends");
    assert!(report.failures[0].contains("no-such-namespace"), "{:?}", report.failures);
}
