//! A fault that happens once under load.

use std::{
    error::Error,
    time::{Duration, Instant},
};

use mesh_tests::lab::{
    load::LoadReport,
    play::Player,
    scenario::{Condition, Event, Load, Step},
    units::Span,
};

use super::{Clients, DEPLOYMENTS, DIGITS_RATE, DURING, Fault, Seen};

/// Part of the frames that a bad cable loses.
const LOSS: f64 = 0.3;
/// Load before a fault.
const BEFORE: Duration = Duration::from_secs(3);
/// For a healed cluster to be whole again, with all deployments served by all devices.
const WHOLE: Duration = Duration::from_secs(120);
/// Clients that ask again at once, to find what the mesh can answer: twice what its stages need to be busy.
const CLOSED: usize = 12;
/// Load before that is looked at, and while.
const SETTLE: Duration = Duration::from_secs(15);
/// How the steps of faults begin in the marks of a load.
const MARKS: [&str; 5] = ["kill", "freeze", "cut", "partition", "link"];

/// Answers of ResNet-50 per second that clients get who ask again at once, beside the load of digits.
pub(super) fn capacity(player: &mut Player) -> Result<f64, Box<dyn Error>> {
    let home = home(player, &[]).ok_or("no device is left for clients")?;
    load(player, "digits", &home, Some(DIGITS_RATE))?;
    load(player, "resnet50", &home, None)?;
    wait(player, 2 * SETTLE)?;
    let (_, resnet) = stop(player)?;
    let settled_s = SETTLE.as_secs_f64();
    Ok(resnet.throughput_between(settled_s, 2.0 * settled_s))
}

/// Lets a fault happen once under load, and heals it.
pub(super) fn attempt(
    player: &mut Player,
    fault: Fault,
    number: usize,
    resnet_rate: f64,
) -> Result<Seen, Box<dyn Error>> {
    let victims = victims(player, fault, number).ok_or("nobody that this fault could hit")?;
    let home = home(player, &victims).ok_or("no device is left for clients")?;
    let elsewhere = if fault == Fault::KillIngress { victims[0].clone() } else { home.clone() };
    let was_hit = DEPLOYMENTS.map(|name| player.on_route(name).iter().any(|device| victims.contains(device)));
    load(player, "digits", &home, Some(DIGITS_RATE))?;
    load(player, "resnet50", &elsewhere, Some(resnet_rate))?;
    wait(player, BEFORE)?;
    let happened = happen(player, fault, &victims);
    let (digits, resnet) = stop(player)?;
    // What clients saw counts, whatever becomes of the mesh.
    let healed = happened.and_then(|()| heal(player, fault, &victims));
    // Requests that entered where the fault is die with it; their clients know.
    let counted: &[&LoadReport] = if fault == Fault::KillIngress { &[&digits] } else { &[&digits, &resnet] };
    let sum = |value: fn(&LoadReport) -> u64| counted.iter().map(|report| value(report)).sum::<u64>();
    for failure in counted.iter().flat_map(|report| &report.failures) {
        eprintln!("{failure}");
    }
    Ok(Seen {
        digits: clients(&digits, was_hit[0]),
        resnet: (fault != Fault::KillIngress).then(|| clients(&resnet, was_hit[1])),
        wrong: sum(|report| report.wrong),
        lost: sum(|report| report.failed + report.dropped),
        refused: sum(|report| report.refused),
        unhealed: healed.err().map(|error| error.to_string()),
    })
}

/// Ends both loads: what clients of digits and of ResNet-50 saw.
fn stop(player: &mut Player) -> Result<(LoadReport, LoadReport), Box<dyn Error>> {
    let mut end = |name: &str| -> Result<LoadReport, Box<dyn Error>> {
        play(player, Step::StopLoad { name: Some(name.to_owned()) })?;
        let (_, report) = player.report.loads.pop().ok_or("the load left no report")?;
        Ok(report)
    };
    let digits = end(DEPLOYMENTS[0])?;
    Ok((digits, end(DEPLOYMENTS[1])?))
}

fn clients(report: &LoadReport, was_hit: bool) -> Clients {
    let from_s = BEFORE.as_secs_f64();
    let is_fault = |label: &str| MARKS.iter().any(|word| label.starts_with(word));
    let mut faults: Vec<f64> =
        report.marks.iter().filter(|mark| is_fault(&mark.label)).map(|mark| mark.at_s).collect();
    if faults.is_empty() {
        faults.push(from_s);
    }
    let longest = |first: &dyn Fn(f64) -> Option<f64>| {
        faults.iter().map(|since_s| first(*since_s).unwrap_or(report.seconds - since_s)).fold(0.0, f64::max)
    };
    Clients {
        was_hit,
        new_route_s: Some(longest(&|since_s| report.first_answer_by_new_route(since_s))),
        first_s: longest(&|since_s| report.first_answer_since(since_s)),
        silence_s: report.longest_gap_between(from_s, report.seconds),
        wait_s: report.latency_between(from_s, f64::INFINITY).max_ms / 1e3,
    }
}

