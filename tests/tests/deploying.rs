//! What is done to a deployment while it is being deployed. Daemons on loopback.

use std::{
    process::{Child, Output, Stdio},
    time::Duration,
};

use mesh_tests::{
    digits,
    loopback::{LoopDevice, Loopback, wait},
};

const PATIENCE: Duration = Duration::from_secs(60);
/// More at once than a device imports at once.
const NAMES: [&str; 3] = ["one", "two", "three"];

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn deploy(device: &LoopDevice, name: &str) -> Child {
    let mut command = device.command();
    command.args(["deploy", &digits::model().display().to_string(), "--name", name]);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("mesh runs")
}

fn is_preparing(device: &LoopDevice, name: &str) -> bool {
    let is_it = |status: mesh_daemon::status::Status| {
        status.deployments.iter().any(|deployment| deployment.name == name && deployment.state == "preparing")
    };
    device.status().is_some_and(is_it)
}

fn uploads(device: &LoopDevice) -> usize {
    std::fs::read_dir(device.file("data/uploads")).map_or(0, Iterator::count)
}

fn end(mut child: Child) -> Output {
    wait("an end of `mesh deploy`", PATIENCE, || child.try_wait().expect("a child").is_some());
    child.wait_with_output().expect("what it said")
}

/// A first plan waits for two minutes until a loss would lose no weights, and the second device has no room for them.
#[test]
fn whoever_deploys_is_told_what_others_make_of_it() {
    let mut cluster = Loopback::new(2, &[]);
    cluster.devices[1].set("MESH_LIMITS_DISK", "128KiB");
    cluster.start(PATIENCE);
    let device = &cluster.devices[0];
    let mut deploying = Vec::new();
    for name in NAMES {
        deploying.push(deploy(device, name));
        wait("it to be prepared", PATIENCE, || is_preparing(device, name));
        // Nothing of the upload is needed any more, nor of the right to import.
        wait("the upload to be gone", PATIENCE, || uploads(device) == 0);
    }
    let mut deploying = deploying.into_iter();

    let undeployed = device.mesh(&["undeploy", NAMES[0]]);
    assert!(undeployed.status.success(), "{}", said(&undeployed));
    let first = end(deploying.next().expect("three"));
    assert_eq!(first.status.code(), Some(1), "{}", said(&first));
    assert!(said(&first).contains("one was undeployed while it was being deployed"), "{}", said(&first));

    let model = digits::model().display().to_string();
    let again = device.mesh(&["deploy", &model, "--name", NAMES[1], "--stages", "1", "--no-wait"]);
    assert!(again.status.success(), "{}", said(&again));
    let second = end(deploying.next().expect("three"));
    assert_eq!(second.status.code(), Some(1), "{}", said(&second));
    assert!(said(&second).contains("two was deployed again with other settings"), "{}", said(&second));

    let mut third = deploying.next().expect("three");
    assert!(third.try_wait().expect("a child").is_none(), "nobody has touched it");
    third.kill().expect("it ends");
    drop(end(third));
    wait("it to go on without its client", PATIENCE, || is_preparing(device, NAMES[2]));
}
