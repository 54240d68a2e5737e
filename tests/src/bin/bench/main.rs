//! `make bench`: measures the mesh on this host and writes `docs/benchmarks.md`. Needs root.
//!
//! Every section is measured by itself, kept as a file in `docs/benchmarks/`, and the page is put together from all
//! that are there: `bench defer-100` measures one again.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command for people")]

mod budget;
mod codec;
mod endurance;
mod faults;
mod fleets;
mod lab;
mod mesh;
mod origin;
mod plans;
mod slowing;

use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;
use mesh_tests::rack::is_root;
use origin::Origin;

/// Measures the mesh and writes docs/benchmarks.md. Needs root.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Args {
    /// Sections to measure; all when none is named.
    sections: Vec<String>,
    /// Folder with a folder for each model.
    #[arg(long, env = "MESH_MODELS", default_value = "target/models")]
    models: PathBuf,
    /// The fleets that the section `fleets` measures now, such as 1-10, or none; those of before stay on the page.
    #[arg(long, env = "FLEETS", default_value = "1-30")]
    fleets: fleets::Numbers,
    /// How often the section `faults` lets each fault happen; what the same code has been through counts.
    #[arg(long, env = "TRIES", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    tries: u16,
    /// What the section `faults` lets happen now, by commas; all when nothing is named. Others stay on the page.
    #[arg(long, env = "FAULTS", value_enum, value_delimiter = ',')]
    faults: Vec<faults::Fault>,
    /// Plays scenarios with so many times their processor shares, in so much less time: for hosts with more processors.
    #[arg(long, env = "FASTER", default_value_t = 1.0, value_parser = times)]
    faster: f64,
}

/// A time is divided by it: nothing, or less, makes no sense.
fn times(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|times| (0.1..=100.0).contains(times));
    value.ok_or_else(|| format!("{text:?}: write how many times as fast, 0.1 to 100"))
}

/// The sections in the order of the page. Those of the lab are scenarios of the same name.
const SECTIONS: [&str; 24] = [
    "founding",
    "cost",
    "codec",
    "codec-defer",
    "losses",
    "faults",
    "restarts",
    "saturated",
    "slowing",
    "repeat",
    "defer-1000",
    "defer-100",
    "budget",
    "edgepipe-base",
    "edgepipe-base-delay",
    "edgepipe-large",
    "edgepipe-large-delay",
    "unequal",
    "unequal-cpu",
    "seifer",
    "fleets",
    "planner-vit",
    "planner-wifi",
    "planner-scale",
];

fn main() -> ExitCode {
    let args = Args::parse();
    if !is_root() {
        eprintln!("bench makes network namespaces: run it as root");
        return ExitCode::FAILURE;
    }
    let chosen: Vec<&str> = if args.sections.is_empty() {
        SECTIONS.to_vec()
    } else {
        SECTIONS.iter().copied().filter(|name| args.sections.iter().any(|wanted| wanted == name)).collect()
    };
    if chosen.len() < args.sections.len() {
        eprintln!("there is no such section; there are {}", SECTIONS.join(", "));
        return ExitCode::from(64);
    }
    // Hours of other sections are not to hang on a tool that one of them misses.
    let mut failed = Vec::new();
    for name in chosen {
        if let Err(error) = measure(name, &args) {
            eprintln!("bench: {name}: {error}");
            failed.push(name);
        }
    }
    if let Err(error) = page() {
        eprintln!("docs/benchmarks.md cannot be written: {error}");
        return ExitCode::FAILURE;
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("bench: not measured, and on the page as before: {}", failed.join(", "));
    ExitCode::FAILURE
}

fn measure(name: &str, args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    let models: &Path = &args.models;
    let origin = Origin::now();
    let mut text = String::new();
    match name {
        "founding" => mesh::founding(&mut text),
        "cost" => mesh::pipeline(&mut text),
        "budget" => budget::section(models, &mut text)?,
        "codec" => codec::section(&mut text),
        "codec-defer" => codec::deferred(&mut text, models)?,
        "losses" => mesh::kills(&mut text),
        "repeat" => lab::repeated(name, models, args.faster, &mut text)?,
        "restarts" => endurance::restarts(models, &mut text)?,
        "saturated" => endurance::saturated(models, &mut text)?,
        "slowing" => slowing::section(models, &mut text)?,
        "faults" => faults::section(models, usize::from(args.tries), &args.faults, &origin, &mut text)?,
        "fleets" => fleets::section(args.fleets, &origin, models, &mut text)?,
        "planner-vit" => plans::vit(&mut text)?,
        "planner-wifi" => plans::wifi(&mut text),
        "planner-scale" => plans::scale(&mut text)?,
        scenario => lab::section(scenario, models, args.faster, &mut text)?,
    }
    // Parts of these are kept from other times, and tell by themselves.
    let told = if matches!(name, "faults" | "fleets") { String::new() } else { format!("{origin} ") };
    let _ = writeln!(text, "\n{told}Command: `make bench SECTIONS={name}`.\n");
    println!("{text}");
    Ok(write(&docs().join("benchmarks").join(format!("{name}.md")), &text)?)
}

/// Puts the page together from the sections that were measured, now or before.
fn page() -> io::Result<()> {
    let mut text = String::from(
        "# Benchmarks\n\nWritten by `make bench`. Every section is from one run on one host with all devices in network\n\
         namespaces of it, or tells which parts are of which run: compare ratios within a run, not times. Each names the\n\
         code that it measured.\n\n",
    );
    for name in SECTIONS {
        if let Ok(section) = fs::read_to_string(docs().join("benchmarks").join(format!("{name}.md"))) {
            text.push_str(&section);
        }
    }
    write(&docs().join("benchmarks.md"), &text)
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

/// The file is as it was or has the text: what hours measured is not lost to a run that is stopped.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(folder)?;
    io::Write::write_all(&mut file, text.as_bytes())?;
    file.persist(path).map_err(|error| error.error).map(drop)
}
