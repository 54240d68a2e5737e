//! Requests that are wrong, by mistake or on purpose: each gets a clear answer, and the daemon goes on.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{Reply, Request, Served};
use crate::api::ApiOptions;

fn input(name: &str, datatype: &str, shape: Value, data: Value) -> Value {
    json!({"name": name, "datatype": datatype, "shape": shape, "data": data})
}

fn good(name: &str) -> Value {
    input(name, "FP32", json!([1, 3]), json!([1, 2, 3]))
}

#[test]
fn wrong_inputs_are_named() {
    let served = Served::new();
    let x = |datatype: &str, shape: Value, data: Value| vec![good("b"), input("a", datatype, shape, data)];
    let cases: Vec<(Vec<Value>, &str)> = vec![
        (vec![good("a")], "also wants \"b\""),
        (vec![], "also wants \"a\" (FP32 [-1, 3]), \"b\""),
        (vec![good("a"), good("b"), good("c")], "no input \"c\""),
        (vec![good("a"), good("a"), good("b")], "given twice"),
        (x("INT64", json!([1, 3]), json!([1, 2, 3])), "datatype is INT64, the model wants FP32"),
        (x("BYTES", json!([1, 3]), json!(["a"])), "\"BYTES\" is not supported"),
        (x("FP32", json!([3]), json!([1, 2, 3])), "shape is [3], the model wants [-1, 3]"),
        (x("FP32", json!([1, 4]), json!([1, 2, 3, 4])), "shape is [1, 4]"),
        (x("FP32", json!([-1, 3]), json!([1, 2, 3])), "shape is [-1, 3]"),
        (x("FP32", json!([1, 3]), json!([1, 2])), "2 elements where the shape wants 3"),
        (x("FP32", json!([1, 3]), json!([1, 2, 3, 4])), "more elements than the 3"),
        (x("FP32", json!([1, 3]), json!([1, 2, "x"])), "expected a number"),
        (x("FP32", json!([1, 3]), json!([1, 2, null])), "expected a number"),
        (x("FP32", json!([1, 3]), json!([1, 2, true])), "true is not a number"),
        (x("FP32", json!([1, 3]), json!([1, 2, 1e39])), "does not fit"),
        (x("FP32", json!([1, 3]), json!({"a": 1})), "expected a number"),
        (x("FP32", json!([9_223_372_036_854_775_807i64, 3]), json!([1])), "larger than the limit"),
        (x("FP32", json!([1_000_000_000_000i64, 3]), json!([1])), "larger than the limit"),
        (x("FP32", json!([1000, 3]), json!([1])), "fewer than"),
        (x("FP32", json!([1, 3]), Value::Null), "neither data nor binary_data_size"),
    ];
    for (inputs, says) in cases {
        let error = served.infer("add", &json!({"inputs": inputs})).error(400);
        assert!(error.contains(says), "{error:?} should say {says:?}");
    }
    let neither = json!({"inputs": [good("b"), {"name": "a", "datatype": "FP32", "shape": [1, 3]}]});
    assert!(served.infer("add", &neither).error(400).contains("neither data nor binary_data_size"));
}

#[test]
fn numbers_have_to_fit() {
    let served = Served::new();
    let cases = [
        ("UINT8", json!(256), "does not fit u8"),
        ("UINT8", json!(-1), "does not fit u8"),
        ("INT8", json!(128), "does not fit i8"),
        ("INT64", json!(1.0), "1.0 is not an integer"),
        ("INT64", json!(9_223_372_036_854_775_808u64), "does not fit i64"),
        ("BOOL", json!(2), "neither true nor false"),
        ("BOOL", json!(0.5), "not an integer"),
        ("FP16", json!(1), "16-bit floats"),
        ("BF16", json!(1), "16-bit floats"),
    ];
    for (datatype, value, says) in cases {
        let request = json!({"inputs": [input("x", datatype, json!([1]), json!([value]))]});
        let error = served.infer(&format!("echo-{datatype}"), &request).error(400);
        assert!(error.contains(says), "{error:?} should say {says:?}");
    }
}

