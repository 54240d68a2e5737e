//! The `mesh` binary as people type it: exit codes, streams, messages.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    fs::File,
    io::Write,
    path::Path,
    process::{Command, Output},
};

/// Nobody listens on port 1 of loopback.
const NOBODY: &str = "http://127.0.0.1:1";

fn mesh(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("MESH_") {
            command.env_remove(name);
        }
    }
    command.args(arguments).current_dir(folder).env("HOME", folder).output().unwrap()
}

#[track_caller]
fn expect(folder: &Path, arguments: &[&str], code: i32, says: &str) {
    let output = mesh(folder, arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
    assert!(error.contains(says), "{arguments:?} should say {says:?}: {error}");
    assert!(output.stdout.is_empty(), "{arguments:?}: data on stdout of a failure");
}

fn write(path: &Path, content: &[u8]) {
    File::create(path).unwrap().write_all(content).unwrap();
}

#[test]
fn wrong_usage_is_64() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&[&str], &str); 12] = [
        (&[], "Usage"),
        (&["nonsense"], "unrecognized subcommand"),
        (&["status", "--nonsense"], "unexpected argument"),
        (&["deploy", "a.onnx"], "--name"),
        (&["deploy", "a.onnx", "--name", "a", "--stages", "0"], "0"),
        (&["deploy", "a.onnx", "--name", "a", "--shape", "x=0"], "INPUT=1x3x224x224"),
        (&["deploy", "a.onnx", "--name", "a", "--objective", "beauty"], "throughput"),
        (&["infer", "a"], "--input"),
        (&["bench", "a", "--requests", "1", "--seconds", "1"], "cannot be used"),
        (&["model"], "Usage"),
        (&["completions", "teletype"], "bash"),
        (&["status", "--api", "https://a"], "http://HOST:PORT"),
    ];
    for (arguments, says) in cases {
        expect(folder.path(), arguments, 64, says);
    }
}

#[test]
fn help_goes_to_stdout_with_examples() {
    let folder = tempfile::tempdir().unwrap();
    let commands = [
        "model",
        "node",
        "recover",
        "init",
        "run",
        "status",
        "deploy",
        "plan",
        "infer",
        "bench",
        "models",
        "undeploy",
        "doctor",
        "demo",
        "completions",
        "man",
    ];
    for command in commands {
        let output = mesh(folder.path(), &[command, "--help"]);
        assert_eq!(output.status.code(), Some(0));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("Examples:") && text.contains(&format!("mesh {command}")), "{text}");
    }
    assert!(mesh(folder.path(), &["--version"]).stdout.starts_with(b"mesh "));
}

#[test]
fn no_daemon_is_69_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let npy = folder.path().join("x.npy");
    write(&npy, b"x");
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/digits/model.onnx");
    let model = model.to_str().unwrap();
    let cases: [&[&str]; 11] = [
        &["status"],
        &["status", "--json"],
        &["plan", "a"],
        &["infer", "a", "--input", "x.npy"],
        &["bench", "a", "--json"],
        &["models"],
        &["undeploy", "a"],
        &["model", "rm", "a"],
        &["node", "list"],
        &["node", "drain", "a"],
        &["deploy", model, "--name", "a"],
    ];
    for arguments in cases {
        expect(folder.path(), &[arguments, &["--api", NOBODY]].concat(), 69, "mesh run");
    }
}

#[test]
fn files_are_checked_before_the_daemon_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    write(&path.join("text.onnx"), b"hello world");
    let deploy = |file: &str, says: &str| {
        expect(path, &["deploy", file, "--name", "a", "--api", NOBODY], 1, says);
    };
    deploy("nothing.onnx", "No such file");
    deploy("text.onnx", "not an ONNX model");
    write(&path.join("plan.json"), b"{}");
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/digits/model.onnx");
    let model = model.to_str().unwrap();
    expect(
        path,
        &["deploy", model, "--name", "a", "--pin", "plan.json", "--api", NOBODY],
        1,
        "mesh plan --json",
    );
}

#[test]
fn init_writes_what_run_reads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let output = mesh(path, &["init", "--name", "shop-floor", "--devices", "3"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("mesh.toml"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("copy both files to every device"));
    expect(path, &["init"], 1, "exists");
    expect(path, &["init", "--devices", "0", "--out", "x"], 64, "devices");
    expect(path, &["init", "--name", "no spaces", "--out", "x"], 64, "name");
    // The config is found here, so that a client knows where to look.
    expect(path, &["status"], 69, "127.0.0.1:7401");
}

#[test]
fn bad_config_is_78_with_all_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    expect(path, &["run"], 78, "mesh init");
    expect(path, &["run", "--config", "nothing.toml"], 78, "nothing.toml");
    write(
        &path.join("bad.toml"),
        b"[cluster]\nnaem = \"a\"\n[api]\nlisten = \"nowhere\"\n[limits]\nmemory = \"much\"\n",
    );
    let output = mesh(path, &["run", "--config", "bad.toml"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(78), "{text}");
    for wanted in ["bad.toml:2", "naem", "name", "bad.toml:4", "bad.toml:6"] {
        assert!(text.contains(wanted), "{wanted} is missing: {text}");
    }
    // A client that is told to use this config says the same.
    expect(path, &["status", "--config", "bad.toml"], 78, "bad.toml:2");
}

#[test]
fn a_world_readable_key_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    assert!(mesh(path, &["init"]).status.success());
    std::fs::set_permissions(path.join("cluster.key"), PermissionsExt::from_mode(0o644)).unwrap();
    expect(path, &["run"], 78, "cluster.key");
}

