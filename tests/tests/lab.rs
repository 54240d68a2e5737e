//! The device lab with the real binary: what a script does is so, and nothing is left behind.

#![allow(clippy::print_stdout, reason = "a test says what it skips")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use mesh_tests::rack::is_root;
use serde_json::Value;

/// A lab needs root and control groups that can be written.
fn can_run() -> bool {
    let groups = ["/sys/fs/cgroup/cpu/cgroup.procs", "/sys/fs/cgroup/cgroup.procs"];
    let has_group = groups.iter().any(|path| std::fs::OpenOptions::new().write(true).open(path).is_ok());
    let can = is_root() && has_group && Path::new("/dev/net/tun").exists();
    if !can {
        println!("SKIPPED: the lab needs root, /dev/net/tun and control groups that can be written");
    }
    can
}

fn lab(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    command.args(args).stdin(Stdio::null());
    command
}

fn written(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("scenario.toml");
    std::fs::File::create(&path)
        .and_then(|mut f| std::io::Write::write_all(&mut f, text.as_bytes()))
        .unwrap();
    path
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Everything of a lab that can still be found.
fn left(name: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mark = format!("mesh-lab-{name}");
    let names = |folder: &str| -> Vec<String> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    };
    found
        .extend(names("/run/netns").into_iter().filter(|n| *n == mark || n.starts_with(&format!("{mark}."))));
    for controller in ["cpu", "cpuacct", "memory", "freezer", ""] {
        let folder = Path::new("/sys/fs/cgroup").join(controller).join("mesh-lab").join(name);
        found.extend(folder.exists().then(|| folder.display().to_string()));
    }
    let folder = std::env::temp_dir().join("mesh-lab").join(name);
    found.extend(folder.exists().then(|| folder.display().to_string()));
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let of_lab = format!("{}/", folder.display());
    found.extend(mounts.lines().filter(|line| line.contains(&of_lab)).map(str::to_owned));
    for process in names("/proc").iter().filter(|name| name.parse::<u32>().is_ok()) {
        let environment = std::fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
        let arguments = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        let is_of_lab = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(&of_lab);
        found
            .extend((is_of_lab(&environment) || is_of_lab(&arguments)).then(|| format!("process {process}")));
    }
    found
}

