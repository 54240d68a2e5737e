//! Founding, the cost of the mesh itself, and losses: measured on racks of devices without limits.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use mesh_tests::{digits, load::DigitsLoad, rack::Rack};

const PATIENCE: Duration = Duration::from_secs(60);
const FOUNDINGS: usize = 10;
const KILLS: usize = 5;
/// Pairs of runs, one device and four, side by side.
const PAIRS: usize = 3;
/// A budget that no device can hold the digits model in, and three can.
const SMALL: (&str, &str) = ("MESH_LIMITS_MEMORY", "448KiB");
const ONE_THREAD: (&str, &str) = ("MESH_LIMITS_THREADS", "1");

pub(super) fn founding(page: &mut String) {
    let mut times: Vec<Duration> = (0..FOUNDINGS)
        .map(|_| {
            let mut rack = Rack::new(4, &[]);
            rack.start(4);
            rack.wait_for_one_cluster(PATIENCE)
        })
        .collect();
    times.sort();
    let _ = writeln!(
        page,
        "## Founding\n\nFour devices with identical configs, started together, real mDNS: from the last start until \
         every device shows one cluster of four with a leader.\n\n| tries | median | longest |\n|---|---|---|\n\
         | {FOUNDINGS} | {:.2} s | {:.2} s |\n",
        times[FOUNDINGS / 2].as_secs_f64(),
        times[FOUNDINGS - 1].as_secs_f64()
    );
}

fn deployed(devices: usize, settings: &[(&str, &str)]) -> Rack {
    let mut rack = Rack::new(devices, settings);
    rack.start(devices);
    rack.wait_for_one_cluster(PATIENCE);
    let model = digits::model().display().to_string();
    let output = rack.devices[0].mesh(&["deploy", &model, "--name", "digits"]);
    assert!(output.status.success(), "mesh deploy: {}", String::from_utf8_lossy(&output.stderr));
    rack
}

/// Throughput and median latency of `mesh bench` at the first device.
fn load(rack: &Rack, concurrency: &str) -> (f64, f64) {
    let output =
        rack.devices[0].mesh(&["bench", "digits", "--seconds", "5", "--concurrency", concurrency, "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("the report of mesh bench");
    assert_eq!(report["errors"], 0, "{report}");
    let number = |key: &str| report[key].as_f64().expect("a number of the report");
    (number("throughput_rps"), number("p50_ms"))
}

pub(super) fn pipeline(page: &mut String) {
    let _ = writeln!(
        page,
        "## What the mesh costs\n\nThe digits model (0.2 ms of compute) on one device, and cut in stages over four \
         that share this host's processors: the ratio is what cutting, frames, encryption and hops cost a model that \
         is far too small to be cut. Closed loop, answers compared.\n\n\
         | clients | one device | four devices | ratio | latency, one | latency, four |\n|---|---|---|---|---|---|"
    );
    let one = deployed(1, &[ONE_THREAD]);
    let mut rows = Vec::new();
    for concurrency in ["1", "8"] {
        rows.push((concurrency, (0..PAIRS).map(|_| load(&one, concurrency)).collect::<Vec<_>>()));
    }
    drop(one);
    let four = deployed(4, &[ONE_THREAD, SMALL]);
    for (concurrency, single) in rows {
        let several: Vec<_> = (0..PAIRS).map(|_| load(&four, concurrency)).collect();
        let ((one, one_ms), (four, four_ms)) = (median(single), median(several));
        let _ = writeln!(
            page,
            "| {concurrency} | {one:.0}/s | {four:.0}/s | {:.2} | {one_ms:.2} ms | {four_ms:.2} ms |",
            four / one
        );
    }
    page.push('\n');
}

fn median(mut runs: Vec<(f64, f64)>) -> (f64, f64) {
    runs.sort_by(|a, b| a.0.total_cmp(&b.0));
    runs[runs.len() / 2]
}

pub(super) fn kills(page: &mut String) {
    let _ = writeln!(
        page,
        "## Losing a device\n\nDigits in stages on four devices, four closed-loop clients at one of them, every answer \
         compared with the whole model's. `kill -9` of the only device of a stage (not the leader), and of \
         the leader; and of the one device of a plan for latency, for which another one stands by.\n\n| killed | tries | longest time a client waited: median | longest | wrong | lost |\n|---|---|---|---|---|---|"
    );
    for victim in [Victim::Stage, Victim::Leader, Victim::Insured] {
        let results: Vec<_> = (0..KILLS).map(|_| kill(victim)).collect();
        let mut gaps: Vec<Duration> = results.iter().map(|r| r.longest_gap).collect();
        gaps.sort();
        let _ = writeln!(
            page,
            "| {} | {KILLS} | {:.2} s | {:.2} s | {} | {} |",
            match victim {
                Victim::Stage => "stage device",
                Victim::Leader => "leader",
                Victim::Insured => "stage device with a standby",
            },
            gaps[KILLS / 2].as_secs_f64(),
            gaps[KILLS - 1].as_secs_f64(),
            results.iter().map(|r| r.wrong).sum::<u64>(),
            results.iter().map(|r| r.failures.len()).sum::<usize>()
        );
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Victim {
    Stage,
    Leader,
    Insured,
}

/// A rack with a plan for latency on one device, and a standby that is ready.
fn insured() -> Rack {
    let mut rack = Rack::new(4, &[ONE_THREAD]);
    rack.start(4);
    rack.wait_for_one_cluster(PATIENCE);
    let model = digits::model().display().to_string();
    let output = rack.devices[0].mesh(&[
        "deploy",
        &model,
        "--name",
        "digits",
        "--objective",
        "latency",
        "--stages",
        "1",
    ]);
    assert!(output.status.success(), "mesh deploy: {}", String::from_utf8_lossy(&output.stderr));
    let ready = |device: &mesh_tests::rack::Device| {
        let status = device.status();
        status.is_some_and(|s| s.deployments[0].stages.iter().all(|stage| !stage.standbys.is_empty()))
    };
    mesh_tests::loopback::wait("a standby", PATIENCE, || rack.devices.iter().all(ready));
    rack
}

fn kill(kind: Victim) -> mesh_tests::load::LoadResult {
    let mut rack = if kind == Victim::Insured { insured() } else { deployed(4, &[ONE_THREAD, SMALL]) };
    let status = rack.devices[0].status().expect("status");
    // The only device of a stage: there must be a new plan before anything is answered again.
    let stages = status.deployments[0].stages.iter().filter(|s| s.replicas.len() == 1);
    let mut stages = stages.map(|s| s.replicas[0].node.clone());
    let victim = match kind {
        Victim::Leader => status.cluster.leader.clone(),
        Victim::Stage => stages.find(|n| *n != status.cluster.leader).expect("a stage off the leader"),
        Victim::Insured => stages.next().expect("a stage on one device"),
    };
    let ids: Vec<String> =
        rack.devices.iter().map(|d| d.status().map(|s| s.this_node).unwrap_or_default()).collect();
    let victim = ids.iter().position(|id| *id == victim).expect("a device of the rack");
    let ingress = (0..4).find(|i| *i != victim).expect("another device");
    let load = DigitsLoad::start(&rack.devices[ingress], 4);
    load.wait_for(100, PATIENCE);
    let killed = Instant::now();
    rack.devices[victim].kill();
    load.wait_for(200, PATIENCE);
    eprintln!("killed, and 200 answers later: {:?}", killed.elapsed());
    load.stop()
}
