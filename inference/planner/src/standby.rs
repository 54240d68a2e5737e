//! Spare memory as insurance: who could take over a stage at once if its only device were lost.

use std::cmp::Reverse;

use crate::check::evaluate;
use crate::instance::Instance;
use crate::plan::{Plan, Stage};
use crate::problem::Problem;

/// What part of the time that a device's other standbys would take counts: stages are seldom lost together.
const SELDOM: f64 = 0.25;

/// What part of the time of a stage counts for loading it.
const LOADING: f64 = 0.5;

/// Names standbys, as far as memory goes that nothing else needs: one for every stage that one device alone runs; then
/// one more for every stage that two losses would leave nobody for, where that takes no more than half of what a device
/// has left. A standby holds the stage's weights and gets no requests while the stage has a live device.
///
/// Stages with the most weights come first: they would take longest to be brought elsewhere. Of the devices that can
/// hold a stage, the one that would be least busy with it is taken, where what it stands by for already counts a quarter:
/// rather one without a stage of its own, for it can go on with this one in the next plan. One that holds the stage for
/// the plan that runs needs to load nothing: loading counts half of the stage's time, for it is done beside serving.
/// Deterministic. A pinned plan stays as it is, and so does one that is none for the problem.
pub fn with_standbys(problem: &Problem, mut plan: Plan, running: Option<&Plan>) -> Plan {
    if problem.pin.is_some() {
        return plan;
    }
    let Ok(evaluation) = evaluate(problem, &plan) else { return plan };
    let instance = Instance::new(problem);
    let devices = problem.devices.iter().zip(&evaluation.memory_bytes);
    let runs = |stage: &Stage, device: usize| stage.replicas.iter().any(|r| r.device == instance.id(device));
    let holders = |stage: &Stage| (0..instance.devices()).filter(|&device| runs(stage, device)).collect();
    let mut search = Search {
        instance: &instance,
        holders: plan.stages.iter().map(holders).collect(),
        spans: plan.stages.iter().map(|stage| (stage.first_block, stage.last_block + 1)).collect(),
        spare: devices.map(|(device, used)| device.memory_bytes.saturating_sub(*used)).collect(),
        busy: evaluation.processors.iter().map(|load| load.busy_s).collect(),
        insuring: vec![0.0; problem.devices.len()],
        found: vec![Vec::new(); plan.stages.len()],
        held: plan.stages.iter().map(|stage| held(&instance, running, stage)).collect(),
    };
    let mut order: Vec<usize> = (0..plan.stages.len()).collect();
    order.sort_by_key(|&stage| Reverse(plan.stages[stage].weight_bytes));
    for &stage in &order {
        if search.held_by(stage) == 1 {
            search.insure(stage);
        }
    }
    for &stage in &order {
        if search.held_by(stage) == 2 {
            search.insure_again(stage);
        }
    }
    let found = search.found;
    for (stage, devices) in plan.stages.iter_mut().zip(found) {
        stage.standbys = devices.into_iter().map(|device| problem.devices[device].id.clone()).collect();
    }
    plan
}

/// The devices that run a stage or stand by for it in the plan that runs.
fn held(instance: &Instance<'_>, running: Option<&Plan>, stage: &Stage) -> Vec<usize> {
    let stages = running.into_iter().flat_map(|plan| &plan.stages);
    let same =
        |other: &&Stage| (other.first_block, other.last_block) == (stage.first_block, stage.last_block);
    let ids = stages.filter(same).flat_map(|other| {
        other.replicas.iter().map(|replica| &replica.device).chain(&other.standbys).map(String::as_str)
    });
    let ids: Vec<&str> = ids.collect();
    (0..instance.devices()).filter(|&device| ids.contains(&instance.id(device))).collect()
}

struct Search<'a> {
    instance: &'a Instance<'a>,
    /// The devices that run each stage.
    holders: Vec<Vec<usize>>,
    /// First block of each stage, and the one after its last.
    spans: Vec<(usize, usize)>,
    /// Bytes by device.
    spare: Vec<u64>,
    /// Seconds by device, of its own stages...
    busy: Vec<f64>,
    /// ...and of those that it stands by for.
    insuring: Vec<f64>,
    /// Standbys of each stage.
    found: Vec<Vec<usize>>,
    /// The devices that hold each stage already.
    held: Vec<Vec<usize>>,
}

