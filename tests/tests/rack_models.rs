//! Real models in four stages over four devices, each device asked: the whole model's answers. Needs root, and
//! `MESH_MODELS`: a folder of models (`NAME/model.onnx`), as `make test-models` writes it. `MESH_MODEL` picks one.
//! The same for tritonclient, over HTTP and gRPC, where the Python that `MESH_PYTHON` names (default: `python3`) has it.

#![allow(clippy::print_stderr, reason = "tests say what they skip and measure")]

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use mesh_tests::{
    digits,
    models::{Named, Whole, difference},
    rack::{Device, Rack, is_root},
};

const PATIENCE: Duration = Duration::from_secs(60);
/// Issue 2: difference allowed, as a part of the output's largest magnitude.
const TOLERANCE: f64 = 1e-5;
const STAGES: usize = 4;
/// Where every device speaks gRPC: in its own namespace, so that all can take the same address.
const GRPC: &str = "127.0.0.1:7402";

#[test]
fn real_models_in_four_stages_answer_like_the_whole() {
    let Some((rack, models)) = set_up("real models in four stages answer like the whole") else { return };
    let mut faults = Vec::new();
    for (number, folder) in models.iter().enumerate() {
        // Another device takes each deployment.
        faults.extend(check(&rack, number % 4, folder));
    }
    assert!(faults.is_empty(), "{}\n{}", faults.join("\n"), rack.logs());
}

#[test]
fn tritonclient_gets_the_answers_of_the_whole() {
    const WHAT: &str = "tritonclient gets the answers of the whole";
    let python = std::env::var("MESH_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has_it = Command::new(&python)
        .args(["-c", "import tritonclient.http, tritonclient.grpc, onnxruntime"])
        .output();
    if !has_it.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED without tritonclient and onnxruntime in {python}: {WHAT}");
        return;
    }
    let Some((rack, models)) = set_up(WHAT) else { return };
    // The one with the most inputs and outputs, where it is there.
    let real = models.iter().find(|path| path.ends_with("bert_base")).unwrap_or(&models[0]);
    let real = real.join("model.onnx");
    deploy(&rack.devices[0], "digits", &digits::model()).expect("digits is deployed");
    deploy(&rack.devices[1], "real", &real).expect("the real model is deployed");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tritonclient_check.py");
    let grpc = ["--grpc", "--url", GRPC];
    for device in &rack.devices {
        for over in [&grpc[..0], &grpc] {
            let mut command = device.inside(&python);
            command.arg(&script).args(over).arg("--digits").arg("digits").arg(digits::folder());
            let output = command.arg("--model").arg("real").arg(&real).output().expect("the script runs");
            let said = String::from_utf8_lossy(&output.stdout);
            eprintln!("tritonclient {over:?} at {}:\n{said}", device.name);
            let complaint = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}: {said}{complaint}\n{}", device.name, rack.logs());
        }
    }
}

/// Four devices and the models; `None`, with a line that says so, without what `what` needs.
fn set_up(what: &str) -> Option<(Rack, Vec<PathBuf>)> {
    let Some(models) = models() else {
        eprintln!("SKIPPED without MESH_MODELS: {what}");
        return None;
    };
    if !is_root() {
        eprintln!("SKIPPED without root: {what}");
        return None;
    }
    let mut rack = Rack::new(4, &[("MESH_LIMITS_THREADS", "1"), ("MESH_API_GRPC_LISTEN", GRPC)]);
    rack.start(4);
    rack.wait_for_one_cluster(PATIENCE);
    Some((rack, models))
}

/// Folders of the models that are asked for.
fn models() -> Option<Vec<PathBuf>> {
    let folder = std::env::var_os("MESH_MODELS")?;
    let only = std::env::var("MESH_MODEL").ok();
    let entries = std::fs::read_dir(&folder).expect("MESH_MODELS names a folder");
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    found.retain(|path| path.join("model.onnx").is_file());
    found.retain(|path| only.as_ref().is_none_or(|only| path.ends_with(only)));
    found.sort();
    assert!(!found.is_empty(), "no model in {}", Path::new(&folder).display());
    Some(found)
}

