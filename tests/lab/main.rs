//! `lab`: one Linux host as a rack of unequal devices. `lab run tests/lab/scenarios/first.toml` shows it.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command for people")]

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Parser, Subcommand, ValueEnum};
use mesh_tests::lab::{
    chaos::{self, Asked, Round, Trouble},
    fleet,
    play::Player,
    relay_process,
    scenario::Scenario,
    site::{self, Guard},
};

/// A rack of devices on this host, from a file: try a fleet before buying it. Needs root.
#[derive(Debug, Parser)]
#[command(name = "lab", after_help = "Example: lab run tests/lab/scenarios/first.toml")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes the devices of a scenario, plays its script, reports, and clears all away.
    Run {
        /// The scenario.
        file: PathBuf,
        /// Report as JSON on stdout.
        #[arg(long)]
        json: bool,
        /// Folder with a folder for each model.
        #[arg(long, env = "MESH_MODELS", default_value = "target/models")]
        models: PathBuf,
        /// Leave the lab up when the script is over.
        #[arg(long)]
        keep: bool,
    },
    /// Makes the devices, plays the script up to its first load, and leaves all of it up to play with by hand.
    Up {
        /// The scenario.
        file: PathBuf,
        /// Folder with a folder for each model.
        #[arg(long, env = "MESH_MODELS", default_value = "target/models")]
        models: PathBuf,
    },
    /// Removes all that labs have made: processes, namespaces, control groups, files; also after a crash.
    Down {
        /// Only this lab.
        name: Option<String>,
    },
    /// Prints a scenario drawn at random: a fleet, a model, and Mesh's plan against those of other systems.
    Draw {
        /// Equal numbers give equal scenarios.
        number: u64,
    },
    /// Lets random faults happen under checked load, round after round, and tells what was lost: nothing should be.
    Chaos {
        /// The lab; its script brings the deployments up.
        #[arg(long, default_value = "tests/lab/scenarios/faults.toml")]
        file: PathBuf,
        /// Of everything that happens.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Ends after the round in which this time is over.
        #[arg(long, default_value_t = 10)]
        minutes: u64,
        /// Begins with this round: what came before is left out.
        #[arg(long, default_value_t = 0)]
        first: u64,
        /// Only such troubles, to look into them.
        #[arg(long, value_delimiter = ',')]
        only: Vec<Trouble>,
        /// Deployments and their requests per second, such as digits=30.
        #[arg(long = "ask", value_parser = asked, default_values = ["digits=30", "resnet50=2"])]
        loads: Vec<Asked>,
        /// Each round as a line of JSON on stdout.
        #[arg(long)]
        json: bool,
        /// Folder with a folder for each model.
        #[arg(long, env = "MESH_MODELS", default_value = "target/models")]
        models: PathBuf,
    },
    /// Clears a lab away when its standard input ends.
    #[command(hide = true)]
    Guard { name: String },
    /// Moves the frames of delayed devices.
    #[command(hide = true)]
    Relay { orders: PathBuf },
}

fn main() -> ExitCode {
    match play(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: {error}");
            ExitCode::FAILURE
        }
    }
}

fn play(command: Command) -> Result<(), Box<dyn std::error::Error>> {
    match command {
        Command::Run { file, json, models, keep } => run(&file, json, models, keep),
        Command::Up { file, models } => up(&file, models),
        Command::Down { name } => down(name),
        Command::Chaos { file, seed, minutes, first, only, loads, json, models } => {
            let until = Instant::now() + Duration::from_secs(60 * minutes);
            let rounds = Rounds { seed, first, only, until, json };
            chaos_in(&file, models, &rounds, &loads)
        }
        Command::Draw { number } => {
            print!("{}", toml::to_string(&fleet::draw(number))?);
            Ok(())
        }
        Command::Guard { name } => Ok(Guard::watch(&name)?),
        Command::Relay { orders } => Ok(relay_process::run(&orders)?),
    }
}

fn run(file: &Path, json: bool, models: PathBuf, keep: bool) -> Result<(), Box<dyn std::error::Error>> {
    let mut player = Player::new(Scenario::load(file)?, models, |line| eprintln!("{line}"))?;
    let played = player.play();
    if played.is_ok() {
        if json {
            println!("{}", serde_json::to_string_pretty(&player.report)?);
        } else {
            print!("{}", player.report.text());
        }
    }
    if keep {
        eprintln!("The lab stays up: `lab down {}` removes it.", player.hall.scenario.name);
        player.hall.keep();
    }
    Ok(played?)
}

