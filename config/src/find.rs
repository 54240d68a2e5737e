//! Which config file to read.

use std::path::{Path, PathBuf};

use crate::error::{ConfigErrors, Place};

/// Finds the config file: the one named, `MESH_CONFIG`, `./mesh.toml`, `~/.config/mesh/mesh.toml` or
/// `/etc/mesh/mesh.toml`, in this order. A file that is named is taken as it is, so that `load` can say what is wrong
/// with it.
///
/// # Errors
/// When no file is named and none of the usual places has one.
pub fn find(explicit: Option<&Path>, env: &dyn Fn(&str) -> Option<String>) -> Result<PathBuf, ConfigErrors> {
    if let Some(path) = explicit {
        return Ok(path.to_owned());
    }
    if let Some(path) = env("MESH_CONFIG").filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let mut places = vec![PathBuf::from("mesh.toml")];
    if let Some(home) = env("HOME").filter(|home| !home.is_empty()) {
        places.push(PathBuf::from(home).join(".config/mesh/mesh.toml"));
    }
    places.push("/etc/mesh/mesh.toml".into());
    if let Some(found) = places.iter().find(|place| place.exists()) {
        return Ok(found.clone());
    }
    let looked: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
    let message = format!(
        "no config file found; looked for {}. Write one with `mesh init`, or name one with --config FILE or MESH_CONFIG",
        looked.join(", ")
    );
    Err(ConfigErrors::one(Place::Search, message))
}
