//! A disk spoils what it keeps, and the devices go on with what the others have. Daemons on loopback.
#![allow(clippy::disallowed_methods)]

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use mesh_tests::{
    digits::{self, Digits},
    loopback::{LoopDevice, Loopback, wait},
};

const PATIENCE: Duration = Duration::from_secs(60);

fn answers(device: &LoopDevice, digits: &Digits) -> bool {
    let body = serde_json::to_vec(&digits.request(7)).expect("a request");
    let Some((200, answer)) = device.http("POST", "/v2/models/digits/infer", &body) else { return false };
    serde_json::from_str(&answer).is_ok_and(|answer| digits.is_right(7, &answer))
}

/// Files of the device's blobs.
fn blobs(device: &LoopDevice) -> Vec<PathBuf> {
    let entries = fs::read_dir(device.file("data/blobs")).expect("the blobs' folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.filter(|p| p.file_name().is_some_and(|name| name.len() == 64)).collect()
}

fn is_sound(path: &Path) -> bool {
    let Ok(bytes) = fs::read(path) else { return false };
    path.file_name()
        .is_some_and(|name| *name.to_string_lossy() == *mesh_inference::blobs::Hash::of(&bytes).to_string())
}

#[test]
fn a_device_whose_blobs_are_all_spoilt_serves_right_answers() {
    let mut cluster = Loopback::new(3, &[]);
    cluster.start(PATIENCE);
    let model = digits::model().display().to_string();
    let deployed = cluster.devices[0].mesh(&["deploy", &model, "--name", "digits"]);
    assert!(deployed.status.success(), "{}", String::from_utf8_lossy(&deployed.stderr));
    let digits = Digits::load();
    wait("digits to be served", PATIENCE, || answers(&cluster.devices[2], &digits));
    wait("the spoilt device to hold something", PATIENCE, || blobs(&cluster.devices[2]).len() >= 3);
    cluster.devices.iter_mut().for_each(LoopDevice::kill);
    let spoilt = blobs(&cluster.devices[2]);
    for path in &spoilt {
        let mut bytes = fs::read(path).expect("a blob");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).expect("the blob again");
    }
    assert!(!spoilt.iter().any(|path| is_sound(path)));

    cluster.start(PATIENCE);
    let device = &cluster.devices[2];
    wait("digits to be served by the spoilt device", PATIENCE, || answers(device, &digits));
    // What nothing has asked for yet is still as the disk left it, and is found when something does.
    let is_back = |path: &PathBuf| spoilt.contains(path) && is_sound(path);
    wait("blobs to be fetched again", PATIENCE, || blobs(device).iter().any(is_back));
    assert!(device.log().contains("a blob is damaged"), "{}", device.log());
}
