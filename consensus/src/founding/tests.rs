//! Small worlds: one to six devices under random schedules, and the promises that must hold in all of them.

mod listing;
mod meeting;
mod wire;
mod world;

use proptest::prelude::*;

use self::world::{Chaos, World};
use super::*;
use crate::{Listed, StorageId};

/// Everybody up, connected and loss-free: one cluster, quickly, with the right number of voters.
#[test]
fn connected_devices_found_one_cluster_at_once() {
    for (devices, voters) in [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (6, 5)] {
        for seed in 0..20 {
            let mut world = World::new(devices, devices, seed);
            world.start_all();
            world.connect_all();
            let took_ms = world.run_until_one_cluster(5_000);
            assert!(took_ms <= 1_500, "{devices} devices, seed {seed}: {took_ms} ms");
            assert_eq!(world.voters(), voters, "{devices} devices, seed {seed}");
        }
    }
}

/// A majority does not wait for ever for the rest, and the rest joins later without an operator.
#[test]
fn a_majority_founds_and_the_others_join() {
    for seed in 0..20 {
        let mut world = World::new(4, 4, seed);
        for device in 0..3 {
            world.start(device);
        }
        world.connect_all();
        let took_ms = world.run_until_one_cluster(5_000);
        assert!(took_ms <= 2_500, "seed {seed}: {took_ms} ms");
        assert_eq!(world.voters(), 3);
        world.start(3);
        world.connect_all();
        let took_ms = world.run_until_one_cluster(5_000);
        assert!(took_ms <= 1_000, "seed {seed}: the fourth took {took_ms} ms");
    }
}

#[test]
fn less_than_a_majority_waits() {
    for (devices, present) in [(2, 1), (3, 1), (4, 2), (5, 2)] {
        let mut world = World::new(devices, devices, 7);
        for device in 0..present {
            world.start(device);
        }
        world.connect_all();
        world.run_ms(60_000);
        assert_eq!(world.clusters().len(), 0, "{present} of {devices}");
        for device in present..devices {
            world.start(device);
        }
        world.connect_all();
        world.run_until_one_cluster(5_000);
    }
}

/// The device that proposes dies at every single step of the protocol in turn, and comes back later or never.
#[test]
fn a_crash_at_any_effect_is_recovered_from() {
    for devices in [1, 2, 3, 5] {
        for crash_at in 0..120 {
            let mut world = World::new(devices, devices, crash_at);
            world.crash_after_effects = Some(crash_at);
            world.start_all();
            world.connect_all();
            world.run_ms(4_000);
            world.start_all();
            world.connect_all();
            world.run_until_one_cluster(8_000);
        }
    }
}

/// Attempts that collide, with messages lost and devices restarted in between, never decide on two clusters.
#[test]
fn colliding_attempts_decide_on_one_cluster() {
    let (mut decided, mut several_proposed) = (0, 0);
    for seed in 0..4_000 {
        let devices = if seed % 4 == 0 { 5 } else { 3 };
        let mut world = World::new(devices, devices, seed);
        world.start_all();
        world.connect_all();
        world.run_ms(50);
        for _ in 0..300 {
            world.duel_step();
            assert!(world.decided.len() <= 1, "seed {seed}: {:?}", world.decided);
        }
        decided += world.decided.len();
        several_proposed += usize::from(world.proposed.len() > 1);
    }
    assert!(decided > 1_000 && several_proposed > 300, "too tame: {decided}, {several_proposed}");
}

/// A device with the smallest id that is connected to only some of the others does not hold them up.
#[test]
fn a_line_of_devices_founds_one_cluster() {
    for seed in 0..50 {
        let mut world = World::new(3, 3, seed);
        world.start_all();
        world.connect(0, 1);
        world.connect(1, 2);
        world.run_ms(20_000);
        assert_eq!(world.clusters().len(), 1, "seed {seed}");
        world.connect_all();
        world.run_until_one_cluster(5_000);
    }
}

#[test]
fn devices_with_another_number_do_not_found_together() {
    let mut world = World::new(3, 3, 1);
    world.devices_of[2] = 5;
    world.start_all();
    world.connect(0, 2);
    world.run_ms(10_000);
    assert!(world.clusters().is_empty());
    let conflicts = world.founding(0).conflicts();
    assert!(matches!(conflicts[..], [Conflict::DevicesDiffer { theirs: 5, ours: 3, .. }]), "{conflicts:?}");
    world.connect_all();
    world.run_until_one_cluster(10_000);
    assert!(world.founding(0).conflicts().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is lost, repeated, reordered, cut or crashes: never two clusters; and one when all is well again.
    #[test]
    fn never_two_clusters_and_one_in_the_end(
        devices in 2_usize..=5,
        seed in any::<u64>(),
        steps in 10_usize..400,
        loss in 0_u64..50,
        repeat in 0_u64..40,
        crash in 0_u64..40,
        cut in 0_u64..20,
        stall in 0_u64..60,
        impolite in 0_u64..50,
    ) {
        let mut world = World::new(devices, devices, seed);
        world.chaos = Chaos { loss, repeat, crash, cut, stall, impolite };
        world.start_all();
        for _ in 0..steps {
            world.random_step();
            prop_assert!(world.decided.len() <= 1, "{:?}", world.decided);
        }
        world.chaos = Chaos::default();
        world.start_all();
        world.connect_all();
        world.run_until_one_cluster(10_000);
    }

    /// A network cut in two never has two clusters, and the smaller part never has one of its own.
    #[test]
    fn a_cut_network_founds_at_most_one(devices in 2_usize..=6, parts in any::<u64>(), seed in any::<u64>()) {
        let mut world = World::new(devices, devices, seed);
        world.start_all();
        for left in 0..devices {
            for right in 0..left {
                if (parts >> left) & 1 == (parts >> right) & 1 {
                    world.connect(left, right);
                }
            }
        }
        world.run_ms(10_000);
        prop_assert!(world.clusters().len() <= 1);
        world.connect_all();
        world.run_until_one_cluster(10_000);
    }
}
