//! Calls that are wrong, by mistake or on purpose: each gets a clear answer, and the daemon goes on.

use std::{
    collections::BTreeMap,
    io::Write,
    time::{Duration, Instant},
};

use axum::{body::Body, http::StatusCode};
use bytes::Bytes;
use flate2::Compression;
use futures::StreamExt;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use super::{
    PATIENCE, add, assert_is,
    client::{Client, Raw, framed, serve},
    messages::{
        Choice, InferInputTensor, InferTensorContents, ModelInferRequest, ModelInferResponse, echo, floats,
        input, parameter,
    },
    wait_for,
};
use crate::api::ApiOptions;

fn forever() -> ModelInferRequest {
    ModelInferRequest { model_name: "forever".into(), ..Default::default() }
}

/// Numbers of a byte each that take eight as a tensor.
fn ones(count: usize) -> ModelInferRequest {
    let mut request = echo("INT64", count, &[]);
    request.raw_input_contents.clear();
    let contents = InferTensorContents { int64_contents: vec![1; count], ..Default::default() };
    request.inputs[0].contents = Some(contents);
    request
}

/// A body that begins so and never ends.
fn unfinished(begin: Vec<u8>) -> Body {
    let begin = futures::stream::once(async { Ok::<_, std::convert::Infallible>(Bytes::from(begin)) });
    Body::from_stream(begin.chain(futures::stream::pending()))
}

