//! Devices that become slow under load: how soon the mesh has another plan, and what it brings.

use std::{
    error::Error,
    fmt::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use mesh_tests::lab::{
    load::LoadReport,
    play::Player,
    scenario::{Event, Step},
    units::Rate,
};

use super::endurance::under_load;

const DEPLOYMENT: &str = "resnet50";
/// Where the clients are: it stays as it is.
const HOME: &str = "d-1";
/// Each kind of slowness happens so often: to the device that sets the rate, and to others with a stage.
const TRIES: usize = 2;
/// A plan has been running for so long when a device becomes slow: voluntary moves pause after one.
const QUIET: Duration = Duration::from_secs(45);
/// For the plan to come to rest.
const REST: Duration = Duration::from_secs(300);
/// Answers before are counted over this.
const BEFORE: Duration = Duration::from_secs(20);
/// A device stays slow for so long.
const DURING: Duration = Duration::from_secs(80);
/// Rates while it is slow are counted from here on: earlier answers were on their way before.
const FELT_S: f64 = 3.0;
/// A new plan's rate is counted from so long after it.
const SETTLED_S: f64 = 5.0;
/// A processor's share of what it was.
const CPU_PART: f64 = 1.0 / 3.0;
const SLOW_CARD: Rate = Rate(5_000_000);
const LOOK: Duration = Duration::from_millis(200);
const PROMISED_S: f64 = 30.0;
/// A plan that keeps this part of its rate need not be left...
const KEPT: f64 = 0.9;
/// ...nor one that another is only so much faster than: the mesh moves for more than this.
const WORTH: f64 = 1.1;

/// What makes a device slow.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Slowness {
    Processor,
    Program,
    Card,
}

impl Slowness {
    const ALL: [Self; 3] = [Self::Processor, Self::Program, Self::Card];

    fn name(self) -> &'static str {
        match self {
            Self::Processor => "a third of the processor is left",
            Self::Program => "another program takes what it can",
            Self::Card => "the card falls from 1 Gbit/s to 5 Mbit/s",
        }
    }

    fn begin(self, device: &str, cpu: f64) -> Step {
        let devices = vec![device.to_owned()];
        match self {
            Self::Processor => Step::Cpu { devices, cpu: cpu * CPU_PART },
            Self::Program => Step::Burn { devices },
            Self::Card => {
                let (delay, jitter, loss) = (None, None, None);
                Step::Link { devices, rate: Some(SLOW_CARD), delay, jitter, loss, restore: false }
            }
        }
    }

    fn end(self, device: &str, cpu: f64) -> Step {
        let devices = vec![device.to_owned()];
        match self {
            Self::Processor => Step::Cpu { devices, cpu },
            Self::Program => Step::Cool { devices },
            Self::Card => {
                let (rate, delay, jitter, loss) = (None, None, None, None);
                Step::Link { devices, rate, delay, jitter, loss, restore: true }
            }
        }
    }
}

/// Times in seconds since the load began.
#[derive(Debug)]
struct Seen {
    what: Slowness,
    device: String,
    begun_s: f64,
    /// The first other plan that serves while the device is slow.
    planned_s: Option<f64>,
    ended_s: f64,
}

/// Measures and writes the section.
pub(super) fn section(models: &Path, text: &mut String) -> Result<(), Box<dyn Error>> {
    let mut player = under_load("slowing", models)?;
    let start = Instant::now();
    let mut all = Vec::new();
    for number in 0..TRIES {
        for what in Slowness::ALL {
            let seen = one(&mut player, start, what, number)?;
            eprintln!("{seen:?}");
            all.push(seen);
        }
    }
    player.event(&Event { at: None, step: Step::StopLoad { name: None } })?;
    let Some((_, report)) = player.report.loads.last() else { return Err("no report".into()) };
    let running = player.hall.running().count();
    write(&player.hall.scenario.about, &all, report, text);
    let _ = writeln!(text, " Daemons that still ran in the end: {running} of {}.", player.hall.devices.len());
    Ok(())
}

