//! Solves planning problems from files, with Mesh's planner or with a published system's.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use clap::{Parser, Subcommand};
use mesh_planner::{Plan, Problem};
use mesh_tests::{
    policies::{self, Choices, Policy, vit},
    radio::wifi,
};
use serde_json::{Value, json};

/// Wrong usage, as the mesh command reports it.
const USAGE: u8 = 64;
/// Larger files are no planning problems.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// Plans by Mesh and by published systems, and studies that compare them.
#[derive(Debug, Parser)]
#[command(name = "planner")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Solve one problem and print the plan as JSON. Ends with 1 when no plan can hold the model.
    Solve(Solve),
    /// ViT on two kinds of boards: Mesh against 62 known optima and EdgePipe's published tool.
    Vit {
        /// Print the rows as JSON.
        #[arg(long)]
        json: bool,
    },
    /// SEIFER's radio simulation: Mesh, k-path, greedy and random on the same draws.
    Wifi {
        /// Draws of places per configuration.
        #[arg(long, default_value_t = 50)]
        trials: usize,
        /// Print the rows as JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Args)]
struct Solve {
    /// The problem as JSON; `-` reads standard input.
    file: PathBuf,
    /// mesh, single, defer, seifer, edgepipe, pipedream, greedy or random.
    #[arg(long, default_value = "mesh")]
    policy: Policy,
    /// Seed of the policies that draw at random.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// For defer: the first block of every part but the first, as in `6,12,18`. Else parts of equal numbers of blocks.
    #[arg(long, value_delimiter = ',')]
    cuts: Option<Vec<usize>>,
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]
fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let answered = match arguments.command {
        Command::Solve(solve) => solve.run(),
        Command::Vit { json } => study_of_vit(json),
        Command::Wifi { trials, json } => Ok(study_of_wifi(trials, json)),
    };
    match answered {
        Ok((text, code)) => {
            println!("{}", text.trim_end());
            code
        }
        Err(problem) => {
            eprintln!("planner: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn study_of_vit(as_json: bool) -> Result<(String, ExitCode), String> {
    let (rows, sixteen) = (vit::run(), vit::sixteen()?);
    let text = if as_json {
        json!({ "rows": rows, "sixteen_types": sixteen }).to_string()
    } else {
        format!("{}\n{}", vit::table(&rows), sixteen.sentence())
    };
    Ok((text, ExitCode::SUCCESS))
}

fn study_of_wifi(trials: usize, as_json: bool) -> (String, ExitCode) {
    let (rows, not_run) = wifi::run(trials);
    let text = if as_json {
        json!({ "rows": rows, "not_run": not_run }).to_string()
    } else {
        wifi::table(&rows, &not_run)
    };
    (text, ExitCode::SUCCESS)
}

impl Solve {
    fn run(self) -> Result<(String, ExitCode), String> {
        let problem = read(&self.file)?;
        let choices = Choices { seed: self.seed, defer_cuts: self.cuts, ..Choices::default() };
        let start = Instant::now();
        let plan = policies::plan(self.policy, &problem, &choices);
        let solve_ms = start.elapsed().as_secs_f64() * 1e3;
        Ok(match plan {
            Ok(plan) => (answer(&plan, solve_ms).to_string(), ExitCode::SUCCESS),
            Err(why) => (json!({ "infeasible": why }).to_string(), ExitCode::FAILURE),
        })
    }
}

fn read(file: &Path) -> Result<Problem, String> {
    let name = if file == Path::new("-") { "standard input".into() } else { format!("{}", file.display()) };
    let bytes = bytes(file).map_err(|error| format!("{name} cannot be read: {error}"))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("{name} is larger than {MAX_FILE_BYTES} bytes; that is no planning problem"));
    }
    let problem: Problem =
        serde_json::from_slice(&bytes).map_err(|error| format!("{name} is no planning problem: {error}"))?;
    problem.validate().map_err(|error| format!("the problem in {name} makes no sense: {error}"))?;
    Ok(problem)
}

/// At most one byte more than is allowed.
fn bytes(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if file == Path::new("-") {
        io::stdin().lock().take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    } else {
        File::open(file)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

fn answer(plan: &Plan, solve_ms: f64) -> Value {
    let stage = |stage: &mesh_planner::Stage| {
        json!({
            "first_block": stage.first_block,
            "last_block": stage.last_block,
            "replicas": stage.replicas,
        })
    };
    json!({
        "stages": plan.stages.iter().map(stage).collect::<Vec<_>>(),
        "bottleneck_s": plan.bottleneck_s,
        "throughput_rps": plan.throughput_rps,
        "latency_s": plan.latency_s,
        "lower_bound_s": plan.lower_bound_s,
        "optimal": plan.optimal,
        "solve_ms": solve_ms,
        "why": plan.why,
    })
}
