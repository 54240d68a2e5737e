//! `mesh status`: cluster, devices, deployments, and what to type when something needs a person.

use std::fmt::Write;

use super::{
    args::{Global, Status as StatusArgs},
    client::{self, Client},
    exit::CliError,
    output::{self, Paint, Table, bytes, millis, paint, rate},
    plan::name_of,
};
use crate::status::{DeploymentStatus, Status};

pub(super) fn run(global: &Global, args: &StatusArgs) -> Result<(), CliError> {
    let client = Client::new(global)?;
    if args.json {
        // Passed on as it is: the daemon may be newer and know more keys.
        let document: serde_json::Value = client.get("/api/status")?;
        return client::print_json(&document);
    }
    let status: Status = client.get("/api/status")?;
    output::print(&describe(&status))
}

/// The whole page.
pub(super) fn describe(status: &Status) -> String {
    let mut text = cluster(status);
    text.push('\n');
    text.push_str(&devices(status, 0));
    for deployment in &status.deployments {
        text.push('\n');
        text.push_str(&describe_deployment(deployment, status));
    }
    text.push_str(&next(status));
    text
}

fn cluster(status: &Status) -> String {
    let cluster = &status.cluster;
    // A device that was removed, or that has only just joined.
    let outside = status.nodes.iter().any(|n| n.id == status.this_node && n.state == "joining");
    let state = match (cluster.id.is_empty(), cluster.quorum) {
        (false, false) if outside => paint(Paint::Red, "this device is not in the cluster"),
        (true, _) => paint(Paint::Yellow, "not formed yet"),
        (false, true) => paint(Paint::Green, "healthy"),
        (false, false) => paint(Paint::Red, "no quorum: serving goes on, changes wait"),
    };
    let leader = match cluster.leader.is_empty() {
        true => "no leader".to_owned(),
        false => format!("leader {}", name_of(status, &cluster.leader)),
    };
    format!("{}: {state}, {leader}, term {}\n", paint(Paint::Bold, &cluster.name), cluster.term)
}

/// The table of devices.
pub(super) fn devices(status: &Status, indent: usize) -> String {
    let mut table = Table::new(&["DEVICE", "STATE", "ROLE", "ADDRESS", "MEMORY", "SPEED", "ID"]);
    for node in &status.nodes {
        let here = if node.id == status.this_node { " (this)" } else { "" };
        table.row(vec![
            format!("{}{here}", node.name),
            state(&node.state),
            node.role.clone(),
            node.address.clone(),
            format!("{} of {}", bytes(node.memory_used_bytes), bytes(node.memory_budget_bytes)),
            format!("{:.2}", node.speed),
            output::short_id(&node.id),
        ]);
    }
    table.render(indent)
}

fn state(text: &str) -> String {
    let colour = match text {
        "up" | "serving" => Paint::Green,
        "draining" | "joining" | "preparing" | "degraded" => Paint::Yellow,
        "down" | "failed" => Paint::Red,
        _ => Paint::Dim,
    };
    paint(colour, text)
}

fn describe_deployment(deployment: &DeploymentStatus, status: &Status) -> String {
    let mut text = format!(
        "{}: {}, for {}, {}\n",
        paint(Paint::Bold, &deployment.name),
        state(&deployment.state),
        deployment.objective,
        match deployment.epoch {
            0 => "no plan yet".to_owned(),
            epoch => format!("plan {epoch}"),
        }
    );
    if !deployment.reason.is_empty() {
        let _ = writeln!(text, "  {}", deployment.reason);
    }
    if deployment.stages.is_empty() {
        return text;
    }
    let mut table = Table::new(&["STAGE", "BLOCKS", "DEVICES", "WEIGHTS", "COMPUTE", "SENDS", "HOP"]);
    for stage in &deployment.stages {
        let limits = deployment.bottleneck.as_ref().filter(|b| b.stage == stage.index);
        let replicas: Vec<String> = stage
            .replicas
            .iter()
            .map(|replica| match stage.replicas.len() {
                1 => name_of(status, &replica.node),
                _ => format!("{} {:.0} %", name_of(status, &replica.node), replica.share * 100.0),
            })
            .chain(stage.standbys.iter().map(|id| format!("({} stands by)", name_of(status, id))))
            .collect();
        let mark = |kind: &str| if limits.is_some_and(|b| b.kind == kind) { " ◂ limits" } else { "" };
        table.row(vec![
            stage.index.to_string(),
            format!("{}-{}", stage.first_block, stage.last_block),
            format!("{}{}", replicas.join(", "), mark("card")),
            bytes(stage.weight_bytes),
            format!("{}{}", millis(stage.compute_ms), mark("compute")),
            bytes(stage.output_bytes),
            format!("{}{}", millis(stage.hop_ms), mark("link")),
        ]);
    }
    text.push_str(&table.render(2));
    let _ = writeln!(
        text,
        "  {} now, {} predicted; p50 {}, p99 {}; {} requests, {} errors, {} sent again, {} in flight",
        rate(deployment.measured_rps),
        rate(deployment.predicted_rps),
        millis(deployment.p50_ms),
        millis(deployment.p99_ms),
        deployment.requests,
        deployment.errors,
        deployment.retries,
        deployment.in_flight
    );
    text
}

/// What needs a person, or what comes next for somebody who has just begun.
fn next(status: &Status) -> String {
    let mut text = String::new();
    for warning in &status.warnings {
        let _ = write!(
            text,
            "\n{} {}\n  {}\n",
            paint(Paint::Yellow, "warning:"),
            warning.what,
            paint(Paint::Bold, &warning.remedy)
        );
    }
    if status.warnings.is_empty() && status.deployments.is_empty() && status.cluster.quorum {
        let _ = writeln!(
            text,
            "\nNothing is served yet. Next: {}",
            paint(Paint::Bold, "mesh deploy FILE.onnx --name NAME")
        );
    }
    text
}
