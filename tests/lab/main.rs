//! `lab`: one Linux host as a rack of unequal devices. `lab run tests/lab/scenarios/first.toml` shows it.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command for people")]

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use mesh_tests::lab::{
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
