//! One device of a lab: its namespace, its control group, its disk, its daemon.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::{
    cgroup::{Group, GroupError},
    network::{Card, Network, NetworkError, Port, run, traffic},
    scenario::Machine,
    site,
};
use crate::rack::{Device, Namespace};

/// Fills a disk.
const BALLAST: &str = "ballast";

/// A device that is there.
#[derive(Debug)]
pub struct LabDevice {
    /// What it is made of, as the scenario says.
    pub machine: Machine,
    /// Its daemon and files.
    pub daemon: Device,
    /// Its place in the network.
    pub port: Port,
    /// Its control group.
    pub group: Group,
    /// Processor share now, cores.
    pub cpu: Option<f64>,
    burner: Option<Child>,
    frozen: bool,
}

/// What a device could not do.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Control group.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// Network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Files.
    #[error("{what} of {device}: {source}")]
    Files {
        /// Which.
        what: &'static str,
        /// Whose.
        device: String,
        /// Why.
        source: io::Error,
    },
    /// An event makes no sense now.
    #[error("{device}: {problem}")]
    State {
        /// Whose.
        device: String,
        /// What.
        problem: String,
    },
}

/// How much of what a device has used so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Processor seconds of its control group.
    pub cpu_s: f64,
    /// Bytes received by its card.
    pub received: u64,
    /// Bytes sent by its card.
    pub sent: u64,
    /// Largest memory use so far, bytes.
    pub memory_peak: u64,
}

impl LabDevice {
    /// Makes namespace, control group and disk of a device. A card that delays comes from the relay: it is
    /// brought up by [`LabDevice::connect`] later.
    ///
    /// # Errors
    /// What could not be made.
    pub fn create(
        lab: &str,
        number: usize,
        machine: &Machine,
        network: &mut Network,
        env: &[(String, String)],
    ) -> Result<Self, MachineError> {
        let group = Group::create(&format!("{lab}/{}", machine.name))?;
        group.set_cpu(machine.hardware.cpu)?;
        if let Some(memory) = machine.hardware.memory {
            group.set_memory(memory.0)?;
        }
        let namespace = site::device_namespace(lab, &machine.name);
        let relayed = machine.hardware.is_impaired() && !network.has_netem();
        let card = Card::of(&machine.hardware);
        let port = network.plug(&namespace, &format!("p{number}"), machine.address, card, relayed)?;
        let home = site::folder(lab).join(&machine.name);
        let address = machine.address.to_string();
        let cluster = site::folder(lab).join("cluster");
        let mut daemon =
            Device::new(Namespace::existing(&namespace), &machine.name, &address, &home, &cluster);
        daemon.env.extend(env.iter().cloned());
        if let Some(threads) = machine.hardware.threads {
            daemon.env.push(("MESH_LIMITS_THREADS".into(), threads.to_string()));
        }
        if let Some(budget) = machine.hardware.budget {
            daemon.env.push(("MESH_LIMITS_MEMORY".into(), format!("{}B", budget.0)));
        }
        daemon.set_launcher(launcher(&group));
        let device = Self {
            machine: machine.clone(),
            daemon,
            port,
            group,
            cpu: machine.hardware.cpu,
            burner: None,
            frozen: false,
        };
        device.make_disk()?;
        if !relayed {
            device.connect(network)?;
        }
        Ok(device)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.machine.name
    }

    /// Whether its card comes from the relay.
    pub fn is_relayed(&self, network: &Network) -> bool {
        self.machine.hardware.is_impaired() && !network.has_netem()
    }

