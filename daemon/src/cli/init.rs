//! `mesh init`: the two files that every device of a cluster gets.

use super::{args::Init, exit::CliError, output};

pub(super) fn run(args: &Init) -> Result<(), CliError> {
    let written =
        mesh_config::generate(&args.out, &args.name, args.devices).map_err(|error| match error {
            mesh_config::GenerateError::Name { .. } | mesh_config::GenerateError::Devices { .. } => {
                CliError::usage(error.to_string())
            }
            mesh_config::GenerateError::Exists { .. } | mesh_config::GenerateError::Io { .. } => {
                CliError::failed(super::exit::chain(&error))
            }
        })?;
    output::print(&format!("{}\n{}\n", written.config.display(), written.key.display()))?;
    output::note(&format!(
        "Next: copy both files to every device, for example to /etc/mesh; keep {} secret (mode 0600): \
         who has it can join.\nThen on each device: mesh run --config /etc/mesh/mesh.toml. The {} devices find \
         each other; see mesh status.",
        written.key.file_name().unwrap_or_default().display(),
        args.devices
    ));
    Ok(())
}
