//! A majority is lost for good, and the device that is left goes on with its copy. Daemons on loopback.

use std::{process::Output, time::Duration};

use mesh_tests::{
    digits::{self, Digits},
    loopback::{LoopDevice, Loopback, wait},
};

const PATIENCE: Duration = Duration::from_secs(60);

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn answers(device: &LoopDevice, digits: &Digits) -> bool {
    let body = serde_json::to_vec(&digits.request(7)).expect("a request");
    let Some((200, answer)) = device.http("POST", "/v2/models/digits/infer", &body) else { return false };
    serde_json::from_str(&answer).is_ok_and(|answer| digits.is_right(7, &answer))
}

#[test]
fn one_device_of_three_goes_on_alone() {
    let mut cluster = Loopback::new(3, &[]);
    cluster.start(PATIENCE);
    let model = digits::model().display().to_string();
    let deployed = cluster.devices[0].mesh(&["deploy", &model, "--name", "digits"]);
    assert!(deployed.status.success(), "{}", said(&deployed));
    let names: Vec<String> = cluster.devices.iter().map(|device| device.name.clone()).collect();

    let running = cluster.devices[0].mesh(&["recover", "--force", "--yes"]);
    assert_eq!(running.status.code(), Some(1), "{}", said(&running));
    assert!(said(&running).contains("stop the daemon"), "{}", said(&running));

    cluster.devices.iter_mut().for_each(LoopDevice::kill);
    let device = &mut cluster.devices[0];
    let asked = device.mesh(&["recover"]);
    assert_eq!(asked.status.code(), Some(64), "{}", said(&asked));
    assert!(said(&asked).contains("models: 1, deployments: 1") && said(&asked).contains(&names[1]));
    let refused = device.mesh(&["recover", "--force"]);
    assert_eq!(refused.status.code(), Some(1), "nobody has typed the name: {}", said(&refused));

    device.start();
    wait("the lone device to see that it has no quorum", PATIENCE, || {
        device.status().is_some_and(|status| !status.cluster.quorum)
    });
    device.kill();
    let recovered = device.mesh(&["recover", "--force", "--yes"]);
    assert!(recovered.status.success(), "{}", said(&recovered));

    device.start();
    wait("the device to lead", PATIENCE, || {
        device.status().is_some_and(|s| s.cluster.quorum && s.cluster.leader == s.this_node)
    });
    for gone in &names[1..] {
        let removed = device.mesh(&["node", "remove", gone]);
        assert!(removed.status.success(), "{}\n{}", said(&removed), device.log());
    }
    let digits = Digits::load();
    wait("digits to be served again", PATIENCE, || answers(device, &digits));
    assert_eq!(device.status().unwrap().nodes.len(), 1);
}
