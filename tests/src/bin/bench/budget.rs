//! Where the time of a chain goes, as `perf` sees the daemons while they serve.

use std::{
    collections::BTreeMap, error::Error, fmt::Write as _, path::Path, process::Command, time::Instant,
};

use mesh_daemon::status::Status;
use mesh_tests::lab::{
    machine::Usage,
    play::Player,
    scenario::{Event, Step},
};

const NAME: &str = "resnet50";
/// How long it is looked at.
const SECONDS: u32 = 30;
/// Looks at each processor per second. Not a divisor of anything that ticks.
const RATE_HZ: u32 = 499;

/// Functions seen so often are named on the terminal.
const LOUD: f64 = 50.0;

/// Whether a function of a file is of a kind.
type IsOf = fn(&str, &str) -> bool;

/// What a processor does for an answer.
const KINDS: [(&str, IsOf); 8] = [
    ("compute (ONNX Runtime)", |file, _| file.contains("onnxruntime") || file.contains("libstdc++")),
    ("codec", |_, function| {
        ["ZSTD", "HUF_", "FSE_", "HIST_", "sparse", "codec"].iter().any(|part| function.contains(part))
    }),
    ("encryption", |_, function| {
        ["chacha", "poly1305", "snow", "noise", "aes"]
            .iter()
            .any(|part| function.to_lowercase().contains(part))
    }),
    ("copies and clearing of memory", |file, function| {
        let kernel = ["copy_user", "_copy_", "copyin", "copyout", "clear_page", "rep_movs"];
        let user = ["memcpy", "memmove", "memset"];
        let of = |parts: &[&str]| parts.iter().any(|part| function.contains(part));
        of(&user) || is_kernel(file) && of(&kernel)
    }),
    ("memory of the kernel: pages given and taken back", |file, function| {
        let parts = ["page", "folio", "mmap", "munmap", "vma", "rmqueue", "zap_", "tlb", "memcg", "lru"];
        is_kernel(file) && parts.iter().any(|part| function.contains(part))
    }),
    ("network stack and the rest of the kernel", |file, _| is_kernel(file)),
    ("the daemon's own code: frames, streams, scheduling", |file, _| file.starts_with("mesh")),
    ("other libraries", |_, _| true),
];

fn is_kernel(file: &str) -> bool {
    file.starts_with('[')
}

/// One device over the time looked at.
struct Device {
    stage: String,
    /// Processor time of a run of its stage.
    compute_ms: f64,
    processor_s: f64,
    received: u64,
    sent: u64,
}

/// Plays the chain and takes its time apart.
pub(super) fn section(models: &Path, text: &mut String) -> Result<(), Box<dyn Error>> {
    let mut player = super::endurance::under_load("chain-8", models)?;
    let pids: Vec<String> =
        player.hall.devices.iter().filter_map(|device| Some(device.daemon.pid()?.to_string())).collect();
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("samples");
    let (start, before) = (Instant::now(), usages(&player));
    let samples = samples(&file, &pids)?;
    let (seconds, after) = (start.elapsed().as_secs_f64(), usages(&player));
    let status =
        player.hall.running().find_map(|device| device.daemon.status()).ok_or("no device answers")?;
    let ended = start.elapsed().as_secs_f64();
    player.event(&Event { at: None, step: Step::StopLoad { name: None } })?;
    let Some((_, report)) = player.report.loads.last() else { return Err("no report".into()) };
    let from = report.seconds - ended;
    let rate = report.rate_between(from, from + seconds);
    let latency = report.latency_between(from, from + seconds).p50_ms;
    let cpu = player.hall.devices.first().and_then(|device| device.machine.hardware.cpu).unwrap_or(1.0);
    let devices = devices(&player, &status, &before, &after, cpu);
    let answers = rate * seconds;
    let _ = writeln!(
        text,
        "## Where the time of a chain goes\n\nResNet-50 as a forced chain of eight stages on eight devices of {:.0} % of a \
         core each, 1 Gbit/s: {rate:.2} answers/s, {latency:.0} ms each (median). Of the processors, `perf` saw for each \
         answer, all devices together:\n\n| what | processor ms per answer | part |\n|---|---|---|",
        cpu * 100.0
    );
    write_kinds(text, &samples, answers);
    let _ = writeln!(
        text,
        "\nA device's stage sets the rate of the chain when the device is busy all the time:\n\n| device and its stage | \
         processor ms per answer | of that its stage | of its share of a core used | kB received per answer | kB sent | \
         wire, ms per answer at 1 Gbit/s |\n|---|---|---|---|---|---|---|"
    );
    for device in &devices {
        let (received, sent) = (device.received as f64 / answers, device.sent as f64 / answers);
        let _ = writeln!(
            text,
            "| {} | {:.1} | {:.1} | {:.0} % | {:.0} | {:.0} | {:.1} |",
            device.stage,
            device.processor_s / answers * 1e3,
            device.compute_ms,
            device.processor_s / seconds / cpu * 100.0,
            received / 1e3,
            sent / 1e3,
            received.max(sent) / 125e6 * 1e3
        );
    }
    write_verdict(text, &devices, answers, cpu, rate);
    Ok(())
}

