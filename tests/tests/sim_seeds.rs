//! Simulated clusters: many seeds must end well, and one seed must always do the same.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use mesh_tests::sim::{self, Sabotage};

/// Seeds of every test run. `sim --seed N --seeds COUNT` runs others.
const SEEDS: u64 = 500;
/// Seeds by which a broken rule has to be found.
const SABOTAGED: u64 = 100;

#[test]
fn every_seed_ends_in_one_healthy_cluster() {
    let next = AtomicU64::new(0);
    let failures = Mutex::new(Vec::new());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= SEEDS {
                return;
            }
            if let Err(violation) = sim::run(seed, false) {
                failures.lock().unwrap().push(violation.to_string());
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} of {SEEDS} seeds fail:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn one_seed_gives_the_same_log_twice() {
    for seed in [9, 17, 20, 61, 308, 515] {
        let first = sim::run(seed, true).map_or_else(|violation| violation.log, |report| report.log);
        let second = sim::run(seed, true).map_or_else(|violation| violation.log, |report| report.log);
        assert!(first.lines().count() > 100, "seed {seed} did nothing");
        let differs = first.lines().zip(second.lines()).find(|(left, right)| left != right);
        assert!(differs.is_none(), "seed {seed} is not reproducible: {differs:?}");
        assert_eq!(first.len(), second.len(), "seed {seed} is not reproducible");
    }
}

/// The checks are worth something: whoever breaks a rule of safety is found out.
#[test]
fn a_broken_rule_is_found() {
    for sabotage in [Sabotage::SkipSync, Sabotage::SyncLate, Sabotage::AnyEpoch, Sabotage::SweepAll] {
        let found = (0..SABOTAGED).find_map(|seed| sim::sabotaged(seed, sabotage).err());
        let found = found.unwrap_or_else(|| panic!("{sabotage:?} was not found in {SABOTAGED} seeds"));
        println!("{sabotage:?}: seed {}, {} ms: {}", found.seed, found.at_ms, found.what);
    }
}
