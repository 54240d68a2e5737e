//! Bad input against real daemons: each is told clearly, with the right exit code or status, and the daemon goes on.

#![allow(
    clippy::disallowed_methods,
    reason = "files that a test breaks on purpose need not be written whole"
)]

mod files;

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::Output,
    time::Duration,
};

use mesh_tests::{
    digits::Digits,
    loopback::{LoopDevice, Loopback, Nobody, is_whole, wait},
};

const PATIENCE: Duration = Duration::from_secs(60);
const FAILED: i32 = 1;
const USAGE: i32 = 64;
const UNREACHABLE: i32 = 69;
const CONFIG: i32 = 78;

/// A command that fails: what it is told, how it ends, and what its message must name.
type Case<'a> = (&'a str, i32, &'a [&'a str]);

fn assert_fails(output: &Output, what: &str, code: i32, names: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{what}: {stderr}");
    assert!(output.stdout.is_empty(), "{what} wrote to stdout: {}", String::from_utf8_lossy(&output.stdout));
    for name in names {
        assert!(stderr.contains(name), "{what} does not say {name:?}: {stderr}");
    }
    assert!(!stderr.contains("panicked"), "{what}: {stderr}");
}

/// The daemon answers, and its answers are right.
fn assert_goes_on(device: &LoopDevice, digits: &Digits, after: &str) {
    let status = device.mesh(&["status"]);
    assert!(status.status.success(), "{after}: {}", String::from_utf8_lossy(&status.stderr));
    let body = serde_json::to_vec(&digits.request(7)).expect("a request");
    let (code, answer) = device.http("POST", "/v2/models/digits/infer", &body).expect("an answer");
    assert_eq!(code, 200, "{after}: {answer}");
    let answer = serde_json::from_str(&answer).expect("JSON");
    assert!(digits.is_right(7, &answer), "{after}: {answer}");
}

/// A lone device that serves digits and can hold 4 MiB.
fn serving() -> (Loopback, Digits) {
    let mut cluster = Loopback::new(1, &[("MESH_LIMITS_MEMORY", "4MiB"), ("MESH_LIMITS_THREADS", "1")]);
    files::write(&cluster.devices[0].home);
    cluster.start(PATIENCE);
    deploy_digits(&cluster.devices[0]);
    (cluster, Digits::load())
}

fn deploy_digits(device: &LoopDevice) {
    let output = device.mesh(&["deploy", &files::digits_model(), "--name", "digits"]);
    assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), device.log());
}

