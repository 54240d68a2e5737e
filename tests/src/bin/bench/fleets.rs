//! Fleets drawn at random: Mesh's plan against those of other systems on each.

use std::{
    error::Error,
    fmt::Write as _,
    fs,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    str::FromStr,
};

use mesh_tests::{
    lab::{fleet, play::Player, report::Measurement, units::Rate},
    policies::Policy,
};
use serde::{Deserialize, Serialize};

use super::origin::{self, Origin};

/// Numbers of the fleets of the page.
pub(super) const FLEETS: Numbers = Numbers(1, 30);
/// Rates that differ by less are not told apart in the lab.
const EQUAL: f64 = 0.03;
/// What a prediction may be off by.
const NEAR: f64 = 0.10;

/// From the first to the last fleet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbers(u64, u64);

impl Numbers {
    fn all(self) -> RangeInclusive<u64> {
        self.0..=self.1
    }
}

impl FromStr for Numbers {
    type Err = String;

    /// Reads `7`, `1-10` or `none`.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(1, 0));
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) if first <= last => Ok(Self(first, last)),
            _ => Err(format!("{text:?}: write a number or two, such as 1-10, or none")),
        }
    }
}

/// A fleet that was measured, kept until it is measured again.
#[derive(Debug, Serialize, Deserialize)]
struct Measured {
    number: u64,
    about: String,
    #[serde(flatten)]
    origin: Origin,
    shares: Vec<f64>,
    rates: Vec<Option<Rate>>,
    rows: Vec<Measurement>,
}

/// Measures the fleets and writes the section of all that were, now or before.
pub(super) fn section(
    numbers: Numbers,
    origin: &Origin,
    models: &Path,
    text: &mut String,
) -> Result<(), Box<dyn Error>> {
    for number in numbers.all() {
        let scenario = fleet::draw(number);
        eprintln!("fleet {number}: {}", scenario.about);
        let about = scenario.about.clone();
        let hardware: Vec<_> = scenario.machines().into_iter().map(|machine| machine.hardware).collect();
        let mut player = Player::new(scenario, models.to_path_buf(), |line| eprintln!("{line}"))?;
        player.play()?;
        let measured = Measured {
            number,
            about,
            origin: origin.clone(),
            shares: hardware.iter().map(|hardware| hardware.cpu.unwrap_or(1.0)).collect(),
            rates: hardware.iter().map(|hardware| hardware.rate).collect(),
            rows: player.report.measurements.clone(),
        };
        super::write(&file(number), &serde_json::to_string_pretty(&measured)?)?;
    }
    let mut all = Vec::new();
    for number in FLEETS.all() {
        if let Ok(text) = fs::read_to_string(file(number)) {
            all.push(serde_json::from_str::<Measured>(&text)?);
        }
    }
    write_section(&all, text);
    Ok(())
}

fn file(number: u64) -> PathBuf {
    super::docs().join(format!("benchmarks/fleets/{number}.json"))
}

fn write_section(all: &[Measured], text: &mut String) {
    // What is not a published system's has a column of its own.
    let baselines: Vec<Policy> = Policy::ALL.into_iter().filter(|policy| policy.is_baseline()).collect();
    let names: Vec<&str> = baselines.iter().map(|policy| policy.name()).collect();
    let _ = writeln!(
        text,
        "## Fleets drawn at random\n\n\
         Fleets 1 to {} of `lab draw`: two to six devices, processor shares and cards in the table, a model, for some \
         memory that no single device could hold it in. Answers/s of Mesh's plan, and those of the other plans on the \
         same devices as times Mesh's; a dash where a policy has no plan that the devices can hold. The other systems' \
         plans are chains of one device for each stage, as DEFER, SEIFER and EdgePipe make them (PipeDream could \
         replicate); copies: the whole model on every device that holds it, with shares by Mesh's cost model. All were \
         measured with 4 closed-loop clients at each device: Mesh's plan, which may change by what it measures, for 20 s \
         after 45 s of load, the others, which may not, for 10 s after 8 s. Others' plans are made from what the mesh has \
         learnt under load. Those that came within 20 %, and Mesh's, were measured again in three turns of 15 s each, \
         after 12 s (fleets in bold).{}\n\n\
         Off by: the rate against what was predicted when the plan was new, before any load (-: not looked at by that \
         code), for requests that enter everywhere alike, over slow cards that had been fast a moment before, for weights \
         to go out; against what was predicted the moment before it was measured, from what the mesh had measured until then; \
         and against the mean of what was predicted every four seconds meanwhile, which the mesh corrects by its own \
         measurements.\n\n\
         With the code bdd9efd each fleet had one whole run, which is its row, whatever it said; 12 also had one with the \
         code before, which differs in a comment: 6.84 answers/s, the best other plan 4.94.\n\n\
         Requests do not enter alike: a client that is answered sooner asks again sooner. This is likely why some plans whose first stage lies \
         behind a slow card answer many times as often as was predicted for requests that enter alike (6, 13, 19, 22, other \
         plans).\n\n\
         Of all: Mesh's rate as a part of what the processors would do if each ran the whole model and nothing had to be \
         moved, by what the model takes alone on one thread of the host meanwhile (-: not measured by that code). Hosts \
         become faster and slower within minutes: where that was measured, and plans had no \
         turns, the other plans' times are those on equal hosts.\n\n\
         | fleet | | % of a core | Mbit/s | Mesh | of all | off by: new | before | meanwhile | copies | {} |\n|---|---|---|---|---|---|---|---|---|---|{}",
        FLEETS.1,
        if is_of_one_code(all) { "" } else { EARLIER },
        names.join(" | "),
        "---|".repeat(names.len())
    );
    for measured in all {
        let _ = writeln!(text, "{}", row(measured, &baselines));
    }
    let _ = writeln!(text, "\n{}", verdict(all));
    let parts = all.iter().map(|measured| (measured.number.to_string(), &measured.origin));
    let _ = writeln!(text, "\n{}", origin::told(parts));
}