#[test]
fn outputs_that_json_cannot_say() {
    let served = Served::new();
    for (datatype, bytes) in [("FP32", &[0, 0, 192, 127][..]), ("FP16", &[0, 0])] {
        let json = json!({"inputs": [{"name": "x", "datatype": datatype, "shape": [1],
            "parameters": {"binary_data_size": bytes.len()}}]});
        let json = json.to_string();
        let headers = [("inference-header-content-length", &*json.len().to_string())];
        let body = [json.as_bytes(), bytes].concat();
        let path = format!("/v2/models/echo-{datatype}/infer");
        let reply = served.send(Request { method: "POST", path: &path, headers: &headers, body: &body });
        assert!(reply.error(400).contains("ask for it with binary_data"));
    }
}

#[test]
fn binary_lengths_have_to_agree() {
    let served = Served::new();
    let json = |size: Value| {
        json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": size}}]})
            .to_string()
    };
    let send = |json: &str, len: &str, tail: &[u8]| {
        let headers = [("inference-header-content-length", len)];
        let body = [json.as_bytes(), tail].concat();
        let path = "/v2/models/echo-FP32/infer";
        served.send(Request { method: "POST", path, headers: &headers, body: &body }).error(400)
    };
    let right = json(json!(8));
    let len = right.len().to_string();
    assert!(send(&right, &len, &[0; 7]).contains("ends 1 bytes before"));
    assert!(send(&right, &len, &[0; 9]).contains("1 bytes after the last"));
    assert!(send(&right, "1000000", &[0; 8]).contains("the body has only"));
    assert!(send(&right, "-1", &[0; 8]).contains("must be the length"));
    assert!(send(&right, "18446744073709551616", &[0; 8]).contains("must be the length"));
    assert!(send(&right, "3", &[0; 8]).contains("not an inference request"));
    let wrong = json(json!(4));
    assert!(send(&wrong, &wrong.len().to_string(), &[0; 4]).contains("takes 8 bytes"));
    let negative = json(json!(-8));
    assert!(send(&negative, &negative.len().to_string(), &[0; 8]).contains("not an inference request"));
    let bools = json!({"inputs": [{"name": "x", "datatype": "BOOL", "shape": [2], "parameters": {"binary_data_size": 2}}]});
    let text = bools.to_string();
    let headers = [("inference-header-content-length", &*text.len().to_string())];
    let body = [text.as_bytes(), &[1, 2]].concat();
    let reply = served.send(Request {
        method: "POST",
        path: "/v2/models/echo-BOOL/infer",
        headers: &headers,
        body: &body,
    });
    assert!(reply.error(400).contains("neither 0 nor 1"));
}

#[test]
fn noise_is_no_request() {
    let served = Served::new();
    let deep = "[".repeat(100_000);
    let deep_data = format!(
        "{{\"inputs\":[{{\"name\":\"x\",\"datatype\":\"FP32\",\"shape\":[1],\"data\":{}1{}}}]}}",
        "[".repeat(100),
        "]".repeat(100)
    );
    let many = json!({"inputs": vec![good("a"); 2000]}).to_string();
    let rank = json!({"inputs": [input("x", "FP32", json!(vec![1; 100]), json!([1]))]}).to_string();
    let twice = "{\"inputs\":[],\"inputs\":[]}";
    let bodies: [&[u8]; 11] = [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        &[0xff; 100],
        deep.as_bytes(),
        deep_data.as_bytes(),
        many.as_bytes(),
        rank.as_bytes(),
        twice.as_bytes(),
    ];
    for body in bodies {
        let request = Request { method: "POST", path: "/v2/models/echo-FP32/infer", headers: &[], body };
        let error = served.send(request).error(400);
        assert!(error.len() < 1000, "{error}");
    }
    assert_eq!(served.get("/v2/health/live").status, 200);
}