    /// Brings the card up.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn connect(&self, network: &Network) -> Result<(), NetworkError> {
        network.adopt(&self.port)
    }

    /// Gives it another address; the scenario's for `None`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_address(
        &mut self,
        network: &Network,
        address: Option<std::net::Ipv4Addr>,
    ) -> Result<(), NetworkError> {
        self.port.address = address.unwrap_or(self.machine.address);
        network.readdress(&self.port)
    }

    fn make_disk(&self) -> Result<(), MachineError> {
        let folder = &self.daemon.data_dir;
        fs::create_dir_all(folder).map_err(|source| self.files("the data folder", source))?;
        if let Some(size) = self.machine.hardware.disk {
            let options = format!("size={}", size.0);
            let point = folder.display().to_string();
            run("mount", &["-t", "tmpfs", "-o", &options, "mesh-lab", &point])?;
        }
        Ok(())
    }

    /// Whether its daemon runs and is not frozen.
    pub fn is_running(&self) -> bool {
        self.daemon.is_running() && !self.frozen
    }

    /// Freezes everything on the device, or ends that.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_frozen(&mut self, frozen: bool) -> Result<(), MachineError> {
        self.group.set_frozen(frozen)?;
        self.frozen = frozen;
        Ok(())
    }

    /// Gives it another share of the processors.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_cpu(&mut self, cores: Option<f64>) -> Result<(), MachineError> {
        self.group.set_cpu(cores)?;
        self.cpu = cores;
        Ok(())
    }

    /// Keeps the processor share busy with something that is not Mesh.
    ///
    /// # Errors
    /// When the program does not start.
    pub fn burn(&mut self) -> Result<(), MachineError> {
        if self.burner.is_none() {
            let launcher = launcher(&self.group);
            let mut command = Command::new(&launcher[0]);
            command.args(&launcher[1..]).args(["sh", "-c", "while :; do :; done"]);
            let child = command.stdin(Stdio::null()).spawn();
            self.burner = Some(child.map_err(|source| self.files("the burner", source))?);
        }
        Ok(())
    }

    /// Ends that.
    pub fn cool(&mut self) {
        if let Some(mut burner) = self.burner.take() {
            let _ = burner.kill();
            let _ = burner.wait();
        }
    }

    /// Fills the disk, but for `leave` bytes.
    ///
    /// # Errors
    /// When the device has no disk of its own, or it cannot be written.
    pub fn fill_disk(&self, leave: u64) -> Result<(), MachineError> {
        use io::Write as _;
        let Some(size) = self.machine.hardware.disk else {
            let problem = "it has no disk of its own to fill: give it one with disk = \"200MiB\"".to_owned();
            return Err(MachineError::State { device: self.name().to_owned(), problem });
        };
        let path = self.daemon.data_dir.join(BALLAST);
        let mut file = fs::File::create(&path).map_err(|source| self.files("the ballast", source))?;
        let piece = vec![0x5a; 1 << 16];
        let mut written = 0;
        while written < size.0 {
            match file.write(&piece) {
                Ok(count) => written += count as u64,
                Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                Err(source) => return Err(self.files("the ballast", source)),
            }
        }
        file.set_len(written.saturating_sub(leave)).map_err(|source| self.files("the ballast", source))
    }

    /// Takes the ballast away.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn free_disk(&self) -> Result<(), MachineError> {
        match fs::remove_file(self.daemon.data_dir.join(BALLAST)) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(self.files("the ballast", source)),
            _ => Ok(()),
        }
    }

    /// Removes all data.
    ///
    /// # Errors
    /// When the daemon runs, or files stay.
    pub fn wipe_disk(&self) -> Result<(), MachineError> {
        if self.daemon.is_running() {
            let problem = "its disk cannot be wiped while its daemon runs: kill or stop it first".to_owned();
            return Err(MachineError::State { device: self.name().to_owned(), problem });
        }
        let entries = fs::read_dir(&self.daemon.data_dir).map_err(|source| self.files("the data", source))?;
        for entry in entries.flatten() {
            let path = entry.path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(|source| self.files("the data", source))?;
        }
        Ok(())
    }

    /// What it has used so far.
    pub fn usage(&self) -> Usage {
        let (received, sent) = traffic(&self.port);
        let cpu_s = self.group.cpu_time().map_or(0.0, |time| time.as_secs_f64());
        Usage { cpu_s, received, sent, memory_peak: self.group.memory_peak() }
    }

    /// What to type before the arguments of `mesh` to run it on this device.
    pub fn by_hand(&self) -> String {
        let command = self.daemon.command();
        let text = |word: &std::ffi::OsStr| word.to_string_lossy().into_owned();
        let envs: Vec<String> = command
            .get_envs()
            .filter_map(|(key, value)| Some(format!("{}={}", text(key), text(value?))))
            .collect();
        let mut words: Vec<String> = command.get_args().map(text).collect();
        let binary = words.pop().unwrap_or_default();
        format!("nsenter {} env {} {binary}", words.join(" "), envs.join(" "))
    }

    /// Where its log is.
    pub fn log(&self) -> PathBuf {
        self.daemon.data_dir.parent().unwrap_or(Path::new("")).join("log")
    }

    fn files(&self, what: &'static str, source: io::Error) -> MachineError {
        MachineError::Files { what, device: self.name().to_owned(), source }
    }
}

/// Joins a control group and becomes the program that follows.
pub(super) fn launcher(group: &Group) -> Vec<String> {
    let files = group.join_files();
    let joins: Vec<String> = files.iter().map(|file| format!("echo $$ > '{}'", file.display())).collect();
    let script = format!("{} && exec \"$@\"", joins.join(" && "));
    vec!["sh".into(), "-c".into(), script, "sh".into()]
}
