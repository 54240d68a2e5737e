//! The `planner` command: answers, infeasible problems, bad files and wrong usage.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};

fn planner(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_planner"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that refuses its arguments may end before it reads.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn answer(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Two blocks on two boards, as the format is documented.
fn problem(memory_bytes: u64) -> String {
    let block = json!({"weight_bytes": 10, "peak_bytes": 0, "seconds": {"rcc": 0.1, "mb": 0.2}});
    let device = |id: &str, class: &str| json!({"id": id, "class": class, "speed": 1.0, "memory_bytes": memory_bytes, "card_bytes_per_s": null});
    let pair = json!({"from": "rcc-0", "to": "mb-0", "bytes_per_s": 1250000.0, "latency_s": 0.01});
    json!({
        "blocks": [block, block],
        "cuts": [4, 4, 4],
        "devices": [device("rcc-0", "rcc"), device("mb-0", "mb")],
        "links": {"default": {"bytes_per_s": 125000000.0, "latency_s": 0.0}, "pairs": [pair]},
        "ingress": null, "objective": "throughput", "replication": true, "min_stages": null, "max_stages": null
    })
    .to_string()
}

#[test]
fn every_policy_answers_with_the_documented_keys() {
    for policy in ["mesh", "single", "defer", "seifer", "edgepipe", "pipedream", "greedy", "random"] {
        let output = planner(&["solve", "-", "--policy", policy], &problem(1000));
        assert_eq!(output.status.code(), Some(0), "{policy}");
        let answer = answer(&output);
        for key in ["bottleneck_s", "throughput_rps", "latency_s", "lower_bound_s", "solve_ms"] {
            assert!(answer[key].is_f64(), "{policy}: {key}");
        }
        assert!(answer["optimal"].is_boolean() && answer["why"].is_string());
        let stage = &answer["stages"][0];
        assert!(stage["first_block"].is_u64() && stage["last_block"].is_u64());
        assert!(stage["replicas"][0]["device"].is_string() && stage["replicas"][0]["share"].is_f64());
    }
    // Both boards take requests, two thirds and one third.
    let mesh = answer(&planner(&["solve", "-"], &problem(1000)));
    assert!((mesh["throughput_rps"].as_f64().unwrap() - 7.5).abs() < 1e-6);
}

#[test]
fn an_infeasible_problem_says_why_and_ends_with_1() {
    for policy in ["mesh", "single", "defer", "seifer", "edgepipe", "pipedream", "greedy", "random"] {
        let output = planner(&["solve", "-", "--policy", policy], &problem(9));
        assert_eq!(output.status.code(), Some(1), "{policy}");
        assert!(answer(&output)["infeasible"].is_string(), "{policy}");
    }
}

#[test]
fn bad_files_and_wrong_usage_are_told_apart() {
    let senseless = problem(1000).replace("0.1", "-0.1");
    let cases: [(&[&str], &str, i32, &str); 5] = [
        (&["solve", "-"], "{", 1, "standard input is no planning problem"),
        (&["solve", "-"], &senseless, 1, "-0.1"),
        (&["solve", "no-such-file.json"], "", 1, "no-such-file.json"),
        (&["solve"], "", 64, "FILE"),
        (&["solve", "-", "--policy", "fastest"], "", 64, "edgepipe"),
    ];
    for (arguments, input, code, said) in cases {
        let output = planner(arguments, input);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(said) && output.stdout.is_empty(), "{arguments:?}: {error}");
    }
}
