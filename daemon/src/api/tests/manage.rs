//! Status, plans, uploads, deployments and the small changes.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use serde_json::{Value, json};

use super::{Request, Served};
use crate::app::App;

fn put(served: &Served, path: &str, body: &[u8]) -> super::Reply {
    served.send(Request { method: "PUT", path, headers: &[], body })
}

fn act(served: &Served, method: &str, path: &str) -> super::Reply {
    served.send(Request { method, path, ..Request::default() })
}

fn deploy(served: &Served, request: &Value) -> super::Reply {
    let body = request.to_string();
    served.send(Request { method: "POST", path: "/api/deploy", headers: &[], body: body.as_bytes() })
}

#[test]
fn documents() {
    let served = Served::new();
    assert_eq!(served.get("/api/status").json()["nodes"][0]["name"], "camera-1");
    let plan = served.get("/api/plan/add").json();
    assert_eq!(
        (&plan["name"], &plan["epoch"], &plan["why"]),
        (&json!("add"), &json!(7), &json!("two halves"))
    );
    // What `mesh plan --json` prints is what `--pin` takes.
    let pinned: mesh_planner::Plan = serde_json::from_value(plan).unwrap();
    assert_eq!(pinned, super::adder::plan());
    served.get("/api/plan/nope").error(404);
    let problem = served.get("/api/plan/add?problem=1").json();
    assert_eq!((&problem["epoch"], &problem["cuts"]), (&json!(7), &json!([12])));
    assert!(serde_json::from_value::<mesh_planner::Problem>(problem).is_ok());
    served.get("/api/plan/nope?problem=1").error(404);
    assert_eq!(served.get("/api/plan/add?problem=0").json()["why"], "two halves");
    let metrics = served.get("/metrics");
    assert!(metrics.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    assert!(metrics.body.starts_with(b"# TYPE mesh_up gauge"));
    assert_eq!(served.get("/api/models").json()[0]["hash"], "ab12");
    let page = served.get("/");
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'"), "{policy}");
    let text = String::from_utf8(page.body).unwrap();
    // No outside resources: nothing but namespaces names another host.
    assert!(
        !text.contains("src=\"http") && !text.contains("@import") && !text.contains("url("),
        "outside resource"
    );
}

#[test]
fn uploads_become_files_and_nothing_else() {
    let served = Served::new();
    let folder = served.app.upload_dir("up").unwrap();
    let large: Vec<u8> = (0..3_000_000u32).map(|i| i.to_le_bytes()[0]).collect();
    assert_eq!(put(&served, "/api/uploads/up/model.onnx", &large).status, 201);
    assert_eq!(put(&served, "/api/uploads/up/weights/part%201.bin", b"w").status, 201);
    assert_eq!(put(&served, "/api/uploads/up/empty", b"").status, 201);
    assert_eq!(std::fs::read(folder.join("model.onnx")).unwrap(), large);
    assert_eq!(std::fs::read(folder.join("weights/part 1.bin")).unwrap(), b"w");
    assert_eq!(std::fs::read(folder.join("empty")).unwrap(), b"");
    for path in [
        "up/../x",
        "up/%2e%2e/x",
        "up/..%2f..%2fx",
        "up/%2fetc/x",
        "up/.hidden",
        "up/a%00b",
        ".up/x",
        "u%2fp/x",
    ] {
        put(&served, &format!("/api/uploads/{path}"), b"x").error(400);
    }
    assert_eq!(act(&served, "DELETE", "/api/uploads/up").status, 204);
    assert!(!folder.exists());
    act(&served, "DELETE", "/api/uploads/..%2f..").error(400);
}

#[test]
fn an_upload_that_breaks_off_leaves_nothing() {
    let served = Served::new();
    let folder = served.app.upload_dir("up").unwrap();
    let head = format!(
        "PUT /api/uploads/up/m.onnx HTTP/1.1\r\nhost: {}\r\ncontent-length: 1000000\r\n\r\n",
        served.address
    );
    let mut stream = TcpStream::connect(served.address).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&[1; 50_000]).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let _ = stream.read_to_end(&mut Vec::new());
    // The answer comes after the writer has ended.
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0);
    // More than any disk has is refused before it is sent, without a go-ahead for who waits for one.
    for expect in ["", "expect: 100-continue\r\n"] {
        let head = format!(
            "PUT /api/uploads/up/m.onnx HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n{expect}content-length: {}\r\n\r\n",
            served.address,
            1u64 << 60
        );
        assert!(served.raw(head.as_bytes()).error(507).contains("too full"));
    }
}