/// Deploys one model at a device, asks every device, and removes it again. Returns what is wrong.
fn check(rack: &Rack, at: usize, folder: &Path) -> Vec<String> {
    let name = folder.file_name().and_then(|name| name.to_str()).expect("a readable name");
    if let Err(why) = deploy(&rack.devices[at], name, &folder.join("model.onnx")) {
        return vec![why];
    }
    let status = rack.devices[at].status().expect("status");
    let deployment = status.deployments.iter().find(|d| d.name == name).expect("it is in the status");
    let blocks: Vec<String> =
        deployment.stages.iter().map(|s| format!("{}-{}", s.first_block, s.last_block)).collect();
    eprintln!("{name}: stages of blocks {}", blocks.join(", "));
    let mut faults = Vec::new();
    if deployment.stages.len() != STAGES {
        faults.push(format!("{name}: {} stages instead of {STAGES}", deployment.stages.len()));
    }
    let mut whole = Whole::load(&folder.join("model.onnx"));
    let lengths: &[i64] = if whole.has_dynamic_length() { &[16, 77] } else { &[0] };
    for batch in [1, 4] {
        for &length in lengths {
            // Other inputs at every device, so that an answer to another's question is seen.
            let questions: Option<Vec<Named>> =
                (0..4).map(|seed| whole.inputs(batch, length, seed)).collect();
            let Some(questions) = questions else { continue };
            let questions: Vec<(Named, Named)> =
                questions.into_iter().map(|inputs| (inputs.clone(), whole.run(&inputs))).collect();
            let case = format!("{name}, batch {batch}, length {length}");
            faults.extend(ask_everywhere(rack, name, &case, &questions));
        }
    }
    let output = rack.devices[at].mesh(&["undeploy", name]);
    if !output.status.success() {
        faults.push(format!("{name}: undeploy: {}", String::from_utf8_lossy(&output.stderr)));
    }
    faults
}

/// Runs `mesh deploy` and says how long each of its steps took.
fn deploy(device: &Device, name: &str, file: &Path) -> Result<(), String> {
    let (start, mut since, mut step) = (Instant::now(), Instant::now(), String::new());
    let mut command = device.command();
    command.arg("deploy").arg(file).args(["--name", name, "--stages", &STAGES.to_string()]);
    let mut child = command.stderr(Stdio::piped()).spawn().expect("mesh runs");
    let mut said = String::new();
    for line in BufReader::new(child.stderr.take().expect("it is piped")).lines() {
        let line = line.expect("text");
        if let Some(next) = line.strip_suffix(" …") {
            if !step.is_empty() {
                eprintln!("{name}: {step} {:.1} s", since.elapsed().as_secs_f64());
            }
            (since, step) = (Instant::now(), next.to_owned());
        }
        said.push_str(&line);
        said.push('\n');
    }
    eprintln!("{name}: {step} {:.1} s", since.elapsed().as_secs_f64());
    eprintln!("{name}: deployed in {:.1} s", start.elapsed().as_secs_f64());
    let status = child.wait().expect("mesh ends");
    if status.success() { Ok(()) } else { Err(format!("{name}: mesh deploy: {status}\n{said}")) }
}

/// Asks every device its question, first one device after the other, then all at once.
fn ask_everywhere(rack: &Rack, name: &str, case: &str, questions: &[(Named, Named)]) -> Vec<String> {
    let pairs = || rack.devices.iter().zip(questions);
    let one_by_one: Vec<Answer> = pairs().map(|(device, question)| ask(device, name, question)).collect();
    let at_once: Vec<Answer> = std::thread::scope(|scope| {
        let asked: Vec<_> =
            pairs().map(|(device, question)| scope.spawn(|| ask(device, name, question))).collect();
        asked.into_iter().map(|thread| thread.join().expect("a client")).collect()
    });
    let mut faults = Vec::new();
    for (device, answer) in rack.devices.iter().chain(&rack.devices).zip(one_by_one.iter().chain(&at_once)) {
        match &answer.difference {
            Ok(difference) if *difference <= TOLERANCE => {}
            Ok(difference) => faults.push(format!("{case} at {}: differs by {difference:.2e}", device.name)),
            Err(why) => faults.push(format!("{case} at {}: {why}", device.name)),
        }
    }
    let all = one_by_one.iter().chain(&at_once);
    let worst = all.filter_map(|a| a.difference.as_ref().ok()).fold(0.0f64, |worst, d| worst.max(*d));
    let times =
        |answers: &[Answer]| answers.iter().map(|a| format!("{:.0}", a.ms)).collect::<Vec<_>>().join(" ");
    let (apart, together) = (times(&one_by_one), times(&at_once));
    eprintln!("{case}: largest difference {worst:.1e}; one by one {apart} ms, at once {together} ms");
    faults
}

struct Answer {
    ms: f64,
    /// From the whole model's answer, or what came instead of an answer.
    difference: Result<f64, String>,
}

fn ask(device: &Device, name: &str, (inputs, expected): &(Named, Named)) -> Answer {
    let (model, inputs) = (name.to_owned(), inputs.clone());
    let start = Instant::now();
    let answer = device.with_client(move |client| client.infer_binary(&model, &inputs));
    let ms = start.elapsed().as_secs_f64() * 1e3;
    Answer { ms, difference: answer.and_then(|found| difference(&found, expected)) }
}
