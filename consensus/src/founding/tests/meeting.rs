//! Two clusters of one name and key meet.

use super::world::World;
use super::*;

/// `lone` devices that founded alone, and three that founded together, not yet connected to each other.
fn apart(lone: usize, seed: u64) -> World {
    let mut world = World::new(3 + lone, 3, seed);
    for device in 3..3 + lone {
        world.devices_of[device] = 1;
    }
    world.start_all();
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        world.connect(a, b);
    }
    world.run_ms(5_000);
    assert_eq!(world.clusters().len(), 1 + lone);
    world
}

#[test]
fn a_lone_founder_gives_way_to_a_cluster() {
    for seed in 0..30 {
        let mut world = apart(1, seed);
        world.connect_all();
        world.run_until_one_cluster(10_000);
        assert_eq!(world.disks[3].storage, 1, "the store was made anew");
    }
}

#[test]
fn of_two_lone_founders_exactly_one_gives_way() {
    for seed in 0..30 {
        let mut world = World::new(2, 1, seed);
        world.start_all();
        world.run_ms(1_000);
        let smaller = *world.clusters().first().expect("two clusters");
        assert_eq!(world.clusters().len(), 2);
        world.connect_all();
        world.run_until_one_cluster(10_000);
        assert_eq!(world.clusters().first(), Some(&smaller), "the smaller id stays");
    }
}

#[test]
fn many_lone_founders_become_one_cluster() {
    for seed in 0..30 {
        let mut world = apart(3, seed);
        world.connect_all();
        world.run_until_one_cluster(20_000);
    }
}

#[test]
fn clusters_in_use_both_stay_and_say_what_to_type() {
    let mut world = apart(1, 5);
    for cluster in world.clusters() {
        world.in_use.insert(cluster);
        world.publish(cluster);
    }
    world.connect_all();
    world.run_ms(20_000);
    assert_eq!(world.clusters().len(), 2);
    for device in [0, 3] {
        let conflicts = world.founding(device).conflicts();
        let [conflict, ..] = &conflicts[..] else { panic!("device {device} reports nothing") };
        assert!(matches!(conflict, Conflict::TwoClusters { .. }));
        assert!(
            conflict.remedy("/var/lib/mesh").contains("rm -r /var/lib/mesh"),
            "{}",
            conflict.remedy("/var/lib/mesh")
        );
    }
}
