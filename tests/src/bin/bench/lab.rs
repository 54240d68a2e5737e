//! Experiments in the device lab: a scenario each, a table and a plot.

use std::{error::Error, fmt::Write as _, path::Path};

use mesh_tests::lab::{
    play::Player,
    plot::{Curve, Group, Labels, Line, bars, lines, timeline},
    report::{JOULES_PER_BYTE, JOULES_PER_CORE_S, Measurement, Report},
    scenario::Scenario,
};

/// Times that a scenario is played to see whether it says the same.
const REPEATS: usize = 5;

fn load(name: &str, faster: f64) -> Result<Scenario, Box<dyn Error>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("lab/scenarios/{name}.toml"));
    let scenario = Scenario::load(&path)?;
    Ok(if faster == 1.0 { scenario } else { scenario.faster(faster) })
}

fn play(scenario: Scenario, models: &Path) -> Result<Report, Box<dyn Error>> {
    let mut player = Player::new(scenario, models.to_path_buf(), |line| eprintln!("{line}"))?;
    player.play()?;
    Ok(player.report.clone())
}

/// All runs of a scenario: side by side where the host has processors for that, else one after another.
fn play_all(scenario: &Scenario, models: &Path) -> Result<Vec<Report>, Box<dyn Error>> {
    let host = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64;
    // As many for the clients and the reference as for the devices.
    let together = scenario.cores().is_some_and(|cores| 2.0 * cores * REPEATS as f64 <= host);
    if !together {
        return (0..REPEATS).map(|_| play(scenario.clone(), models)).collect();
    }
    let run = |number: usize| {
        let scenario = Scenario { name: format!("{}-{number}", scenario.name), ..scenario.clone() };
        play(scenario, models).map_err(|error| error.to_string())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=REPEATS).map(|number| scope.spawn(move || run(number))).collect();
        let reports = threads.into_iter().map(|thread| match thread.join() {
            Ok(report) => report.map_err(Into::into),
            Err(_) => Err("a run ended by a panic".into()),
        });
        reports.collect()
    })
}

/// What a table has to say of devices that were faster than the scenario says.
fn hastened(faster: f64) -> String {
    if faster == 1.0 {
        return String::new();
    }
    format!(
        " Every processor share is {faster} times the scenario's, and every time so much shorter (`FASTER={faster}`)."
    )
}

/// Plays a scenario several times and writes how far its ratios are from each other.
pub(super) fn repeated(
    name: &str,
    models: &Path,
    faster: f64,
    text: &mut String,
) -> Result<(), Box<dyn Error>> {
    let scenario = load(name, faster)?;
    let title = scenario.about.clone();
    let runs = play_all(&scenario, models)?;
    let _ = writeln!(
        text,
        "## {title}, {REPEATS} times\n\nScenario: `tests/lab/scenarios/{name}.toml`, played {REPEATS} times from nothing.{} \
         Throughput in answers/s, and how many times that of the same run's first row it is; in each round of a run all \
         rows have their turn, so that the host's drift is in all of them alike. The spread is the largest of the runs' ratios over \
         the smallest.\n\n| | {} | spread of the ratios |\n|---|{}---|",
        hastened(faster),
        (1..=REPEATS).map(|run| format!("run {run}")).collect::<Vec<_>>().join(" | "),
        "---|".repeat(REPEATS)
    );
    let first = runs.first().ok_or("nothing was played")?;
    for (row, m) in first.measurements.iter().enumerate() {
        let mut cells = Vec::new();
        let mut ratios = Vec::new();
        for run in &runs {
            let of =
                run.measurements.get(row).zip(run.measurements.first()).ok_or("a run lacks a measurement")?;
            let ratio = of.0.times(of.1);
            cells.push(format!("{:.2} ({ratio:.2})", of.0.rate));
            ratios.push(ratio);
        }
        let (least, most) = ratios.iter().fold((f64::MAX, 0.0f64), |(a, b), r| (a.min(*r), b.max(*r)));
        let spread = (most / least - 1.0) * 100.0;
        let _ = writeln!(text, "| {} | {} | {spread:.1} % |", m.label, cells.join(" | "));
    }
    let faults: u64 = runs.iter().flat_map(|run| &run.measurements).map(|m| m.faults).sum();
    let _ = writeln!(text, "\nWrong or lost answers: {faults}.");
    Ok(())
}

