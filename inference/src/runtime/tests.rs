use std::path::{Path, PathBuf};

use super::*;
use crate::profile::GraphBuilder;
use crate::tensor::{DType, Tensor};

/// The engine for this crate's tests; fails with what to do when there is no library.
pub(crate) fn engine() -> Engine {
    let named =
        std::env::var_os("MESH_INFERENCE_ONNXRUNTIME").filter(|value| !value.is_empty()).map(PathBuf::from);
    let library =
        named.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/onnxruntime"));
    match Engine::load(Some(&library)) {
        Ok(engine) => engine,
        Err(error) => panic!(
            "these tests need ONNX Runtime: run `make runtime`, or set MESH_INFERENCE_ONNXRUNTIME ({error})"
        ),
    }
}

pub(crate) fn session(model: &[u8]) -> Session {
    engine().session(ModelSource::Bytes(model), &SessionOptions::default()).unwrap()
}

fn doubling() -> Vec<u8> {
    GraphBuilder::new()
        .input("x", DType::Fp32, &[-1, 3])
        .node("Add", &["x", "x"], &["y"])
        .output("y", DType::Fp32, &[-1, 3])
        .model()
}

#[test]
fn the_library_tells_its_version() {
    let engine = engine();
    let parts: Vec<u32> = engine.version().split('.').map(|part| part.parse().unwrap()).collect();
    assert!(parts[0] == 1 && parts[1] >= OLDEST_MINOR, "{}", engine.version());
    assert!(engine.library().is_file());
    assert!(Engine::load(None).is_ok(), "a second call gets the same");
    let other = Engine::load(Some(Path::new("/nonexistent/libonnxruntime.so")));
    assert!(matches!(other, Err(EngineError::AnotherIsLoaded { .. })), "{other:?}");
}

#[test]
fn ports_show_types_and_extents() {
    let session = session(&doubling());
    let expected = |name: &str| Port {
        name: name.to_owned(),
        dtype: Some(DType::Fp32),
        dims: vec![Dim::Dynamic("n".to_owned()), Dim::Fixed(3)],
    };
    assert_eq!(session.inputs(), [expected("x")]);
    assert_eq!(session.outputs(), [expected("y")]);
}

#[test]
fn a_run_gives_the_sum() {
    let mut session = session(&doubling());
    let x = Tensor::from_slice(&[2, 3], &[1_f32, 2., 3., 4., 5., 6.]).unwrap();
    let outputs = session.run(&[("x", x)]).unwrap();
    assert_eq!(outputs[0].shape(), [2, 3]);
    assert_eq!(outputs[0].as_slice::<f32>(), Some(&[2_f32, 4., 6., 8., 10., 12.][..]));
}

#[test]
fn outputs_outlive_the_session_and_feed_the_next() {
    let x = Tensor::from_slice(&[1, 3], &[1_f32, 2., 3.]).unwrap();
    let once = session(&doubling()).run(&[("x", x)]).unwrap().remove(0);
    let twice = session(&doubling()).run(&[("x", once.clone())]).unwrap().remove(0);
    assert_eq!(once.as_slice::<f32>(), Some(&[2_f32, 4., 6.][..]));
    assert_eq!(twice.as_slice::<f32>(), Some(&[4_f32, 8., 12.][..]));
}

#[test]
fn wrong_inputs_are_named() {
    let mut session = session(&doubling());
    let good = Tensor::from_slice(&[1, 3], &[1_f32, 2., 3.]).unwrap();
    let wide = Tensor::from_slice(&[1, 4], &[1_f32; 4]).unwrap();
    let flat = Tensor::from_slice(&[3], &[1_f32; 3]).unwrap();
    let int = Tensor::from_slice(&[1, 3], &[1_i64; 3]).unwrap();
    let none: [(&str, Tensor); 0] = [];
    assert!(matches!(session.run(&none), Err(RunError::MissingInput { name, .. }) if name == "x"));
    let two = [("x", good.clone()), ("z", good.clone())];
    assert!(matches!(session.run(&two), Err(RunError::UnknownInput { name, .. }) if name == "z"));
    let twice = [("x", good.clone()), ("x", good.clone())];
    assert!(matches!(session.run(&twice), Err(RunError::UnknownInput { name, .. }) if name == "x"));
    for wrong in [wide, flat] {
        assert!(
            matches!(session.run(&[("x", wrong)]), Err(RunError::WrongShape { expected, .. }) if expected == "[n, 3]")
        );
    }
    let error = session.run(&[("x", int)]).unwrap_err();
    assert!(matches!(error, RunError::WrongType { expected: DType::Fp32, got: DType::Int64, .. }));
    assert_eq!(error.to_string(), "the input \"x\" must be FP32, not INT64");
    assert!(session.run(&[("x", good)]).is_ok(), "and the session still works");
}

#[test]
fn a_failing_run_is_an_error() {
    let model = GraphBuilder::new()
        .input("x", DType::Fp32, &[-1])
        .weight("shape", DType::Int64, &[2], [2_i64, 3].iter().flat_map(|n| n.to_le_bytes()).collect())
        .node("Reshape", &["x", "shape"], &["y"])
        .output("y", DType::Fp32, &[2, 3])
        .model();
    let mut session = session(&model);
    let error = session.run(&[("x", Tensor::from_slice(&[5], &[0_f32; 5]).unwrap())]).unwrap_err();
    assert!(matches!(error, RunError::Failed { .. }), "{error}");
    assert!(session.run(&[("x", Tensor::from_slice(&[6], &[0_f32; 6]).unwrap())]).is_ok());
}

