//! Where a lab keeps what it makes, and how all of it goes away: also after a crash, from the names alone.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

use super::cgroup::{Group, GroupError};

/// Starts the names of namespaces.
const PREFIX: &str = "mesh-lab-";

/// The folder of one lab: logs, configs, data.
pub fn folder(lab: &str) -> PathBuf {
    root().join(lab)
}

fn root() -> PathBuf {
    std::env::temp_dir().join("mesh-lab")
}

/// The namespace of the lab's switch.
pub fn switch_namespace(lab: &str) -> String {
    format!("{PREFIX}{lab}")
}

/// The namespace of a device.
pub fn device_namespace(lab: &str, device: &str) -> String {
    format!("{PREFIX}{lab}.{device}")
}

/// Why something of a lab stayed.
#[derive(Debug, thiserror::Error)]
pub enum DownError {
    /// Control groups or processes.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// Files.
    #[error("{path} cannot be removed: {source}")]
    Files {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A namespace.
    #[error("namespace {name} cannot be removed: {message}")]
    Namespace {
        /// Its name.
        name: String,
        /// What `ip` said.
        message: String,
    },
}

/// Names of labs of which anything is there.
pub fn labs() -> Vec<String> {
    let mut names = Group::labs();
    let of = |name: &String| name.strip_prefix(PREFIX)?.split('.').next().map(str::to_owned);
    names.extend(namespaces().iter().filter_map(of));
    let entries = fs::read_dir(root()).into_iter().flatten().flatten();
    names.extend(entries.filter_map(|entry| entry.file_name().into_string().ok()));
    names.sort();
    names.dedup();
    names
}

fn namespaces() -> Vec<String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Removes all that a lab made: processes, control groups, namespaces with their links, disks, files.
///
/// # Errors
/// The first thing that would not go; the rest is tried all the same.
pub fn down(lab: &str) -> Result<(), DownError> {
    let groups = Group::create(lab).and_then(|group| group.remove()).map_err(DownError::from);
    let mine = |name: &String| {
        *name == switch_namespace(lab) || name.starts_with(&format!("{}.", switch_namespace(lab)))
    };
    let mut result = groups;
    for name in namespaces().into_iter().filter(mine) {
        let output = Command::new("ip").args(["netns", "del", &name]).output();
        let message = match output {
            Ok(output) if output.status.success() => continue,
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        result = result.and(Err(DownError::Namespace { name, message }));
    }
    let folder = folder(lab);
    unmount(&folder);
    match fs::remove_dir_all(&folder) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            result = result.and(Err(DownError::Files { path: folder, source }));
        }
        _ => drop(fs::remove_dir(root())),
    }
    result
}

/// Disks of devices are mounts below the lab's folder.
fn unmount(folder: &Path) {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for point in points.filter(|point| Path::new(point).starts_with(folder)) {
        let _ = Command::new("umount").arg("-l").arg(point).output();
    }
}

/// A process that clears the lab away when this one is gone, however it ended.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    pipe: Option<ChildStdin>,
}

/// Tells the guard that the lab stays.
const KEEP: &[u8] = b"keep\n";

impl Guard {
    /// Starts the guard of a lab: `lab guard NAME`, with a pipe that ends when this process does.
    ///
    /// # Errors
    /// When the binary `lab` does not start.
    pub fn start(lab: &str) -> std::io::Result<Self> {
        use std::os::unix::process::CommandExt as _;
        let mut child = Command::new(tool())
            .args(["guard", lab])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // A group of its own: an interrupt from the keyboard is not for it.
            .process_group(0)
            .spawn()?;
        let pipe = child.stdin.take();
        Ok(Self { child, pipe })
    }

    /// The lab stays.
    pub fn release(mut self) {
        if let Some(mut pipe) = self.pipe.take() {
            let _ = pipe.write_all(KEEP);
        }
        let _ = self.child.wait();
    }

    /// The lab goes now; waits for that.
    pub fn clear(mut self) {
        drop(self.pipe.take());
        let _ = self.child.wait();
    }

    /// What the guard does: waits until the pipe ends, then clears the lab away unless it was told not to.
    ///
    /// # Errors
    /// When something stays.
    pub fn watch(lab: &str) -> Result<(), DownError> {
        let mut said = String::new();
        let _ = std::io::Read::read_to_string(&mut std::io::stdin(), &mut said);
        if said.as_bytes() == KEEP { Ok(()) } else { down(lab) }
    }
}

/// The binary `lab` that was built with this program.
pub fn tool() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    if own.file_name().is_some_and(|name| name == "lab") {
        return own;
    }
    let beside = own.parent().map(|folder| folder.join("lab"));
    let above = own.parent().and_then(Path::parent).map(|folder| folder.join("lab"));
    [beside, above].into_iter().flatten().find(|path| path.exists()).unwrap_or_else(|| "lab".into())
}