fn write_kinds(text: &mut String, samples: &BTreeMap<&'static str, f64>, answers: f64) {
    let total: f64 = samples.values().sum();
    for (kind, _) in KINDS {
        let seconds = samples.get(kind).copied().unwrap_or(0.0);
        let _ =
            writeln!(text, "| {kind} | {:.1} | {:.0} % |", seconds / answers * 1e3, seconds / total * 100.0);
    }
    let _ = writeln!(text, "| all | {:.1} | |", total / answers * 1e3);
}

/// What the chain could do with even stages, and with nothing to move.
fn write_verdict(text: &mut String, devices: &[Device], answers: f64, cpu: f64, rate: f64) {
    let all: f64 = devices.iter().map(|device| device.processor_s).sum::<f64>() / answers;
    let compute: f64 = devices.iter().map(|device| device.compute_ms).sum::<f64>() / 1e3;
    let most = devices.iter().map(|device| device.processor_s / answers).fold(0.0, f64::max);
    let count = devices.len() as f64;
    let _ = writeln!(
        text,
        "\nThe busiest device spends {:.1} ms, the mean is {:.1} ms: with even stages the chain would answer {:.2}/s, with \
         nothing to move either {:.2}/s (measured: {rate:.2}/s).",
        most * 1e3,
        all / count * 1e3,
        cpu / (all / count),
        cpu / (compute / count)
    );
}

fn usages(player: &Player) -> Vec<Usage> {
    player.hall.devices.iter().map(|device| device.usage()).collect()
}

fn devices(player: &Player, status: &Status, before: &[Usage], after: &[Usage], cpu: f64) -> Vec<Device> {
    let stages = status.deployments.iter().find(|deployment| deployment.name == NAME);
    let stage_of = |name: &str| {
        let id = &status.nodes.iter().find(|node| node.name == name)?.id;
        stages?.stages.iter().find(|stage| stage.replicas.iter().any(|replica| replica.node == *id))
    };
    let mut devices: Vec<(usize, Device)> = player
        .hall
        .devices
        .iter()
        .zip(before.iter().zip(after))
        .map(|(device, (before, after))| {
            let name = device.name();
            let stage = stage_of(name);
            let blocks = stage.map(|stage| format!("{name}: {}-{}", stage.first_block, stage.last_block));
            let device = Device {
                stage: blocks.unwrap_or_else(|| format!("{name}: none")),
                // The daemon tells the time of the whole device, which has a share of a processor.
                compute_ms: stage.map_or(0.0, |stage| stage.compute_ms * cpu),
                processor_s: after.cpu_s - before.cpu_s,
                received: after.received - before.received,
                sent: after.sent - before.sent,
            };
            (stage.map_or(usize::MAX, |stage| stage.index), device)
        })
        .collect();
    devices.sort_by_key(|(index, _)| *index);
    devices.into_iter().map(|(_, device)| device).collect()
}

/// Processor seconds of processes by kind.
fn samples(file: &Path, pids: &[String]) -> Result<BTreeMap<&'static str, f64>, Box<dyn Error>> {
    let mut record = Command::new("perf");
    record.args(["record", "--quiet", "--event", "cpu-clock", "--freq", &RATE_HZ.to_string(), "--output"]);
    record.arg(file).args(["--pid", &pids.join(","), "--", "sleep", &SECONDS.to_string()]);
    let recorded = record.output().map_err(|error| format!("`perf` cannot be run: {error}"))?;
    if !recorded.status.success() {
        return Err(format!("perf: {}", String::from_utf8_lossy(&recorded.stderr)).into());
    }
    let mut report = Command::new("perf");
    report.args(["report", "--stdio", "--no-inline", "--show-nr-samples", "--field-separator", ";"]);
    let report = report.args(["--sort", "dso,sym", "--input"]).arg(file).output()?;
    let mut kinds = BTreeMap::new();
    for line in String::from_utf8_lossy(&report.stdout).lines() {
        let mut fields = line.splitn(4, ';').map(str::trim);
        let (Some(_), Some(count), Some(file), Some(function)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let Ok(count) = count.parse::<f64>() else { continue };
        let kind =
            KINDS.iter().find(|(_, is)| is(file, function)).map_or("other libraries", |(kind, _)| kind);
        if count >= LOUD {
            eprintln!("{kind}: {:.2} s in {function} of {file}", count / f64::from(RATE_HZ));
        }
        *kinds.entry(kind).or_insert(0.0) += count / f64::from(RATE_HZ);
    }
    match kinds.is_empty() {
        true => Err("perf saw nothing of the daemons".into()),
        false => Ok(kinds),
    }
}