/// Of numbers that were measured before there was one code for all.
const EARLIER: &str = " Not all are of one code (below).";

fn is_of_one_code(all: &[Measured]) -> bool {
    all.windows(2).all(|pair| pair[0].origin.is_of_code(&pair[1].origin))
}

fn row(measured: &Measured, baselines: &[Policy]) -> String {
    let of = |name: &str| measured.rows.iter().find(|row| row.label == name);
    let Some(mesh) = of("mesh") else { return format!("| {} | not measured |", measured.number) };
    let shares: Vec<String> = measured.shares.iter().map(|share| format!("{:.0}", share * 100.0)).collect();
    let rates: Vec<String> = measured
        .rates
        .iter()
        .map(|rate| rate.map_or("-".into(), |rate| format!("{}", rate.0 / 1_000_000)))
        .collect();
    let times = |name: &str| match of(name) {
        Some(other) if other.impossible.is_none() => format!("{:.2}", other.times_on_equal_hosts(mesh)),
        _ => "-".to_owned(),
    };
    let cells: Vec<String> = baselines.iter().map(|policy| times(policy.name())).collect();
    let off = |predicted: f64| match predicted > 0.0 {
        true => format!("{:+.1} %", (mesh.rate / predicted - 1.0) * 100.0),
        false => "-".to_owned(),
    };
    let number = match mesh.turns.is_empty() {
        true => format!("{}", measured.number),
        false => format!("**{}**", measured.number),
    };
    format!(
        "| {number} | {} | {} | {} | {:.2} | {} | {} | {} | {} | {} | {} |",
        measured.about,
        shares.join(" "),
        rates.join(" "),
        mesh.rate,
        used(mesh, measured.shares.iter().sum()),
        off(mesh.planned),
        off(mesh.foreseen),
        off(mesh.predicted),
        times(Policy::Copies.name()),
        cells.join(" | ")
    )
}

/// The rate as a part of what all processors would do if each ran the whole model, and nothing had to be moved.
fn used(mesh: &Measurement, cores: f64) -> String {
    match mesh.whole_s > 0.0 {
        true => format!("{:.0} %", 100.0 * mesh.rate * mesh.whole_s / cores),
        false => "-".to_owned(),
    }
}

/// Whether a row is that of a published system's plan.
fn is_baseline(name: &str) -> bool {
    name.parse().is_ok_and(Policy::is_baseline)
}

fn verdict(all: &[Measured]) -> String {
    let (mut best, mut equal, mut beaten, mut faults) = (0, 0, Vec::new(), 0);
    for measured in all {
        faults += measured.rows.iter().map(|row| row.faults).sum::<u64>();
        let Some(mesh) = measured.rows.iter().find(|row| row.label == Policy::Mesh.name()) else { continue };
        let others = measured.rows.iter().filter(|row| is_baseline(&row.label));
        match others.map(|row| row.times_on_equal_hosts(mesh)).fold(0.0, f64::max) {
            ratio if ratio < 1.0 - EQUAL => best += 1,
            ratio if ratio <= 1.0 + EQUAL => equal += 1,
            ratio => beaten.push(format!("{} ({:+.1} %)", measured.number, (ratio - 1.0) * 100.0)),
        }
    }
    let beaten = if beaten.is_empty() { "none".to_owned() } else { beaten.join(", ") };
    let near = |predicted: fn(&Measurement) -> f64, is_of: fn(&str) -> bool| {
        let rows = all.iter().flat_map(|measured| &measured.rows).filter(|row| is_of(&row.label));
        let off: Vec<f64> =
            rows.filter(|row| predicted(row) > 0.0).map(|row| row.rate / predicted(row) - 1.0).collect();
        match off.len() {
            0 => "none that was looked at".to_owned(),
            all => format!("{} of {all}", off.iter().filter(|off| off.abs() <= NEAR).count()),
        }
    };
    let is_mesh = |name: &str| name == Policy::Mesh.name();
    format!(
        "Of {} fleets Mesh is faster than every other system's plan by more than {:.0} % in {best}, within {:.0} % of the \
         best in {equal}, slower in {beaten}. Its prediction is within 10 % in {} when the plan is new, in {} the moment before \
         it is measured and in {} meanwhile; those of the other plans in {}, {} and {}. Wrong or lost answers: {faults}.",
        all.len(),
        EQUAL * 100.0,
        EQUAL * 100.0,
        near(|row| row.planned, is_mesh),
        near(|row| row.foreseen, is_mesh),
        near(|row| row.predicted, is_mesh),
        near(|row| row.planned, is_baseline),
        near(|row| row.foreseen, is_baseline),
        near(|row| row.predicted, is_baseline)
    )
}
