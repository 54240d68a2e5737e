//! Checks of this machine alone.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use mesh_config::{Config, Inference, Limits};
use mesh_inference::{blobs::Disk, runtime::Engine};

use super::Finding;
use crate::cli::{exit::chain, output};

/// Any time before this was written shows a clock that was never set: 2025-01-01.
const EARLIEST: Duration = Duration::from_secs(1_735_689_600);
/// Below this a device hardly holds a stage.
const MEMORY_MIN: u64 = 128 << 20;
/// Below this weights will not fit.
const DISK_MIN: u64 = 1 << 30;

/// Flags of a network interface, from the kernel's `if.h`.
const UP: u32 = 0x1;
const LOOPBACK: u32 = 0x8;
const MULTICAST: u32 = 0x1000;

pub(super) fn clock() -> Finding {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    match now > EARLIEST {
        true => Finding::ok("clock", "the clock is set"),
        false => Finding::warn(
            "clock",
            "the clock shows a time in the past; logs of devices cannot be compared",
            "set it, or run a time service: timedatectl set-ntp true",
        ),
    }
}

/// Whether all ports can be taken, or are by the daemon that runs.
pub(super) fn ports(config: &Config, daemon_runs: bool) -> Vec<Finding> {
    let wanted = [("network.listen", config.network.listen), ("api.listen", config.api.listen)];
    let grpc = config.api.grpc_listen.map(|address| ("api.grpc_listen", address));
    wanted.into_iter().chain(grpc).map(|(key, address)| port(key, address, daemon_runs)).collect()
}

fn port(key: &str, address: SocketAddr, daemon_runs: bool) -> Finding {
    match TcpListener::bind(address) {
        Ok(_) => Finding::ok("ports", format!("{address} ({key}) is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && daemon_runs => {
            Finding::ok("ports", format!("{address} ({key}) is in use, and a daemon runs"))
        }
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Finding::fail(
            "ports",
            format!("{address} ({key}) is taken by another program"),
            format!("see which: ss -ltnp 'sport = :{}'; or set {key} to a free port", address.port()),
        ),
        Err(error) => Finding::fail(
            "ports",
            format!("{address} ({key}) cannot be used: {error}"),
            format!("set {key} to an address of this device, or to 0.0.0.0:{}", address.port()),
        ),
    }
}

/// Whether there is a network that other devices can be found on.
pub(super) fn interfaces(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let all = list_interfaces();
    for name in &config.network.interfaces {
        if !all.iter().any(|(known, _)| known == name) {
            let known: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
            findings.push(Finding::fail(
                "mDNS",
                format!("network.interfaces names {name}, which this device does not have"),
                format!("use some of: {}", known.join(", ")),
            ));
        }
    }
    if !config.network.mdns {
        let peers = config.network.peers.len();
        findings.push(match peers == 0 && config.cluster.devices > 1 {
            true => Finding::warn(
                "mDNS",
                "network.mdns is off and network.peers is empty: other devices have to call this one",
                "turn mdns on, or list the other devices in network.peers",
            ),
            false => Finding::ok("mDNS", format!("off; {peers} peers are listed")),
        });
        return findings;
    }
    let chosen = |name: &str| {
        config.network.interfaces.is_empty() || config.network.interfaces.iter().any(|i| i == name)
    };
    let usable: Vec<&str> = all
        .iter()
        .filter(|(name, flags)| chosen(name) && flags & (UP | LOOPBACK | MULTICAST) == UP | MULTICAST)
        .map(|(name, _)| name.as_str())
        .collect();
    findings.push(match usable.is_empty() {
        false => Finding::ok("mDNS", format!("devices can be found on {}", usable.join(", "))),
        true => Finding::warn(
            "mDNS",
            "no network interface is up and takes multicast",
            "plug in the network, or list the other devices in network.peers",
        ),
    });
    findings
}

/// Interfaces with their flags, in order.
fn list_interfaces() -> Vec<(String, u32)> {
    let entries = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let mut list: Vec<(String, u32)> = entries
        .filter_map(|entry| {
            let flags = fs::read_to_string(entry.path().join("flags")).ok()?;
            let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).ok()?;
            Some((entry.file_name().into_string().ok()?, flags))
        })
        .collect();
    list.sort();
    list
}

