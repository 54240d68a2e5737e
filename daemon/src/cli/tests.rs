//! Commands against a served API whose daemon adds numbers itself.

use std::{path::Path, sync::atomic::Ordering};

use clap::Parser;
use mesh_inference::tensor::Tensor;

use super::{args::Arguments, arrays, dispatch, exit::CliError};
use crate::api::{ApiOptions, tests::Served};

fn mesh(served: &Served, arguments: &[&str]) -> Result<(), CliError> {
    let api = format!("http://{}", served.address);
    let all = [&["mesh"], arguments, &["--api", &api]].concat();
    dispatch(Arguments::try_parse_from(all).unwrap())
}

#[track_caller]
fn fails(served: &Served, arguments: &[&str], code: u8, says: &str) {
    let error = mesh(served, arguments).unwrap_err();
    assert_eq!(error.code(), code, "{}", error.message());
    assert!(error.message().contains(says), "{:?} should say {says:?}", error.message());
}

/// Writes a float32 array as `.npy`, by way of an archive's entry.
fn npy(path: &Path, shape: &[i64], values: &[f32]) {
    let mut bytes = Vec::new();
    let dims: Vec<String> = shape.iter().map(i64::to_string).collect();
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({},), }}", dims.join(", "));
    let padded = format!("{header:<117}\n");
    bytes.extend_from_slice(b"\x93NUMPY\x01\x00");
    bytes.extend_from_slice(&u16::try_from(padded.len()).unwrap().to_le_bytes());
    bytes.extend_from_slice(padded.as_bytes());
    bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    std::io::Write::write_all(&mut std::fs::File::create(path).unwrap(), &bytes).unwrap();
}

#[test]
fn one_request_from_files_to_an_archive() {
    let served = Served::new();
    let folder = tempfile::tempdir().unwrap();
    let (a, b, out) = (folder.path().join("a.npy"), folder.path().join("b.npy"), folder.path().join("o.npz"));
    npy(&a, &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    npy(&b, &[2, 3], &[0.5; 6]);
    let (named_a, named_b) = (format!("a={}", a.display()), format!("b={}", b.display()));
    let output = out.to_str().unwrap();
    mesh(&served, &["infer", "add", "--input", &named_a, "--input", &named_b, "--output", output]).unwrap();
    let mut archive = npyz::npz::NpzArchive::open(&out).unwrap();
    let sum: Tensor = arrays::read(archive.by_name("sum").unwrap().unwrap()).unwrap();
    assert_eq!(
        (sum.shape(), sum.as_slice::<f32>()),
        (&[2, 3][..], Some(&[1.5, 2.5, 3.5, 4.5, 5.5, 6.5][..]))
    );

    let plain = a.to_str().unwrap();
    fails(&served, &["infer", "add", "--input", plain], 64, "needs a name");
    fails(&served, &["infer", "add", "--input", &named_a], 64, "also wants input \"b\"");
    fails(&served, &["infer", "add", "--input", &named_a, "--input", &named_a], 64, "twice");
    fails(&served, &["infer", "add", "--input", &format!("c={plain}")], 1, "no input \"c\"");
    fails(&served, &["infer", "nope", "--input", plain], 1, "no deployment nope");
    fails(&served, &["infer", "echo-INT64", "--input", plain], 1, ".astype(numpy.int64)");
    fails(&served, &["infer", "echo-FP32", "--input", plain], 1, "has shape [2, 3]");
}

#[test]
fn load_is_counted() {
    let served = Served::new();
    mesh(&served, &["bench", "add", "--requests", "40", "--concurrency", "3", "--json"]).unwrap();
    mesh(&served, &["bench", "echo-BOOL", "--seconds", "0.2", "--shape", "x=7"]).unwrap();
    fails(&served, &["bench", "add", "--shape", "z=1"], 64, "no input \"z\"");
    fails(&served, &["bench", "busy", "--requests", "1"], 69, "the ingress is full");
}

#[test]
fn deployments_run_to_their_end() {
    let served = Served::new();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/digits/model.onnx");
    mesh(&served, &["deploy", model, "--name", "digits"]).unwrap();
    mesh(&served, &["deploy", model, "--name", "digits", "--no-wait"]).unwrap();
    fails(&served, &["deploy", model, "--name", "bad"], 1, "not an ONNX file");
    fails(&served, &["deploy", model, "--name", "a/b"], 64, "no name for a deployment");
}

#[test]
fn what_is_asked_and_changed() {
    let served = Served::new();
    for arguments in [
        &["status"][..],
        &["status", "--json"],
        &["plan", "add"],
        &["plan", "add", "--json"],
        &["models"],
        &["models", "--json"],
        &["node", "list"],
        &["node", "list", "--json"],
        &["node", "drain", "camera-1"],
        &["node", "drain", "camera-1", "--no-wait"],
        &["node", "undrain", "camera-1"],
        &["undeploy", "add"],
        &["model", "rm", "old model.onnx"],
    ] {
        mesh(&served, arguments).unwrap();
    }
    fails(&served, &["plan", "nope"], 1, "nope");
    fails(&served, &["undeploy", "nope"], 1, "nope");
    fails(&served, &["model", "rm", "ab12"], 1, "undeploy it first");
    // Without a quorum a change cannot be made.
    fails(&served, &["node", "remove", "camera-1"], 69, "no quorum");
    served.app.ready.store(false, Ordering::Relaxed);
    mesh(&served, &["status"]).unwrap();
}

#[test]
fn a_missing_token_is_told() {
    let served = Served::with(ApiOptions { token: Some("t".into()), ..ApiOptions::default() });
    fails(&served, &["status"], 1, "MESH_API_TOKEN");
}
