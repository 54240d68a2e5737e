//! The status document from what this device knows.

use std::net::SocketAddr;

use mesh_consensus::{Deployment, EpochPlan, Member};
use mesh_planner::{Bottleneck, BottleneckKind};

use super::{
    consensus::{ClusterView, Phase},
    events::Refusals,
    facts::Facts,
    forecast::{Forecast, Forecasts},
    health,
    memory::crowded,
};
use crate::{
    data::{DataMetrics, DeploymentMetrics},
    net::PeerId,
    status::{
        BottleneckStatus, ClusterStatus, DeploymentStatus, NodeStatus, ReplicaStatus, StageStatus, Status,
        Warning,
    },
};

/// Calibration seconds of the device that speed 1.0 stands for.
const REFERENCE_CALIBRATION_S: f64 = mesh_inference::profile::REFERENCE_SECONDS;
/// Where other programs use less than this part of a device's processors, nobody is told.
const OTHERS_TOLD: f64 = 0.2;

/// What the document is made from.
#[derive(Debug)]
pub struct Sources<'a> {
    /// Configured cluster name.
    pub cluster_name: &'a str,
    /// `devices` of the config.
    pub devices: u32,
    /// Consensus.
    pub view: &'a ClusterView,
    /// Reports.
    pub facts: &'a Facts,
    /// What running plans can do by what was measured.
    pub forecasts: &'a Forecasts,
    /// Numbers of the data plane.
    pub metrics: &'a DataMetrics,
    /// Refused at the door lately.
    pub refusals: &'a Refusals,
    /// This device's own address.
    pub address: String,
}

