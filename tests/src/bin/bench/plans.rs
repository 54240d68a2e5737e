//! The planner by itself: against known optima, against SEIFER's baselines on its own simulator, and as problems grow.

use std::{collections::BTreeMap, error::Error, fmt::Write as _, fs, time::Instant};

use mesh_planner::{
    Block, DEFAULT_STEPS, Device, LinkRate, Links, Objective, PairLink, Problem, TransferCost, check, solve,
};
use mesh_tests::{
    lab::plot::{Labels, Line, lines},
    policies::vit,
    radio::wifi,
};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

const MIB: f64 = 1_048_576.0;
/// Draws of places per configuration of SEIFER's simulator, as it has them.
const DRAWS: usize = 50;
const BLOCKS: usize = 300;

/// EdgePipe's model on two kinds of boards.
pub(super) fn vit(text: &mut String) -> Result<(), Box<dyn Error>> {
    let rows = vit::run();
    let _ = writeln!(
        text,
        "## Planning ViT for EdgePipe's boards\n\nViT-Base and -Large on Minnowboards (mb) and RCC-VE boards (rcc), replication off, \
         by the profiles that EdgePipe published (`vit_profiles`): bottleneck in seconds of the known optimum, of Mesh's \
         plan, of EdgePipe's programme as we built it, and the true cost of the schedule that the published tool gives.\n\n{}\n{}",
        vit::table(&rows),
        vit::sixteen()?.sentence()
    );
    Ok(())
}

/// SEIFER's simulator.
pub(super) fn wifi(text: &mut String) {
    let (rows, not_run) = wifi::run(DRAWS);
    let _ = writeln!(text, "## SEIFER's simulator\n\n{}", wifi::table(&rows, &not_run));
}

/// Time, gap and memory as the number of devices grows.
pub(super) fn scale(text: &mut String) -> Result<(), Box<dyn Error>> {
    let _ = writeln!(
        text,
        "## Planning large fleets\n\nA model of {BLOCKS} blocks, about 3 s and 600 MiB in all; devices that all differ (speed \
         0.3 to 1.5, 120 to 400 MiB, what moving data costs), links of 5 to 1,000 Mbit/s drawn for every pair. The gap is to \
         the planner's own lower bound. Memory is the most that the process has had so far.\n\n\
         | devices | replication | time | gap | stages | memory |\n|---|---|---|---|---|---|"
    );
    let mut curves: Vec<Line> = Vec::new();
    for replication in [false, true] {
        let name = if replication { "with replication" } else { "chains" };
        let mut points = Vec::new();
        for devices in [4_u16, 8, 16, 32, 64, 100, 200, 400, 1000] {
            let problem = Problem { replication, ..fleet(usize::from(devices)) };
            let start = Instant::now();
            let plan = solve(&problem, DEFAULT_STEPS)?;
            let seconds = start.elapsed().as_secs_f64();
            check(&problem, &plan)?;
            let gap = (plan.bottleneck_s / plan.lower_bound_s - 1.0) * 100.0;
            let _ = writeln!(
                text,
                "| {devices} | {} | {:.0} ms | {gap:.1} % | {} | {} MB |",
                if replication { "yes" } else { "no" },
                seconds * 1e3,
                plan.stages.len(),
                memory_mb()
            );
            points.push((f64::from(devices), seconds));
        }
        curves.push(Line { name: name.to_owned(), points });
    }
    let labels = Labels { title: "planning time", x: "devices", y: "seconds" };
    super::write(&super::docs().join("benchmarks/planner-scale.svg"), &lines(&labels, &curves, None)?)?;
    let _ = writeln!(text, "\n![planning time](benchmarks/planner-scale.svg)");
    Ok(())
}

fn memory_mb() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024 / 1_000_000
}

fn fleet(count: usize) -> Problem {
    let mut random = SmallRng::seed_from_u64(1);
    let mut between = |low: f64, high: f64| random.random_range(low..high);
    let blocks: Vec<Block> = (0..BLOCKS)
        .map(|_| Block {
            weight_bytes: (between(0.5, 3.5) * MIB) as u64,
            overhead_bytes: 0,
            peak_bytes: (between(0.5, 2.0) * MIB) as u64,
            seconds: BTreeMap::from([("pi".to_owned(), between(0.002, 0.018))]),
        })
        .collect();
    let cuts = (0..=BLOCKS).map(|_| (between(0.02, 0.6) * MIB) as u64).collect();
    let devices: Vec<Device> = (0..count)
        .map(|index| Device {
            id: format!("d{index}"),
            class: "pi".to_owned(),
            speed: between(0.3, 1.5),
            memory_bytes: (between(120.0, 400.0) * MIB) as u64,
            card_bytes_per_s: None,
            transfer: TransferCost {
                send_s_per_byte: between(8e-9, 1e-8),
                receive_s_per_byte: between(1.1e-8, 1.3e-8),
                request_s: 1e-4,
                entry_s_per_byte: 5e-9,
                rest_share: 0.02,
                compute_share: 1.0,
            },
        })
        .collect();
    let mut pairs = Vec::new();
    for from in &devices {
        for to in devices.iter().filter(|to| to.id != from.id) {
            let bytes_per_s = between(5e6, 1e9) / 8.0;
            pairs.push(PairLink { from: from.id.clone(), to: to.id.clone(), bytes_per_s, latency_s: 0.001 });
        }
    }
    let share = 1.0 / count as f64;
    Problem {
        blocks,
        cuts,
        ingress: Some(devices.iter().map(|device| (device.id.clone(), share)).collect()),
        arriving: BTreeMap::new(),
        devices,
        links: Links { default: LinkRate { bytes_per_s: 125e6, latency_s: 5e-4 }, pairs },
        objective: Objective::Throughput,
        replication: true,
        min_stages: None,
        max_stages: None,
        pin: None,
    }
}
