//! `mesh doctor`: what could keep this device from working, each finding with its remedy. Needs no daemon.

mod host;

use mesh_config::{Config, Defect};
use serde::Serialize;

use super::{
    args::{Doctor, Global},
    client::{self, Client, ClientError},
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
    let readable = settings::client(global).ok();
    // What listens at the usual address without a config that says so may be anything.
    let asks = readable.is_some() || global.api.is_some();
    let daemon = if asks { ask(global) } else { None };
    let is_there = matches!(daemon, Some(Ok(_) | Err(ClientError::Refused { .. })));
    let (config, mut findings) = config(global, is_there);
    findings.push(host::clock());
    if let Some(config) = &config {
        findings.extend(host::ports(config, is_there));
        findings.extend(host::interfaces(config));
        findings.extend(host::storage(config));
    }
    findings.push(host::memory(readable.as_ref().map(|config| &config.limits)));
    findings.extend(host::runtime(readable.as_ref().map(|config| &config.inference)));
    match &daemon {
        Some(Ok(status)) => findings.extend(cluster(status)),
        Some(Err(error)) => findings.push(silent(error)),
        None => findings.push(Finding::warn("daemon", NO_DAEMON, START)),
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

const NO_DAEMON: &str = "no daemon answers here";
const START: &str = "start it: mesh run";

/// Reads the config, as `mesh run` would; each defect is a finding.
fn config(global: &Global, daemon_runs: bool) -> (Option<Config>, Vec<Finding>) {
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
        Err(errors) => (None, errors.defects.iter().map(|defect| wrong(defect, daemon_runs)).collect()),
    }
}

/// A defect of the config. What only this user may not read is no failure while a daemon runs: that one has read it.
fn wrong(defect: &Defect, daemon_runs: bool) -> Finding {
    let what = defect.to_string();
    let as_owner = "run this as the user that owns the file, for example: sudo -u mesh mesh doctor";
    match (defect.is_denied, daemon_runs) {
        (true, true) => Finding::warn("config", what, as_owner),
        (true, false) => Finding::fail("config", what, as_owner),
        (false, _) => Finding::fail("config", what, "mend this, or write a new one: mesh init"),
    }
}

/// The status of the daemon that runs here, or why it does not tell; none when nobody knows where it is.
fn ask(global: &Global) -> Option<Result<Status, ClientError>> {
    Some(Client::new(global).ok()?.get("/api/status"))
}

/// A daemon that does not tell its status.
fn silent(error: &ClientError) -> Finding {
    match error {
        ClientError::NoDaemon { .. } => Finding::warn("daemon", NO_DAEMON, START),
        ClientError::Refused { status: 401, .. } => Finding::warn(
            "daemon",
            "a daemon runs here, and tells its status only to who shows its token",
            "set MESH_API_TOKEN, or run this as the user that owns api.token_file",
        ),
        ClientError::Refused { .. } => Finding::warn("daemon", error.to_string(), "look into its log"),
        ClientError::Strange { .. } => Finding::warn(
            "daemon",
            error.to_string(),
            "see which program listens there: ss -ltnp; or set api.listen to a free port",
        ),
    }
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

#[cfg(test)]
mod tests {
    use mesh_config::Place;

    use super::*;

    #[test]
    fn what_may_not_be_read_is_no_reason_for_another_key() {
        let defect = |is_denied| Defect { place: Place::Search, message: "cluster.key".into(), is_denied };
        for (is_denied, daemon_runs, verdict, remedy) in [
            (true, true, Verdict::Warn, "sudo -u mesh mesh doctor"),
            (true, false, Verdict::Fail, "sudo -u mesh mesh doctor"),
            (false, true, Verdict::Fail, "mesh init"),
            (false, false, Verdict::Fail, "mesh init"),
        ] {
            let finding = wrong(&defect(is_denied), daemon_runs);
            assert_eq!(finding.verdict, verdict, "{finding:?}");
            assert!(finding.remedy.contains(remedy), "{finding:?}");
            assert!(!is_denied || !finding.remedy.contains("init"), "{finding:?}");
        }
    }

    #[test]
    fn a_daemon_that_wants_a_token_is_there() {
        let base = || "http://127.0.0.1:7401".to_owned();
        for (error, remedy) in [
            (ClientError::NoDaemon { base: base(), why: "refused".into() }, "mesh run"),
            (ClientError::Refused { status: 401, message: "a token".into() }, "MESH_API_TOKEN"),
            (ClientError::Refused { status: 500, message: "oh".into() }, "log"),
            (ClientError::Strange { base: base(), why: "no JSON".into() }, "ss -ltnp"),
        ] {
            let finding = silent(&error);
            assert!(finding.verdict == Verdict::Warn && finding.remedy.contains(remedy), "{finding:?}");
        }
    }
}