/// Reads `digits=30`.
fn asked(text: &str) -> Result<Asked, String> {
    let parted = text.split_once('=').and_then(|(name, rate)| Some((name, rate.parse::<f64>().ok()?)));
    let parted = parted.filter(|(name, rate)| !name.is_empty() && *rate > 0.0);
    parted
        .map(|(name, rate)| (name.to_owned(), rate))
        .ok_or_else(|| format!("{text:?}: write a deployment and its requests per second, such as digits=30"))
}

/// Which rounds of a chaos, and how they are told.
struct Rounds {
    seed: u64,
    first: u64,
    /// All troubles if empty.
    only: Vec<Trouble>,
    until: Instant,
    json: bool,
}

impl Rounds {
    /// The command that plays them from this one on.
    fn replay(&self, file: &Path, first: u64) -> String {
        let mut command = format!("lab chaos --file {} --seed {} --first {first}", file.display(), self.seed);
        let names = self.only.iter().filter_map(ValueEnum::to_possible_value);
        let only: Vec<_> = names.map(|name| name.get_name().to_owned()).collect();
        if !only.is_empty() {
            command += &format!(" --only {}", only.join(","));
        }
        command
    }
}

fn chaos_in(
    file: &Path,
    models: PathBuf,
    rounds: &Rounds,
    loads: &[Asked],
) -> Result<(), Box<dyn std::error::Error>> {
    let mut player = Player::new(Scenario::load(file)?, models, |_| {})?;
    player.play()?;
    let devices: Vec<String> = player.hall.devices.iter().map(|device| device.name().to_owned()).collect();
    let mut possible = Trouble::possible(&player);
    possible.retain(|trouble| rounds.only.is_empty() || rounds.only.contains(trouble));
    if possible.is_empty() {
        return Err(
            "this lab can bring none of these troubles about: lossy and far need cards with a delay".into()
        );
    }
    let (mut played, mut lost) = (Vec::new(), 0);
    for number in rounds.first.. {
        if Instant::now() >= rounds.until {
            break;
        }
        let plot = chaos::plot(rounds.seed, number, &devices, &possible);
        let replay = rounds.replay(file, number);
        let round = chaos::play(&mut player, &plot, loads).map_err(|error| {
            format!("round {number} ({:?}): {error}\nfrom there: {replay}", plot.troubles)
        })?;
        if rounds.json {
            println!("{}", serde_json::to_string(&round)?);
        } else {
            print_round(&round);
        }
        lost += round.wrong + round.lost;
        played.push(round);
    }
    let answers: u64 = played.iter().map(|round| round.answers).sum();
    eprintln!("{} rounds, {answers} right answers, {lost} wrong or lost", played.len());
    if lost > 0 { Err(format!("{lost} answers were wrong or lost").into()) } else { Ok(()) }
}

fn print_round(round: &Round) {
    let troubles: Vec<String> = round
        .plot
        .troubles
        .iter()
        .map(|(device, trouble, seconds)| format!("{device} {trouble:?} {seconds} s"))
        .collect();
    let gaps: Vec<String> =
        round.longest_gap_s.iter().map(|(name, seconds)| format!("{name} {seconds:.2} s")).collect();
    println!(
        "{:>4}  clients at {}  {:40}  {} right, {} wrong, {} lost, {} refused; longest without an answer: {}; {} MiB, \
         {} files",
        round.plot.round,
        round.plot.home,
        troubles.join(", "),
        round.answers,
        round.wrong,
        round.lost,
        round.refused,
        gaps.join(", "),
        round.memory_mib,
        round.files
    );
    for failure in &round.failures {
        println!("      {failure}");
    }
}

fn up(file: &Path, models: PathBuf) -> Result<(), Box<dyn std::error::Error>> {
    let mut scenario = Scenario::load(file)?;
    let load = scenario.event.iter().position(|event| event.step.is_load());
    scenario.event.truncate(load.unwrap_or(scenario.event.len()));
    let mut player = Player::new(scenario, models, |line| eprintln!("{line}"))?;
    player.play()?;
    let hall = player.hall;
    println!("The lab {} is up. To run mesh on a device:\n", hall.scenario.name);
    for device in &hall.devices {
        println!("  {}", device.by_hand());
    }
    println!(
        "\nLogs lie in {}. `lab down {}` removes everything.",
        site::folder(&hall.scenario.name).display(),
        hall.scenario.name
    );
    hall.keep();
    Ok(())
}

fn down(name: Option<String>) -> Result<(), Box<dyn std::error::Error>> {
    let labs = name.map_or_else(site::labs, |name| vec![name]);
    if labs.is_empty() {
        eprintln!("There is nothing to remove.");
    }
    for lab in labs {
        site::down(&lab)?;
        eprintln!("Removed: {lab}");
    }
    Ok(())
}
