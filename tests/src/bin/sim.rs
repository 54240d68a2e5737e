//! Runs simulated clusters from the command line: many seeds, or one with its event log.

use std::process::ExitCode;

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
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut failed = 0_u64;
    for seed in arguments.seed..arguments.seed.saturating_add(arguments.seeds) {
        match sim::run(seed, arguments.log) {
            Ok(report) => {
                print!("{}", report.log);
                let sim::Report { devices, events, virtual_ms, healing_ms, applied, crashes, log: _ } =
                    report;
                println!(
                    "seed {seed}: {devices} devices, {events} events, {applied} entries, {crashes} crashes, \
                     healed in {healing_ms} ms of {virtual_ms} ms"
                );
            }
            Err(violation) => {
                print!("{}", violation.log);
                eprintln!("{violation}");
                failed += 1;
            }
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