/// Plays a scenario and writes its section.
pub(super) fn section(
    name: &str,
    models: &Path,
    faster: f64,
    text: &mut String,
) -> Result<(), Box<dyn Error>> {
    let scenario = load(name, faster)?;
    let about = scenario.about.clone();
    let report = play(scenario, models)?;
    let hastened = hastened(faster);
    let _ = writeln!(text, "## {about}\n\nScenario: `tests/lab/scenarios/{name}.toml`.{hastened}\n");
    table(&report, text);
    let svg = plot(name, &report)?;
    super::write(&super::docs().join(format!("benchmarks/{name}.svg")), &svg)?;
    let _ = writeln!(text, "\n![{about}](benchmarks/{name}.svg)\n");
    for measured in &report.measurements {
        let _ = writeln!(text, "- {}: {}", measured.label, measured.plan);
    }
    losses(name, &report, text)
}

/// Loads in which devices were lost: what clients saw.
fn losses(name: &str, report: &Report, text: &mut String) -> Result<(), Box<dyn Error>> {
    for (number, (deployment, load)) in report.loads.iter().enumerate() {
        let killed = load.marks.iter().filter(|mark| mark.label.starts_with("kill"));
        let marks: Vec<(f64, String)> =
            killed.map(|mark| (mark.at_s, mark.label.replace("devices=", ""))).collect();
        if marks.is_empty() {
            continue;
        }
        let bins = load.timeline.iter().map(|bin| (bin.at_s, bin.answers as f64)).collect();
        let curves = [Curve { name: deployment.clone(), bins }];
        let title = format!("{deployment}: devices killed under load");
        let svg =
            timeline(&Labels { title: &title, x: "seconds", y: "answers per second" }, &curves, &marks)?;
        super::write(&super::docs().join(format!("benchmarks/{name}-{number}.svg")), &svg)?;
        let _ = writeln!(
            text,
            "\nDevices killed under load ({}): {} answers, {} wrong, {} refused, {} lost; longest time without an answer \
             {:.2} s.\n\n![{title}](benchmarks/{name}-{number}.svg)",
            marks.iter().map(|(at, what)| format!("{what} at {at:.0} s")).collect::<Vec<_>>().join(", "),
            load.right,
            load.wrong,
            load.refused,
            load.failed,
            load.longest_gap_s
        );
    }
    Ok(())
}

fn table(report: &Report, text: &mut String) {
    let Some(first) = report.measurements.first() else { return };
    let _ = writeln!(
        text,
        "| | answers/s | predicted | times the first row | off by | median latency | kB sent per answer | J per answer, busiest device | answers | wrong or lost |\n\
         |---|---|---|---|---|---|---|---|---|---|"
    );
    for m in &report.measurements {
        let sent: f64 = m.devices.iter().map(|device| device.sent_per_answer).sum();
        let joules = m.devices.iter().map(|device| device.joules_per_answer).fold(0.0, f64::max);
        let _ = writeln!(
            text,
            "| {} | {:.2} | {:.2} | {:.2} | {:+.1} % | {:.0} ms | {:.0} | {joules:.4} | {} | {} |",
            m.label,
            m.rate,
            m.predicted,
            m.times(first),
            m.off_by() * 100.0,
            m.p50_ms,
            sent / 1e3,
            m.answers,
            m.faults
        );
    }
    let _ = writeln!(
        text,
        "\nEvery answer was compared with the whole model's. Energy is a model: {JOULES_PER_CORE_S} J per second of a busy core \
         and {:.0} nJ per byte sent or received.",
        JOULES_PER_BYTE * 1e9
    );
}

/// Lines over the number of devices where labels begin with one, else bars.
fn plot(title: &str, report: &Report) -> Result<String, Box<dyn Error>> {
    let first = report.measurements.first().ok_or("nothing was measured")?;
    let mut series: Vec<Line> = Vec::new();
    for m in &report.measurements {
        let Some((devices, kind)) = counted(m) else { continue };
        let point = (devices, m.times(first));
        match series.iter_mut().find(|line| line.name == kind) {
            Some(line) => line.points.push(point),
            None => series.push(Line { name: kind.to_owned(), points: vec![(1.0, 1.0), point] }),
        }
    }
    if !series.is_empty() {
        let labels = Labels { title, x: "devices", y: "times one device" };
        return Ok(lines(&labels, &series, Some(1.0))?);
    }
    let names: Vec<String> = report.measurements.iter().map(|m| m.label.clone()).collect();
    let values = report.measurements.iter().map(|m| Some(m.rate)).collect();
    let groups = [Group { name: String::new(), values }];
    Ok(bars(&Labels { title, x: "planning", y: "answers per second" }, &names, &groups)?)
}

/// "8 devices, chain" is 8 and "chain"; one device is where all lines start.
fn counted(m: &Measurement) -> Option<(f64, &str)> {
    let (count, rest) = m.label.split_once(' ')?;
    let (_, kind) = rest.split_once(", ")?;
    Some((count.parse().ok()?, kind))
}
