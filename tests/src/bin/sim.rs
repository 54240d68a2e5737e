//! Runs simulated clusters from the command line: many seeds on all processors, or one with its event log.

use std::{
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
};

use clap::Parser;
use mesh_tests::sim;

/// Simulates clusters under faults. Every run is reproduced by its seed.
#[derive(Debug, Parser)]
#[command(name = "sim")]
struct Arguments {
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many seeds, counting up.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Print every event.
    #[arg(long)]
    log: bool,
    /// Print only what fails, and a line for every thousand seeds.
    #[arg(long)]
    quiet: bool,
}

/// Seeds between two lines of a quiet run.
const LINE_EVERY: u64 = 1_000;

#[expect(clippy::print_stdout, reason = "a command-line tool")]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (next, failed, answers) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= arguments.seeds {
                return;
            }
            let seed = arguments.seed.saturating_add(number);
            match one(&arguments, seed) {
                Some(right) => answers.fetch_add(right, Ordering::Relaxed),
                None => failed.fetch_add(1, Ordering::Relaxed),
            };
            if arguments.quiet && (number + 1).is_multiple_of(LINE_EVERY) {
                println!("{} seeds, {} failed", number + 1, failed.load(Ordering::Relaxed));
            }
        }
    };
    // A log is read in order.
    let threads = if arguments.log { 1 } else { std::thread::available_parallelism().map_or(1, usize::from) };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let (failed, answers) = (failed.into_inner(), answers.into_inner());
    if arguments.seeds > 1 {
        println!("{} seeds, {failed} failed, {answers} right answers", arguments.seeds);
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a seed; its right answers, or nothing when it failed.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]
fn one(arguments: &Arguments, seed: u64) -> Option<u64> {
    match sim::run(seed, arguments.log) {
        Ok(report) => {
            print!("{}", report.log);
            let sim::Report { devices, events, virtual_ms, healing_ms, applied, answers, crashes, log: _ } =
                report;
            if !arguments.quiet {
                println!(
                    "seed {seed}: {devices} devices, {events} events, {applied} entries, {answers} answers, \
                     {crashes} crashes, healed in {healing_ms} ms of {virtual_ms} ms"
                );
            }
            Some(answers)
        }
        Err(violation) => {
            print!("{}", violation.log);
            eprintln!("{violation}");
            None
        }
    }
}