#[test]
fn a_taken_port_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    assert!(mesh(path, &["init"]).status.success());
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_mesh"))
        .arg("run")
        .current_dir(path)
        .env("MESH_API_LISTEN", &address)
        .env("MESH_NODE_DATA_DIR", path.join("data"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(&address) && text.contains("taken") && text.contains("api.listen"), "{text}");
}

#[test]
fn doctor_needs_no_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let output = mesh(folder.path(), &["doctor", "--json"]);
    let findings: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(findings.iter().any(|f| f["check"] == "config" && f["verdict"] == "fail"));
    for finding in &findings {
        let has_remedy = finding["remedy"].as_str().is_some_and(|r| !r.is_empty());
        assert_eq!(has_remedy, finding["verdict"] != "ok", "{finding}");
    }
    assert!(mesh(folder.path(), &["init"]).status.success());
    let output = mesh(folder.path(), &["doctor"]);
    let text = String::from_utf8_lossy(&output.stdout);
    for check in ["config", "key", "clock", "ports", "mDNS", "disk", "memory", "ONNX Runtime", "daemon"] {
        assert!(text.contains(check), "{check}: {text}");
    }
    assert!(text.contains("(api.listen)") && !text.contains("api.grpc_listen"), "{text}");
    let config = folder.path().join("mesh.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    write(&config, text.replace("# grpc_listen = \"\"", "grpc_listen = \"127.0.0.1:0\"").as_bytes());
    let output = mesh(folder.path(), &["doctor"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("127.0.0.1:0 (api.grpc_listen) is free"), "{text}");
}

#[test]
fn doctor_names_what_onnx_runtime_lacks() {
    let folder = tempfile::tempdir().unwrap();
    assert!(mesh(folder.path(), &["init"]).status.success());
    let output = Command::new(env!("CARGO_BIN_EXE_mesh"))
        .args(["doctor", "--json"])
        .current_dir(folder.path())
        .env("MESH_INFERENCE_EXECUTION_PROVIDERS", "abacus")
        .output()
        .unwrap();
    let findings: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    let told = findings.iter().find(|f| f["what"].as_str().is_some_and(|what| what.contains("abacus")));
    let told = told.unwrap_or_else(|| panic!("{findings:?}"));
    assert_eq!(told["check"], "ONNX Runtime");
    assert_eq!(told["verdict"], "fail");
    assert!(told["remedy"].as_str().is_some_and(|remedy| remedy.contains("inference.execution_providers")));
}

/// A person who may not read the key still finds the daemon of the config.
#[test]
fn clients_need_no_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    assert!(mesh(path, &["init"]).status.success());
    std::fs::remove_file(path.join("cluster.key")).unwrap();
    let config = std::fs::read_to_string(path.join("mesh.toml")).unwrap();
    write(
        &path.join("mesh.toml"),
        config.replace("# listen = \"127.0.0.1:7401\"", "listen = \"127.0.0.1:1\"").as_bytes(),
    );
    expect(path, &["status"], 69, "http://127.0.0.1:1 ");
    let variables = [("MESH_API", ""), ("MESH_CONFIG", ""), ("MESH_API_TOKEN", "")];
    let output = Command::new(env!("CARGO_BIN_EXE_mesh"))
        .arg("status")
        .current_dir(path)
        .env("HOME", path)
        .envs(variables)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "an empty variable is none: {text}");
    assert!(text.contains("http://127.0.0.1:1 "), "{text}");
}

#[test]
fn completions_and_man_pages() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let output = mesh(folder.path(), &["completions", shell]);
        assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("undeploy"));
    }
    assert!(mesh(folder.path(), &["man", "man1"]).status.success());
    let pages: Vec<_> = std::fs::read_dir(folder.path().join("man1")).unwrap().collect();
    assert!(pages.len() > 10);
    assert!(folder.path().join("man1/mesh-deploy.1").exists());
}

#[test]
fn a_reader_that_has_gone_is_no_failure() {
    let folder = tempfile::tempdir().unwrap();
    let script = format!("{} completions bash | head -1", env!("CARGO_BIN_EXE_mesh"));
    let output =
        Command::new("bash").args(["-o", "pipefail", "-c", &script]).current_dir(folder.path()).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
