//! Spare memory as insurance: who could take over a stage at once if its only device were lost.

use std::cmp::Reverse;

use crate::check::evaluate;
use crate::instance::Instance;
use crate::plan::Plan;
use crate::problem::Problem;

/// Names a standby for every stage that one device alone runs, as far as memory goes that nothing else needs. A standby
/// holds the stage's weights and gets no requests while the stage has a live device.
///
/// Stages with the most weights come first: they would take longest to be brought elsewhere. Of the devices that can
/// hold a stage, the one that would be least busy with it is taken. Deterministic. A plan that is none for the problem
/// stays as it is.
pub fn with_standbys(problem: &Problem, mut plan: Plan) -> Plan {
    let Ok(evaluation) = evaluate(problem, &plan) else { return plan };
    let instance = Instance::new(problem);
    let devices = problem.devices.iter().zip(&evaluation.memory_bytes);
    let mut spare: Vec<u64> =
        devices.map(|(device, used)| device.memory_bytes.saturating_sub(*used)).collect();
    let mut busy: Vec<f64> = evaluation.processors.iter().map(|load| load.busy_s).collect();
    plan.stages.iter_mut().for_each(|stage| stage.standbys.clear());
    let mut alone: Vec<usize> =
        (0..plan.stages.len()).filter(|&index| plan.stages[index].replicas.len() == 1).collect();
    alone.sort_by_key(|&index| Reverse(plan.stages[index].weight_bytes));
    for index in alone {
        let stage = &mut plan.stages[index];
        let (first, end) = (stage.first_block, stage.last_block + 1);
        let bytes = instance.stage_bytes(first, end);
        let runs_it = |device: usize| stage.replicas.iter().any(|r| r.device == instance.id(device));
        let after = |device: usize| busy[device] + instance.seconds(device, first, end);
        let found = (0..instance.devices())
            .filter(|&device| instance.is_profiled(device) && spare[device] >= bytes && !runs_it(device))
            .min_by(|&a, &b| after(a).total_cmp(&after(b)));
        if let Some(device) = found {
            spare[device] -= bytes;
            busy[device] = after(device);
            stage.standbys.push(instance.id(device).to_owned());
        }
    }
    plan
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
        let plan = with_standbys(&problem, solve(&problem, 100_000).unwrap());
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
            assert_eq!(standbys.len(), 1);
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
        let plan = with_standbys(&problem, solve(&problem, 100_000).unwrap());
        assert!(plan.stages.iter().all(|stage| stage.replicas.len() == 2 && stage.standbys.is_empty()));
    }
}