#[test]
fn commands_with_bad_input() {
    let (cluster, digits) = serving();
    let device = &cluster.devices[0];
    let model = files::digits_model();
    let unused = Nobody::new();
    let nobody = format!("--api http://{}", unused.address());
    let cases: &[Case<'_>] = &[
        ("deploy text.onnx --name t", FAILED, &["text.onnx", "not an ONNX model", "export it again"]),
        ("deploy empty.onnx --name t", FAILED, &["empty.onnx is empty", "export it again"]),
        ("deploy truncated.onnx --name t", FAILED, &["truncated.onnx", "cut short", "export it again"]),
        ("deploy none.onnx --name t", FAILED, &["none.onnx: No such file"]),
        ("deploy no_data.onnx --name t", FAILED, &["no_data.onnx", "gone.data", "copy it there"]),
        ("deploy short_data.onnx --name t", FAILED, &["short_data.onnx", "'w'", "short.data", "truncated"]),
        (
            "deploy unknown_operator.onnx --name t",
            FAILED,
            &["unknown_operator.onnx", "lacks the operator Frobnicate", "use an ONNX Runtime that has it"],
        ),
        ("deploy newer.onnx --name t", FAILED, &["newer.onnx", "IR version: 1000", "export the model with"]),
        ("deploy MODEL --name a/b", USAGE, &["\"a/b\" is no name for a deployment", "use 1 to 64"]),
        ("deploy MODEL --name t --shape nope=1x2", FAILED, &["\"nope\"", "inputs are: image"]),
        ("deploy MODEL --name t --shape image", USAGE, &["INPUT=1x3x224x224"]),
        ("deploy MODEL --name t --pin image.npy", FAILED, &["image.npy is no plan", "mesh plan --json"]),
        ("deploy MODEL", USAGE, &["--name"]),
        ("infer nope --input image.npy", FAILED, &["no deployment `nope`", "mesh status"]),
        ("infer digits --input nope=image.npy", FAILED, &["no input \"nope\"", "image (FP32"]),
        ("infer digits --input image_int32.npy", FAILED, &["int32", "wants float32", ".astype"]),
        ("infer digits --input image_colour.npy", FAILED, &["[1, 3, 8, 8]", "wants [-1, 1, 8, 8]"]),
        ("infer digits --input broken.npy", FAILED, &["broken.npy"]),
        ("infer digits --input none.npy", FAILED, &["none.npy: No such file"]),
        ("infer digits", USAGE, &["--input"]),
        ("bench nope", FAILED, &["no deployment `nope`"]),
        ("plan nope", FAILED, &["no deployment `nope`", "mesh deploy"]),
        ("undeploy nope", FAILED, &["no deployment `nope`"]),
        ("model rm nope", FAILED, &["no model `nope`", "mesh models"]),
        ("model rm model.onnx", FAILED, &["in use by digits", "mesh undeploy digits"]),
        ("node drain nope", FAILED, &["no device `nope`", "mesh node list"]),
        ("node remove device-1", FAILED, &["cannot remove itself", "another one"]),
        ("status NOBODY", UNREACHABLE, &["no daemon answers at http://127.0.0.1:", "mesh run", "--api URL"]),
        ("deploy MODEL --name t NOBODY", UNREACHABLE, &["no daemon answers", "mesh run"]),
        ("infer digits --input image.npy NOBODY", UNREACHABLE, &["no daemon answers", "mesh run"]),
        ("bench digits NOBODY", UNREACHABLE, &["no daemon answers", "mesh run"]),
        ("undeploy digits NOBODY", UNREACHABLE, &["no daemon answers", "mesh run"]),
        ("status --api ftp://x", USAGE, &["\"ftp://x\" is no address", "http://HOST:PORT"]),
        ("status --config none.toml", CONFIG, &["none.toml", "does not exist", "mesh init"]),
        ("frobnicate", USAGE, &["frobnicate"]),
    ];
    for (line, code, names) in cases {
        let line = line.replace("MODEL", &model).replace("NOBODY", &nobody);
        let args: Vec<&str> = line.split(' ').collect();
        assert_fails(&device.mesh(&args), &line, *code, names);
        assert_goes_on(device, &digits, &line);
    }
    let left = std::fs::read_dir(device.file("data/uploads")).expect("the uploads").count();
    assert_eq!(left, 0, "uploads of failed deployments stay on the disk");
}

/// The deployment stays, as `failed` with the reason, until a device comes that can hold it or it is removed.
#[test]
fn a_model_that_fits_nowhere() {
    let (cluster, digits) = serving();
    let device = &cluster.devices[0];
    let output = device.mesh(&["deploy", "big.onnx", "--name", "big"]);
    let names = ["(device-1) offers 4.0 MiB", "limits.memory", "mesh undeploy big"];
    assert_fails(&output, "deploy big.onnx", FAILED, &names);
    let status = device.status().expect("the status");
    let big = status.deployments.iter().find(|d| d.name == "big").expect("the failed deployment");
    assert_eq!(big.state, "failed");
    assert!(big.reason.contains("limits.memory"), "{}", big.reason);
    let (code, answer) = device.http("GET", "/v2/models/big/ready", b"").expect("an answer");
    assert_eq!(code, 503, "{answer}");
    assert_goes_on(device, &digits, "deploy big.onnx");
    let output = device.mesh(&["deploy", "big.onnx", "--name", "dry", "--dry-run"]);
    assert_fails(&output, "deploy --dry-run", FAILED, &["limits.memory"]);
    assert!(device.status().expect("the status").deployments.iter().all(|d| d.name != "dry"));
    assert!(device.mesh(&["undeploy", "big"]).status.success());
    assert!(device.mesh(&["model", "rm", "big.onnx"]).status.success());
    assert_goes_on(device, &digits, "undeploy big");
}