/// Whether the data directory can be written, and has room.
pub(super) fn storage(config: &Config) -> Vec<Finding> {
    let folder = &config.node.data_dir;
    let existing = nearest(folder);
    let mut findings = vec![match tempfile::tempfile_in(&existing) {
        Ok(_) => Finding::ok("disk", format!("{} can be written", folder.display())),
        Err(error) => Finding::fail(
            "disk",
            format!("{} cannot be written: {error}", existing.display()),
            "run mesh as the user that owns it, or set node.data_dir",
        ),
    }];
    if let Ok(disk) = Disk::of(&existing) {
        let free = disk.free.saturating_sub(disk.reserve());
        let wanted = config.limits.disk.unwrap_or(DISK_MIN).min(DISK_MIN);
        findings.push(match disk.fits(wanted) {
            true => Finding::ok("disk", format!("{} are free for weights", output::bytes(free))),
            false => Finding::warn(
                "disk",
                format!(
                    "only {} are free for weights on the disk of {}, beside {} that stay free for the cluster's log",
                    output::bytes(free),
                    folder.display(),
                    output::bytes(disk.reserve())
                ),
                "free some, or set node.data_dir to a larger disk",
            ),
        });
    }
    findings
}

/// The folder itself, or the nearest one above it that exists.
fn nearest(folder: &Path) -> PathBuf {
    folder.ancestors().find(|f| f.is_dir()).map_or_else(|| PathBuf::from("."), Path::to_owned)
}

pub(super) fn memory(limits: Option<&Limits>) -> Finding {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let Some(available) = meminfo(&text, "MemAvailable:") else {
        return Finding::warn("memory", "how much memory is free cannot be read", "set limits.memory");
    };
    let shown = output::bytes(available);
    match limits.and_then(|limits| limits.memory) {
        Some(limit) if limit > available => Finding::warn(
            "memory",
            format!("limits.memory is {}, but only {shown} are free", output::bytes(limit)),
            "lower limits.memory, or end other programs",
        ),
        Some(limit) => {
            Finding::ok("memory", format!("{shown} are free; stages may use {}", output::bytes(limit)))
        }
        None if available < MEMORY_MIN => {
            Finding::warn("memory", format!("only {shown} are free"), "end other programs")
        }
        None => Finding::ok("memory", format!("{shown} are free")),
    }
}

/// A line of `/proc/meminfo` in bytes.
fn meminfo(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Whether ONNX Runtime can be loaded, and has what the config names.
pub(super) fn runtime(inference: Option<&Inference>) -> Vec<Finding> {
    const CHECK: &str = "ONNX Runtime";
    let named = inference.and_then(|inference| inference.onnxruntime.as_deref());
    let engine = match Engine::load(named) {
        Ok(engine) => engine,
        Err(error) => {
            return vec![Finding::fail(
                CHECK,
                chain(&error),
                "set inference.onnxruntime, or MESH_INFERENCE_ONNXRUNTIME, to the library's path; then mesh doctor",
            )];
        }
    };
    let library = format!("{} from {}", engine.version(), engine.library().display());
    let mut findings = vec![Finding::ok(CHECK, library)];
    if let Some(inference) = inference {
        let names = &inference.execution_providers;
        findings.push(match engine.check_providers(names) {
            Ok(()) => Finding::ok(CHECK, format!("it has the execution providers {}", names.join(", "))),
            Err(error) => Finding::fail(
                CHECK,
                chain(&error),
                "set inference.execution_providers to some that it has, or inference.onnxruntime to another",
            ),
        });
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::meminfo;

    #[test]
    fn memory_is_read_from_the_kernel() {
        let text = "MemTotal:        2048 kB\nMemAvailable:    1024 kB\n";
        assert_eq!(meminfo(text, "MemAvailable:"), Some(1 << 20));
        assert_eq!(meminfo(text, "SwapFree:"), None);
    }
}