#[test]
fn addresses_that_cannot_be_read() {
    let served = Served::new();
    for (path, says) in [
        ("/v2/models/%ff", "UTF-8"),
        ("/v2/models/%ff/ready", "UTF-8"),
        ("/v2/models/%ff/versions/1", "UTF-8"),
        ("/api/plan/%ff", "UTF-8"),
        ("/api/plan/add?problem=1&problem=1", "duplicate field"),
        ("/api/plan/add?lifts=1&lifts=0", "duplicate field"),
    ] {
        let error = served.get(path).error(400);
        assert!(error.contains(says) && error.contains("correct"), "{path}: {error}");
    }
}

#[test]
fn timeouts_are_checked() {
    let served = Served::new();
    for timeout in [json!(-1), json!("1"), json!(1.5), json!(u64::MAX), json!(601_000_000u64)] {
        let request = json!({"inputs": [], "parameters": {"timeout": timeout}});
        served.infer("busy", &request).error(400);
    }
    let none = json!({"inputs": [], "parameters": {"timeout": 0, "other": [1, 2]}});
    served.infer("busy", &none).error(503);
}

#[test]
fn bodies_over_the_limit() {
    let served = Served::with(ApiOptions { body_max: 64 << 10, ..ApiOptions::default() });
    let path = "/v2/models/add/infer";
    let large = vec![b' '; (64 << 10) + 1];
    assert!(
        served
            .send(Request { method: "POST", path, headers: &[], body: &large })
            .error(413)
            .contains("limit")
    );
    // Announced only: nothing is read.
    let head = format!("POST {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", served.address);
    let announced = format!("{head}content-length: 99999999999\r\n\r\n");
    assert_eq!(served.raw(announced.as_bytes()).status, 413);
    // Not announced.
    let chunk = format!("{:x}\r\n{}\r\n0\r\n\r\n", large.len(), " ".repeat(large.len()));
    let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n{chunk}");
    assert_eq!(served.raw(chunked.as_bytes()).status, 413);
    // A bomb.
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    bomb.write_all(&vec![b' '; 10 << 20]).unwrap();
    let bomb = bomb.finish().unwrap();
    assert!(bomb.len() < 64 << 10);
    let headers = [("content-encoding", "gzip")];
    served.send(Request { method: "POST", path, headers: &headers, body: &bomb }).error(413);
}

