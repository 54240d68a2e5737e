//! What the tests of whole models share.
#![allow(dead_code, clippy::unwrap_used)]

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use mesh_inference::{
    blobs::BlobStore,
    import::{self, ImportError},
    model::Model,
    runtime::{Engine, ModelSource, Session, SessionOptions},
    tensor::Tensor,
};

pub(crate) type Inputs = Vec<(String, Tensor)>;

/// An imported model and the store that it lies in, deleted when dropped.
pub(crate) struct Imported {
    pub(crate) model: Arc<Model>,
    pub(crate) store: BlobStore,
    _folder: tempfile::TempDir,
}

/// The engine for tests; fails with what to do when there is no library.
pub(crate) fn engine() -> Engine {
    let named =
        std::env::var_os("MESH_INFERENCE_ONNXRUNTIME").filter(|value| !value.is_empty()).map(PathBuf::from);
    let library =
        named.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/onnxruntime"));
    Engine::load(Some(&library)).unwrap_or_else(|error| {
        panic!(
            "these tests need ONNX Runtime: run `make runtime`, or set MESH_INFERENCE_ONNXRUNTIME ({error})"
        )
    })
}

/// Imports `folder/model.onnx` into a store of its own.
pub(crate) fn import(folder: &Path) -> Result<Imported, ImportError> {
    let place = tempfile::tempdir().unwrap();
    let store = BlobStore::open(place.path()).unwrap();
    let mut done = 0;
    let imported = import::import(&folder.join("model.onnx"), folder, &store, &engine(), &mut |progress| {
        assert!(done <= progress.done_bytes, "progress goes forward");
        done = progress.done_bytes;
    })?;
    assert_eq!(
        store.read_all(&imported.hash, import::MAX_MANIFEST_BYTES).unwrap().len() as u64,
        store.bytes(&imported.hash).unwrap()
    );
    Ok(Imported { model: imported.model, store, _folder: place })
}

/// A session of the model in `path`, with the options that stages have by default.
pub(crate) fn session(path: &Path) -> Session {
    engine().session(ModelSource::File(path), &SessionOptions::default()).unwrap_or_else(|e| panic!("{e}"))
}

/// What the model in `path` answers in one session.
pub(crate) fn run_whole(path: &Path, inputs: &Inputs) -> Vec<(String, Tensor)> {
    let mut session = session(path);
    let names: Vec<String> = session.outputs().iter().map(|port| port.name.clone()).collect();
    names.into_iter().zip(session.run(inputs).unwrap()).collect()
}

/// The largest difference of two answers, as a part of the largest magnitude of each tensor.
pub(crate) fn largest_difference(found: &[(String, Tensor)], expected: &[(String, Tensor)]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let mut worst: f64 = 0.;
    for ((name, found), (expected_name, expected)) in found.iter().zip(expected) {
        assert_eq!((name, found.shape(), found.dtype()), (expected_name, expected.shape(), expected.dtype()));
        let (found, expected) = (floats(found), floats(expected));
        let largest = expected.iter().fold(f64::MIN_POSITIVE, |most, x| most.max(x.abs()));
        for (a, b) in found.iter().zip(&expected) {
            assert!(a.is_finite() == b.is_finite());
            worst = worst.max((a - b).abs() / largest);
        }
    }
    worst
}

fn floats(tensor: &Tensor) -> Vec<f64> {
    if let Some(values) = tensor.as_slice::<f32>() {
        return values.iter().map(|&x| f64::from(x)).collect();
    }
    tensor.as_slice::<i64>().unwrap().iter().map(|&x| x as f64).collect()
}
