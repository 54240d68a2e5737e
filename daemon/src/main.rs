//! The `mesh` binary: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    keep_runtime_quiet();
    mesh_daemon::cli::main()
}

/// ONNX Runtime (seen in 1.31) looks for a server of its makers and writes a file below the home directory as soon as it
/// is loaded, before a program can ask it not to through its interface. This variable keeps it from that.
fn keep_runtime_quiet() {
    #[expect(
        unsafe_code,
        clippy::disallowed_methods,
        reason = "the process's own environment is all it reads"
    )]
    // SAFETY: the process has one thread yet, so nothing reads the environment meanwhile.
    unsafe {
        std::env::set_var("ORT_DISABLE_TELEMETRY", "1");
    }
}