/// The answer to a client that sends all that it has announced, in small pieces, before it reads.
fn send_all_then_read(served: &Served, path: &str, announced: usize) -> Reply {
    let mut stream = TcpStream::connect(served.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-length: {announced}\r\n\r\n", served.address);
    stream.write_all(head.as_bytes()).unwrap();
    let piece = [b' '; 16 << 10];
    // Who sends more than is taken meets a broken connection, behind the answer.
    for _ in 0..announced / piece.len() {
        if stream.write_all(&piece).is_err() {
            break;
        }
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    Reply::parse(&answer)
}

#[test]
fn an_early_answer_reaches_who_still_sends() {
    const MIB: usize = 1 << 20;
    let served = Served::new();
    let unknown = send_all_then_read(&served, "/v2/models/nope/infer", 20 * MIB);
    assert!(unknown.error(404).contains("nope"));
    let large = send_all_then_read(&served, "/v2/models/echo-FP32/infer", 300 * MIB);
    assert!(large.error(413).contains("256 MiB"));
    let closed = Served::with(ApiOptions { token: Some("secret".into()), ..ApiOptions::default() });
    send_all_then_read(&closed, "/v2/models/add/infer", 20 * MIB).error(401);
}

#[test]
fn all_bodies_together_are_bounded() {
    let served = Served::with(ApiOptions { body_max: 64 << 10, ..ApiOptions::default() });
    let head = format!(
        "POST /v2/models/echo-FP32/infer HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\n\
         expect: 100-continue\r\n\r\n",
        served.address,
        64 << 10
    );
    // Two clients announce as much as there is room for, and wait. They are told to go on once the room
    // is theirs: a request sent before that could take it first, and one of the two would be refused.
    let go_on = b"HTTP/1.1 100 Continue\r\n\r\n";
    let waiting: Vec<TcpStream> = (0..2)
        .map(|_| {
            let mut stream = TcpStream::connect(served.address).unwrap();
            stream.write_all(head.as_bytes()).unwrap();
            let mut told = vec![0; go_on.len()];
            stream.read_exact(&mut told).unwrap();
            assert_eq!(told, go_on, "{}", String::from_utf8_lossy(&told));
            stream
        })
        .collect();
    let body = vec![b' '; 8 << 10];
    let request = Request { method: "POST", path: "/v2/models/echo-FP32/infer", headers: &[], body: &body };
    let reply = served.send(request);
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")));
    drop(waiting);
    let deadline = Instant::now() + Duration::from_secs(30);
    while served.send(request).status != 400 {
        assert!(Instant::now() < deadline, "the room did not come back");
    }
}

#[test]
fn inputs_in_memory_are_bounded_too() {
    // Two characters for eight bytes.
    let ones = |count: usize| {
        let inputs = [input("x", "FP64", json!([count]), json!(vec![1; count]))];
        json!({"inputs": inputs, "parameters": {"binary_data_output": true}})
    };
    let small = ApiOptions { inputs_max: 64 << 10, ..ApiOptions::default() };
    let served = Served::with(small);
    assert_eq!(served.infer("echo-FP64", &ones(8 << 10)).status, 200);
    assert!(served.infer("echo-FP64", &ones((8 << 10) + 1)).error(413).contains("64.0 KiB"));
    let both = json!({"inputs": [
        input("a", "FP32", json!([3000, 3]), json!(vec![1; 9000])),
        input("b", "FP32", json!([3000, 3]), json!(vec![1; 9000])),
    ]});
    assert!(served.infer("add", &both).error(413).contains("64.0 KiB"));
    // With their text they take room that others leave.
    let served = Served::with(ApiOptions { body_max: 64 << 10, ..ApiOptions::default() });
    assert!(served.infer("echo-FP64", &ones(16 << 10)).error(413).contains("128.0 KiB"));
    let head = format!(
        "POST /v2/models/add/infer HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\nexpect: 100-continue\r\n\r\n",
        served.address,
        64 << 10
    );
    let mut waiting = TcpStream::connect(served.address).unwrap();
    waiting.write_all(head.as_bytes()).unwrap();
    // It is told to go on once the room is its own.
    waiting.read_exact(&mut [0; 1]).unwrap();
    let reply = served.infer("echo-FP64", &ones(7 << 10));
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")));
    drop(waiting);
    let deadline = Instant::now() + Duration::from_secs(30);
    while served.infer("echo-FP64", &ones(7 << 10)).status != 200 {
        assert!(Instant::now() < deadline, "the room did not come back");
    }
}

#[test]
fn limits_follow_what_the_device_can_hold() {
    const MIB: usize = 1 << 20;
    for (held, body_max) in [(0, 16), (16, 16), (100, 100), (256, 256), (1024, 256)] {
        let options = ApiOptions::for_held(held * MIB);
        assert_eq!((options.body_max, options.inputs_max), (body_max * MIB, held * MIB));
    }
}

#[test]
fn half_a_request_and_no_http() {
    let served = Served::new();
    let mut stream = TcpStream::connect(served.address).unwrap();
    stream
        .write_all(b"POST /v2/models/add/infer HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100\r\n\r\n{")
        .unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    let mut stream = TcpStream::connect(served.address).unwrap();
    stream.write_all(&[0; 1000]).unwrap();
    let _ = stream.read_to_string(&mut answer);
    assert_eq!(served.get("/v2/health/live").status, 200);
}

#[test]
fn pages_of_other_sites_are_refused() {
    let served = Served::new();
    let own = format!("http://{}", served.address);
    for (origin, host, status) in [
        ("https://evil.example", None, 403),
        ("null", None, 403),
        (own.as_str(), None, 200),
        ("http://evil.example:1", Some("evil.example:1"), 403),
    ] {
        let mut headers = vec![("origin", origin)];
        headers.extend(host.map(|host| ("host", host)));
        let reply = served.send(Request { path: "/api/status", headers: &headers, ..Request::default() });
        assert_eq!(reply.status, status, "{origin} {host:?}");
    }
}
