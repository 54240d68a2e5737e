//! `mesh doctor`: what could keep this device from working, each finding with its remedy. Needs no daemon.

mod host;

use mesh_config::Config;
use serde::Serialize;

use super::{
    args::{Doctor, Global},
    client::{self, Client},
    exit::CliError,
    output::{self, Paint, paint},
    settings,
};
use crate::status::Status;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// One finding.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    what: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    remedy: String,
}

impl Finding {
    fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, what: what.into(), remedy: String::new() }
    }

    fn warn(check: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Warn, what: what.into(), remedy: remedy.into() }
    }

    fn fail(check: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Fail, what: what.into(), remedy: remedy.into() }
    }
}

pub(super) fn run(global: &Global, args: &Doctor) -> Result<(), CliError> {
    let (config, mut findings) = config(global);
    let daemon = daemon(global, config.as_ref());
    findings.push(host::clock());
    if let Some(config) = &config {
        findings.extend(host::ports(config, daemon.is_some()));
        findings.extend(host::interfaces(config));
        findings.extend(host::storage(config));
    }
    findings.push(host::memory(config.as_ref()));
    findings.push(host::runtime(config.as_ref()));
    match &daemon {
        Some(status) => findings.extend(cluster(status)),
        None => findings.push(Finding::warn("daemon", "no daemon answers here", "start it: mesh run")),
    }
    if args.json {
        client::print_json(&findings)?;
    } else {
        output::print(&render(&findings))?;
    }
    let failed = findings.iter().filter(|finding| finding.verdict == Verdict::Fail).count();
    match failed {
        0 => Ok(()),
        1 => Err(CliError::failed("1 check failed")),
        n => Err(CliError::failed(format!("{n} checks failed"))),
    }
}

fn render(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let verdict = match finding.verdict {
            Verdict::Ok => paint(Paint::Green, "ok  "),
            Verdict::Warn => paint(Paint::Yellow, "warn"),
            Verdict::Fail => paint(Paint::Red, "FAIL"),
        };
        text.push_str(&format!("{verdict}  {:<12}  {}\n", finding.check, finding.what));
        if !finding.remedy.is_empty() {
            text.push_str(&format!("{:20}{}\n", "", paint(Paint::Bold, &finding.remedy)));
        }
    }
    text
}

/// Reads the config, as `mesh run` would; each defect is a finding.
fn config(global: &Global) -> (Option<Config>, Vec<Finding>) {
    let loaded = mesh_config::find(global.config.as_deref(), &settings::variable)
        .and_then(|path| mesh_config::load(&path, &settings::variable));
    match loaded {
        Ok(config) => {
            let file = config.file.display();
            let findings = vec![
                Finding::ok(
                    "config",
                    format!("{file}: cluster {} of {}", config.cluster.name, config.cluster.devices),
                ),
                Finding::ok("key", "the cluster key can be read, by its owner only"),
            ];
            (Some(config), findings)
        }
        Err(errors) => {
            let finding = |defect: &mesh_config::Defect| {
                Finding::fail("config", defect.to_string(), "mend this, or write a new one: mesh init")
            };
            (None, errors.defects.iter().map(finding).collect())
        }
    }
}

/// The status of the daemon that runs here, if one does.
fn daemon(global: &Global, config: Option<&Config>) -> Option<Status> {
    if config.is_none() && global.api.is_none() {
        return None;
    }
    Client::new(global).ok()?.get("/api/status").ok()
}

/// What the running daemon says of the cluster, its devices and links.
fn cluster(status: &Status) -> Vec<Finding> {
    let mut findings = vec![match (status.cluster.id.is_empty(), status.cluster.quorum) {
        (true, _) => Finding::warn(
            "cluster",
            "the daemon runs, and has not found its cluster yet",
            "start mesh on the other devices; if they run, compare cluster.name and cluster.key",
        ),
        (false, false) => Finding::fail(
            "cluster",
            "there is no quorum: serving goes on, changes wait",
            "bring back the devices that are down (mesh status)",
        ),
        (false, true) => Finding::ok("cluster", format!("{} has a leader and a quorum", status.cluster.name)),
    }];
    let up = status.nodes.iter().filter(|node| node.state != "down").count();
    for node in status.nodes.iter().filter(|node| node.state == "down") {
        findings.push(Finding::warn(
            "links",
            format!("{} at {} cannot be reached", node.name, node.address),
            format!("start it, check its cable; if it is gone for good: mesh node remove {}", node.name),
        ));
    }
    findings.push(Finding::ok("links", format!("{up} of {} devices can be reached", status.nodes.len())));
    for warning in &status.warnings {
        findings.push(Finding::warn("daemon", warning.what.clone(), warning.remedy.clone()));
    }
    findings
}
