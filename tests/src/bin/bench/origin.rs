//! What a number was measured on: the host, and the code.

use std::{collections::BTreeMap, fmt, fs, process::Command};

use serde::{Deserialize, Serialize};

/// What is measured: pages that were written since make no other code of it.
const MEASURED: [&str; 5] = ["daemon", "consensus", "inference", "config", "Cargo.lock"];
/// What measures.
const MEASURING: [&str; 6] = [
    "tests/src/lab",
    "tests/src/lab.rs",
    "tests/src/policies",
    "tests/src/policies.rs",
    "tests/src/bin/bench",
    "tests/lab",
];

/// Host and code of a measurement.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Origin {
    /// Processors, and of which kind.
    host: String,
    /// The last commit of what was measured, with a word where files have changed since.
    code: String,
    /// The same of what measured it; not known of what was measured before this was noted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    by: String,
}

impl Origin {
    /// Of what is measured now.
    pub(super) fn now() -> Self {
        let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        let host = format!("{cores} processors, {}", processor());
        Self { host, code: commit(&MEASURED), by: commit(&MEASURING) }
    }

    /// Whether what was measured is the same, on whatever host and by whatever measured it.
    pub(super) fn is_of_code(&self, other: &Self) -> bool {
        self.code == other.code
    }

    /// Whether the code, and what measured it, can be had again: commits without changes.
    pub(super) fn is_commit(&self) -> bool {
        [&self.code, &self.by].into_iter().all(|text| text.chars().all(|c| c.is_ascii_hexdigit()))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by =
            if self.by.is_empty() { String::new() } else { format!(", measured by that of {}", self.by) };
        write!(f, "Host: {}. Code: {}{by}.", self.host, self.code)
    }
}

/// The parts of a section by what they were measured on, a line for each origin where there are several.
pub(super) fn told<'a>(parts: impl Iterator<Item = (String, &'a Origin)>) -> String {
    let mut origins: BTreeMap<&Origin, Vec<String>> = BTreeMap::new();
    for (part, origin) in parts {
        origins.entry(origin).or_default().push(part);
    }
    if origins.len() <= 1 {
        return origins.into_keys().map(ToString::to_string).collect();
    }
    let lines: Vec<String> =
        origins.into_iter().map(|(origin, parts)| format!("- {}. {origin}", parts.join(", "))).collect();
    format!("Measured at different times:\n\n{}", lines.join("\n"))
}

/// The last commit of some folders and files.
fn commit(paths: &[&str]) -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(["-C", env!("CARGO_MANIFEST_DIR")]).args(args).output();
        let output = output.ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let code: Vec<String> = paths.iter().map(|path| format!(":/{path}")).collect();
    let code: Vec<&str> = code.iter().map(String::as_str).collect();
    let last = git(&[&["log", "-1", "--format=%h", "--"], &code[..]].concat());
    let changes = git(&[&["status", "--porcelain", "--"], &code[..]].concat());
    match (last, changes) {
        (Some(commit), Some(changes)) if changes.is_empty() => commit,
        (Some(commit), _) => format!("{commit}, changed since"),
        (None, _) => "not under git".to_owned(),
    }
}

fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|l| l.strip_prefix("model name")).and_then(|l| l.split(':').nth(1));
    name.unwrap_or("unknown processor").trim().to_owned()
}
