//! What people see of plans, from daemons on loopback.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
    time::Duration,
};

use mesh_tests::{
    digits,
    loopback::{LoopDevice, Loopback},
};

const PATIENCE: Duration = Duration::from_secs(60);
const KNOWN: &str = "has been profiled before";

fn mesh(device: &LoopDevice, args: &[&str]) -> String {
    let output = device.mesh(args);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "mesh {args:?}: {err}\n{}", device.log());
    out.into_owned()
}

#[test]
fn status_is_shown_again_and_again() {
    let mut mesh_of_one = Loopback::new(1, &[]);
    mesh_of_one.start(PATIENCE);
    let device = &mesh_of_one.devices[0];
    let mut watching =
        device.command().args(["status", "--watch", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    for line in lines.take(2) {
        let status: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        assert_eq!(status["nodes"].as_array().unwrap().len(), 1);
    }
    watching.kill().unwrap();
    watching.wait().unwrap();
}

#[test]
fn a_model_is_profiled_once_and_its_plan_explained_and_drawn() {
    let mut mesh_of_one = Loopback::new(1, &[]);
    mesh_of_one.start(PATIENCE);
    let device = &mesh_of_one.devices[0];
    let model = digits::model().display().to_string();
    mesh(device, &["deploy", &model, "--name", "digits"]);
    assert!(!device.log().contains(KNOWN));
    let first: serde_json::Value =
        serde_json::from_str(&mesh(device, &["plan", "digits", "--problem"])).unwrap();

    mesh(device, &["deploy", &model, "--name", "again", "--stages", "1"]);
    assert!(device.log().contains(KNOWN), "{}", device.log());
    let dry = mesh(device, &["deploy", &model, "--name", "digits", "--objective", "latency", "--dry-run"]);
    assert!(dry.contains("What would lift it"), "{dry}");

    let text = mesh(device, &["plan", "digits"]);
    assert!(text.contains("twice as fast: +"), "{text}");
    let again: serde_json::Value =
        serde_json::from_str(&mesh(device, &["plan", "again", "--problem"])).unwrap();
    assert_eq!(first["cuts"], again["cuts"]);

    let picture = device.file("plan.svg");
    mesh(device, &["plan", "digits", "--svg", &picture.display().to_string()]);
    let svg = std::fs::read_to_string(&picture).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("stage 0: blocks 0 to "), "{svg}");
    let nowhere = device.mesh(&["plan", "digits", "--svg", "/nowhere/plan.svg"]);
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("/nowhere/plan.svg cannot be written"));
}
