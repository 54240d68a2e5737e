//! One fault after another under load: how long clients wait, and whether anything is lost.

use std::{
    error::Error,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::ValueEnum;
use mesh_tests::lab::{
    load::LoadReport,
    play::Player,
    scenario::{Condition, Event, Load, Scenario, Step},
    units::Span,
};
use serde::{Deserialize, Serialize};

use super::origin::{self, Origin};

const SCENARIO: &str = "lab/scenarios/faults.toml";
/// The same with cards that can lose frames.
const SCENARIO_LOSSY: &str = "lab/scenarios/faults-far.toml";
/// Part of the frames that a bad cable loses.
const LOSS: f64 = 0.3;
/// Load before a fault.
const BEFORE: Duration = Duration::from_secs(3);
/// How long a fault lasts, and clients are watched.
const DURING: Duration = Duration::from_secs(8);
/// For a healed cluster to be whole again, with all deployments served by all devices.
const WHOLE: Duration = Duration::from_secs(120);
/// Digits answered per second: gaps are seen to a few hundredths of a second.
const DIGITS_RATE: f64 = 30.0;
const DEPLOYMENTS: [&str; 2] = ["digits", "resnet50"];

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
pub(super) enum Fault {
    Nothing,
    KillStage,
    KillLeader,
    KillIngress,
    Freeze,
    Cut,
    PartitionLeader,
    KillTwo,
    KillThree,
    Lossy,
}

impl Fault {
    const ALL: [Self; 10] = [
        Self::Nothing,
        Self::KillStage,
        Self::KillLeader,
        Self::KillIngress,
        Self::Freeze,
        Self::Cut,
        Self::PartitionLeader,
        Self::KillTwo,
        Self::KillThree,
        Self::Lossy,
    ];

    /// The lab that it happens in.
    fn scenario(self) -> &'static str {
        if self == Self::Lossy { SCENARIO_LOSSY } else { SCENARIO }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::KillStage => "a device with a stage is killed",
            Self::KillLeader => "the leader is killed",
            Self::KillIngress => "the ingress of other clients is killed",
            Self::Freeze => "a device with a stage freezes",
            Self::Cut => "the cable of a device with a stage is cut",
            Self::PartitionLeader => "the leader is parted from the others",
            Self::KillTwo => "two devices with stages are killed at once",
            Self::KillThree => "three devices are killed in a row",
            Self::Lossy => "a device with a stage loses 30 % of the frames that it sends",
        }
    }

    /// Longest time for an answer by the new route, as promised.
    fn promised_s(self) -> f64 {
        match self {
            Self::Freeze | Self::Cut | Self::PartitionLeader | Self::Lossy => 4.0,
            Self::Nothing
            | Self::KillStage
            | Self::KillLeader
            | Self::KillIngress
            | Self::KillTwo
            | Self::KillThree => 2.0,
        }
    }
}

/// What clients saw of one fault.
#[derive(Debug, Serialize, Deserialize)]
struct Seen {
    /// Longest time without an answer of digits.
    gap_s: f64,
    /// Longest time without an answer of ResNet-50.
    resnet_gap_s: f64,
    /// Longest time that a client of ResNet-50 waited.
    wait_s: f64,
    wrong: u64,
    lost: u64,
    refused: u64,
}

/// All tries of one fault by one code on one host, each kept as soon as it is over.
#[derive(Debug, Serialize, Deserialize)]
struct Measured {
    #[serde(flatten)]
    origin: Origin,
    /// Requests per second to ResNet-50 in each try.
    resnet_rates: Vec<f64>,
    seen: Vec<Seen>,
}

impl Measured {
    /// What was seen of a fault by this code on this host; nothing by another, or by code with changes.
    fn so_far(fault: Fault, origin: &Origin) -> Result<Self, Box<dyn Error>> {
        let kept = read(fault)?.filter(|kept| origin.is_commit() && kept.origin == *origin);
        let new = || Self { origin: origin.clone(), resnet_rates: Vec::new(), seen: Vec::new() };
        Ok(kept.unwrap_or_else(new))
    }
}

