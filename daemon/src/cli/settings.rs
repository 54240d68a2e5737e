//! The config, as the command line finds it.

use mesh_config::{ClientConfig, Config, ConfigErrors};

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

/// What everybody may read of the config.
pub(super) fn client(global: &Global) -> Result<ClientConfig, ConfigErrors> {
    mesh_config::find(global.config.as_deref(), &variable)
        .and_then(|path| mesh_config::load_client(&path, &variable))
}

/// The daemon's address and token: `--api` or `MESH_API`, else the config's `api.listen`, else the default.
pub(super) fn daemon(global: &Global) -> Result<(String, Option<String>), CliError> {
    daemon_by(global, &variable)
}

fn daemon_by(
    global: &Global,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<(String, Option<String>), CliError> {
    let given = env("MESH_API_TOKEN").filter(|token| !token.is_empty());
    let read = |path| mesh_config::load_client(path, env);
    let named = |path| read(path).map_err(|errors| CliError::config(errors.to_string()));
    match (&global.api, global.config.as_deref()) {
        (Some(api), Some(path)) if given.is_none() => Ok((base_of(api)?, token_of(named(path)?))),
        (Some(api), _) => Ok((base_of(api)?, given)),
        (None, Some(path)) => of(named(path)?, given),
        (None, None) => match mesh_config::find(None, env) {
            // No config at all: perhaps a daemon runs with what is usual.
            Err(_) => Ok((base_of(API_DEFAULT)?, given)),
            Ok(path) => match read(&path) {
                Ok(config) => of(config, given),
                // The daemon's own config may be none that this person may read.
                Err(errors) => {
                    output::note(&format!(
                        "mesh: {errors}\nmesh: using {API_DEFAULT}; name another with --api URL"
                    ));
                    Ok((base_of(API_DEFAULT)?, given))
                }
            },
        },
    }
}

/// The daemon of a config; a token that was given by hand goes before the config's.
fn of(config: ClientConfig, given: Option<String>) -> Result<(String, Option<String>), CliError> {
    let base = base_of(&config.listen.to_string())?;
    Ok((base, given.or_else(|| token_of(config))))
}

/// The config's token. Why there is none is said: the daemon will want it.
fn token_of(config: ClientConfig) -> Option<String> {
    if let Some(defect) = &config.token_defect {
        output::note(&format!("mesh: {defect}; or set MESH_API_TOKEN to the token"));
    }
    config.token.map(|token| token.expose().to_owned())
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, os::unix::fs::PermissionsExt, path::Path};

    use super::{API_DEFAULT, daemon_by};
    use crate::cli::args::Global;

    const TOKEN: &str = "0123456789abcdef";

    fn write(path: &Path, text: &str) {
        let mut file = fs::File::create(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.set_permissions(PermissionsExt::from_mode(0o600)).unwrap();
    }

    #[test]
    fn the_daemon_is_found_without_the_cluster_key() {
        let folder = tempfile::tempdir().unwrap();
        let (config, token) = (folder.path().join("mesh.toml"), folder.path().join("api.token"));
        // There is no cluster.key at all: what cannot be read must not matter.
        write(
            &config,
            "[cluster]\nname = \"a\"\ndevices = 1\nkey_file = \"cluster.key\"\n[api]\nlisten = \"127.0.0.1:9\"\n\
             token_file = \"api.token\"\n",
        );
        let ask = |named: bool, api: Option<&str>, given: &'static str| {
            let global = Global { config: named.then(|| config.clone()), api: api.map(Into::into) };
            let path = config.display().to_string();
            let env = move |name: &str| match name {
                "MESH_API_TOKEN" => Some(given.to_owned()),
                "MESH_CONFIG" => Some(path.clone()),
                _ => None,
            };
            daemon_by(&global, &env).unwrap()
        };
        let (own, other) = ("http://127.0.0.1:9".to_owned(), "http://10.0.0.1:7".to_owned());
        for named in [false, true] {
            assert_eq!(ask(named, None, ""), (own.clone(), None), "no token");
            assert_eq!(ask(named, None, "typed"), (own.clone(), Some("typed".into())));
        }
        write(&token, TOKEN);
        let held = Some(TOKEN.to_owned());
        for named in [false, true] {
            assert_eq!(ask(named, None, ""), (own.clone(), held.clone()), "an empty variable is none");
            assert_eq!(ask(named, None, "typed"), (own.clone(), Some("typed".into())));
        }
        // A token is for the daemon of its config, unless somebody says otherwise.
        assert_eq!(ask(false, Some("10.0.0.1:7"), ""), (other.clone(), None));
        assert_eq!(ask(true, Some("10.0.0.1:7"), ""), (other, held));
    }

    #[test]
    fn a_config_that_is_named_must_be_right() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("mesh.toml");
        write(&config, "[cluster]\nnaem = \"a\"\n");
        let path = config.display().to_string();
        let env = move |name: &str| (name == "MESH_CONFIG").then(|| path.clone());
        let named = Global { config: Some(config), api: None };
        assert_eq!(daemon_by(&named, &env).unwrap_err().code(), 78);
        let found = Global { config: None, api: None };
        assert_eq!(daemon_by(&found, &env).unwrap().0, format!("http://{API_DEFAULT}"));
    }
}
