//! What `mesh init` writes: a commented config file and a fresh cluster key.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::checks::{NAME, is_name};
use crate::load::MAX_DEVICES;

/// The files written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// `mesh.toml`.
    pub config: PathBuf,
    /// `cluster.key`, readable by its owner only.
    pub key: PathBuf,
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// A file of that name is there.
    #[error("{} exists and is not overwritten; move it away or choose another directory", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Not a cluster name.
    #[error("the cluster's name {name:?} must be {NAME}")]
    Name {
        /// The name given.
        name: String,
    },
    /// Not a number of devices.
    #[error("the number of devices is {devices}; it must be from 1 to {MAX_DEVICES}")]
    Devices {
        /// The number given.
        devices: u32,
    },
    /// The file system refused.
    #[error("could not {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

/// Writes `mesh.toml` and `cluster.key` (mode 0600) into `dir`, which is made when it does not exist.
///
/// Each file appears whole or not at all, and none is ever overwritten.
///
/// # Errors
/// When a name or number is out of range, one of the files exists, or writing fails.
pub fn generate(dir: &Path, name: &str, devices: u32) -> Result<Written, GenerateError> {
    if !is_name(name) {
        return Err(GenerateError::Name { name: name.to_owned() });
    }
    if !(1..=MAX_DEVICES).contains(&devices) {
        return Err(GenerateError::Devices { devices });
    }
    let written = Written { config: dir.join("mesh.toml"), key: dir.join("cluster.key") };
    for path in [&written.config, &written.key] {
        if path.symlink_metadata().is_ok() {
            return Err(GenerateError::Exists { path: path.clone() });
        }
    }
    std::fs::create_dir_all(dir).map_err(|source| io("create the directory", dir, source))?;
    write_new(&written.key, &fresh_key()?, 0o600)?;
    if let Err(error) = write_new(&written.config, &template(name, devices), 0o644) {
        // A key without its config would stand in the way of the next try. The first failure is what counts.
        let _ = std::fs::remove_file(&written.key);
        return Err(error);
    }
    Ok(written)
}

fn io(what: &'static str, path: &Path, source: std::io::Error) -> GenerateError {
    GenerateError::Io { what, path: path.to_owned(), source }
}

fn fresh_key() -> Result<String, GenerateError> {
    let source = Path::new("/dev/urandom");
    let mut bytes = [0u8; 32];
    let read = File::open(source).and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(|error| io("read random bytes from", source, error))?;
    let mut text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    text.push('\n');
    Ok(text)
}

/// Writes beside the file, syncs, and links it to its name, which fails when the name is taken.
fn write_new(path: &Path, content: &str, mode: u32) -> Result<(), GenerateError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let temporary = path.with_file_name(name);
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()
    };
    let done = write().map_err(|source| io("write", &temporary, source)).and_then(|()| {
        std::fs::hard_link(&temporary, path).map_err(|source| {
            if source.kind() == std::io::ErrorKind::AlreadyExists {
                return GenerateError::Exists { path: path.to_owned() };
            }
            io("write", path, source)
        })
    });
    // Left behind only when the disk fails; the file itself is what counts.
    let _ = std::fs::remove_file(&temporary);
    done?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory).and_then(|file| file.sync_all()).map_err(|source| io("sync", directory, source))
}

fn template(name: &str, devices: u32) -> String {
    format!(
        r#"# Mesh. Copy this file and cluster.key to every device. A line that begins with # shows a default.
# Every key can also be set as MESH_<SECTION>_<KEY>, for example MESH_NODE_NAME.

[cluster]
name = "{name}"
key_file = "cluster.key"           # relative to this file; only its owner may read it
devices = {devices}                        # how many devices there will be when the cluster is first formed

[node]
# name = "camera-1"                # the host's name
# data_dir = "/var/lib/mesh"       # identity, state and weights

[network]
# listen = "0.0.0.0:7400"          # port 0: any free one
# mdns = true                      # find devices on the local network by themselves
# peers = []                       # "host:port" of other devices, for networks without multicast
# interfaces = []                  # all; or names, such as "eth0"

[api]
# listen = "127.0.0.1:7401"
# grpc_listen = ""                 # "127.0.0.1:7402": the Open Inference Protocol over gRPC, too
# token_file = ""                  # required when one of them is not loopback

[limits]
# memory = "auto"                  # "512MiB": what stages may use on this device
# threads = 0                      # 0: all processors this process may use
# disk = "auto"                    # "8GiB": what weights may use; 2 % of the disk stays free either way

[inference]
# onnxruntime = "auto"             # path of the shared library
# execution_providers = ["cpu"]    # in order of preference; one that is named and missing is an error
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::KEYS;

    #[test]
    fn the_template_has_every_key() {
        let text = template("a", 1);
        let mut section = "";
        let mut found = Vec::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('[') {
                section = name.trim_end_matches(']');
            } else if let Some((name, _)) = line.trim_start_matches("# ").split_once(" = ") {
                found.push((section, name));
            }
        }
        let known: Vec<_> = KEYS.iter().map(|key| (key.section, key.name)).collect();
        assert_eq!(found, known);
    }
}