/// Plays the faults until each has happened so many times to this code, and writes the section of all that have, to
/// this code or another.
pub(super) fn section(
    models: &Path,
    tries: usize,
    faults: &[Fault],
    origin: &Origin,
    text: &mut String,
) -> Result<(), Box<dyn Error>> {
    let faults = if faults.is_empty() { &Fault::ALL[..] } else { faults };
    for path in [SCENARIO, SCENARIO_LOSSY] {
        let here: Vec<Fault> = faults.iter().copied().filter(|fault| fault.scenario() == path).collect();
        if !here.is_empty() {
            let mut player = Player::new(scenario(path)?, models.to_path_buf(), |line| eprintln!("{line}"))?;
            player.play()?;
            all_tries(&mut player, tries, &here, origin)?;
        }
    }
    write_section(&scenario(SCENARIO)?.about, text)
}

fn scenario(path: &str) -> Result<Scenario, Box<dyn Error>> {
    Ok(Scenario::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join(path))?)
}

/// Plays faults in one lab until each has happened so many times.
fn all_tries(
    player: &mut Player,
    tries: usize,
    faults: &[Fault],
    origin: &Origin,
) -> Result<(), Box<dyn Error>> {
    let resnet_rate = player.predicted("resnet50").unwrap_or(2.0) / 2.0;
    for &fault in faults {
        let mut measured = Measured::so_far(fault, origin)?;
        for number in measured.seen.len()..tries {
            let one = attempt(player, fault, number, resnet_rate)?;
            eprintln!(
                "{} {}: without an answer of digits {:.2} s, of resnet50 {:.2} s, a client waited {:.2} s, {} lost",
                fault.name(),
                number + 1,
                one.gap_s,
                one.resnet_gap_s,
                one.wait_s,
                one.lost
            );
            measured.resnet_rates.push(resnet_rate);
            measured.seen.push(one);
            super::write(&file(fault), &serde_json::to_string_pretty(&measured)?)?;
        }
    }
    Ok(())
}

fn file(fault: Fault) -> PathBuf {
    let name = fault.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
    super::docs().join(format!("benchmarks/faults/{name}.json"))
}