impl Sources<'_> {
    /// The whole document.
    pub fn status(&self) -> Status {
        let view = self.view;
        let member = view.phase == Phase::Member;
        Status {
            cluster: ClusterStatus {
                name: self.cluster_name.to_owned(),
                id: if member { view.state.cluster_id.to_string() } else { String::new() },
                term: view.term,
                leader: self.leader().map(|l| l.to_string()).unwrap_or_default(),
                quorum: self.leader().is_some(),
            },
            this_node: self.facts.me().to_string(),
            nodes: self.nodes(),
            deployments: view.state.deployments.values().map(|d| self.deployment(d)).collect(),
            warnings: self.warnings(),
        }
    }

    /// The leader, if it is heard: a learner keeps the name of one that died, as it takes part in no election.
    fn leader(&self) -> Option<PeerId> {
        self.view.leader.filter(|l| self.facts.is_live(&l.to_string()))
    }

    fn nodes(&self) -> Vec<NodeStatus> {
        let mut nodes: Vec<NodeStatus> = self.view.state.members.values().map(|m| self.node(m)).collect();
        let me = self.facts.me().to_string();
        if !nodes.iter().any(|n| n.id == me) {
            let own = self.facts.own();
            nodes.push(NodeStatus {
                id: me,
                name: own.name,
                state: "joining".into(),
                role: "learner".into(),
                address: self.address.clone(),
                memory_budget_bytes: own.memory_budget_bytes,
                memory_used_bytes: own.memory_used_bytes,
                speed: own.calibration_s.map_or(0.0, |s| REFERENCE_CALIBRATION_S / s),
            });
        }
        nodes
    }

    fn node(&self, member: &Member) -> NodeStatus {
        let id = member.device.0.clone();
        let report = self.facts.report(&id);
        let me = id == self.facts.me().to_string();
        let peer = id.parse().ok().and_then(|p| self.facts.peers().get(&p));
        let address = match peer {
            _ if me => own_address(&self.address, &member.address).to_owned(),
            Some(peer) if !peer.address.is_empty() => peer.address,
            Some(_) | None => member.address.clone(),
        };
        let state = match self.facts.is_live(&id) {
            true if member.draining => "draining",
            true => "up",
            false => "down",
        };
        let leader = self.leader().is_some_and(|l| l.to_string() == id);
        let role = match self.view.voters.contains(&member.raft_id) {
            _ if leader => "leader",
            true => "voter",
            false => "learner",
        };
        NodeStatus {
            id,
            name: member.name.clone(),
            state: state.into(),
            role: role.into(),
            address,
            memory_budget_bytes: report.as_ref().map_or(0, |r| r.memory_budget_bytes),
            memory_used_bytes: report.as_ref().map_or(0, |r| r.memory_used_bytes),
            speed: report.and_then(|r| r.calibration_s).map_or(0.0, |s| REFERENCE_CALIBRATION_S / s),
        }
    }

    fn deployment(&self, deployment: &Deployment) -> DeploymentStatus {
        let (state, reason) = health::state(self.facts, self.view, deployment);
        let active = deployment.active.as_ref();
        let forecast = active.and_then(|a| self.forecasts.get(&deployment.name, a.epoch));
        let none = DeploymentMetrics::default();
        let metrics = self.metrics.deployments.get(&deployment.name).unwrap_or(&none);
        let ms = |d: Option<std::time::Duration>| d.map_or(0.0, |d| d.as_secs_f64() * 1000.0);
        DeploymentStatus {
            name: deployment.name.clone(),
            state: state.into(),
            objective: match deployment.objective {
                mesh_planner::Objective::Throughput => "throughput".into(),
                mesh_planner::Objective::Latency => "latency".into(),
            },
            epoch: active.map_or(0, |a| a.epoch),
            preparing_epoch: deployment.preparing.as_ref().map_or(0, |preparing| preparing.epoch),
            reason,
            // A device that was removed turns requests away.
            answers: self.view.refused.is_none() && health::answers(self.facts, deployment),
            stages: active.map(|a| self.stages(&deployment.name, a, forecast.as_deref())).unwrap_or_default(),
            bottleneck: active.map(|a| {
                bottleneck(forecast.as_ref().map_or(&a.plan.bottleneck, |f| &f.served.evaluation.bottleneck))
            }),
            predicted_rps: active.map_or(0.0, |a| {
                forecast.as_ref().map_or(a.plan.throughput_rps, |f| f.served.evaluation.throughput_rps)
            }),
            measured_rps: metrics.rps,
            p50_ms: ms(metrics.p50),
            p99_ms: ms(metrics.p99),
            requests: metrics.requests,
            errors: metrics.errors,
            retries: metrics.retries,
            in_flight: (metrics.in_flight + metrics.waiting) as u64,
        }
    }

    fn stages(&self, name: &str, active: &EpochPlan, forecast: Option<&Forecast>) -> Vec<StageStatus> {
        let stages = active.plan.stages.iter().enumerate();
        stages
            .map(|(index, stage)| {
                let measured = stage
                    .replicas
                    .iter()
                    .filter_map(|r| self.facts.stage(&r.device, name, active.epoch, index))
                    .map(|s| s.compute_s)
                    .fold(0.0, f64::max);
                let hop_s =
                    forecast.and_then(|f| f.served.evaluation.stages.get(index)).map(|cost| cost.hop_s);
                StageStatus {
                    index,
                    first_block: stage.first_block,
                    last_block: stage.last_block,
                    weight_bytes: stage.weight_bytes,
                    replicas: stage
                        .replicas
                        .iter()
                        .map(|r| ReplicaStatus { node: r.device.clone(), share: r.share })
                        .collect(),
                    standbys: stage
                        .standbys
                        .iter()
                        .filter(|id| self.facts.is_ready(id, name, active.epoch, index))
                        .cloned()
                        .collect(),
                    compute_ms: 1000.0 * if measured > 0.0 { measured } else { stage.compute_s },
                    output_bytes: stage.output_bytes,
                    hop_ms: hop_s.unwrap_or(stage.hop_s) * 1000.0,
                }
            })
            .collect()
    }

    fn warnings(&self) -> Vec<Warning> {
        let mut warnings = Vec::new();
        let mut warn = |what: String, remedy: String| warnings.push(Warning { what, remedy });
        let view = self.view;
        if let Some(reason) = &view.refused {
            let (what, remedy) = split(reason);
            warn(format!("the cluster refuses this device: {what}"), remedy.to_owned());
        }
        match view.phase {
            Phase::Founding { present, needed } => warn(
                format!("waiting for devices: {present} here, {needed} needed to form the cluster of {}", self.devices),
                "start `mesh run` on the others with the same mesh.toml and cluster.key; `mesh doctor` checks the network".into(),
            ),
            Phase::Joining => warn("joining the cluster".into(), "wait; `mesh doctor` if it lasts".into()),
            Phase::Member => {}
        }
        if let Some((what, remedy)) = &view.conflict {
            warn(what.clone(), remedy.clone());
        }
        let members = view.state.members.values();
        let down: Vec<&Member> = members.filter(|m| !self.facts.is_live(&m.device.0)).collect();
        let names = |list: &[&Member]| list.iter().map(|m| m.name.as_str()).collect::<Vec<_>>().join(", ");
        if view.phase == Phase::Member && view.refused.is_none() && self.leader().is_none() {
            let voters: Vec<&Member> =
                down.iter().copied().filter(|m| view.voters.contains(&m.raft_id)).collect();
            let missing = match voters.is_empty() {
                true => "no leader is elected yet".to_owned(),
                false => {
                    format!("{} of {} voters are down: {}", voters.len(), view.voters.len(), names(&voters))
                }
            };
            warn(
                format!("no quorum, plans cannot change: {missing}"),
                "start them again; the last plan keeps serving on the devices that are up".into(),
            );
        }
        for member in &down {
            warn(
                format!("{} is down", member.name),
                format!("start it, or `mesh node remove {}` if it is gone for good", member.name),
            );
        }
        let budget = |device: &str| self.facts.report(device).map(|report| report.memory_budget_bytes);
        for crowded in crowded(&view.state, budget) {
            let (name, names) = (self.facts.name(view, &crowded.device), crowded.deployments.join(" and "));
            warn(
                format!(
                    "{name} holds {} of stages for {names} and has {} for stages",
                    mesh_planner::size(crowded.held),
                    mesh_planner::size(crowded.budget)
                ),
                format!(
                    "`mesh undeploy` one of them, raise limits.memory on {name} if it has more, or add a device"
                ),
            );
        }
        let live = view.state.members.values().filter(|member| self.facts.is_live(&member.device.0));
        let shares = live.filter_map(|member| {
            Some((member.name.as_str(), self.facts.report(&member.device.0)?.others_share))
        });
        if let Some(what) = busy_with_others(shares) {
            warn(what, "plans count on the rest; stop what is not needed there to have more".into());
        }
        for (whom, why) in self.refusals.recent() {
            let (why, remedy) = split(&why);
            warn(format!("{whom} was refused: {why}"), remedy.to_owned());
        }
        warnings
    }
}

