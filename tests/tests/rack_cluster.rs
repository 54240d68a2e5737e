//! Founding, joining and restarting in network namespaces with real mDNS. Needs root.

#![allow(clippy::print_stderr, reason = "tests say what they skip and measure")]

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use mesh_tests::{
    loopback::wait,
    rack::{Rack, is_root},
};

/// DESIGN 4: all up and connected, exactly one cluster within 5 s.
const FOUNDED: Duration = Duration::from_secs(5);
/// Bound of everything that has no promise of its own.
const PATIENCE: Duration = Duration::from_secs(30);
/// For so long a device founds no second cluster after it has heard of one, and a little more.
const APART: Duration = Duration::from_secs(32);

fn skipped(what: &str) -> bool {
    if !is_root() {
        eprintln!("SKIPPED without root: {what}");
    }
    !is_root()
}

#[test]
fn four_devices_form_one_cluster_and_a_fifth_joins() {
    if skipped("four devices form one cluster and a fifth joins") {
        return;
    }
    let mut rack = Rack::new(4, &[]);
    rack.start(4);
    let took = rack.wait_for_one_cluster(FOUNDED);
    eprintln!("one cluster of four after {took:?}");

    rack.start(1);
    rack.wait_for_one_cluster(PATIENCE);
    let before = rack.devices[0].status().expect("status");

    // All go down and come back: the same cluster, the same devices, no ghosts.
    for device in &mut rack.devices {
        assert_eq!(device.stop(), Some(0), "a daemon that is told to stop ends well");
    }
    for device in &mut rack.devices {
        device.start();
    }
    rack.wait_for_one_cluster(PATIENCE);
    let after = rack.devices[0].status().expect("status");
    let ids = |s: &mesh_daemon::status::Status| s.nodes.iter().map(|n| n.id.clone()).collect::<BTreeSet<_>>();
    assert_eq!(before.cluster.id, after.cluster.id);
    assert_eq!(ids(&before), ids(&after));
}

#[test]
fn founding_gives_one_cluster_every_time() {
    if skipped("founding gives one cluster every time") {
        return;
    }
    let tries: usize = std::env::var("MESH_FOUNDING_TRIES").ok().and_then(|t| t.parse().ok()).unwrap_or(5);
    let mut times = Vec::new();
    for _ in 0..tries {
        let mut rack = Rack::new(4, &[]);
        rack.start(4);
        times.push(rack.wait_for_one_cluster(FOUNDED));
    }
    times.sort();
    eprintln!(
        "one cluster in {tries} of {tries} tries, after {:?} (median) to {:?}",
        times[tries / 2],
        times[tries - 1]
    );
}

/// Two devices that each have a cluster of their own, for longer than a device waits for one that it has heard of, are
/// joined by a cable: one of them gives way and gets all that the other one has.
#[test]
fn of_two_lone_founders_that_meet_one_gives_way() {
    if skipped("of two lone founders that meet one gives way") {
        return;
    }
    let mut rack = Rack::new(1, &[]);
    rack.add(2);
    rack.plug(0, false);
    for device in &mut rack.devices {
        device.start();
    }
    let start = Instant::now();
    wait("each has a cluster of its own", APART + PATIENCE, || {
        let has_own = |s: mesh_daemon::status::Status| s.cluster.quorum && s.nodes.len() == 1;
        start.elapsed() > APART && rack.devices.iter().all(|device| device.status().is_some_and(has_own))
    });
    let before: BTreeSet<_> = rack.devices.iter().filter_map(|d| Some(d.status()?.cluster.id)).collect();
    assert_eq!(before.len(), 2);
    rack.plug(0, true);
    let took = rack.wait_for_one_cluster(PATIENCE);
    eprintln!("one cluster of two {took:?} after the cable");
    assert!(before.contains(&rack.devices[0].status().expect("status").cluster.id));
}
