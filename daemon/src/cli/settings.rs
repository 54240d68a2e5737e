//! The config, as the command line finds it.

use mesh_config::Config;

use super::{args::Global, client::base_of, exit::CliError, output};

/// Where a daemon listens unless its config says otherwise.
const API_DEFAULT: &str = "127.0.0.1:7401";

pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The config; every defect of it is in the error.
pub(super) fn load(global: &Global) -> Result<Config, CliError> {
    mesh_config::find(global.config.as_deref(), &variable)
        .and_then(|path| mesh_config::load(&path, &variable))
        .map_err(|errors| CliError::config(errors.to_string()))
}

/// The daemon's address and token: `--api` or `MESH_API`, else the config's `api.listen`, else the default.
pub(super) fn daemon(global: &Global) -> Result<(String, Option<String>), CliError> {
    let mut token = variable("MESH_API_TOKEN");
    if let Some(api) = &global.api {
        if token.is_none() && global.config.is_some() {
            token = token_of(&load(global)?);
        }
        return Ok((base_of(api)?, token));
    }
    match mesh_config::find(global.config.as_deref(), &variable) {
        // No config at all: perhaps a daemon runs with what is usual.
        Err(_) => Ok((base_of(API_DEFAULT)?, token)),
        Ok(path) => match mesh_config::load(&path, &variable) {
            Ok(config) => {
                let token = token.or_else(|| token_of(&config));
                Ok((base_of(&config.api.listen.to_string())?, token))
            }
            Err(errors) if global.config.is_some() => Err(CliError::config(errors.to_string())),
            // The daemon's own config may hold secrets that this person may not read.
            Err(errors) => {
                output::note(&format!(
                    "mesh: {errors}\nmesh: using {API_DEFAULT}; name another with --api URL"
                ));
                Ok((base_of(API_DEFAULT)?, token))
            }
        },
    }
}

fn token_of(config: &Config) -> Option<String> {
    config.api.token.as_ref().map(|token| token.expose().to_owned())
}