fn bottleneck(bottleneck: &Bottleneck) -> BottleneckStatus {
    BottleneckStatus {
        kind: match bottleneck.kind {
            BottleneckKind::Compute => "compute".into(),
            BottleneckKind::Link => "link".into(),
            BottleneckKind::Card => "card".into(),
        },
        stage: bottleneck.stage,
        node: bottleneck.device.clone(),
    }
}

/// What other programs take of devices' processors is not there for stages: who wonders why they are slow sees it here.
fn busy_with_others<'a>(shares: impl Iterator<Item = (&'a str, f64)>) -> Option<String> {
    // Peers say what they like.
    let told = |(name, share): (&str, f64)| {
        (share >= OTHERS_TOLD).then(|| format!("{name} ({:.0} %)", share.min(1.0) * 100.0))
    };
    let names: Vec<String> = shares.filter_map(told).collect();
    (!names.is_empty()).then(|| format!("other programs use the processors of {}", names.join(", ")))
}

/// Where this device is reached: an address that stands for all of its own is of no use to anybody, and the others may have
/// seen a better one.
fn own_address<'a>(listen: &'a str, seen: &'a str) -> &'a str {
    let is_any = |text: &str| text.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_unspecified());
    if is_any(listen) && !seen.is_empty() && !is_any(seen) { seen } else { listen }
}

/// What is wrong and what to do, of a reason that says both.
fn split(reason: &str) -> (&str, &str) {
    let parts = reason.split_once(": ").or_else(|| reason.split_once("; "));
    parts.unwrap_or((reason, "`mesh doctor` checks this device"))
}

#[cfg(test)]
mod tests {
    use super::{busy_with_others, own_address};

    #[test]
    fn other_programs_are_told_when_they_take_much() {
        let told = |shares: &[(&'static str, f64)]| busy_with_others(shares.iter().copied());
        assert_eq!(told(&[("a", 0.0), ("b", 0.19), ("c", -1.0), ("d", f64::NAN)]), None);
        let what = told(&[("attic", 0.654), ("b", 0.1), ("camera", f64::INFINITY)]).unwrap();
        assert_eq!(what, "other programs use the processors of attic (65 %), camera (100 %)");
    }

    #[test]
    fn an_address_that_says_nothing_is_replaced() {
        for (listen, seen, shown) in [
            ("0.0.0.0:7400", "10.0.0.1:7400", "10.0.0.1:7400"),
            ("[::]:7400", "[fe80::1]:7400", "[fe80::1]:7400"),
            ("0.0.0.0:7400", "0.0.0.0:7400", "0.0.0.0:7400"),
            ("0.0.0.0:7400", "", "0.0.0.0:7400"),
            ("10.0.0.2:7400", "10.0.0.1:7400", "10.0.0.2:7400"),
        ] {
            assert_eq!(own_address(listen, seen), shown, "{listen} {seen}");
        }
    }
}