#[test]
fn requests_with_bad_input() {
    let (cluster, digits) = serving();
    let device = &cluster.devices[0];
    let input = |name: &str, kind: &str, shape: &str, data: &str| {
        format!(r#"{{"inputs":[{{"name":"{name}","datatype":"{kind}","shape":{shape},"data":{data}}}]}}"#)
    };
    let infer = "/v2/models/digits/infer";
    let truncated = std::fs::read(device.file("truncated.onnx")).expect("the file");
    let (code, answer) = device.http("PUT", "/api/uploads/u1/truncated.onnx", &truncated).expect("an answer");
    assert_eq!(code, 201, "{answer}");
    let cases: &[(&str, &str, String, u16, &[&str])] = &[
        ("GET", "/v2/models/nope", String::new(), 404, &["no deployment `nope`"]),
        ("GET", "/v2/models/nope/ready", String::new(), 404, &["no deployment `nope`"]),
        ("POST", "/v2/models/nope/infer", "{}".into(), 404, &["no deployment `nope`"]),
        ("POST", infer, "nonsense".into(), 400, &["not an inference request"]),
        ("POST", infer, "{}".into(), 400, &["missing field `inputs`"]),
        (
            "POST",
            infer,
            input("x", "FP32", "[1]", "[1]"),
            400,
            &["no input \\\"x\\\"", "\\\"image\\\" (FP32"],
        ),
        ("POST", infer, input("image", "INT32", "[1]", "[1]"), 400, &["INT32", "wants FP32"]),
        ("POST", infer, input("image", "WORD", "[1]", "[1]"), 400, &["WORD", "not supported"]),
        ("POST", infer, input("image", "FP32", "[1,3,8,8]", "[1]"), 400, &["[1, 3, 8, 8]", "[-1, 1, 8, 8]"]),
        ("POST", infer, input("image", "FP32", "[1,1,8,8]", "[1]"), 400, &["fewer than the 64 elements"]),
        ("POST", infer, input("image", "FP32", "[-1,1,8,8]", "[1]"), 400, &["image"]),
        ("PUT", infer, String::new(), 405, &["does not take this method"]),
        ("GET", "/nope", String::new(), 404, &["/nope"]),
        ("GET", "/api/plan/nope", String::new(), 404, &["no deployment `nope`"]),
        ("POST", "/api/deploy", r#"{"name":"z"}"#.into(), 400, &["missing field"]),
        // The answer is a stream of events; the last one tells the end.
        (
            "POST",
            "/api/deploy",
            r#"{"name":"z","upload":"u1","file":"truncated.onnx"}"#.into(),
            200,
            &["\"failed\"", "400", "\"truncated.onnx is truncated at byte 3000", "export it again"],
        ),
    ];
    for (method, path, body, code, names) in cases {
        let what = format!("{method} {path} {body}");
        let (got, answer) = device.http(method, path, body.as_bytes()).expect("an answer");
        assert_eq!(got, *code, "{what}: {answer}");
        assert!(answer.contains("\"error\":"), "{what}: {answer}");
        for name in *names {
            assert!(answer.contains(name), "{what} does not say {name:?}: {answer}");
        }
        assert!(!answer.contains(&device.home.display().to_string()), "{what} tells a path: {answer}");
        assert_goes_on(device, &digits, &what);
    }
    let answer = announce_a_large_body(&device.api);
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("over the limit of 16 MiB"), "{answer}");
    assert_goes_on(device, &digits, "a body over the limit");
}

/// The answer to a request whose head announces 1 TB.
fn announce_a_large_body(api: &str) -> String {
    let mut stream = TcpStream::connect(api).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
    let head = "POST /v2/models/digits/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000000\r\nConnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).expect("the head is sent");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

/// A daemon that must not start: what is changed before, how it ends, and what it must say.
struct Refusal {
    what: &'static str,
    prepare: fn(&mut LoopDevice),
    code: i32,
    says: &'static [&'static str],
}

fn overwrite(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).expect("a file of the device");
    bytes.iter_mut().skip(at).for_each(|byte| *byte ^= 0x5a);
    std::fs::write(path, bytes).expect("a file of the device");
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("permissions");
}

