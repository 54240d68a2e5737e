//! Numbers in the Prometheus exposition format.

use std::{collections::BTreeMap, fmt::Write as _};

use crate::{
    data::{DataMetrics, StageMetrics},
    status::Status,
};

/// The text of `GET /metrics`.
pub fn prometheus(status: &Status, data: &DataMetrics) -> String {
    let mut page = Page::default();
    page.family("mesh_quorum", "gauge", "1 when a leader with a quorum is known.");
    page.sample("mesh_quorum", &[], f64::from(u8::from(status.cluster.quorum)));
    page.family("mesh_raft_term", "counter", "Raft term.");
    page.sample("mesh_raft_term", &[], status.cluster.term as f64);
    page.family("mesh_node_up", "gauge", "1 when the device is up as seen from here.");
    page.family("mesh_node_memory_budget_bytes", "gauge", "What stages may use on the device.");
    page.family(
        "mesh_node_memory_used_bytes",
        "gauge",
        "What stages use on the device by the planner's account.",
    );
    for node in &status.nodes {
        let labels = [("node", node.name.as_str()), ("id", node.id.as_str())];
        page.sample("mesh_node_up", &labels, f64::from(u8::from(node.state != "down")));
        page.sample("mesh_node_memory_budget_bytes", &labels, node.memory_budget_bytes as f64);
        page.sample("mesh_node_memory_used_bytes", &labels, node.memory_used_bytes as f64);
    }
    deployments(&mut page, status);
    page.family("mesh_stage_compute_seconds", "gauge", "Smoothed time of one run of a stage on this device.");
    page.family("mesh_stage_runs_total", "counter", "Runs of a stage on this device.");
    for ((deployment, stage), (compute_s, runs)) in stages(&data.stages) {
        let index = stage.to_string();
        let labels = [("deployment", deployment), ("stage", index.as_str())];
        page.sample("mesh_stage_compute_seconds", &labels, compute_s);
        page.sample("mesh_stage_runs_total", &labels, runs as f64);
    }
    page.family("mesh_link_sent_bytes_total", "counter", "Activation bytes sent to a peer.");
    for link in &data.links {
        let peer = link.peer.to_string();
        page.sample("mesh_link_sent_bytes_total", &[("peer", peer.as_str())], link.bytes_sent as f64);
    }
    page.finish()
}

/// The time and the runs of each stage of a deployment. Two plans live side by side while requests move from one to the
/// next: the runs are of both, the time is the newest plan's, once it has one.
fn stages(all: &[StageMetrics]) -> BTreeMap<(&str, usize), (f64, u64)> {
    let mut sorted: Vec<&StageMetrics> = all.iter().collect();
    sorted.sort_by_key(|stage| stage.key.epoch);
    let mut stages = BTreeMap::new();
    for stage in sorted {
        let (compute_s, runs) =
            stages.entry((stage.key.deployment.as_str(), stage.key.stage)).or_insert((0.0, 0));
        *runs += stage.runs;
        if stage.compute_s > 0.0 {
            *compute_s = stage.compute_s;
        }
    }
    stages
}

fn deployments(page: &mut Page, status: &Status) {
    page.family("mesh_deployment_serving", "gauge", "1 when requests to the deployment can be answered.");
    page.family("mesh_deployment_epoch", "gauge", "Epoch of the active plan.");
    page.family("mesh_requests_total", "counter", "Requests accepted at this device.");
    page.family("mesh_request_errors_total", "counter", "Requests answered with an error at this device.");
    page.family("mesh_request_retries_total", "counter", "Requests sent again on another route.");
    page.family("mesh_requests_in_flight", "gauge", "Requests accepted and not answered yet.");
    page.family("mesh_request_latency_seconds", "gauge", "Recent latency at this device, by quantile.");
    for deployment in &status.deployments {
        let labels = [("deployment", deployment.name.as_str())];
        page.sample("mesh_deployment_serving", &labels, f64::from(u8::from(deployment.answers)));
        page.sample("mesh_deployment_epoch", &labels, deployment.epoch as f64);
        page.sample("mesh_requests_total", &labels, deployment.requests as f64);
        page.sample("mesh_request_errors_total", &labels, deployment.errors as f64);
        page.sample("mesh_request_retries_total", &labels, deployment.retries as f64);
        page.sample("mesh_requests_in_flight", &labels, deployment.in_flight as f64);
        for (quantile, ms) in [("0.5", deployment.p50_ms), ("0.99", deployment.p99_ms)] {
            let labels = [("deployment", deployment.name.as_str()), ("quantile", quantile)];
            page.sample("mesh_request_latency_seconds", &labels, ms / 1000.0);
        }
    }
}

/// Samples grouped by family, as the format demands.
#[derive(Default)]
struct Page {
    families: Vec<(&'static str, String)>,
}

impl Page {
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.families.push((name, format!("# HELP {name} {help}\n# TYPE {name} {kind}\n")));
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let Some((_, text)) = self.families.iter_mut().find(|(family, _)| *family == name) else { return };
        text.push_str(name);
        for (i, (label, value)) in labels.iter().enumerate() {
            let open = if i == 0 { '{' } else { ',' };
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(text, "{open}{label}=\"{value}\"");
        }
        if !labels.is_empty() {
            text.push('}');
        }
        let _ = writeln!(text, " {value}");
    }

    fn finish(self) -> String {
        self.families.into_iter().map(|(_, text)| text).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{data::StageKey, status::DeploymentStatus};

    fn stage(epoch: u64, stage: usize, runs: u64, compute_s: f64) -> StageMetrics {
        let key = StageKey { deployment: "digits".into(), epoch, stage };
        StageMetrics { key, runs, errors: 0, compute_s, output_bytes: 0.0, queue: 0 }
    }

    #[test]
    fn plans_side_by_side_are_one_series() {
        let data = DataMetrics {
            stages: vec![
                stage(4, 0, 10, 0.25),
                stage(3, 0, 7, 0.5),
                stage(3, 1, 1, 0.125),
                stage(4, 1, 0, 0.0),
            ],
            ..DataMetrics::default()
        };
        let deployed = |name: &str, state: &str, answers| DeploymentStatus {
            name: name.into(),
            state: state.into(),
            answers,
            ..DeploymentStatus::default()
        };
        let status = Status {
            deployments: vec![
                deployed("a", "serving", true),
                deployed("b", "degraded", true),
                deployed("c", "degraded", false),
            ],
            ..Status::default()
        };
        let text = prometheus(&status, &data);
        for line in [
            r#"mesh_stage_runs_total{deployment="digits",stage="0"} 17"#,
            r#"mesh_stage_compute_seconds{deployment="digits",stage="0"} 0.25"#,
            r#"mesh_stage_runs_total{deployment="digits",stage="1"} 1"#,
            r#"mesh_stage_compute_seconds{deployment="digits",stage="1"} 0.125"#,
            r#"mesh_deployment_serving{deployment="a"} 1"#,
            r#"mesh_deployment_serving{deployment="b"} 1"#,
            r#"mesh_deployment_serving{deployment="c"} 0"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        let mut series: Vec<&str> =
            text.lines().filter_map(|line| line.rsplit_once(' ')).map(|(s, _)| s).collect();
        let count = series.len();
        series.sort_unstable();
        series.dedup();
        assert_eq!(series.len(), count, "a series twice in\n{text}");
    }
}
