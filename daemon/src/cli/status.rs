//! `mesh status`: cluster, devices, deployments, and what to type when something needs a person.

use std::{
    fmt::Write,
    io::{self, IsTerminal},
    time::Duration,
};

use super::{
    args::{Global, Status as StatusArgs},
    client::{self, Client, ClientError},
    exit::CliError,
    output::{self, Paint, Table, bytes, millis, paint, rate},
    plan::name_of,
};
use crate::status::{DeploymentStatus, Status};

const WATCH_EVERY: Duration = Duration::from_secs(1);

pub(super) fn run(global: &Global, args: &StatusArgs) -> Result<(), CliError> {
    let client = Client::new(global)?;
    if args.watch {
        return watch(&client, args.json);
    }
    if args.json {
        // Passed on as it is: the daemon may be newer and know more keys.
        let document: serde_json::Value = client.get("/api/status")?;
        return client::print_json(&document);
    }
    let status: Status = client.get("/api/status")?;
    output::print(&describe(&status))
}

/// Shows the page again and again. A daemon that does not answer is waited for, unless it never did.
fn watch(client: &Client, json: bool) -> Result<(), CliError> {
    let is_live = !json && io::stdout().is_terminal();
    let mut is_first = true;
    loop {
        let page = match page(client, json) {
            Ok(page) => page,
            Err(error) if is_first => return Err(error.into()),
            Err(error) => {
                output::note(&error.to_string());
                String::new()
            }
        };
        if !page.is_empty() {
            output::print(&frame(&page, is_live, is_first))?;
        }
        is_first = false;
        std::thread::sleep(WATCH_EVERY);
    }
}

fn page(client: &Client, json: bool) -> Result<String, ClientError> {
    if json {
        let document: serde_json::Value = client.get("/api/status")?;
        return Ok(format!("{document}\n"));
    }
    client.get("/api/status").map(|status: Status| describe(&status))
}

/// A page for a terminal, over the one before: the screen is not emptied first, which would flicker.
fn frame(page: &str, is_live: bool, is_first: bool) -> String {
    if !is_live {
        return page.to_owned();
    }
    let start = if is_first { "\x1b[2J\x1b[H" } else { "\x1b[H" };
    format!("{start}{}\x1b[J", page.replace('\n', "\x1b[K\n"))
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
