//! Completions and man pages, made from the command line's own description.

use std::{fs, io};

use clap::Command;

use super::{
    args::{Completions, Man},
    client::file_error,
    exit::CliError,
    output,
};

pub(super) fn completions(args: &Completions, command: &mut Command) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "mesh", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}

/// Writes `mesh.1` and a page per subcommand.
pub(super) fn man(args: &Man, command: Command) -> Result<(), CliError> {
    let fail = |error: io::Error| file_error(&args.dir, &error);
    fs::create_dir_all(&args.dir).map_err(fail)?;
    clap_mangen::generate_to(command, &args.dir).map_err(fail)?;
    output::note(&format!("wrote man pages to {}", args.dir.display()));
    Ok(())
}
