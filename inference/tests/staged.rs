//! Stages in sequence give the whole model's answer: every cut of the digits model, and a sample of stage splits
//! of larger models where `MESH_MODELS` names a folder of them (`NAME/model.onnx`).
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod common;

use std::{collections::HashMap, path::Path};

use common::{Imported, Inputs, import, largest_difference, run_whole, session};
use mesh_inference::{
    blobs::BlobStore,
    model::{Model, StageModel},
    runtime::Session,
    tensor::{DType, Tensor},
};

/// Difference allowed, as a part of the output's largest magnitude.
const TOLERANCE: f64 = 1e-5;

/// Images in one request to the digits model.
const IMAGES: usize = 16;

/// Runs the stages that start at `starts` one after the other as the data plane does: what a stage does not take
/// or make is forwarded by name.
fn run_stages(model: &Model, store: &BlobStore, starts: &[usize], inputs: &Inputs) -> Vec<(String, Tensor)> {
    let last = model.blocks().len() - 1;
    let mut alive: HashMap<String, Tensor> = inputs.iter().cloned().collect();
    for (i, &start) in starts.iter().enumerate() {
        let end = starts.get(i + 1).map_or(last, |next| next - 1);
        let stage = model.stage(start, end).unwrap();
        let mut session = stage_session(&stage, store, &format!("{start}-{end}"));
        let taken: Vec<(String, Tensor)> =
            stage.inputs.iter().map(|value| (value.name.clone(), alive[&value.name].clone())).collect();
        let made = session.run(&taken).unwrap_or_else(|error| panic!("blocks {start} to {end}: {error}"));
        let mut next: HashMap<String, Tensor> =
            stage.passthrough.iter().map(|name| (name.clone(), alive[name].clone())).collect();
        for (value, tensor) in stage.outputs.iter().zip(made) {
            assert_eq!(value.dtype, tensor.dtype(), "{}", value.name);
            next.insert(value.name.clone(), tensor);
        }
        let mut names: Vec<&String> = next.keys().collect();
        let mut cut: Vec<&String> = model.cuts()[end + 1].tensors.iter().collect();
        names.sort();
        cut.sort();
        assert_eq!(names, cut, "outputs and passthrough are the cut");
        alive = next;
    }
    model.outputs.iter().map(|value| (value.name.clone(), alive[&value.name].clone())).collect()
}

fn stage_session(stage: &StageModel, store: &BlobStore, name: &str) -> Session {
    let file = store.write_stage(name, &stage.onnx).unwrap();
    session(file.path())
}

fn check(imported: &Imported, starts: &[usize], inputs: &Inputs, whole: &[(String, Tensor)]) -> f64 {
    let staged = run_stages(&imported.model, &imported.store, starts, inputs);
    let difference = largest_difference(&staged, whole);
    assert!(difference <= TOLERANCE, "stages from {starts:?} differ by {difference}");
    difference
}

#[test]
fn every_cut_of_the_digits_model_gives_the_whole_answer() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/digits");
    let imported = import(&folder).unwrap();
    let mut archive = npyz::npz::NpzArchive::open(folder.join("test.npz")).unwrap();
    let images: Vec<u8> = archive.by_name("images").unwrap().unwrap().into_vec().unwrap();
    let logits: Vec<f32> = archive.by_name("logits").unwrap().unwrap().into_vec().unwrap();
    let images = &images[..IMAGES * 64];
    let pixels: Vec<f32> = images.iter().map(|&pixel| f32::from(pixel) / 16.).collect();
    let image = Tensor::from_slice(&[IMAGES as i64, 1, 8, 8], &pixels).unwrap();
    let inputs = vec![("image".to_owned(), image)];
    let logits = Tensor::from_slice(&[IMAGES as i64, 10], &logits[..IMAGES * 10]).unwrap();
    let whole = vec![("logits".to_owned(), logits)];

    let blocks = imported.model.blocks().len();
    assert!(blocks > 10, "{blocks}");
    check(&imported, &[0], &inputs, &whole);
    for cut in 1..blocks {
        check(&imported, &[0, cut], &inputs, &whole);
    }
    check(&imported, &(0..blocks).collect::<Vec<_>>(), &inputs, &whole);
    assert_eq!(imported.model.inputs[0].shape, [-1, 1, 8, 8]);
    assert_eq!(imported.model.inputs[0].symbols[0], "batch");
}

#[test]
fn real_models_give_the_whole_answer_in_stages() {
    let Some(folder) = std::env::var_os("MESH_MODELS") else { return };
    let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.retain(|path| path.join("model.onnx").is_file());
    names.sort();
    for path in names {
        real_model(&path);
    }
}

fn real_model(folder: &Path) {
    let imported = import(folder).unwrap();
    let model = &imported.model;
    let single = model.cuts().iter().filter(|cut| cut.tensors.len() == 1).count();
    let widest = model.cuts().iter().map(|cut| cut.tensors.len()).max().unwrap();
    let facts = format!(
        "{}: {} nodes, {} blocks, {single} single-tensor cuts, widest {widest}, {} blobs, {} MiB, manifest {} KiB",
        folder.file_name().unwrap().display(),
        model.node_count(),
        model.blocks().len(),
        model.blobs().len(),
        model.blob_bytes() >> 20,
        imported.store.bytes(&model.hash).unwrap() >> 10,
    );
    let mut worst: f64 = 0.;
    for extent in [1, 4] {
        let Some(inputs) = inputs(model, extent) else { continue };
        let whole = run_whole(&folder.join("model.onnx"), &inputs);
        let blocks = model.blocks().len();
        for parts in [1, 2, 4, 8] {
            let starts: Vec<usize> = (0..parts).map(|part| part * blocks / parts).collect();
            worst = worst.max(check(&imported, &starts, &inputs, &whole));
        }
        if extent == 1 {
            for cut in (1..blocks).step_by(blocks / 12 + 1) {
                worst = worst.max(check(&imported, &[0, cut], &inputs, &whole));
            }
            worst = worst.max(check(&imported, &(0..blocks).collect::<Vec<_>>(), &inputs, &whole));
        }
    }
    eprintln!("{facts}, worst difference {worst:.1e}");
}

/// Inputs with `extent` for the batch and, for integer inputs, a mask that is not all ones; `None` when the batch
/// is fixed to something else.
fn inputs(model: &Model, extent: i64) -> Option<Inputs> {
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut inputs = Vec::new();
    for value in &model.inputs {
        let known = |(axis, &e): (usize, &i64)| {
            if e >= 0 {
                e
            } else if axis == 0 {
                extent
            } else {
                8 * extent + 3
            }
        };
        let shape: Vec<i64> = value.shape.iter().enumerate().map(known).collect();
        if shape.first() != Some(&extent) {
            return None;
        }
        let count = usize::try_from(shape.iter().product::<i64>()).unwrap();
        let tensor = if value.dtype == DType::Int64 {
            let top = if value.name.contains("ids") && !value.name.contains("type") { 1000 } else { 2 };
            let data: Vec<i64> = (0..count).map(|i| if i == 0 { 1 } else { (next() % top) as i64 }).collect();
            Tensor::from_slice(&shape, &data)
        } else {
            let data: Vec<f32> = (0..count).map(|_| (next() % 2000) as f32 / 1000. - 1.).collect();
            Tensor::from_slice(&shape, &data)
        };
        inputs.push((value.name.clone(), tensor.unwrap()));
    }
    Some(inputs)
}