fn append(path: &Path, text: &str) {
    let old = std::fs::read_to_string(path).expect("a file of the device");
    std::fs::write(path, old + text).expect("a file of the device");
}

const REFUSALS: [Refusal; 17] = [
    Refusal {
        what: "a key that others can read",
        prepare: |d| set_mode(&d.file("cluster.key"), 0o644),
        code: CONFIG,
        says: &["cluster.key", "mode 0644", "chmod 600"],
    },
    Refusal {
        what: "no key",
        prepare: |d| std::fs::remove_file(d.file("cluster.key")).expect("the key"),
        code: CONFIG,
        says: &["cluster.key does not exist", "mesh init"],
    },
    Refusal {
        what: "a config that is not TOML",
        prepare: |d| append(&d.file("mesh.toml"), "\n[api\n"),
        code: CONFIG,
        says: &["mesh.toml:", "not TOML"],
    },
    Refusal {
        what: "unknown keys, all told at once",
        prepare: |d| append(&d.file("mesh.toml"), "\n[limit]\nmemory = \"1GiB\"\n[nodes]\n"),
        code: CONFIG,
        says: &["mesh.toml:", "did you mean [limits]", "did you mean [node]"],
    },
    Refusal {
        what: "a value that is none",
        prepare: |d| d.set("MESH_LIMITS_MEMORY", "12 bananas"),
        code: CONFIG,
        says: &["MESH_LIMITS_MEMORY", "12 bananas", "512MiB"],
    },
    Refusal {
        what: "an API for everybody without a token",
        prepare: |d| d.set("MESH_API_LISTEN", "0.0.0.0:0"),
        code: CONFIG,
        says: &["without a token", "token_file"],
    },
    Refusal {
        what: "a gRPC API for everybody without a token",
        prepare: |d| d.set("MESH_API_GRPC_LISTEN", "0.0.0.0:0"),
        code: CONFIG,
        says: &["MESH_API_GRPC_LISTEN", "without a token", "token_file"],
    },
    Refusal {
        what: "a gRPC API on the API's port",
        prepare: |d| {
            let api = d.api.clone();
            d.set("MESH_API_GRPC_LISTEN", &api);
        },
        code: CONFIG,
        says: &["MESH_API_GRPC_LISTEN", "`grpc_listen` and `listen` in [api] both take port"],
    },
    Refusal {
        what: "no ONNX Runtime where the config says",
        prepare: |d| d.set("MESH_INFERENCE_ONNXRUNTIME", "/nowhere/libonnxruntime.so"),
        code: CONFIG,
        says: &["/nowhere/libonnxruntime.so", "no such file", "inference.onnxruntime"],
    },
    Refusal {
        what: "an ONNX Runtime that is no library",
        prepare: |d| {
            let path = d.file("mesh.toml").display().to_string();
            d.set("MESH_INFERENCE_ONNXRUNTIME", &path);
        },
        code: CONFIG,
        says: &["mesh.toml as ONNX Runtime", "inference.onnxruntime"],
    },
    Refusal {
        what: "an execution provider that does not exist",
        prepare: |d| d.set("MESH_INFERENCE_EXECUTION_PROVIDERS", "abacus"),
        code: CONFIG,
        says: &["\"abacus\" is not available", "it has: cpu", "inference.execution_providers"],
    },
    Refusal {
        what: "a network interface that does not exist",
        prepare: |d| d.set("MESH_NETWORK_INTERFACES", "mesh-none"),
        code: CONFIG,
        says: &["no network interface mesh-none", "network.interfaces"],
    },
    Refusal {
        what: "a data directory that is a file",
        prepare: |d| {
            let path = d.file("mesh.toml").display().to_string();
            d.set("MESH_NODE_DATA_DIR", &path);
        },
        code: FAILED,
        says: &["cannot use the data directory", "mesh.toml", "node.data_dir"],
    },
    Refusal {
        what: "a damaged store",
        prepare: |d| overwrite(&d.file("data/cluster.redb"), 0),
        code: FAILED,
        says: &["data/cluster.redb is damaged", "nothing was changed", "Move the data directory away"],
    },
    Refusal {
        what: "a store that is damaged behind its head",
        prepare: |d| overwrite(&d.file("data/cluster.redb"), 4096),
        code: FAILED,
        says: &["data/cluster.redb is damaged", "nothing was changed", "Move the data directory away"],
    },
    Refusal {
        what: "a damaged identity",
        prepare: |d| overwrite(&d.file("data/identity.key"), 0),
        code: FAILED,
        says: &["data/identity.key is damaged", "restore it from a backup", "mesh node remove"],
    },
    Refusal {
        what: "a lost identity",
        prepare: |d| std::fs::remove_file(d.file("data/identity.key")).expect("the identity"),
        code: FAILED,
        says: &["data/identity.key is missing", "restore the file from a backup", "mesh node remove"],
    },
];

