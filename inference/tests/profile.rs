//! Profiling by real execution: the digits model, and larger ones where `MESH_MODELS` names a folder of them.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{engine, import};
use mesh_inference::profile::{ModelProfile, ProfileError, ProfileOptions, profile};

fn digits() -> common::Imported {
    import(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/digits"))
        .expect("the digits model is a good one")
}

fn run(imported: &common::Imported, options: &ProfileOptions) -> Result<ModelProfile, ProfileError> {
    profile(&imported.model, &imported.store, &engine(), options, &mut |_| {}, &|| false)
}

#[test]
fn every_block_is_measured_and_the_sum_is_the_whole() {
    let imported = digits();
    let mut steps = Vec::new();
    let measured = profile(
        &imported.model,
        &imported.store,
        &engine(),
        &ProfileOptions::default(),
        &mut |progress| steps.push((progress.done, progress.total)),
        &|| false,
    )
    .unwrap();
    let blocks = imported.model.blocks();
    assert_eq!(measured.model, imported.model.hash);
    assert_eq!(measured.block_seconds.len(), blocks.len());
    assert!(measured.block_seconds.iter().all(|seconds| *seconds > 0.0 && seconds.is_finite()));
    let sum: f64 = measured.block_seconds.iter().sum();
    let whole = measured.whole_seconds.unwrap();
    assert!((sum / whole - 1.0).abs() < 1e-9, "{sum} {whole}");
    let weights: Vec<u64> = blocks.iter().map(|block| block.weight_bytes).collect();
    assert_eq!(measured.block_weight_bytes, weights);
    let cuts = &measured.cut_bytes;
    assert_eq!(cuts.len(), blocks.len() + 1);
    assert_eq!((cuts[0], cuts[blocks.len()]), (8 * 8 * 4, 10 * 4), "an image goes in, ten numbers come out");
    let sparse = &measured.cut_sparse_bytes;
    assert_eq!(sparse.len(), cuts.len());
    assert!(
        sparse.iter().zip(cuts).all(|(sparse, whole)| sparse <= whole && *sparse > 0),
        "{sparse:?} {cuts:?}"
    );
    assert_eq!(sparse[0], cuts[0], "inputs are made up");
    for (block, peak) in measured.block_peak_bytes.iter().enumerate() {
        let handed_through: u64 = cuts[block].min(cuts[block + 1]);
        assert!(
            *peak + handed_through >= cuts[block].max(cuts[block + 1]),
            "it holds what it takes and gives"
        );
    }
    let total = steps[0].1;
    assert_eq!(steps, (1..=total).map(|done| (done, total)).collect::<Vec<_>>());
    let text = serde_json::to_string(&measured).unwrap();
    assert_eq!(serde_json::from_str::<ModelProfile>(&text).unwrap().cut_bytes, *cuts);
}

#[test]
fn shapes_are_taken_from_the_options() {
    let imported = digits();
    let options = ProfileOptions {
        shapes: BTreeMap::from([("image".to_owned(), vec![4, 1, 8, 8])]),
        ..ProfileOptions::default()
    };
    let measured = run(&imported, &options).unwrap();
    let one = run(&imported, &ProfileOptions::default()).unwrap().cut_bytes;
    assert_eq!(measured.cut_bytes.len(), one.len());
    for (four, one) in measured.cut_bytes.iter().zip(&one) {
        // Some cuts carry a shape too, which does not grow with the batch.
        assert!((3 * one..=4 * one).contains(four), "{four} {one}");
    }
    assert_eq!(measured.cut_bytes[0], 4 * one[0]);
    assert_eq!(measured.shapes, options.shapes);
    for shape in [vec![1, 1, 8], vec![1, 1, 8, 9]] {
        let options = ProfileOptions {
            shapes: BTreeMap::from([("image".to_owned(), shape)]),
            ..ProfileOptions::default()
        };
        assert!(matches!(run(&imported, &options), Err(ProfileError::Shape { .. })));
    }
}

#[test]
fn a_model_that_does_not_fit_is_measured_in_parts() {
    let imported = digits();
    let all: u64 = imported.model.blocks().iter().map(|block| block.weight_bytes).sum();
    for memory in [0, all / 2] {
        let measured = run(&imported, &ProfileOptions { memory, ..ProfileOptions::default() }).unwrap();
        assert_eq!(measured.whole_seconds, None);
        assert!(measured.block_seconds.iter().all(|seconds| *seconds > 0.0));
    }
}

#[test]
fn it_can_be_cancelled_and_says_what_is_missing() {
    let imported = digits();
    let cancelled = profile(
        &imported.model,
        &imported.store,
        &engine(),
        &ProfileOptions::default(),
        &mut |_| {},
        &|| true,
    );
    assert!(matches!(cancelled, Err(ProfileError::Cancelled)));
    let gone = imported.model.blobs()[0].hash;
    imported.store.remove(&gone).unwrap();
    let error = run(&imported, &ProfileOptions::default()).unwrap_err();
    assert!(
        matches!(error, ProfileError::MissingBlobs { missing: 1, example } if example == gone),
        "{error}"
    );
}

#[test]
fn larger_models_are_measured() {
    let Some(folder) = std::env::var_os("MESH_MODELS") else {
        eprintln!("skipped: MESH_MODELS names no folder of models");
        return;
    };
    for entry in std::fs::read_dir(folder).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.join("model.onnx").is_file() {
            continue;
        }
        let imported = import(&folder).unwrap();
        let measured = run(&imported, &ProfileOptions::default()).unwrap();
        let sum: f64 = measured.block_seconds.iter().sum();
        let alone = sum + measured.session_seconds * measured.block_seconds.len() as f64;
        eprintln!(
            "{}: {} blocks, whole {:?} s, sum of blocks {sum:.4} s, in sessions of their own {alone:.4} s",
            folder.display(),
            measured.block_seconds.len(),
            measured.whole_seconds,
        );
        assert!(measured.block_seconds.iter().all(|seconds| seconds.is_finite()));
        assert!(measured.cut_bytes.iter().all(|bytes| *bytes > 0));
    }
}
