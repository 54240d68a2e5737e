//! How much memory stages may use when the config says "auto".

use std::fs;

use mesh_config::Config;

/// Part of the memory that stages may use: the rest is for the daemon, the system and other programs.
const SHARE: f64 = 0.6;

/// Bytes that stages may use on this device, as the config says or is left to find out.
pub fn of(config: &Config) -> u64 {
    config.limits.memory.unwrap_or_else(automatic)
}

/// Bytes that stages may use on this device: a share of the smaller of the machine's memory and the limit of the
/// control group that the daemon runs in (v1 and v2).
pub fn automatic() -> u64 {
    let machine = meminfo_total(&fs::read_to_string("/proc/meminfo").unwrap_or_default());
    let group = group_limit();
    let total = [machine, group].into_iter().flatten().min().unwrap_or(1 << 30);
    (total as f64 * SHARE) as u64
}

fn meminfo_total(text: &str) -> Option<u64> {
    let line = text.lines().find(|l| l.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}

fn group_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    groups.lines().filter_map(limit_of_line).min()
}

/// The limit that one line of `/proc/self/cgroup` leads to, the tightest of the group and its parents.
fn limit_of_line(line: &str) -> Option<u64> {
    let mut fields = line.splitn(3, ':');
    let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let (root, file) = match controllers {
        "" => ("/sys/fs/cgroup", "memory.max"),
        c if c.split(',').any(|c| c == "memory") => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        _ => return None,
    };
    let mut limit: Option<u64> = None;
    let mut path = path;
    loop {
        let read = fs::read_to_string(format!("{root}{path}/{file}")).ok();
        let here: Option<u64> = read.and_then(|text| text.trim().parse().ok());
        // v1 says "no limit" as a number near 2^63.
        limit = [limit, here.filter(|bytes| *bytes < 1 << 60)].into_iter().flatten().min();
        match path.rfind('/') {
            Some(cut) if !path.is_empty() => path = &path[..cut],
            Some(_) | None => return limit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_machines_memory() {
        assert_eq!(meminfo_total("MemTotal:       16316412 kB\nMemFree: 1 kB\n"), Some(16_316_412 * 1024));
        assert_eq!(meminfo_total("nothing"), None);
    }

    #[test]
    fn a_budget_is_never_zero() {
        assert!(automatic() > 1 << 20);
    }
}