/// An input that is an output as well comes back in the caller's own memory: it must stay valid when all else is gone.
#[test]
fn inputs_handed_through_stay_valid() {
    for optimisation in [Optimisation::Off, Optimisation::Basic, Optimisation::Full] {
        let model = GraphBuilder::new()
            .input("x", DType::Fp32, &[-1])
            .node("Identity", &["x"], &["same"])
            .node("Neg", &["x"], &["negative"])
            .output("x", DType::Fp32, &[-1])
            .output("same", DType::Fp32, &[-1])
            .output("negative", DType::Fp32, &[-1])
            .model();
        let options = SessionOptions { optimisation, ..SessionOptions::default() };
        let mut session = engine().session(ModelSource::Bytes(&model), &options).unwrap();
        let values: Vec<f32> = (0..60_000_u16).map(f32::from).collect();
        let x = Tensor::from_slice(&[values.len() as i64], &values).unwrap();
        // Once over our own memory, once over ONNX Runtime's.
        for _ in 0..2 {
            let outputs = session.run(&[("x", x.clone())]).unwrap();
            let back = session.run(&[("x", outputs[2].clone())]).unwrap();
            drop(outputs[2].clone());
            let (through, same) = (back[0].clone(), back[1].clone());
            drop((outputs, back));
            let noise: Vec<Vec<f32>> = (0..8).map(|n| vec![n as f32; values.len()]).collect();
            let negative: Vec<f32> = values.iter().map(|value| -value).collect();
            assert_eq!(through.as_slice::<f32>(), Some(&negative[..]));
            assert_eq!(same.as_slice::<f32>(), Some(&negative[..]));
            drop(noise);
        }
    }
}

#[test]
fn every_element_type_scalars_and_empty_tensors_pass() {
    for dtype in DType::ALL {
        let model = GraphBuilder::new()
            .input("x", dtype, &[-1, 2])
            .input("s", dtype, &[])
            .node("Identity", &["x"], &["y"])
            .node("Identity", &["s"], &["t"])
            .output("y", dtype, &[-1, 2])
            .output("t", dtype, &[])
            .model();
        let mut session = session(&model);
        for rows in [0, 3] {
            let bytes: Vec<u8> = (0..rows * 2 * dtype.size()).map(|i| (i % 2) as u8).collect();
            let x = Tensor::from_bytes(dtype, &[rows as i64, 2], &bytes).unwrap();
            let scalar = Tensor::from_bytes(dtype, &[], &vec![1; dtype.size()]).unwrap();
            let outputs = session.run(&[("x", x), ("s", scalar)]).unwrap();
            assert_eq!((outputs[0].dtype(), outputs[0].shape()), (dtype, &[rows as i64, 2][..]));
            assert_eq!(outputs[0].bytes(), &bytes[..], "{dtype}");
            assert_eq!((outputs[1].shape(), outputs[1].bytes()), (&[][..], &vec![1; dtype.size()][..]));
        }
    }
}

#[test]
fn bad_models_are_refused_by_kind() {
    let load =
        |bytes: &[u8]| engine().session(ModelSource::Bytes(bytes), &SessionOptions::default()).unwrap_err();
    for bytes in [&b""[..], b"not a model", &doubling()[..40]] {
        assert!(matches!(load(bytes), EngineError::Model { .. }));
    }
    for (operator, named) in
        [("Frobnicate", "Frobnicate"), ("com.example:Frobnicate", "com.example:Frobnicate")]
    {
        let model = GraphBuilder::new()
            .input("x", DType::Fp32, &[1])
            .node(operator, &["x"], &["y"])
            .output("y", DType::Fp32, &[1])
            .model();
        let error = load(&model);
        assert!(
            matches!(&error, EngineError::UnsupportedOperator { operator, .. } if operator == named),
            "{error}"
        );
    }
    let nowhere =
        engine().session(ModelSource::File(Path::new("/nonexistent.onnx")), &SessionOptions::default());
    assert!(matches!(nowhere, Err(EngineError::Model { .. })));
}

#[test]
fn providers_that_are_not_there_are_errors() {
    for name in ["qnn", "warp-drive"] {
        let options = SessionOptions {
            providers: vec![name.to_owned(), "cpu".to_owned()],
            ..SessionOptions::default()
        };
        let error = engine().session(ModelSource::Bytes(&doubling()), &options).unwrap_err();
        assert!(
            matches!(&error, EngineError::Provider { available, .. } if available.contains(&"cpu".to_owned())),
            "{error}"
        );
    }
}

/// Seconds of work in many nodes, so that there is an operator to stop at.
pub(crate) fn long_work() -> (Vec<u8>, Tensor) {
    let mut graph =
        GraphBuilder::new().input("x", DType::Fp32, &[512, 512]).random_weight("w", &[512, 512], 512);
    let mut last = "x".to_owned();
    for index in 0..400 {
        let next = format!("v{index}");
        graph = graph.node("MatMul", &[&last, "w"], &[&next]);
        last = next;
    }
    let model = graph.output(&last, DType::Fp32, &[512, 512]).model();
    (model, Tensor::from_slice(&[512, 512], &vec![0.1_f32; 512 * 512]).unwrap())
}

#[test]
fn a_run_is_cancelled_from_another_thread() {
    let (model, x) = long_work();
    let mut session = session(&model);
    let token = engine().cancel_token().unwrap();
    let (started, wait) = std::sync::mpsc::sync_channel(1);
    let canceller = std::thread::Builder::new().spawn({
        let token = token.clone();
        move || {
            wait.recv().unwrap();
            token.cancel();
        }
    });
    started.send(()).unwrap();
    let inputs = [("x", x)];
    assert!(matches!(session.run_cancellable(&inputs, &token), Err(RunError::Cancelled)));
    canceller.unwrap().join().unwrap();
    assert!(
        matches!(session.run_cancellable(&inputs, &token), Err(RunError::Cancelled)),
        "a used token stays so"
    );
}