impl Search<'_> {
    fn bytes(&self, stage: usize) -> u64 {
        self.instance.stage_bytes(self.spans[stage].0, self.spans[stage].1)
    }

    fn seconds(&self, stage: usize, device: usize) -> f64 {
        self.instance.seconds(device, self.spans[stage].0, self.spans[stage].1)
    }

    /// Devices that run a stage or stand by for it.
    fn held_by(&self, stage: usize) -> usize {
        self.holders[stage].len() + self.found[stage].len()
    }

    /// The device that would be least busy with a stage, of those that have so many bytes to spare and are not `not`.
    fn best(&self, stage: usize, bytes: u64, not: Option<usize>) -> Option<usize> {
        let may = |device: usize| {
            self.instance.is_profiled(device)
                && Some(device) != not
                && !self.holders[stage].contains(&device)
                && !self.found[stage].contains(&device)
                && self.spare[device] >= bytes
        };
        let after = |device: usize| {
            let loading = if self.held[stage].contains(&device) { 0.0 } else { LOADING };
            self.busy[device] + (1.0 + loading) * self.seconds(stage, device) + SELDOM * self.insuring[device]
        };
        (0..self.instance.devices())
            .filter(|&device| may(device))
            .min_by(|&a, &b| after(a).total_cmp(&after(b)))
    }

    /// Finds a standby, if need be by moving another stage's.
    fn insure(&mut self, stage: usize) {
        if let Some(device) = self.best(stage, self.bytes(stage), None) {
            self.put(stage, device);
            return;
        }
        for other in 0..self.found.len() {
            let Some(&device) = self.found[other].first() else { continue };
            let Some(elsewhere) = self.best(other, self.bytes(other), Some(device)) else { continue };
            let fits = self.spare[device] + self.bytes(other) >= self.bytes(stage);
            if fits && !self.holders[stage].contains(&device) {
                self.take(other, device);
                self.put(other, elsewhere);
                self.put(stage, device);
                return;
            }
        }
    }

    /// Finds another standby where there is plenty of memory.
    fn insure_again(&mut self, stage: usize) {
        if let Some(device) = self.best(stage, self.bytes(stage).saturating_mul(2), None) {
            self.put(stage, device);
        }
    }

    fn put(&mut self, stage: usize, device: usize) {
        self.spare[device] -= self.bytes(stage);
        self.insuring[device] += self.seconds(stage, device);
        self.found[stage].push(device);
    }

    fn take(&mut self, stage: usize, device: usize) {
        self.spare[device] += self.bytes(stage);
        self.insuring[device] -= self.seconds(stage, device);
        self.found[stage].retain(|&other| other != device);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{check, solve};

    /// Three blocks of 10 bytes, cuts of 1; devices with so much memory each.
    fn problem(memory: &[u64]) -> Problem {
        let block = serde_json::json!({"weight_bytes": 10, "peak_bytes": 0, "seconds": {"x": 0.1}});
        let device = |(index, bytes): (usize, &u64)| serde_json::json!({"id": format!("d{index}"), "class": "x", "speed": 1.0, "memory_bytes": bytes});
        let problem = serde_json::json!({
            "blocks": [block, block, block], "cuts": [1, 1, 1, 1],
            "devices": memory.iter().enumerate().map(device).collect::<Vec<_>>(),
            "links": {"default": {"bytes_per_s": 1e9, "latency_s": 0.0}}, "replication": false,
        });
        serde_json::from_value(problem).unwrap()
    }

    fn standbys(memory: &[u64]) -> Vec<(Vec<String>, Vec<String>)> {
        let problem = problem(memory);
        let plan = with_standbys(&problem, solve(&problem, 100_000).unwrap(), None);
        check(&problem, &plan).unwrap();
        let devices = |stage: &crate::Stage| stage.replicas.iter().map(|r| r.device.clone()).collect();
        plan.stages.iter().map(|stage| (devices(stage), stage.standbys.clone())).collect()
    }

    #[test]
    fn spare_memory_insures_stages_of_one_device() {
        // Each holds its own stage and one more.
        let found = standbys(&[24, 24, 24]);
        assert_eq!(found.len(), 3);
        for (replicas, standbys) in &found {
            assert_eq!(standbys.len(), 1, "{found:?}");
            assert!(!replicas.contains(&standbys[0]));
        }
        let mut all: Vec<&String> = found.iter().map(|(_, standbys)| &standbys[0]).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 3, "work that is lost is shared: {found:?}");
    }

    #[test]
    fn no_device_is_given_more_than_it_can_hold() {
        assert!(standbys(&[12, 12, 12]).iter().all(|(_, standbys)| standbys.is_empty()));
        let one: Vec<_> = standbys(&[12, 12, 24]);
        assert_eq!(one.iter().filter(|(_, standbys)| standbys == &["d2"]).count(), 1, "{one:?}");
    }

    #[test]
    fn what_two_devices_run_needs_no_standby() {
        let problem = Problem { replication: true, ..problem(&[99, 99]) };
        let plan = with_standbys(&problem, solve(&problem, 100_000).unwrap(), None);
        assert!(plan.stages.iter().all(|stage| stage.replicas.len() == 2 && stage.standbys.is_empty()));
    }

    #[test]
    fn devices_without_a_stage_stand_by_for_all() {
        let problem = Problem { max_stages: Some(3), ..problem(&[100; 5]) };
        let plan = with_standbys(&problem, solve(&problem, 100_000).unwrap(), None);
        let runs = |id: &str| plan.stages.iter().any(|stage| stage.replicas[0].device == id);
        assert_eq!(plan.stages.len(), 3);
        for stage in &plan.stages {
            assert!(stage.standbys.len() == 2 && !stage.standbys.iter().any(|id| runs(id)), "{plan:?}");
        }
    }

    #[test]
    fn who_stands_by_already_goes_on_with_it() {
        let problem = Problem { max_stages: Some(3), ..problem(&[60; 5]) };
        let mut running = solve(&problem, 100_000).unwrap();
        let idle: Vec<String> = running.unused.iter().map(|unused| unused.device.clone()).collect();
        for stage in &mut running.stages[..2] {
            stage.standbys = vec![idle[1].clone()];
        }
        let plan = with_standbys(&problem, running.clone(), Some(&running));
        check(&problem, &plan).unwrap();
        let first: Vec<&str> = plan.stages.iter().map(|stage| stage.standbys[0].as_str()).collect();
        assert_eq!(first, [&idle[1], &idle[1], &idle[0]]);
        let fresh = with_standbys(&problem, running, None);
        assert_eq!(fresh.stages[0].standbys[0], idle[0]);
    }

    #[test]
    fn plenty_of_memory_insures_against_a_second_loss() {
        // Each holds its own stage and two more, with as much left as another takes.
        for (replicas, standbys) in standbys(&[48, 48, 48]) {
            assert_eq!(standbys.len(), 2, "{replicas:?}: {standbys:?}");
            assert!(!standbys.contains(&replicas[0]) && standbys[0] != standbys[1]);
        }
        assert!(standbys(&[35, 35, 35]).iter().all(|(_, standbys)| standbys.len() == 1), "it is not plenty");
    }
}
