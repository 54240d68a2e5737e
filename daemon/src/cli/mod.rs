//! The command line. Data goes to stdout, everything else to stderr; exit codes are in [`exit`].

mod args;
mod arrays;
mod bench;
mod client;
mod demo;
mod deploy;
mod docs;
mod doctor;
mod drain;
mod exit;
mod external;
mod images;
mod infer;
mod init;
mod inputs;
mod models;
mod node;
mod output;
mod plan;
mod progress;
mod recover;
mod run;
mod settings;
mod status;
mod wire;

#[cfg(test)]
mod tests;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use self::{
    args::{Arguments, Command},
    exit::CliError,
};

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no errors for clap's exit code, everything else is wrong usage.
            let code = if error.exit_code() == 0 { 0 } else { exit::USAGE };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match dispatch(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}

fn dispatch(arguments: Arguments) -> Result<(), CliError> {
    let Arguments { global, command } = arguments;
    let global = global.or_environment(&|name| std::env::var_os(name));
    match command {
        Command::Init(args) => init::run(&args),
        Command::Run(args) => run::run(&global, &args),
        Command::Status(args) => status::run(&global, &args),
        Command::Deploy(args) => deploy::run(&global, &args),
        Command::Plan(args) => plan::run(&global, &args),
        Command::Infer(args) => infer::run(&global, &args),
        Command::Bench(args) => bench::run(&global, &args),
        Command::Models(args) => models::list(&global, &args),
        Command::Undeploy(args) => models::undeploy(&global, &args),
        Command::Model(args) => models::run(&global, &args),
        Command::Node(args) => node::run(&global, &args),
        Command::Doctor(args) => doctor::run(&global, &args),
        Command::Recover(args) => recover::run(&global, &args),
        Command::Demo(args) => demo::run(&args),
        Command::Completions(args) => docs::completions(&args, &mut Arguments::command()),
        Command::Man(args) => docs::man(&args, Arguments::command()),
    }
}
