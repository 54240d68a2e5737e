//! Control groups, versions 1 and 2: a processor share, a memory cap, a freezer and the bill for each device.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

/// Where the kernel shows control groups.
const ROOT: &str = "/sys/fs/cgroup";
/// Controllers that a lab uses, by their folders in version 1.
const CONTROLLERS: [&str; 4] = ["cpu", "cpuacct", "memory", "freezer"];
/// Processor time is given out in periods of this length, so that a small share comes in small pieces.
const PERIOD_US: u64 = 10_000;

/// The control group of one device, or of a lab that holds those of its devices.
#[derive(Debug, Clone)]
pub struct Group {
    /// Version 2: one folder. Version 1: one per controller, in the order of `CONTROLLERS`.
    folders: Vec<PathBuf>,
    version: Version,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// What a control group could not do.
#[derive(Debug, thiserror::Error)]
#[error("control group: {path} cannot be {what}: {source} (the lab needs root and writable control groups)")]
pub struct GroupError {
    path: PathBuf,
    what: &'static str,
    source: io::Error,
}

impl Group {
    /// Makes `mesh-lab/<path>`, with what is above it. It is there already: taken as it is.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create(path: &str) -> Result<Self, GroupError> {
        Self::create_in(Path::new(ROOT), path)
    }

    fn create_in(root: &Path, path: &str) -> Result<Self, GroupError> {
        let group = Self::at(root, path);
        for folder in &group.folders {
            if group.version == Version::Two {
                enable(root, folder)?;
            }
            fs::create_dir_all(folder).map_err(failed(folder, "made"))?;
        }
        let all = Self::at(root, "");
        let (file, most) = match group.version {
            Version::One => ("cpu.shares", "262144"),
            Version::Two => ("cpu.weight", "10000"),
        };
        // What else runs on the host waits: a device's share is meant to be there when the device wants it.
        all.write("cpu", file, most)?;
        Ok(group)
    }

    fn at(root: &Path, path: &str) -> Self {
        let version = if root.join("cgroup.controllers").exists() { Version::Two } else { Version::One };
        let folders = match version {
            Version::Two => vec![root.join("mesh-lab").join(path)],
            Version::One => CONTROLLERS.iter().map(|c| root.join(c).join("mesh-lab").join(path)).collect(),
        };
        Self { folders, version }
    }

    /// Names of the groups below `mesh-lab`: labs that are there.
    pub fn labs() -> Vec<String> {
        let mut names: Vec<String> =
            Self::at(Path::new(ROOT), "").folders.iter().flat_map(|f| below(f)).collect();
        names.sort();
        names.dedup();
        names
    }

    /// The files that a process writes its id to in order to join.
    pub fn join_files(&self) -> Vec<PathBuf> {
        self.folders.iter().map(|folder| folder.join("cgroup.procs")).collect()
    }

