//! The `mesh` binary: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    mesh_daemon::cli::main()
}