#[test]
fn daemons_that_cannot_start_change_nothing_and_start_once_mended() {
    let (mut cluster, digits) = serving();
    let device = &mut cluster.devices[0];
    let id = device.status().expect("the status").this_node;
    device.kill();
    let kept = ["mesh.toml", "cluster.key", "data/cluster.redb", "data/identity.key"];
    let saved: Vec<Vec<u8>> =
        kept.iter().map(|name| std::fs::read(device.file(name)).expect("a file of the device")).collect();
    let env = device.env.clone();
    for Refusal { what, prepare, code, says } in REFUSALS {
        prepare(device);
        let before: Vec<_> = kept.iter().map(|name| std::fs::read(device.file(name)).ok()).collect();
        let (status, log) = device.start_and_fail(PATIENCE);
        assert_eq!(status.code(), Some(code), "{what}: {log}");
        for name in says {
            assert!(log.contains(name), "{what}: does not say {name:?}: {log}");
        }
        assert!(!log.contains("panicked"), "{what}: {log}");
        let after: Vec<_> = kept.iter().map(|name| std::fs::read(device.file(name)).ok()).collect();
        assert_eq!(before, after, "{what}: a refused start changed a file");
        for (name, bytes) in kept.iter().zip(&saved) {
            std::fs::write(device.file(name), bytes).expect("a file of the device");
            set_mode(&device.file(name), 0o600);
        }
        device.env.clone_from(&env);
    }
    cluster.start(PATIENCE);
    let device = &cluster.devices[0];
    assert_eq!(device.status().expect("the status").this_node, id);
    wait("digits", PATIENCE, || {
        device.http("GET", "/v2/models/digits/ready", b"").is_some_and(|a| a.0 == 200)
    });
    assert_goes_on(device, &digits, "all refused starts");
}

#[test]
fn ports_that_are_taken() {
    let (mut cluster, digits) = serving();
    let mut second = cluster.stranger();
    let (own_api, own_peer) = (second.api.clone(), second.peer.clone());
    let device = &mut cluster.devices[0];
    for (key, address, own, says) in [
        ("MESH_API_LISTEN", &device.api, own_api, "api.listen"),
        ("MESH_API_GRPC_LISTEN", &device.api, String::new(), "api.grpc_listen"),
        ("MESH_NETWORK_LISTEN", &device.peer, own_peer, "network.listen"),
    ] {
        second.set(key, address);
        let (status, log) = second.start_and_fail(PATIENCE);
        assert_eq!(status.code(), Some(FAILED), "{log}");
        assert!(log.contains(address) && log.contains(says), "{log}");
        second.set(key, &own);
        assert_goes_on(device, &digits, key);
    }
}