/// Names of the devices that a fault hits. In turns those of digits and of ResNet-50, and different stages.
fn victims(player: &Player, fault: Fault, number: usize) -> Option<Vec<String>> {
    let leader = player.leader()?;
    let mut route = player.on_route(DEPLOYMENTS[number % 2]);
    route.dedup();
    let others: Vec<String> = player.hall.devices.iter().map(|device| device.name().to_owned()).collect();
    let turned = |list: &[String], count: usize| -> Option<Vec<String>> {
        let start = number / 2;
        (list.len() >= count).then(|| (0..count).map(|at| list[(start + at) % list.len()].clone()).collect())
    };
    match fault {
        Fault::Nothing => Some(Vec::new()),
        Fault::KillLeader | Fault::PartitionLeader => Some(vec![leader]),
        Fault::KillStage | Fault::Freeze | Fault::Cut | Fault::Lossy => turned(&route, 1),
        Fault::KillTwo => turned(&route, 2),
        Fault::KillThree => turned(&others, 3),
        Fault::KillIngress => {
            let is_idle = |name: &&String| **name != leader && !route.contains(name);
            let idle: Vec<String> = others.iter().filter(is_idle).cloned().collect();
            turned(&idle, 1).or_else(|| turned(&others, 1))
        }
    }
}

/// Where clients are: at a device that is not hit; one without a stage where there is one.
fn home(player: &Player, victims: &[String]) -> Option<String> {
    let busy: Vec<String> = DEPLOYMENTS.iter().flat_map(|name| player.on_route(name)).collect();
    let names = player.hall.devices.iter().map(|device| device.name().to_owned());
    let mut spared: Vec<String> = names.filter(|name| !victims.contains(name)).collect();
    spared.sort_by_key(|name| busy.contains(name));
    spared.into_iter().next()
}

fn play(player: &mut Player, step: Step) -> Result<(), Box<dyn Error>> {
    Ok(player.event(&Event { at: None, step })?)
}

fn wait(player: &mut Player, time: Duration) -> Result<(), Box<dyn Error>> {
    play(player, Step::Wait { until: Condition::Time(Span(time)), within: None })
}

/// Clients at one device: an open loop of this rate, or some that ask again at once.
fn load(player: &mut Player, name: &str, home: &str, rate_per_s: Option<f64>) -> Result<(), Box<dyn Error>> {
    play(
        player,
        Step::Load(Load {
            name: name.to_owned(),
            devices: Some(vec![home.to_owned()]),
            clients: rate_per_s.is_none().then_some(CLOSED),
            rate_per_s,
            max_in_flight: 256,
            failover: false,
        }),
    )
}

/// The fault, and the time that it lasts.
fn happen(player: &mut Player, fault: Fault, victims: &[String]) -> Result<(), Box<dyn Error>> {
    let devices = victims.to_vec();
    match fault {
        Fault::Nothing => {}
        Fault::KillStage | Fault::KillLeader | Fault::KillIngress | Fault::KillTwo => {
            play(player, Step::Kill { devices })?;
        }
        Fault::Freeze => play(player, Step::Freeze { devices })?,
        Fault::Cut => play(player, Step::Cut { devices })?,
        Fault::Lossy => {
            let (rate, delay, jitter, loss) = (None, None, None, Some(LOSS));
            play(player, Step::Link { devices, rate, delay, jitter, loss, restore: false })?;
        }
        Fault::PartitionLeader => {
            let names = player.hall.devices.iter().map(|device| device.name().to_owned());
            let others = names.filter(|name| !victims.contains(name)).collect();
            play(player, Step::Partition { groups: vec![others] })?;
        }
        Fault::KillThree => {
            for (at, victim) in victims.iter().enumerate() {
                play(player, Step::Kill { devices: vec![victim.clone()] })?;
                if at + 1 < victims.len() {
                    wait(player, BEFORE)?;
                    until("votes of those that are gone are given away", || player.is_repaired())?;
                }
            }
        }
    }
    wait(player, DURING)
}

fn heal(player: &mut Player, fault: Fault, victims: &[String]) -> Result<(), Box<dyn Error>> {
    let all = || vec!["*".to_owned()];
    if !victims.is_empty() {
        play(player, Step::Thaw { devices: victims.to_vec() })?;
        play(player, Step::Heal { devices: all() })?;
        if fault == Fault::Lossy {
            let (rate, delay, jitter, loss) = (None, None, None, None);
            play(player, Step::Link { devices: all(), rate, delay, jitter, loss, restore: true })?;
        }
        play(player, Step::Start { devices: all() })?;
    }
    let within = Some(Span(WHOLE));
    play(player, Step::Wait { until: Condition::Cluster, within })?;
    for name in DEPLOYMENTS {
        play(player, Step::Wait { until: Condition::Serving(name.to_owned()), within })?;
    }
    until("votes of those that are gone are given away", || player.is_repaired())
}

fn until(what: &str, is_so: impl Fn() -> bool) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    while !is_so() {
        if start.elapsed() > WHOLE {
            return Err(format!("{what}: was not so after {WHOLE:?}").into());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
