//! The Open Inference Protocol over gRPC, with the client of another implementation.

mod client;
mod hostile;
pub(crate) mod messages;

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use mesh_inference::tensor::DType;
use tonic::{Code, Status};

use self::{
    client::{Client, serve},
    messages::{
        Choice, InferInputTensor, InferParameter, InferRequestedOutputTensor, InferTensorContents,
        ModelInferRequest, ModelInferResponse, echo, floats, input, parameter,
    },
};
use super::Served;
use crate::api::{
    ApiOptions,
    grpc::messages::{
        ModelMetadataResponse, ModelReadyResponse, ModelRequest, ServerLiveResponse, ServerMetadataResponse,
        ServerReadyResponse, TensorHead,
    },
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until so many requests to `slow` or `forever` are open.
async fn wait_for(served: &Served, waiting: usize) {
    let deadline = Instant::now() + PATIENCE;
    while served.app.waiting.load(Ordering::Relaxed) != waiting {
        assert!(Instant::now() < deadline, "never {waiting} requests open");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn model(name: &str, version: &str) -> ModelRequest {
    ModelRequest { name: name.into(), version: version.into() }
}

fn head(name: &str, datatype: &str, shape: &[i64]) -> TensorHead {
    TensorHead { name: name.into(), datatype: datatype.into(), shape: shape.to_vec() }
}

/// A request to add two rows of three, the data in one of its two forms.
fn add(raw: bool) -> ModelInferRequest {
    let (a, b) = (vec![1.0, 2.5, 3.0, 4.0, 5.0, 6.0], vec![10.0, 20.0, 30.0, 40.0, 50.0, 0.5]);
    let typed = |name: &str, numbers: &[f32]| {
        let contents = InferTensorContents { fp32_contents: numbers.to_vec(), ..Default::default() };
        InferInputTensor { contents: (!raw).then_some(contents), ..input(name, "FP32", &[2, 3]) }
    };
    ModelInferRequest {
        model_name: "add".into(),
        id: "42".into(),
        inputs: vec![typed("a", &a), typed("b", &b)],
        raw_input_contents: if raw { vec![floats(&a), floats(&b)] } else { Vec::new() },
        ..ModelInferRequest::default()
    }
}

#[track_caller]
fn assert_is(answer: Result<ModelInferResponse, Status>, code: Code, says: &str) {
    let status = answer.expect_err(says);
    assert!(status.code() == code && status.message().contains(says), "{status:?} should say {says:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_metadata() {
    let served = serve(ApiOptions::default());
    let client = Client::connect(&served).await;
    let live: ServerLiveResponse = client.call("ServerLive", ()).await.unwrap();
    let ready: ServerReadyResponse = client.call("ServerReady", ()).await.unwrap();
    assert!(live.live && ready.ready);
    served.app.ready.store(false, Ordering::Relaxed);
    let ready: ServerReadyResponse = client.call("ServerReady", ()).await.unwrap();
    assert!(!ready.ready);
    let server: ServerMetadataResponse = client.call("ServerMetadata", ()).await.unwrap();
    assert_eq!((server.name.as_str(), server.version.as_str()), ("mesh", env!("CARGO_PKG_VERSION")));
    for version in ["", "1"] {
        let found: ModelMetadataResponse = client.call("ModelMetadata", model("add", version)).await.unwrap();
        let inputs = vec![head("a", "FP32", &[-1, 3]), head("b", "FP32", &[-1, 3])];
        assert_eq!((found.name.as_str(), found.platform.as_str()), ("add", "onnxruntime_onnx"));
        assert_eq!((found.versions, found.inputs), (vec!["1".to_owned()], inputs));
        assert_eq!(found.outputs, [head("sum", "FP32", &[-1, 3])]);
        let ready: ModelReadyResponse = client.call("ModelReady", model("add", version)).await.unwrap();
        assert!(ready.ready);
    }
    let busy: ModelReadyResponse = client.call("ModelReady", model("busy", "")).await.unwrap();
    assert!(!busy.ready);
    for (method, name, version, says) in [
        ("ModelMetadata", "add", "2", "only version 1"),
        ("ModelReady", "add", "2", "only version 1"),
        ("ModelMetadata", "nope", "", "nope"),
        ("ModelReady", "nope", "", "nope"),
    ] {
        let status = client.call::<_, ()>(method, model(name, version)).await.unwrap_err();
        assert!(status.code() == Code::NotFound && status.message().contains(says), "{status:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_forms_of_data() {
    let served = serve(ApiOptions::default());
    let client = Client::connect(&served).await;
    for raw in [true, false] {
        let answer = client.infer(add(raw)).await.unwrap();
        assert_eq!((answer.model_name.as_str(), answer.model_version.as_str()), ("add", "1"));
        assert_eq!(answer.id, "42");
        assert_eq!(answer.outputs, [head("sum", "FP32", &[2, 3])]);
        assert_eq!(answer.raw_output_contents, [floats(&[11.0, 22.5, 33.0, 44.0, 55.0, 6.5])]);
        for (name, number) in [("epoch", 7), ("retries", 1)] {
            let wanted = InferParameter { choice: Some(Choice::Int64(number)) };
            assert_eq!(answer.parameters[name], wanted, "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_messages_in_both_forms() {
    let served = serve(ApiOptions::default());
    let client = Client::connect(&served).await;
    // Several megabytes: more than the windows of HTTP/2, and read on another thread.
    let numbers: Vec<f32> = (0..1_000_000u32).map(|i| i as f32).collect();
    let raw = echo("FP32", numbers.len(), &floats(&numbers));
    let mut typed = raw.clone();
    typed.raw_input_contents.clear();
    let contents = InferTensorContents { fp32_contents: numbers.clone(), ..Default::default() };
    typed.inputs[0].contents = Some(contents);
    for request in [raw, typed] {
        let answer = client.infer(request).await.unwrap();
        assert_eq!(answer.outputs, [head("x", "FP32", &[1_000_000])]);
        assert!(answer.raw_output_contents == [floats(&numbers)]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_type_comes_back() {
    let served = serve(ApiOptions::default());
    let client = Client::connect(&served).await;
    for dtype in DType::ALL {
        let name = dtype.oip_name();
        let bytes: Vec<u8> = (0..3 * dtype.size()).map(|i| u8::try_from(i % 2).unwrap()).collect();
        let answer = client.infer(echo(name, 3, &bytes)).await.unwrap();
        assert_eq!(answer.outputs, [head("x", name, &[3])]);
        assert_eq!(answer.raw_output_contents, [bytes], "{name}");
        assert_eq!(client.infer(echo(name, 0, &[])).await.unwrap().raw_output_contents, [vec![0u8; 0]]);
    }
    macro_rules! typed {
        ($dtype:literal, $list:ident, $t:ty, $values:expr) => {
            let values: Vec<$t> = $values;
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let mut request = echo($dtype, values.len(), &[]);
            request.raw_input_contents.clear();
            let list = values.iter().map(|value| (*value).into()).collect();
            request.inputs[0].contents = Some(InferTensorContents { $list: list, ..Default::default() });
            let answer = client.infer(request).await.unwrap();
            assert_eq!(answer.raw_output_contents, [bytes], $dtype);
        };
    }
    typed!("UINT8", uint_contents, u8, vec![0, 255]);
    typed!("UINT16", uint_contents, u16, vec![0, u16::MAX]);
    typed!("UINT32", uint_contents, u32, vec![0, u32::MAX]);
    typed!("UINT64", uint64_contents, u64, vec![0, u64::MAX]);
    typed!("INT8", int_contents, i8, vec![-128, 0, 127]);
    typed!("INT16", int_contents, i16, vec![i16::MIN, -1, i16::MAX]);
    typed!("INT32", int_contents, i32, vec![i32::MIN, -1, i32::MAX]);
    typed!("INT64", int64_contents, i64, vec![i64::MIN, -1, i64::MAX]);
    typed!("FP32", fp32_contents, f32, vec![0.1, f32::MAX, f32::NEG_INFINITY, f32::NAN]);
    typed!("FP64", fp64_contents, f64, vec![0.1, f64::MAX, f64::NAN]);
    let mut bools = echo("BOOL", 3, &[]);
    bools.raw_input_contents.clear();
    let list = vec![true, false, true];
    bools.inputs[0].contents = Some(InferTensorContents { bool_contents: list, ..Default::default() });
    assert_eq!(client.infer(bools).await.unwrap().raw_output_contents, [vec![1u8, 0, 1]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wanted_outputs() {
    let served = serve(ApiOptions::default());
    let client = Client::connect(&served).await;
    let output = |name: &str, parameters| InferRequestedOutputTensor { name: name.into(), parameters };
    let plain = |name: &str| output(name, Default::default());
    let asking = |outputs: Vec<_>| client.infer(ModelInferRequest { outputs, ..add(true) });
    assert_eq!(asking(vec![plain("sum")]).await.unwrap().outputs.len(), 1);
    let no_classes = parameter("classification", Choice::Int64(0));
    assert_eq!(asking(vec![output("sum", no_classes)]).await.unwrap().outputs.len(), 1);
    assert_is(asking(vec![plain("nope")]).await, Code::InvalidArgument, "\"sum\"");
    assert_is(asking(vec![plain("sum"), plain("sum")]).await, Code::InvalidArgument, "twice");
    for (name, choice) in
        [("classification", Choice::Int64(3)), ("shared_memory_region", Choice::Text("r".into()))]
    {
        let asked = vec![output("sum", parameter(name, choice))];
        assert_is(asking(asked).await, Code::InvalidArgument, "not supported");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_mesh_says_becomes_the_status() {
    let served = serve(ApiOptions::default());
    let client = Client::connect(&served).await;
    let ask = |name: &str| ModelInferRequest { model_name: name.into(), ..Default::default() };
    let busy = client.infer(ask("busy")).await.unwrap_err();
    assert_eq!((busy.code(), busy.message()), (Code::Unavailable, "the ingress is full"));
    assert_eq!(busy.metadata().get("retry-after").unwrap(), "3");
    for timeout in [Choice::Int64(1000), Choice::Text("1000".into()), Choice::Uint64(1000)] {
        let begun = Instant::now();
        let slow = ModelInferRequest { parameters: parameter("timeout", timeout), ..ask("slow") };
        assert_is(client.infer(slow).await, Code::DeadlineExceeded, "no answer in time");
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
    assert_is(client.infer(ask("nope")).await, Code::NotFound, "nope");
    assert_is(client.infer(ask("")).await, Code::NotFound, "no deployment");
    let version = ModelInferRequest { model_version: "2".into(), ..add(true) };
    assert_is(client.infer(version).await, Code::NotFound, "only version 1");
    let version = ModelInferRequest { model_version: "1".into(), ..add(true) };
    client.infer(version).await.unwrap();
    assert_is(client.infer(ask("late")).await, Code::Internal, "the stage is gone");
    // A defect answers, and the daemon goes on.
    assert_is(client.infer(ask("broken")).await, Code::Internal, "defect");
    for method in ["ModelStreamInfer", "RepositoryIndex", ""] {
        let status = client.call::<_, ()>(method, ()).await.unwrap_err();
        assert!(status.code() == Code::Unimplemented && status.message().contains(method), "{status:?}");
    }
    client.infer(add(true)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens() {
    let served = serve(ApiOptions { token: Some("secret".into()), ..ApiOptions::default() });
    let mut client = Client::connect(&served).await;
    let wrong = ["Bearer", "Bearer ", "Bearer secre", "Bearer secrets", "Basic secret", "secret"];
    for authorization in [None].into_iter().chain(wrong.map(Some)) {
        client.authorization = authorization;
        let _: ServerLiveResponse = client.call("ServerLive", ()).await.unwrap();
        let _: ServerReadyResponse = client.call("ServerReady", ()).await.unwrap();
        for method in ["ServerMetadata", "ModelMetadata", "ModelReady", "Nothing"] {
            let status = client.call::<_, ()>(method, model("add", "")).await.unwrap_err();
            assert_eq!(status.code(), Code::Unauthenticated, "{method} {authorization:?}");
        }
        assert_is(client.infer(add(true)).await, Code::Unauthenticated, "authorization: Bearer");
    }
    for right in ["Bearer secret", "bearer secret"] {
        client.authorization = Some(right);
        client.infer(add(true)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_waits_for_open_calls() {
    let mut served = serve(ApiOptions::default());
    let client = Client::connect(&served).await;
    let mut slow = ModelInferRequest { model_name: "slow".into(), ..Default::default() };
    slow.parameters = parameter("timeout", Choice::Int64(2_000_000));
    let asking = tokio::spawn(async move { client.infer(slow).await });
    wait_for(&served, 1).await;
    served.stop();
    assert_is(asking.await.unwrap(), Code::DeadlineExceeded, "no answer in time");
    let address = served.grpc.unwrap();
    drop(served);
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}
