use mesh_consensus::{ClusterId, DeviceId, StorageId};
use mesh_planner::Objective;

use super::*;

const CAMERA: &str = "12D3KooWAaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaCamera01";
const ATTIC: &str = "12D3KooWBbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbAttic002";
const TWIN: &str = "12D3KooWBcccccccccccccccccccccccccccccccccccTwin0003";

fn devices() -> ClusterState {
    let member = |(raft_id, (name, device)): (u64, (&str, &str))| Member {
        raft_id,
        device: DeviceId(device.into()),
        storage: StorageId([0; 16]),
        name: name.into(),
        address: String::new(),
        draining: false,
    };
    let named = [("camera-1", CAMERA), ("attic", ATTIC), ("attic", TWIN)];
    let members: Vec<Member> = (1..).zip(named).map(member).collect();
    ClusterState::founded(ClusterId([1; 16]), "home", &members)
}

#[test]
fn a_device_is_meant_by_its_name_or_either_end_of_its_id() {
    let state = devices();
    for (text, id) in [
        (CAMERA, CAMERA),
        ("camera-1", CAMERA),
        ("12D3KooWA", CAMERA),
        ("Camera01", CAMERA),
        ("…Camera01", CAMERA),
        ("…1", CAMERA),
        (&short_id(ATTIC), ATTIC),
        ("12D3KooWBb", ATTIC),
        (TWIN, TWIN),
    ] {
        assert_eq!(member(&state, text).unwrap().device.0, id, "{text}");
    }
    for text in ["", "…", "camera", "…12D3KooWA", "Camera02"] {
        let error = member(&state, text).unwrap_err();
        assert!(
            matches!(&error, AppError::NotFound(what) if what.contains("mesh node list")),
            "{text}: {error}"
        );
    }
    for text in ["attic", "12D3KooWB"] {
        let error = member(&state, text).unwrap_err();
        assert!(matches!(error, AppError::Invalid(_)), "{text}: {error}");
        assert!(error.to_string().contains("attic (…Attic002), attic (…Twin0003)"), "{text}: {error}");
    }
}

#[test]
fn of_many_devices_some_are_named() {
    let names = || (0..12).map(|n| n.to_string());
    assert_eq!(list(names(), 12), "0, 1, 2, 3, 4, 5, 6, 7 and 4 more");
    assert_eq!(list(names().take(2), 2), "0, 1");
}

/// Models by hash and source, and deployments by name and hash.
fn models(models: &[(&str, &str)], deployments: &[(&str, &str)]) -> ClusterState {
    let mut state = devices();
    for &(hash, source) in models {
        let record = ModelRecord {
            hash: hash.into(),
            source: source.into(),
            weight_bytes: 0,
            nodes: 1,
            blocks: 1,
            added_by: DeviceId(CAMERA.into()),
            profile_blob: None,
        };
        state.models.insert(hash.into(), record);
    }
    for &(name, hash) in deployments {
        let deployment = Deployment {
            name: name.into(),
            model: hash.into(),
            objective: Objective::Throughput,
            stages: None,
            pin: None,
            shapes: Vec::new(),
            active: None,
            preparing: None,
            next_epoch: 1,
            asked_epoch: 1,
            fault: None,
        };
        state.deployments.insert(name.into(), deployment);
    }
    state
}

#[test]
fn a_model_is_meant_by_its_hash_or_its_file() {
    let known =
        [("ab12", "digits.onnx"), ("ab34", "cats.v2.onnx"), ("cd56", "old.onnx"), ("cd78", "old.onnx")];
    let state = models(&known, &[("numbers", "ab12"), ("faces", "ab12"), ("gone", "ef90")]);
    for (text, hash) in
        [("ab34", "ab34"), ("ab3", "ab34"), ("cats.v2.onnx", "ab34"), ("cats.v2", "ab34"), ("cd5", "cd56")]
    {
        assert_eq!(model(&state, text).unwrap().hash, hash, "{text}");
    }
    for text in ["ab12", "digits", "digits.onnx"] {
        let error = model(&state, text).unwrap_err();
        assert!(matches!(error, AppError::Conflict(_)), "{text}: {error}");
        let says = "in use by faces and numbers: `mesh undeploy faces` and `mesh undeploy numbers` first";
        assert!(error.to_string().contains(says), "{text}: {error}");
    }
    for text in ["numbers", "gone"] {
        let error = model(&state, text).unwrap_err();
        assert!(
            matches!(&error, AppError::Conflict(what) if what.contains("mesh undeploy")),
            "{text}: {error}"
        );
    }
    for text in ["", "cats", "nope"] {
        assert!(matches!(model(&state, text).unwrap_err(), AppError::NotFound(_)), "{text}");
    }
    for (text, says) in [
        ("old", "old.onnx (cd56), old.onnx (cd78)"),
        ("ab", "digits.onnx (ab12, in use), cats.v2.onnx (ab34)"),
    ] {
        let error = model(&state, text).unwrap_err();
        assert!(matches!(&error, AppError::Invalid(what) if what.contains(says)), "{text}: {error}");
    }
}