/// Inputs, their data, and what the answer says.
type Case = (Vec<InferInputTensor>, Vec<Vec<u8>>, &'static str);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_inputs_are_named() {
    let served = serve(ApiOptions::default());
    let client = Client::connect(&served).await;
    let row = || floats(&[1.0, 2.0, 3.0]);
    let good = |name: &str| input(name, "FP32", &[1, 3]);
    let x = |datatype: &str, shape: &[i64]| vec![good("b"), input("a", datatype, shape)];
    let mut shared = vec![good("a"), good("b")];
    shared[0].parameters = parameter("shared_memory_region", Choice::Text("r".into()));
    let cases: Vec<Case> = vec![
        (vec![good("a")], vec![row()], "also wants \"b\""),
        (vec![], vec![], "also wants \"a\" (FP32 [-1, 3]), \"b\""),
        (vec![good("a"), good("b"), good("c")], vec![row(); 3], "no input \"c\""),
        (vec![good("a"), good("a"), good("b")], vec![row(); 3], "given twice"),
        (x("INT64", &[1, 3]), vec![row(); 2], "datatype is INT64, the model wants FP32"),
        (x("BYTES", &[1, 3]), vec![row(); 2], "\"BYTES\" is not supported"),
        (x("FP32", &[3]), vec![row(); 2], "shape is [3], the model wants [-1, 3]"),
        (x("FP32", &[-1, 3]), vec![row(); 2], "shape is [-1, 3]"),
        (x("FP32", &[i64::MAX, 3]), vec![row(); 2], "larger than the limit"),
        (x("FP32", &[2, 3]), vec![row(); 2], "has 12 bytes, but FP32 [2, 3] takes 24"),
        (x("FP32", &[1, 3]), vec![row()], "1 entries for 2 inputs"),
        (x("FP32", &[1, 3]), vec![row(); 3], "3 entries for 2 inputs"),
        (x("FP32", &[1, 3]), vec![], "has neither contents nor raw_input_contents"),
        (shared, vec![row(); 2], "shared memory is not supported"),
    ];
    for (inputs, raw_input_contents, says) in cases {
        let request = ModelInferRequest { inputs, raw_input_contents, ..add(true) };
        assert_is(client.infer(request).await, Code::InvalidArgument, says);
    }
    let mixed = ModelInferRequest { raw_input_contents: vec![row(); 2], ..add(false) };
    assert_is(client.infer(mixed).await, Code::InvalidArgument, "has both contents and raw_input_contents");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_contents_are_named() {
    let served = serve(ApiOptions::default());
    let client = Client::connect(&served).await;
    let none = InferTensorContents::default;
    let fp32 = |n: usize| InferTensorContents { fp32_contents: vec![1.0; n], ..none() };
    let int = |value| InferTensorContents { int_contents: vec![value], ..none() };
    let uint = |value| InferTensorContents { uint_contents: vec![value], ..none() };
    let bytes = InferTensorContents { bytes_contents: vec![b"a".to_vec()], ..none() };
    for (datatype, elements, contents, says) in [
        ("FP32", 3, fp32(2), "2 elements where the shape wants 3"),
        ("FP32", 3, fp32(4), "more elements than the 3"),
        ("FP32", 1000, fp32(1), "fewer than the 1000 elements"),
        ("FP32", 1, int(1), "int_contents is not where FP32 goes: use fp32_contents"),
        ("FP32", 1, bytes, "bytes_contents is not where FP32 goes"),
        ("INT64", 1, int(1), "use int64_contents"),
        ("UINT8", 1, int(1), "use uint_contents"),
        ("UINT8", 1, uint(256), "256 does not fit u8"),
        ("INT8", 1, int(128), "128 does not fit i8"),
        ("INT16", 1, int(-32_769), "does not fit i16"),
        ("FP16", 1, fp32(1), "16-bit floats have no typed contents"),
        ("BF16", 1, fp32(1), "send raw_input_contents"),
    ] {
        let mut request = echo(datatype, elements, &[]);
        request.raw_input_contents.clear();
        request.inputs[0].contents = Some(contents);
        assert_is(client.infer(request).await, Code::InvalidArgument, says);
    }
    assert_is(client.infer(echo("BOOL", 2, &[1, 2])).await, Code::InvalidArgument, "neither 0 nor 1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_are_capped_and_timeouts_checked() {
    let served = serve(ApiOptions::default());
    let client = Client::connect(&served).await;
    let inputs = |count| ModelInferRequest { inputs: vec![input("x", "FP32", &[1]); count], ..forever() };
    assert_is(client.infer(inputs(1025)).await, Code::InvalidArgument, "more than 1024 inputs");
    let raw = ModelInferRequest { raw_input_contents: vec![Vec::new(); 1025], ..forever() };
    assert_is(client.infer(raw).await, Code::InvalidArgument, "more than 1024 raw_input_contents");
    let rank = ModelInferRequest { inputs: vec![input("x", "FP32", &[1; 100])], ..forever() };
    assert_is(client.infer(rank).await, Code::InvalidArgument, "more than 32 dimensions");
    for timeout in [
        Choice::Int64(-1),
        Choice::Int64(i64::MAX),
        Choice::Int64(601_000_000),
        Choice::Text("soon".into()),
        Choice::Text("-1".into()),
        Choice::Bool(true),
        Choice::Double(1.0),
    ] {
        let request = ModelInferRequest { parameters: parameter("timeout", timeout), ..forever() };
        assert_is(client.infer(request).await, Code::InvalidArgument, "parameters.timeout");
    }
    // 0 is none, and what nobody knows here is left alone.
    let mut parameters: BTreeMap<_, _> = parameter("timeout", Choice::Int64(0));
    parameters.extend(parameter("priority", Choice::Bool(true)));
    let request = ModelInferRequest { parameters, model_name: "busy".into(), ..Default::default() };
    assert_is(client.infer(request).await, Code::Unavailable, "full");
    // What a client sent does not come back at any length.
    let long = ModelInferRequest { model_name: "é".repeat(100_000), ..Default::default() };
    assert_is(client.infer(long).await, Code::NotFound, "no deployment é");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_earlier_deadline_counts() {
    let served = serve(ApiOptions::default());
    let mut raw = Raw::connect(&served).await;
    let ask = |timeout| {
        let parameters = parameter("timeout", Choice::Int64(timeout));
        let request = ModelInferRequest { model_name: "slow".into(), parameters, ..Default::default() };
        framed(&request.encode_to_vec())
    };
    for (header, parameter) in [("100m", 600_000_000), ("1H", 1000), ("100000u", 0)] {
        let begun = Instant::now();
        let reply = raw.infer(&[("grpc-timeout", header)], ask(parameter)).await;
        assert!(reply.code() == 4 && begun.elapsed() < Duration::from_secs(20), "{reply:?}");
    }
    let reply = raw.infer(&[("grpc-timeout", "0m")], ask(0)).await;
    assert!(reply.code() == 4 && reply.message().contains("passed"), "{reply:?}");
    let reply = raw.infer(&[("grpc-timeout", "soon")], ask(0)).await;
    assert!(reply.code() == 3 && reply.message().contains("grpc-timeout"), "{reply:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_over_the_limit() {
    let served = serve(ApiOptions { body_max: 64 << 10, ..ApiOptions::default() });
    let client = Client::connect(&served).await;
    let large = echo("FP32", 20_000, &[0; 80_000]);
    assert_is(client.infer(large.clone()).await, Code::ResourceExhausted, "limit");
    let mut raw = Raw::connect(&served).await;
    // Announced only: nothing more is waited for.
    let reply = raw.send("ModelInfer", &[], unfinished(vec![0, 255, 255, 255, 255])).await;
    assert_eq!(reply.code(), 8, "{reply:?}");
    let reply = raw.send("ModelReady", &[], unfinished(vec![0, 0, 32, 0, 0])).await;
    assert_eq!(reply.code(), 8, "{reply:?}");
    // A bomb.
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), Compression::best());
    bomb.write_all(&large.encode_to_vec()).unwrap();
    let mut bomb = framed(&bomb.finish().unwrap());
    bomb[0] = 1;
    assert!(bomb.len() < 64 << 10);
    let reply = raw.infer(&[("grpc-encoding", "gzip")], bomb).await;
    assert_eq!(reply.code(), 8, "{reply:?}");
    client.infer(add(true)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_bodies_together_are_bounded() {
    let served = serve(ApiOptions { body_max: 64 << 10, ..ApiOptions::default() });
    let mut raw = Raw::connect(&served).await;
    // Two calls announce as much as there is room for, and wait.
    let mut breakers = Vec::new();
    for _ in 0..2 {
        let mut waiting = Raw::connect(&served).await;
        breakers.push(waiting.breaker());
        // Refused where a call of below has room just then.
        tokio::spawn(async move {
            while waiting.send("ModelInfer", &[], unfinished(vec![0, 0, 1, 0, 0])).await.code() == 14 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }
    let (deadline, body) = (Instant::now() + PATIENCE, framed(&[0; 8 << 10]));
    let refused = loop {
        let reply = raw.infer(&[], body.clone()).await;
        if reply.code() == 14 {
            break reply;
        }
        assert!(Instant::now() < deadline, "never refused: {reply:?}");
    };
    assert_eq!(refused.headers["retry-after"], "1");
    for breaks in breakers {
        breaks();
    }
    while raw.infer(&[], body.clone()).await.code() == 14 {
        assert!(Instant::now() < deadline, "the room did not come back");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inputs_in_memory_are_bounded_too() {
    let served = serve(ApiOptions { inputs_max: 64 << 10, ..ApiOptions::default() });
    let client = Client::connect(&served).await;
    client.infer(ones(8 << 10)).await.unwrap();
    let both = |rows: i64| {
        let row = floats(&vec![1.0; usize::try_from(rows).unwrap() * 3]);
        let inputs = vec![input("a", "FP32", &[rows, 3]), input("b", "FP32", &[rows, 3])];
        ModelInferRequest { inputs, raw_input_contents: vec![row; 2], ..add(true) }
    };
    client.infer(both(2000)).await.unwrap();
    for large in [ones((8 << 10) + 1), both(3000)] {
        assert_is(client.infer(large).await, Code::ResourceExhausted, "64.0 KiB");
    }
    // With their message they take room that others leave.
    let served = serve(ApiOptions { body_max: 64 << 10, ..ApiOptions::default() });
    let client = Client::connect(&served).await;
    assert_is(client.infer(ones(16 << 10)).await, Code::ResourceExhausted, "128.0 KiB");
    let mut waiting = Raw::connect(&served).await;
    let breaks = waiting.breaker();
    // Refused where a call of below has room just then.
    tokio::spawn(async move {
        while waiting.send("ModelInfer", &[], unfinished(vec![0, 0, 1, 0, 0])).await.code() == 14 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let deadline = Instant::now() + PATIENCE;
    let code = async || client.infer(ones(8 << 10)).await.map_or_else(|status| status.code(), |_| Code::Ok);
    while code().await != Code::Unavailable {
        assert!(Instant::now() < deadline, "never refused");
    }
    breaks();
    while code().await != Code::Ok {
        assert!(Instant::now() < deadline, "the room did not come back");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compressed_messages() {
    let served = serve(ApiOptions::default());
    let mut raw = Raw::connect(&served).await;
    let message = add(true).encode_to_vec();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), Compression::fast());
    let mut deflate = flate2::write::ZlibEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&message).unwrap();
    deflate.write_all(&message).unwrap();
    for (encoding, packed) in [("gzip", gzip.finish().unwrap()), ("deflate", deflate.finish().unwrap())] {
        let compressed = |packed: &[u8]| {
            let mut body = framed(packed);
            body[0] = 1;
            body
        };
        let headers = [("grpc-encoding", encoding)];
        let reply = raw.infer(&headers, compressed(&packed)).await;
        assert_eq!(reply.code(), 0, "{reply:?}");
        let answer = ModelInferResponse::decode(&reply.data[5..]).unwrap();
        assert_eq!(answer.id, "42");
        let reply = raw.infer(&headers, compressed(&packed[..packed.len() / 2])).await;
        assert!(reply.code() == 3 && reply.message().contains("does not decompress"), "{reply:?}");
        // Not this message.
        assert_eq!(raw.infer(&headers, framed(&message)).await.code(), 0);
        let reply = raw.infer(&[("grpc-encoding", "snappy")], compressed(&packed)).await;
        assert!(reply.code() == 12 && reply.message().contains("gzip"), "{reply:?}");
        assert_eq!(reply.headers["grpc-accept-encoding"], "identity,deflate,gzip");
        assert_eq!(raw.infer(&[], compressed(&packed)).await.code(), 3);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_is_no_message() {
    let served = serve(ApiOptions::default());
    let mut raw = Raw::connect(&served).await;
    let good = add(false).encode_to_vec();
    let mut other_flag = framed(&good);
    other_flag[0] = 2;
    for (body, says) in [
        (Vec::new(), "no whole message"),
        (vec![0, 0, 0], "no whole message"),
        (framed(&good)[..good.len()].to_vec(), "ends 5 bytes before its end"),
        ([framed(&good), framed(&good)].concat(), "more comes after"),
        (other_flag, "compressed-flag is 2"),
        (framed(&[0x0a]), "ends in the middle"),
        (framed(&[0x0a, 5, b'a']), "ends in the middle"),
        (framed(&[0x0a, 1, 0xff]), "not UTF-8"),
        (framed(&[0xff; 20]), "longer than ten bytes"),
        (framed(&[0x0b]), "wire type 3"),
        (framed(&[0x08, 1]), "another type"),
        (framed(&[0x28, 1]), "another type"),
    ] {
        let reply = raw.infer(&[], body).await;
        assert!(reply.code() == 3 && reply.message().contains(says), "{reply:?} should say {says}");
    }
    // Wherever a message is cut, and whatever byte of it is another one: an answer, and no defect.
    for at in 0..good.len() {
        let mut changed = good.clone();
        changed[at] ^= 0x55;
        for message in [&good[..at], &changed] {
            let code = raw.infer(&[], framed(message)).await.code();
            assert!([0, 3, 5].contains(&code), "{at}: {code}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_call() {
    let served = serve(ApiOptions::default());
    let mut raw = Raw::connect(&served).await;
    let body = framed(&add(true).encode_to_vec());
    for kind in ["application/json", "application/grpc-web", "application/grpcx", "text/plain"] {
        let reply = raw.infer(&[("content-type", kind)], body.clone()).await;
        assert_eq!(reply.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert!(String::from_utf8_lossy(&reply.data).contains("api.grpc_listen"), "{reply:?}");
    }
    for kind in ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"] {
        assert_eq!(raw.infer(&[("content-type", kind)], body.clone()).await.code(), 0, "{kind}");
    }
    // HTTP/1 is spoken elsewhere, and noise nowhere.
    for begin in [&b"GET /v2 HTTP/1.1\r\nhost: a\r\n\r\n"[..], &[0; 1000]] {
        let mut stream = tokio::net::TcpStream::connect(served.grpc.unwrap()).await.unwrap();
        stream.write_all(begin).await.unwrap();
        let mut got = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut got)).await.expect("it is closed");
    }
    assert_eq!(raw.infer(&[], body).await.code(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_ends_its_requests() {
    let served = serve(ApiOptions::default());
    let client = Client::connect(&served).await;
    // One call is given up; the connection stays.
    let asking = tokio::spawn({
        let client = client.clone();
        async move { client.infer(forever()).await }
    });
    wait_for(&served, 1).await;
    asking.abort();
    wait_for(&served, 0).await;
    client.infer(add(true)).await.unwrap();
    // A connection breaks.
    let mut raw = Raw::connect(&served).await;
    let breaks = raw.breaker();
    let asking = tokio::spawn(async move {
        let body = Body::from(framed(&forever().encode_to_vec()));
        raw.send("ModelInfer", &[], body).await
    });
    wait_for(&served, 1).await;
    breaks();
    wait_for(&served, 0).await;
    assert!(asking.await.is_err(), "it has no answer");
}
