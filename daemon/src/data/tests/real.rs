//! The digits model in three stages of ONNX Runtime on four devices.

use std::path::{Path, PathBuf};

use mesh_inference::{
    blobs::BlobStore,
    import,
    model::Model,
    runtime::{Engine, ModelSource, SessionOptions},
    stage::StageRunner,
};

use super::*;

const IMAGES: usize = 120;

fn engine() -> Engine {
    let named = std::env::var_os("MESH_INFERENCE_ONNXRUNTIME").filter(|value| !value.is_empty());
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/onnxruntime");
    let library = named.map_or_else(beside, PathBuf::from);
    Engine::load(Some(&library)).unwrap_or_else(|error| {
        panic!(
            "this test needs ONNX Runtime: run `make runtime`, or set MESH_INFERENCE_ONNXRUNTIME ({error})"
        )
    })
}

/// The stage of blocks `first..=last`, with what the data plane needs of it.
fn stage(model: &Model, store: &BlobStore, first: usize, last: usize) -> HostedStage {
    let stage = model.stage(first, last).unwrap();
    let path = store.stage_path(&format!("{first}-{last}-{}", PeerId::random()));
    std::fs::File::create(&path).and_then(|mut file| io::Write::write_all(&mut file, &stage.onnx)).unwrap();
    let session = engine().session(ModelSource::File(&path), &SessionOptions::default()).unwrap();
    let names = |values: &[mesh_inference::model::ValueType]| values.iter().map(|v| v.name.clone()).collect();
    let runner =
        StageRunner::spawn("digits", session, names(&stage.inputs), names(&stage.outputs), 4).unwrap();
    HostedStage { runner, passthrough: stage.passthrough.clone() }
}

/// Images and the whole model's logits for them.
fn digits(folder: &Path) -> (Vec<f32>, Vec<f32>) {
    let mut archive = npyz::npz::NpzArchive::open(folder.join("test.npz")).unwrap();
    let images: Vec<u8> = archive.by_name("images").unwrap().unwrap().into_vec().unwrap();
    let logits: Vec<f32> = archive.by_name("logits").unwrap().unwrap().into_vec().unwrap();
    (images.iter().map(|&pixel| f32::from(pixel) / 16.0).collect(), logits)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_digits_model_in_three_stages_survives_a_lost_replica() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/digits");
    let place = tempfile::tempdir().unwrap();
    let store = BlobStore::open(place.path()).unwrap();
    let model =
        import::import(&folder.join("model.onnx"), &folder, &store, &engine(), &mut |_| {}).unwrap().model;
    let blocks = model.blocks().len();
    let starts = [0, blocks / 3, 2 * blocks / 3, blocks];

    let (rack, peers, planes) = Rack::new(4);
    let placement = [vec![0, 1], vec![2, 3], vec![1, 3]];
    for (index, devices) in placement.iter().enumerate() {
        for device in devices {
            let hosted = stage(&model, &store, starts[index], starts[index + 1] - 1);
            planes[*device].host(key(1, index), hosted);
        }
    }
    let names = |values: &[mesh_inference::model::ValueType]| -> Vec<String> {
        values.iter().map(|v| v.name.clone()).collect()
    };
    let stages = placement.iter().enumerate().map(|(index, devices)| RouteStage {
        replicas: devices.iter().map(|d| (peers[*d], 0.5)).collect(),
        inputs: model.cuts()[starts[index]].tensors.clone(),
        ..RouteStage::default()
    });
    let route = Route {
        deployment: "m".into(),
        epoch: 1,
        inputs: names(&model.inputs),
        outputs: names(&model.outputs),
        stages: stages.collect(),
        latency: Duration::ZERO,
        in_flight: 0,
    };
    planes[0].set_routes(BTreeMap::from([("m".to_owned(), Arc::new(route))]));

    let (pixels, logits) = digits(&folder);
    for (index, (image, expected)) in pixels.chunks(64).zip(logits.chunks(10)).take(IMAGES).enumerate() {
        if index == IMAGES / 2 {
            rack.kill(peers[3]);
        }
        let image = Tensor::from_slice(&[1, 1, 8, 8], image).unwrap();
        let inputs = vec![(model.inputs[0].name.clone(), image)];
        let request = InferRequest {
            model: "m".into(),
            inputs,
            outputs: Vec::new(),
            timeout: LONG,
            from_elsewhere: false,
        };
        let response = planes[0].infer(request).await.unwrap();
        let got = response.outputs[0].1.as_slice::<f32>().unwrap();
        let scale = expected.iter().fold(0f32, |max, x| max.max(x.abs()));
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() <= 1e-5 * scale, "image {index}: {got} instead of {expected}");
        }
    }

    let wrong = Tensor::from_slice(&[1, 1, 8, 9], &[0f32; 72]).unwrap();
    let inputs = vec![(model.inputs[0].name.clone(), wrong)];
    let request =
        InferRequest { model: "m".into(), inputs, outputs: Vec::new(), timeout: LONG, from_elsewhere: false };
    let error = planes[0].infer(request).await.unwrap_err();
    assert!(matches!(&error, AppError::Invalid(m) if m.contains('9')), "{error:?}");
}
