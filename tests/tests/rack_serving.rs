//! A model served by several devices, and the loss of some of them under load. Needs root.

#![allow(clippy::print_stderr, reason = "tests say what they skip and measure")]

use std::time::{Duration, Instant};

use mesh_tests::{
    digits::{self, Digits},
    load::DigitsLoad,
    rack::{Device, Rack, is_root},
};

const PATIENCE: Duration = Duration::from_secs(60);
/// Issue 2: service is back within 10 s of a kill.
const RECOVERED: Duration = Duration::from_secs(10);

/// Four devices that serve digits in several stages: none can hold it alone, three can.
fn serving() -> Rack {
    let mut rack = Rack::new(4, &[("MESH_LIMITS_MEMORY", "448KiB"), ("MESH_LIMITS_THREADS", "1")]);
    rack.start(4);
    rack.wait_for_one_cluster(PATIENCE);
    let model = digits::model();
    let output = rack.devices[0].mesh(&["deploy", &model.display().to_string(), "--name", "digits"]);
    assert!(
        output.status.success(),
        "mesh deploy: {}\n{}",
        String::from_utf8_lossy(&output.stderr),
        rack.logs()
    );
    rack
}

fn position(rack: &Rack, id: &str) -> usize {
    let at = rack.devices.iter().position(|d| d.status().is_some_and(|s| s.this_node == id));
    at.expect("a device of the rack")
}

/// A device that has just come back tells clients to try again until it knows the plan.
fn wait_until_it_answers(device: &Device) {
    let deadline = Instant::now() + PATIENCE;
    let request = Digits::load().request(0);
    let answers = || {
        device.with_client({
            let request = request.clone();
            move |client| client.infer("digits", &request)
        })
    };
    while answers().is_none_or(|(status, _)| status != 200) {
        assert!(Instant::now() < deadline, "{} does not serve", device.namespace());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Kills a device under load at another one and checks that nothing is lost.
fn kill_under_load(rack: &mut Rack, victim: usize) {
    let ingress = (0..4).find(|i| *i != victim).expect("another device");
    wait_until_it_answers(&rack.devices[ingress]);
    let load = DigitsLoad::start(&rack.devices[ingress], 4);
    load.wait_for(50, PATIENCE);
    let killed = Instant::now();
    rack.devices[victim].kill();
    load.wait_for(20, RECOVERED);
    let back = killed.elapsed();
    load.wait_for(200, PATIENCE);
    let result = load.stop();
    eprintln!("back after {back:?}, longest gap {:?}, {} answers", result.longest_gap, result.right);
    assert_eq!(result.wrong, 0, "{:?}", result.failures);
    assert!(result.failures.is_empty(), "{:?}\n{}", result.failures, rack.logs());
    assert!(result.longest_gap < RECOVERED, "{:?}", result.longest_gap);
}

#[test]
fn a_killed_stage_device_and_a_killed_leader_lose_nothing() {
    if !is_root() {
        eprintln!("SKIPPED without root: a killed stage device and a killed leader lose nothing");
        return;
    }
    let mut rack = serving();
    let status = rack.devices[0].status().expect("status");
    let deployment = &status.deployments[0];
    assert!(deployment.stages.len() > 1, "several stages: {deployment:?}");
    // The only device of some stage, so that there must be a new plan; not the leader, if there is a choice.
    let mut alone: Vec<String> = deployment
        .stages
        .iter()
        .filter(|s| s.replicas.len() == 1)
        .map(|s| s.replicas[0].node.clone())
        .collect();
    alone.sort_by_key(|node| *node == status.cluster.leader);
    let victim = alone.first().expect("a stage without a second replica").clone();
    let victim = position(&rack, &victim);
    kill_under_load(&mut rack, victim);

    // It comes back, and then the leader goes.
    rack.devices[victim].start();
    rack.wait_for_one_cluster(PATIENCE);
    let leader = rack.devices[victim].status().expect("status").cluster.leader;
    let leader = position(&rack, &leader);
    kill_under_load(&mut rack, leader);
}
