//! The Open Inference Protocol as clients speak it.

use std::io::Write;

use mesh_inference::tensor::DType;
use serde_json::{Value, json};

use super::{Reply, Request, Served};
use crate::api::ApiOptions;

fn add(a: &Value, b: &Value, shape: &Value) -> Value {
    json!({"id": "42", "inputs": [
        {"name": "a", "datatype": "FP32", "shape": shape, "data": a},
        {"name": "b", "datatype": "FP32", "shape": shape, "data": b},
    ]})
}

/// A body of a JSON part and binary tensors.
fn binary(served: &Served, model: &str, json: &Value, tensors: &[u8]) -> Reply {
    let json = json.to_string();
    let body = [json.as_bytes(), tensors].concat();
    let len = json.len().to_string();
    let path = format!("/v2/models/{model}/infer");
    let headers = [("inference-header-content-length", len.as_str())];
    served.send(Request { method: "POST", path: &path, headers: &headers, body: &body })
}

#[test]
fn health_and_metadata() {
    let served = Served::new();
    assert_eq!(served.get("/v2/health/live").status, 200);
    assert_eq!(served.get("/v2/health/ready").status, 200);
    served.app.ready.store(false, std::sync::atomic::Ordering::Relaxed);
    assert!(served.get("/v2/health/ready").error(503).contains("cluster"));
    let server = served.get("/v2").json();
    assert_eq!(server["name"], "mesh");
    assert_eq!(server["extensions"], json!(["binary_tensor_data"]));
    let model = json!({
        "name": "add", "versions": ["1"], "platform": "onnxruntime_onnx",
        "inputs": [{"name": "a", "datatype": "FP32", "shape": [-1, 3]}, {"name": "b", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [{"name": "sum", "datatype": "FP32", "shape": [-1, 3]}],
    });
    assert_eq!(served.get("/v2/models/add").json(), model);
    assert_eq!(served.get("/v2/models/add/versions/1").json(), model);
    assert!(served.get("/v2/models/add/versions/2").error(404).contains("version 1"));
    assert!(served.get("/v2/models/nope").error(404).contains("nope"));
    assert_eq!(served.get("/v2/models/add/ready").status, 200);
    assert_eq!(served.get("/v2/models/add/versions/1/ready").status, 200);
    let busy = served.get("/v2/models/busy/ready");
    assert_eq!(busy.header("retry-after"), Some("1"));
    assert!(busy.error(503).contains("mesh status"));
    served.get("/v2/models/nope/ready").error(404);
}

#[test]
fn json_in_and_out() {
    let served = Served::new();
    let flat = add(&json!([1, 2.5, 3, 4, 5, 6]), &json!([10, 20, 30, 40, 50, 0.1]), &json!([2, 3]));
    let nested = add(&json!([[1, 2.5, 3], [4, 5, 6]]), &json!([[10, 20, 30], [40, 50, 0.1]]), &json!([2, 3]));
    for request in [flat, nested] {
        let reply = served.infer("add", &request);
        assert_eq!(reply.header("content-type"), Some("application/json"));
        let answer = reply.json();
        assert_eq!(answer["model_name"], "add");
        assert_eq!(answer["model_version"], "1");
        assert_eq!(answer["id"], "42");
        assert_eq!(
            answer["outputs"],
            json!([{"name": "sum", "datatype": "FP32", "shape": [2, 3], "data": [11.0, 22.5, 33.0, 44.0, 55.0, 6.1]}])
        );
    }
}

#[test]
fn every_type_comes_back_as_json() {
    let served = Served::new();
    let cases = [
        (DType::Bool, json!([true, false])),
        (DType::Uint8, json!([0, 255])),
        (DType::Uint16, json!([0, 65_535])),
        (DType::Uint32, json!([0, u32::MAX])),
        (DType::Uint64, json!([0, u64::MAX])),
        (DType::Int8, json!([-128, 127])),
        (DType::Int16, json!([i16::MIN, i16::MAX])),
        (DType::Int32, json!([i32::MIN, i32::MAX])),
        (DType::Int64, json!([i64::MIN, i64::MAX, 9_007_199_254_740_993i64])),
        (DType::Fp32, json!([0.1, -3.402_823_5e38, 1e-45])),
        (DType::Fp64, json!([0.1, f64::MAX, 5e-324, 123_456_789.123_456_79])),
    ];
    for (dtype, data) in cases {
        let name = dtype.oip_name();
        let shape = [data.as_array().unwrap().len()];
        let request = json!({"inputs": [{"name": "x", "datatype": name, "shape": shape, "data": data}]});
        let reply = served.infer(&format!("echo-{name}"), &request);
        let text = String::from_utf8(reply.body.clone()).unwrap();
        if dtype == DType::Fp32 {
            // As text: both sides through f64 would hide lost digits.
            let small = ["[0.1,-3.4028235e38,1e-45]", "[0.1,-3.4028235e+38,1e-45]"];
            assert!(small.iter().any(|form| text.contains(form)), "{text}");
        } else {
            assert_eq!(reply.json()["outputs"][0]["data"], data, "{name}");
        }
    }
}

#[test]
fn every_type_comes_back_in_binary() {
    let served = Served::new();
    for dtype in DType::ALL {
        let name = dtype.oip_name();
        let bytes: Vec<u8> = (0..3 * dtype.size()).map(|i| u8::try_from(i % 2).unwrap()).collect();
        let size = bytes.len();
        let request = json!({
            "inputs": [{"name": "x", "datatype": name, "shape": [3], "parameters": {"binary_data_size": size}}],
            "parameters": {"binary_data_output": true},
        });
        let reply = binary(&served, &format!("echo-{name}"), &request, &bytes);
        assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
        assert_eq!(reply.header("content-type"), Some("application/octet-stream"));
        let len: usize = reply.header("inference-header-content-length").unwrap().parse().unwrap();
        let head: Value = serde_json::from_slice(&reply.body[..len]).unwrap();
        assert_eq!(
            head["outputs"],
            json!([{"name": "x", "datatype": name, "shape": [3], "parameters": {"binary_data_size": size}}])
        );
        assert_eq!(&reply.body[len..], bytes, "{name}");
    }
}

#[test]
fn outputs_are_chosen_one_by_one() {
    let served = Served::new();
    let mut request = add(&json!([1, 2, 3]), &json!([1, 1, 1]), &json!([1, 3]));
    request["parameters"] = json!({"binary_data_output": true});
    request["outputs"] = json!([{"name": "sum", "parameters": {"binary_data": false}}]);
    assert_eq!(served.infer("add", &request).json()["outputs"][0]["data"], json!([2.0, 3.0, 4.0]));
    request["outputs"] = json!([{"name": "sum"}]);
    let reply = served.infer("add", &request);
    assert!(reply.header("inference-header-content-length").is_some());
    assert_eq!(reply.body[reply.body.len() - 12..], [0, 0, 0, 64, 0, 0, 64, 64, 0, 0, 128, 64]);
    request["outputs"] = json!([{"name": "nope"}]);
    assert!(served.infer("add", &request).error(400).contains("\"sum\""));
    request["outputs"] = json!([{"name": "sum"}, {"name": "sum"}]);
    assert!(served.infer("add", &request).error(400).contains("twice"));
    request["outputs"] = json!([{"name": "sum", "parameters": {"classification": 3}}]);
    assert!(served.infer("add", &request).error(400).contains("classification"));
}

#[test]
fn compressed_requests() {
    let served = Served::new();
    let json = add(&json!([1, 2, 3]), &json!([1, 1, 1]), &json!([1, 3])).to_string();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut deflate = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(json.as_bytes()).unwrap();
    deflate.write_all(json.as_bytes()).unwrap();
    let bodies = [("gzip", gzip.finish().unwrap()), ("deflate", deflate.finish().unwrap())];
    for (encoding, body) in &bodies {
        let headers = [("content-encoding", *encoding)];
        let reply =
            served.send(Request { method: "POST", path: "/v2/models/add/infer", headers: &headers, body });
        assert_eq!(reply.json()["outputs"][0]["data"], json!([2.0, 3.0, 4.0]), "{encoding}");
        let cut = &body[..body.len() / 2];
        let reply = served.send(Request {
            method: "POST",
            path: "/v2/models/add/infer",
            headers: &headers,
            body: cut,
        });
        reply.error(400);
    }
    let headers = [("content-encoding", "br")];
    let request = Request { method: "POST", path: "/v2/models/add/infer", headers: &headers, body: b"{}" };
    assert!(served.send(request).error(415).contains("gzip"));
}

#[test]
fn what_the_mesh_says_becomes_the_status() {
    let served = Served::new();
    let empty = json!({"inputs": []});
    let busy = served.infer("busy", &empty);
    assert_eq!(busy.header("retry-after"), Some("3"));
    assert_eq!(busy.error(503), "the ingress is full");
    let slow = json!({"inputs": [], "parameters": {"timeout": 1000}});
    served.infer("slow", &slow).error(504);
    served.infer("nope", &empty).error(404);
    served.infer("late", &empty).error(500);
    // A defect answers, and the daemon goes on.
    assert!(served.infer("broken", &empty).error(500).contains("defect"));
    assert_eq!(served.get("/v2/health/live").status, 200);
    served.get("/v3").error(404);
    served.get("/v2/models/add/infer").error(405);
}

#[test]
fn tokens() {
    let served = Served::with(ApiOptions { token: Some("secret".into()), ..ApiOptions::default() });
    for open in ["/v2/health/live", "/v2/health/ready", "/"] {
        assert_eq!(served.get(open).status, 200, "{open}");
    }
    let closed = ["/v2", "/v2/models/add", "/api/status", "/metrics", "/api/models", "/nothing"];
    for path in closed {
        let reply = served.get(path);
        assert_eq!(reply.header("www-authenticate"), Some("bearer"));
        assert!(reply.error(401).contains("Authorization: Bearer"), "{path}");
    }
    for wrong in ["Bearer", "Bearer ", "Bearer secre", "Bearer secrets", "Basic secret", "secret"] {
        let headers = [("authorization", wrong)];
        served.send(Request { path: "/v2", headers: &headers, ..Request::default() }).error(401);
    }
    for right in ["Bearer secret", "bearer secret"] {
        let headers = [("authorization", right)];
        assert_eq!(served.send(Request { path: "/v2", headers: &headers, ..Request::default() }).status, 200);
    }
    // With a token, names are welcome.
    let headers = [("authorization", "Bearer secret"), ("host", "pi.local:7401")];
    assert_eq!(served.send(Request { path: "/v2", headers: &headers, ..Request::default() }).status, 200);
}
