//! A daemon keeps to itself: what it writes is in its data directory, and its libraries write nothing beside.

use std::{collections::BTreeSet, fs, time::Duration};

use mesh_tests::loopback::{Loopback, wait};

const PATIENCE: Duration = Duration::from_secs(60);

/// ONNX Runtime 1.31 keeps a file of what it reports to its makers below the home directory, unless told not to, or
/// unless a variable of a build server is set.
#[test]
fn nothing_is_written_beside_the_data_directory() {
    let mut cluster = Loopback::new(1, &[]);
    let device = &mut cluster.devices[0];
    for name in ["HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"] {
        device.set(name, &device.home.display().to_string());
    }
    device.unset = ["ORT_DISABLE_TELEMETRY", "CI", "TF_BUILD", "GITHUB_ACTIONS", "JENKINS_URL"].to_vec();
    device.start();
    wait("the device to have measured itself", PATIENCE, || device.log().contains("this device is measured"));
    assert!(device.log().contains("ONNX Runtime is loaded"), "{}", device.log());
    let files = fs::read_dir(&device.home).expect("the device's folder");
    let files: BTreeSet<String> =
        files.map(|file| file.expect("a file").file_name().to_string_lossy().into_owned()).collect();
    assert_eq!(files, BTreeSet::from(["cluster.key", "data", "log", "mesh.toml"].map(String::from)));
}