fn wait_until_nothing_is_left(name: &str) {
    let start = Instant::now();
    while !left(name).is_empty() {
        assert!(start.elapsed() < Duration::from_secs(60), "left behind: {:#?}", left(name));
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A name of its own for each test and each run of it.
fn unique(test: &str) -> String {
    format!("{test}-{}", std::process::id())
}

fn events(list: &[&str]) -> String {
    list.iter().map(|event| format!("[[event]]\n{event}\n")).collect()
}

const UP: &[&str] = &["do = \"start\"", "do = \"wait\"\nuntil = \"cluster\"\nwithin = \"60s\""];

#[test]
fn a_script_is_played_and_nothing_is_left() {
    if !can_run() {
        return;
    }
    let (name, folder) = (unique("script"), tempfile::tempdir().unwrap());
    let script = [
        UP,
        &[
            "do = \"deploy\"\nmodel = \"digits\"\nname = \"digits\"",
            "do = \"load\"\nname = \"digits\"\ndevices = [\"pi-1\"]\nclients = 2",
            "do = \"measure\"\nlabel = \"all\"\nwarmup = 20\nseconds = 1",
            "do = \"freeze\"\ndevices = [\"pi-3\"]",
            "do = \"wait\"\nuntil = { state = { device = \"pi-3\", state = \"down\" } }\nwithin = \"30s\"",
            "do = \"thaw\"\ndevices = [\"pi-3\"]",
            "do = \"wait\"\nuntil = \"cluster\"\nwithin = \"60s\"",
            "do = \"cut\"\ndevices = [\"pi-4\"]",
            "do = \"wait\"\nuntil = { answers = 50 }\nwithin = \"60s\"",
            "do = \"heal\"",
            "do = \"wait\"\nuntil = \"cluster\"\nwithin = \"60s\"",
            "do = \"cpu\"\ndevices = [\"*\"]\ncpu = 1.0",
            "do = \"link\"\ndevices = [\"pi-2\"]\nrate = \"10Mbit\"\ndelay = \"5ms\"",
            "do = \"link\"\ndevices = [\"*\"]\nrestore = true",
            "do = \"stop-load\"",
            "do = \"fill-disk\"\ndevices = [\"pi-2\"]",
            "do = \"free-disk\"\ndevices = [\"pi-2\"]",
            "do = \"kill\"\ndevices = [\"pi-2\"]",
            "do = \"wipe-disk\"\ndevices = [\"pi-2\"]",
        ],
    ]
    .concat();
    let text = format!(
        "name = \"{name}\"\n[defaults]\ncpu = 0.5\nthreads = 1\nbudget = \"448KiB\"\nrate = \"100Mbit\"\nmemory = \"512MiB\"\n\
         [[device]]\nname = \"pi\"\ncount = 4\ndisk = \"400MiB\"\ndelay = \"1ms\"\n{}",
        events(&script)
    );
    let output = lab(&["run", "--json"]).arg(written(folder.path(), &text)).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let load = &report["loads"][0][1];
    assert!(load["right"].as_u64().unwrap() > 50 && load["wrong"] == 0, "{load}");
    assert!(report["measurements"][0]["rate"].as_f64().unwrap() > 0.0);
    assert_eq!(report["measurements"][0]["devices"].as_array().unwrap().len(), 4);
    assert_eq!(report["events"].as_array().unwrap().len(), script.len());
    wait_until_nothing_is_left(&name);
}

#[test]
fn a_killed_lab_leaves_nothing() {
    if !can_run() {
        return;
    }
    let (name, folder) = (unique("killed"), tempfile::tempdir().unwrap());
    let script =
        [UP, &["do = \"burn\"\ndevices = [\"a\"]", "do = \"wait\"\nuntil = { time = \"10min\" }"]].concat();
    let text = format!(
        "name = \"{name}\"\n[[device]]\nname = \"a\"\ncpu = 0.2\ndisk = \"64MiB\"\n[[device]]\nname = \"b\"\ndelay = \"1ms\"\n{}",
        events(&script)
    );
    let mut child = lab(&["run"]).arg(written(folder.path(), &text)).stderr(Stdio::piped()).spawn().unwrap();
    // It has got as far as its last event.
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    assert!(lines.any(|line| line.is_ok_and(|line| line.contains("burn"))), "the script was not played");
    assert!(left(&name).len() > 5, "{:?}", left(&name));
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until_nothing_is_left(&name);
}

#[test]
fn up_holds_and_down_removes() {
    if !can_run() {
        return;
    }
    let (name, folder) = (unique("held"), tempfile::tempdir().unwrap());
    let text =
        format!("name = \"{name}\"\n[[device]]\nname = \"a\"\ncount = 2\ndelay = \"2ms\"\n{}", events(UP));
    let file = written(folder.path(), &text);
    let output = lab(&["up"]).arg(&file).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    // What it prints works as it is.
    let text = said(&output);
    let by_hand = text.lines().find(|line| line.contains("nsenter")).unwrap().trim();
    let status = Command::new("sh").args(["-c", &format!("{by_hand} status")]).output().unwrap();
    assert!(status.status.success() && said(&status).contains("a-2"), "{}", said(&status));
    let again = lab(&["run"]).arg(&file).output().unwrap();
    assert!(!again.status.success() && said(&again).contains("lab down"), "{}", said(&again));
    let down = lab(&["down", &name]).output().unwrap();
    assert!(down.status.success(), "{}", said(&down));
    assert_eq!(left(&name), Vec::<String>::new());
}

#[test]
fn a_bad_scenario_is_told_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let file = written(folder.path(), "name = \"x\"\n[[device]]\nname = \"a\"\ncpu = 0.0\n");
    let output = lab(&["run"]).arg(&file).output().unwrap();
    assert!(!output.status.success() && said(&output).contains("cpu"), "{}", said(&output));
    let output = lab(&["run", "no-such-file.toml"]).output().unwrap();
    assert!(!output.status.success() && said(&output).contains("no-such-file.toml"), "{}", said(&output));
}