    /// Part of one core, or several; `None`: no limit.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_cpu(&self, cores: Option<f64>) -> Result<(), GroupError> {
        let quota = cores.map(|cores| ((cores * PERIOD_US as f64).round() as u64).max(1000));
        // The kernel gives no less than 1 ms at a time: a smaller share gets a longer period.
        let period = match (cores, quota) {
            (Some(cores), Some(quota)) => ((quota as f64 / cores).round() as u64).clamp(PERIOD_US, 1_000_000),
            _ => PERIOD_US,
        };
        match self.version {
            Version::One => {
                // Lifted first: no pair of values in between may be refused.
                self.write("cpu", "cpu.cfs_quota_us", "-1")?;
                self.write("cpu", "cpu.cfs_period_us", &period.to_string())?;
                self.write("cpu", "cpu.cfs_quota_us", &quota.map_or("-1".into(), |quota| quota.to_string()))
            }
            Version::Two => {
                let quota = quota.map_or("max".into(), |quota| quota.to_string());
                self.write("cpu", "cpu.max", &format!("{quota} {period}"))
            }
        }
    }

    /// Most bytes of memory.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_memory(&self, bytes: u64) -> Result<(), GroupError> {
        let file = match self.version {
            Version::One => "memory.limit_in_bytes",
            Version::Two => "memory.max",
        };
        self.write("memory", file, &bytes.to_string())
    }

    /// Stops all processes where they are, or lets them go on; returns when that is so.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_frozen(&self, frozen: bool) -> Result<(), GroupError> {
        let (file, value, state, wanted) = match self.version {
            Version::One => {
                let word = if frozen { "FROZEN" } else { "THAWED" };
                ("freezer.state", word, "freezer.state", word)
            }
            Version::Two => {
                let digit = if frozen { "1" } else { "0" };
                let event = if frozen { "frozen 1" } else { "frozen 0" };
                ("cgroup.freeze", digit, "cgroup.events", event)
            }
        };
        self.write("freezer", file, value)?;
        let path = self.folder("freezer").join(state);
        for _ in 0..500 {
            let now = fs::read_to_string(&path).map_err(failed(&path, "read"))?;
            if now.lines().any(|line| line.trim() == wanted) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(failed(&path, "brought to another state")(io::ErrorKind::TimedOut.into()))
    }

    /// Processor time used so far.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn cpu_time(&self) -> Result<Duration, GroupError> {
        match self.version {
            Version::One => {
                let path = self.folder("cpuacct").join("cpuacct.usage");
                let text = fs::read_to_string(&path).map_err(failed(&path, "read"))?;
                Ok(Duration::from_nanos(text.trim().parse().unwrap_or(0)))
            }
            Version::Two => {
                let path = self.folder("cpu").join("cpu.stat");
                let text = fs::read_to_string(&path).map_err(failed(&path, "read"))?;
                let line = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
                Ok(Duration::from_micros(line.and_then(|n| n.trim().parse().ok()).unwrap_or(0)))
            }
        }
    }

    /// Largest memory use so far, bytes.
    pub fn memory_peak(&self) -> u64 {
        let file = match self.version {
            Version::One => "memory.max_usage_in_bytes",
            Version::Two => "memory.peak",
        };
        let text = fs::read_to_string(self.folder("memory").join(file)).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// Ids of the processes in this group and below.
    pub fn processes(&self) -> Vec<i32> {
        let mut found = Vec::new();
        for folder in &self.folders {
            collect(folder, &mut found);
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Kills everything in this group and below, waits until it is gone, and removes the groups.
    ///
    /// # Errors
    /// When processes or groups stay.
    pub fn remove(&self) -> Result<(), GroupError> {
        for round in 0..500 {
            self.thaw_all();
            for pid in self.processes() {
                if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
            if self.folders.iter().all(|folder| remove_tree(folder).is_ok()) {
                // The folder of all labs goes with the last of them.
                self.folders
                    .iter()
                    .filter_map(|f| f.parent())
                    .for_each(|parent| drop(fs::remove_dir(parent)));
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(if round < 50 { 10 } else { 50 }));
        }
        let path = &self.folders[0];
        Err(failed(path, "removed")(io::Error::other("processes in it did not end")))
    }

    /// A frozen process does not die.
    fn thaw_all(&self) {
        fn thaw(folder: &Path, version: Version) {
            for name in below(folder) {
                thaw(&folder.join(name), version);
            }
            let (file, word) = match version {
                Version::One => ("freezer.state", "THAWED"),
                Version::Two => ("cgroup.freeze", "0"),
            };
            if folder.join(file).exists() {
                let _ = write_existing(&folder.join(file), word);
            }
        }
        thaw(self.folder("freezer"), self.version);
    }

    fn folder(&self, controller: &str) -> &Path {
        let at = CONTROLLERS.iter().position(|name| *name == controller).unwrap_or(0);
        self.folders.get(at).unwrap_or(&self.folders[0])
    }

    fn write(&self, controller: &str, file: &str, value: &str) -> Result<(), GroupError> {
        let path = self.folder(controller).join(file);
        write_existing(&path, value).map_err(failed(&path, "written"))
    }
}

/// Version 2: a group has the controllers that the one above it hands down.
fn enable(root: &Path, folder: &Path) -> Result<(), GroupError> {
    let mut above: Vec<&Path> =
        folder.ancestors().skip(1).take_while(|path| path.starts_with(root)).collect();
    above.reverse();
    for path in above {
        if path != root {
            fs::create_dir_all(path).map_err(failed(path, "made"))?;
        }
        let file = path.join("cgroup.subtree_control");
        write_existing(&file, "+cpu +memory").map_err(failed(&file, "written"))?;
    }
    Ok(())
}

fn write_existing(path: &Path, value: &str) -> io::Result<()> {
    use io::Write as _;
    fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

fn failed(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> GroupError {
    let path = path.to_path_buf();
    move |source| GroupError { path, what, source }
}

fn below(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn collect(folder: &Path, found: &mut Vec<i32>) {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    found.extend(text.lines().filter_map(|line| line.trim().parse::<i32>().ok()));
    below(folder).iter().for_each(|name| collect(&folder.join(name), found));
}

/// Control groups are removed folder by folder: their files cannot be.
fn remove_tree(folder: &Path) -> io::Result<()> {
    for name in below(folder) {
        remove_tree(&folder.join(name))?;
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