#[test]
fn a_disk_limit_that_is_too_small() {
    let mut cluster = Loopback::new(1, &[("MESH_LIMITS_DISK", "128KiB")]);
    cluster.start(PATIENCE);
    let output = cluster.devices[0].mesh(&["deploy", &files::digits_model(), "--name", "digits"]);
    assert_fails(&output, "deploy", FAILED, &["model.onnx", "131072 bytes", "raise limits.disk"]);
    cluster.devices[0].kill();
    cluster.devices[0].set("MESH_LIMITS_DISK", "auto");
    cluster.start(PATIENCE);
    deploy_digits(&cluster.devices[0]);
    assert_goes_on(&cluster.devices[0], &Digits::load(), "a disk limit");
}

#[test]
fn without_a_quorum_serving_goes_on_and_changes_are_refused() {
    let mut cluster = Loopback::new(3, &[("MESH_LIMITS_THREADS", "1")]);
    cluster.start(PATIENCE);
    let digits = Digits::load();
    deploy_digits(&cluster.devices[0]);
    assert_goes_on(&cluster.devices[0], &digits, "deploy");
    cluster.devices[1].kill();
    cluster.devices[2].kill();
    let device = &cluster.devices[0];
    wait("the loss in status", PATIENCE, || device.status().is_some_and(|s| !s.cluster.quorum));
    let warnings = device.status().expect("the status").warnings;
    let told =
        |w: &str| ["no quorum", "2 of 3 voters", "device-2", "device-3"].iter().all(|part| w.contains(part));
    assert!(warnings.iter().any(|w| told(&w.what)), "{warnings:?}");
    let model = files::digits_model();
    let commands: [&[&str]; 4] = [
        &["undeploy", "digits"],
        &["node", "drain", "device-2"],
        &["node", "remove", "device-2"],
        &["deploy", &model, "--name", "other"],
    ];
    for args in commands {
        let what = args.join(" ");
        assert_fails(&device.mesh(args), &what, UNREACHABLE, &["no leader with a quorum", "mesh status"]);
        assert_goes_on(device, &digits, &what);
    }
    cluster.start(PATIENCE);
    assert_goes_on(&cluster.devices[0], &digits, "the others are back");
}

#[test]
fn another_key_and_a_removed_device_are_refused_and_told() {
    let mut cluster = Loopback::new(3, &[("MESH_LIMITS_THREADS", "1")]);
    cluster.start(PATIENCE);
    let digits = Digits::load();
    deploy_digits(&cluster.devices[0]);
    let mut stranger = cluster.stranger();
    stranger.start();
    let told = |device: &LoopDevice, what: &str| {
        let status = device.status();
        status.is_some_and(|s| s.warnings.iter().any(|w| w.what.contains(what)))
    };
    wait("the stranger's status", PATIENCE, || told(&stranger, "another cluster key"));
    wait("a member's status", PATIENCE, || told(&cluster.devices[0], "another cluster key"));
    // How often it is tried is the thing measured here: for ten seconds.
    std::thread::sleep(Duration::from_secs(10));
    for device in cluster.devices.iter().chain([&stranger]) {
        let tries = device.log().lines().filter(|line| line.contains("refused")).count();
        assert!(tries <= 12, "{} logged {tries} refusals:\n{}", device.name, device.log());
    }
    assert!(is_whole(&cluster.devices[0].status().expect("the status"), 3));
    stranger.kill();
    let output = cluster.devices[0].mesh(&["node", "remove", "device-3"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // A member that refuses it at the door is told at once; that the device is out only when no leader is in touch.
    let out = "the cluster refuses this device: it was removed from the cluster";
    wait("the removed device's status", PATIENCE, || told(&cluster.devices[2], out));
    wait("two members", PATIENCE, || cluster.devices[0].status().is_some_and(|s| is_whole(&s, 2)));
    let output = cluster.devices[2].mesh(&["plan", "digits"]);
    assert_fails(&output, "plan on a removed device", UNREACHABLE, &["not in the cluster", "mesh status"]);
    assert_goes_on(&cluster.devices[0], &digits, "a removal");
}