/// A device becomes slow, stays so for a while, and recovers.
fn one(player: &mut Player, start: Instant, what: Slowness, number: usize) -> Result<Seen, Box<dyn Error>> {
    rest(player)?;
    let mut route = player.on_route(DEPLOYMENT);
    route.retain(|name| name != HOME);
    let bottleneck = player.bottleneck(DEPLOYMENT);
    route.sort_by_key(|name| (Some(name) != bottleneck.as_ref(), name.clone()));
    route.dedup();
    let device =
        route.get(number % route.len().max(1)).ok_or("no device but the clients' has a stage")?.clone();
    let cpu = player.hall.device(&device).and_then(|d| d.machine.hardware.cpu).unwrap_or(1.0);
    std::thread::sleep(BEFORE);
    let before = player.epoch(DEPLOYMENT);
    let begun_s = start.elapsed().as_secs_f64();
    player.event(&Event { at: None, step: what.begin(&device, cpu) })?;
    let (begun, mut planned_s) = (Instant::now(), None);
    while begun.elapsed() < DURING {
        std::thread::sleep(LOOK);
        let now = player.epoch(DEPLOYMENT);
        if planned_s.is_none() && now.is_some() && now != before {
            planned_s = Some(start.elapsed().as_secs_f64());
        }
    }
    let ended_s = start.elapsed().as_secs_f64();
    player.event(&Event { at: None, step: what.end(&device, cpu) })?;
    Ok(Seen { what, device, begun_s, planned_s, ended_s })
}

/// Waits until the plan has not changed for a while.
fn rest(player: &Player) -> Result<(), Box<dyn Error>> {
    let (start, mut since, mut epoch) = (Instant::now(), Instant::now(), player.epoch(DEPLOYMENT));
    while since.elapsed() < QUIET {
        if start.elapsed() > REST {
            return Err(format!("the plan has not come to rest within {REST:?}").into());
        }
        std::thread::sleep(LOOK);
        let now = player.epoch(DEPLOYMENT);
        if now.is_some() && now != epoch {
            (epoch, since) = (now, Instant::now());
        }
    }
    Ok(())
}

fn write(about: &str, all: &[Seen], report: &LoadReport, text: &mut String) {
    let _ = writeln!(
        text,
        "## {about}\n\nFour devices of 30 % of a core with 200 MiB each, of which the mesh may use 75 for stages, 12 closed-loop clients at {HOME}. A device \
         that has a stage becomes slow for {:.0} s. Answers/s in the {:.0} s before, while it is slow (until a new plan \
         serves), and by the new plan, while the device is still slow. Promised: planned around within {PROMISED_S:.0} s.\n\n\
         | what happens | to | before | while slow | a new plan serves after | by it |\n|---|---|---|---|---|---|",
        DURING.as_secs_f64(),
        BEFORE.as_secs_f64()
    );
    let rate = |from_s: f64, to_s: f64| report.throughput_between(from_s, to_s);
    for seen in all {
        let before = rate(seen.begun_s - BEFORE.as_secs_f64(), seen.begun_s);
        let slow = rate(seen.begun_s + FELT_S, seen.planned_s.unwrap_or(seen.ended_s));
        let after = seen.planned_s.map_or_else(
            || "- | -".to_owned(),
            |at| format!("{:.1} s | {:.2}", at - seen.begun_s, rate(at + SETTLED_S, seen.ended_s)),
        );
        let _ =
            writeln!(text, "| {} | {} | {before:.2} | {slow:.2} | {after} |", seen.what.name(), seen.device);
    }
    let is_soon = |seen: &&Seen| seen.planned_s.is_some_and(|at| at - seen.begun_s <= PROMISED_S);
    let soon = all.iter().filter(is_soon).count();
    let is_kept = |seen: &&Seen| {
        let before = rate(seen.begun_s - BEFORE.as_secs_f64(), seen.begun_s);
        let slow = rate(seen.begun_s + FELT_S, seen.planned_s.unwrap_or(seen.ended_s));
        let later = seen.planned_s.map(|at| rate(at + SETTLED_S, seen.ended_s));
        !is_soon(seen) && (slow >= before * KEPT || later.is_some_and(|later| later < slow * WORTH))
    };
    let kept = all.iter().filter(is_kept).count();
    let _ = write!(
        text,
        "\nOf {} times the mesh had planned around it within {PROMISED_S:.0} s in {soon}, and had no reason to in {kept}: nine \
         tenths of the rate were left, or the plan that came later was less than a tenth faster, which the mesh does not \
         move for. Answers: {} right, {} wrong, {} refused, {} lost.",
        all.len(),
        report.right,
        report.wrong,
        report.refused,
        report.failed
    );
}
