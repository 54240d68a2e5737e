//! Random requests: members, models, deployments and plans, sensible and senseless ones.

use mesh_consensus::{ClusterState, Command, DeploySpec, ModelRecord, Request, RequestId};
use mesh_planner::{Bottleneck, BottleneckKind, Objective, Plan, Replica, Stage};

use super::dice::Dice;
use super::process::device_id;

/// A request of a client of device `index`, made with that device's view of the state.
pub(crate) fn random_request(
    dice: &mut Dice,
    index: usize,
    sequence: u64,
    state: &ClusterState,
    serves: bool,
) -> Request {
    let id = RequestId { proposer: device_id(index), sequence };
    let command = if serves {
        wish(dice, index, sequence, state)
    } else {
        random_command(dice, index, sequence, state)
    };
    Request { id, command }
}

/// A request that changes the state for certain.
pub(crate) fn sure_request(index: usize, sequence: u64) -> Request {
    Request { id: RequestId { proposer: device_id(index), sequence }, command: add_model(index, sequence) }
}

fn add_model(index: usize, number: u64) -> Command {
    Command::AddModel(ModelRecord {
        hash: format!("{number:016x}"),
        source: format!("model-{number}.onnx"),
        weight_bytes: number,
        nodes: 10,
        blocks: 3,
        added_by: device_id(index),
        profile_blob: None,
    })
}

/// What people ask of a cluster that plans by itself.
fn wish(dice: &mut Dice, index: usize, number: u64, state: &ClusterState) -> Command {
    let models: Vec<&String> = state.models.keys().collect();
    let Some(model) = dice.pick(&models).map(|hash| (*hash).clone()) else {
        return add_model(index, number % 4);
    };
    let name = format!("deployment-{}", number % 3);
    match dice.below(20) {
        0 | 1 => add_model(index, number % 4),
        2..=5 => Command::Deploy(DeploySpec {
            name,
            model,
            objective: if dice.permille(200) { Objective::Latency } else { Objective::Throughput },
            stages: dice.permille(200).then(|| dice.index(3) + 1),
            pin: None,
            shapes: Vec::new(),
        }),
        6 if dice.permille(500) => Command::Undeploy { name },
        7 if dice.permille(300) => Command::RemoveModel { hash: model },
        _ => Command::SetDraining { device: device_id(index), draining: dice.permille(200) },
    }
}

fn random_command(dice: &mut Dice, index: usize, number: u64, state: &ClusterState) -> Command {
    let models: Vec<&String> = state.models.keys().collect();
    let names: Vec<&String> = state.deployments.keys().collect();
    let name = dice.pick(&names).map_or_else(|| format!("deployment-{}", number % 3), |name| (*name).clone());
    let model = dice.pick(&models).map_or_else(String::new, |hash| (*hash).clone());
    let known = state.deployments.get(&name);
    let next_epoch = known.map_or(1, |deployment| deployment.next_epoch);
    let preparing = known.and_then(|deployment| deployment.preparing.as_ref()).map_or(0, |plan| plan.epoch);
    match dice.below(10) {
        0 | 1 => add_model(index, number % 20),
        2 => Command::Deploy(DeploySpec {
            name: format!("deployment-{}", number % 3),
            model,
            objective: Objective::Throughput,
            stages: None,
            pin: None,
            shapes: Vec::new(),
        }),
        3 | 4 => {
            let epoch = next_epoch + u64::from(dice.permille(100));
            Command::PreparePlan { deployment: name, epoch, plan: random_plan(dice, state) }
        }
        5 | 6 => Command::ActivatePlan { deployment: name, epoch: preparing },
        7 => Command::AbandonPlan { deployment: name, epoch: preparing, reason: "lost a device".to_owned() },
        8 if dice.permille(300) => Command::Undeploy { name },
        8 if dice.permille(300) => Command::RemoveModel { hash: model },
        _ => Command::SetDraining { device: device_id(index), draining: dice.permille(500) },
    }
}

fn random_plan(dice: &mut Dice, state: &ClusterState) -> Plan {
    let devices: Vec<String> = state.members.values().map(|member| member.device.0.clone()).collect();
    let device = dice.pick(&devices).cloned().unwrap_or_default();
    let stage = Stage {
        first_block: 0,
        last_block: dice.index(5),
        replicas: vec![Replica { device: device.clone(), share: 1.0 }],
        standbys: Vec::new(),
        compute_s: 0.25,
        hop_s: 0.0,
        output_bytes: dice.below(1000),
        weight_bytes: 10,
        memory_bytes: 10,
    };
    Plan {
        stages: vec![stage],
        bottleneck_s: 0.25,
        bottleneck: Bottleneck { kind: BottleneckKind::Compute, stage: 0, device },
        throughput_rps: 4.0,
        latency_s: 0.25,
        lower_bound_s: 0.25,
        optimal: false,
        why: String::new(),
        unused: Vec::new(),
        alternatives: Vec::new(),
    }
}