#[test]
fn deployments_tell_their_progress() {
    let served = Served::new();
    put(&served, "/api/uploads/up/m.onnx", b"12345");
    let request = json!({"name": "m", "upload": "up", "file": "m.onnx"});
    let reply = deploy(&served, &request);
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/x-ndjson")));
    let text = String::from_utf8(reply.body).unwrap();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events[0], json!({"event": "progress", "step": "importing", "done": 5, "total": 5}));
    assert_eq!(events[1]["event"], "planned");
    assert_eq!(events[2], json!({"event": "serving", "epoch": 8}));
    // It has used up its upload; the stream ends when that is done.
    assert!(!served.app.upload_dir("up").unwrap().join("m.onnx").exists());
    let bad = json!({"name": "bad", "upload": "up", "file": "m.onnx"});
    let text = String::from_utf8(deploy(&served, &bad).body).unwrap();
    assert!(text.contains("\"failed\"") && text.contains("not an ONNX file"));
}

#[test]
fn deploy_requests_are_checked() {
    let served = Served::new();
    let cases = [
        json!({}),
        json!({"name": "", "upload": "up", "file": "m"}),
        json!({"name": "a/b", "upload": "up", "file": "m"}),
        json!({"name": "a", "upload": "../up", "file": "m"}),
        json!({"name": "a", "upload": "up", "file": "../m"}),
        json!({"name": "a", "upload": "up", "file": "m", "stages": 0}),
        json!({"name": "a", "upload": "up", "file": "m", "objective": "beauty"}),
    ];
    for request in cases {
        deploy(&served, &request).error(400);
    }
}

#[test]
fn too_many_deployments_at_once_are_told_to_wait() {
    let served = Served::new();
    let request = json!({"name": "held", "upload": "up", "file": "m"}).to_string();
    let head = format!(
        "POST /api/deploy HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\n\r\n{request}",
        served.address,
        request.len()
    );
    let held: Vec<TcpStream> = (0..super::super::DEPLOYS_MAX)
        .map(|_| {
            let mut stream = TcpStream::connect(served.address).unwrap();
            stream.write_all(head.as_bytes()).unwrap();
            // Its first line shows that it has begun.
            let mut first = [0; 1];
            stream.read_exact(&mut first).unwrap();
            stream
        })
        .collect();
    let reply = deploy(&served, &json!({"name": "m", "upload": "up", "file": "m"}));
    assert_eq!(reply.header("retry-after"), Some("5"));
    reply.error(429);
    drop(held);
}

#[test]
fn small_changes() {
    let served = Served::new();
    assert_eq!(act(&served, "POST", "/api/nodes/camera-1/drain").status, 204);
    assert!(served.app.draining.lock().unwrap().contains("camera-1"));
    assert_eq!(act(&served, "POST", "/api/nodes/camera-1/undrain").status, 204);
    assert!(served.app.draining.lock().unwrap().is_empty());
    let reply = act(&served, "POST", "/api/nodes/camera-1/remove");
    assert_eq!(reply.header("retry-after"), Some("1"));
    reply.error(503);
    assert!(act(&served, "POST", "/api/nodes/camera-1/explode").error(404).contains("explode"));
    act(&served, "GET", "/api/nodes/camera-1/drain").error(405);
    assert_eq!(act(&served, "DELETE", "/api/deployments/add").status, 204);
    act(&served, "DELETE", "/api/deployments/nope").error(404);
    act(&served, "DELETE", "/api/models/ab12").error(409);
    assert_eq!(act(&served, "DELETE", "/api/models/old%20model.onnx").status, 204);
}