fn read(fault: Fault) -> Result<Option<Measured>, Box<dyn Error>> {
    match fs::read_to_string(file(fault)) {
        Ok(text) => Ok(Some(serde_json::from_str(&text)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn write_section(about: &str, text: &mut String) -> Result<(), Box<dyn Error>> {
    let mut all = Vec::new();
    for fault in Fault::ALL {
        all.extend(read(fault)?.map(|measured| (fault, measured)));
    }
    let rates = all.iter().flat_map(|(_, measured)| measured.resnet_rates.iter().copied());
    let (least, most) = (rates.clone().fold(f64::INFINITY, f64::min), rates.fold(0.0, f64::max));
    let _ = writeln!(
        text,
        "## {about}\n\nSix devices of 25 % of a core, both models in three stages on one device each; open-loop clients \
         at a device that the fault does not hit: {DIGITS_RATE:.0}/s of digits and {least:.1} to {most:.1}/s of \
         ResNet-50, half of what its plan is predicted to answer. Every answer is compared with the whole model's. In \
         seconds; with so few tries the 99th percentile is the longest. What others publish: a device that is killed is \
         noticed after up to 40 s (exo), about 41 s (mesh-llm) or 30 s (Parallax), and requests that were on it end with \
         an error. Losses come from a relay in user space (`tests/lab/scenarios/faults-far.toml`), which also delays what a \
         card sends by 1 ms; a longest wait of a client counts those, too, that come after the 8 s watched, while the link \
         still loses.\n\n\
         | what happens | tries | digits: longest time without an answer, median | longest | ResNet-50: the same, median \
         | longest | promised | longest time that a client of ResNet-50 waited, median | longest | answers wrong | lost | \
         refused (503) |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
    );
    for (fault, measured) in &all {
        let _ = writeln!(text, "{}", row(*fault, measured));
    }
    let parts = all.iter().map(|(fault, measured)| (fault.name().to_owned(), &measured.origin));
    let _ = writeln!(text, "\n{}", origin::told(parts));
    Ok(())
}

fn row(fault: Fault, measured: &Measured) -> String {
    let seen = &measured.seen;
    let sorted = |value: fn(&Seen) -> f64| {
        let mut values: Vec<f64> = seen.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        (values[values.len() / 2], values[values.len() - 1])
    };
    let (digits, resnet, waits) = (sorted(|s| s.gap_s), sorted(|s| s.resnet_gap_s), sorted(|s| s.wait_s));
    let sum = |value: fn(&Seen) -> u64| seen.iter().map(value).sum::<u64>();
    // Clients of ResNet-50 are at the ingress that is killed: nothing is measured of them.
    let is_measured = fault != Fault::KillIngress;
    let of_resnet = |seconds: f64| if is_measured { format!("{seconds:.2}") } else { "-".to_owned() };
    format!(
        "| {} | {} | {:.2} | {:.2} | {} | {} | {} | {} | {} | {} | {} | {} |",
        fault.name(),
        seen.len(),
        digits.0,
        digits.1,
        of_resnet(resnet.0),
        of_resnet(resnet.1),
        if fault == Fault::Nothing { "-".to_owned() } else { format!("{:.0}", fault.promised_s()) },
        of_resnet(waits.0),
        of_resnet(waits.1),
        sum(|s| s.wrong),
        sum(|s| s.lost),
        sum(|s| s.refused)
    )
}

/// Lets a fault happen once under load, and heals it.
fn attempt(
    player: &mut Player,
    fault: Fault,
    number: usize,
    resnet_rate: f64,
) -> Result<Seen, Box<dyn Error>> {
    let victims = victims(player, fault, number).ok_or("nobody that this fault could hit")?;
    let home = home(player, &victims).ok_or("no device is left for clients")?;
    let elsewhere = if fault == Fault::KillIngress { victims[0].clone() } else { home.clone() };
    load(player, "digits", &home, DIGITS_RATE)?;
    load(player, "resnet50", &elsewhere, resnet_rate)?;
    wait(player, BEFORE)?;
    happen(player, fault, &victims)?;
    for name in DEPLOYMENTS {
        play(player, Step::StopLoad { name: Some(name.to_owned()) })?;
    }
    heal(player, fault, &victims)?;
    let mut loads = player.report.loads.iter().rev();
    let (Some((_, resnet)), Some((_, digits))) = (loads.next(), loads.next()) else {
        return Err("the loads left no report".into());
    };
    // Requests that entered where the fault is die with it; their clients know.
    let counted: &[&LoadReport] = if fault == Fault::KillIngress { &[digits] } else { &[digits, resnet] };
    let sum = |value: fn(&LoadReport) -> u64| counted.iter().map(|report| value(report)).sum::<u64>();
    for failure in counted.iter().flat_map(|report| &report.failures) {
        eprintln!("{failure}");
    }
    let from_s = BEFORE.as_secs_f64();
    let waited = resnet.latency_between(from_s, f64::INFINITY).max_ms / 1e3;
    let gap = resnet.longest_gap_between(from_s, resnet.seconds);
    Ok(Seen {
        gap_s: digits.longest_gap_between(from_s, digits.seconds),
        resnet_gap_s: if fault == Fault::KillIngress { 0.0 } else { gap },
        wait_s: if fault == Fault::KillIngress { 0.0 } else { waited },
        wrong: sum(|report| report.wrong),
        lost: sum(|report| report.failed + report.dropped),
        refused: sum(|report| report.refused),
    })
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

fn load(player: &mut Player, name: &str, home: &str, rate_per_s: f64) -> Result<(), Box<dyn Error>> {
    play(
        player,
        Step::Load(Load {
            name: name.to_owned(),
            devices: Some(vec![home.to_owned()]),
            clients: None,
            rate_per_s: Some(rate_per_s),
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
