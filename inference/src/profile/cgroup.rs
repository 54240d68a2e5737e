//! How much of the processors and the memory this process may use, where control groups limit it.

use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";

/// Groups around a group that are looked at.
const DEEPEST: usize = 64;

/// How many times longer work on `threads` threads (0: one per core) takes than without the group's limit.
pub(super) fn slowdown(threads: usize) -> f64 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let used = if threads == 0 { cores } else { threads.min(cores) };
    match processors(Path::new(ROOT), &own_groups()) {
        Some(allowed) => (used as f64 / allowed).max(1.0),
        None => 1.0,
    }
}

/// Processors that this process may use: those of the machine, or what its control group's quota comes to.
pub fn cores() -> f64 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64;
    processors(Path::new(ROOT), &own_groups()).map_or(cores, |allowed| allowed.min(cores))
}

/// Processor seconds that all programs have used so far that share what [`cores`] counts, this process included: those of
/// the group with the tightest limit, else those of the machine that do not make way (`nice`). `None` where the system
/// does not tell, or lets this process run on some processors only.
pub fn processors_used() -> Option<f64> {
    let (groups, cores) = (own_groups(), std::thread::available_parallelism().ok()?.get());
    match tightest(Path::new(ROOT), &groups) {
        Some((folder, allowed)) if allowed < cores as f64 => group_used(Path::new(ROOT), &groups, &folder),
        // No limit, or one beyond what the machine has.
        _ => {
            let stat = std::fs::read_to_string("/proc/stat").ok()?;
            machine_used(&stat, cores, rustix::param::clock_ticks_per_second() as f64)
        }
    }
}

/// Bytes of memory that this process can still take, by the machine and by its groups.
pub fn spare_memory() -> u64 {
    let machine =
        std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| field(&text, "MemAvailable:"));
    let machine = machine.map_or(u64::MAX, |kibibytes| kibibytes.saturating_mul(1024));
    memory(Path::new(ROOT), &own_groups()).map_or(machine, |group| group.min(machine))
}

fn own_groups() -> String {
    std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default()
}

/// The smallest number of processors that a group of this process or one around it allows; `None` without a limit.
fn processors(root: &Path, groups: &str) -> Option<f64> {
    tightest(root, groups).map(|(_, allowed)| allowed)
}

/// The group with the smallest number of processors, and that.
fn tightest(root: &Path, groups: &str) -> Option<(PathBuf, f64)> {
    let folders = folders(root, groups, "cpu").into_iter();
    let limits = folders.filter_map(|folder| processor_limit(&folder).map(|allowed| (folder, allowed)));
    limits.min_by(|a, b| a.1.total_cmp(&b.1))
}

/// Processor seconds of a group so far. The first version of groups counts them by a controller that may have a tree of
/// its own.
fn group_used(root: &Path, groups: &str, folder: &Path) -> Option<f64> {
    if let Some(micros) = read(folder, "cpu.stat").and_then(|text| field(&text, "usage_usec ")) {
        return Some(micros as f64 * 1e-6);
    }
    let name = folder.file_name()?;
    let counting = folders(root, groups, "cpuacct");
    let beside = counting.iter().find(|other| other.file_name() == Some(name));
    let nanos = read(folder, "cpuacct.usage").or_else(|| read(beside?, "cpuacct.usage"))?;
    Some(nanos.trim().parse::<u64>().ok()? as f64 * 1e-9)
}

/// Processor seconds from the text of `/proc/stat`.
fn machine_used(stat: &str, cores: usize, ticks_per_s: f64) -> Option<f64> {
    let processors = stat.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count();
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|number| number.parse().ok()).collect();
    let [user, _nice, system, _idle, _iowait, interrupts, soft, stolen, ..] = ticks[..] else { return None };
    (processors == cores).then(|| (user + system + interrupts + soft + stolen) as f64 / ticks_per_s)
}

/// The least that a group of this process or one around it has left; `None` without a limit.
fn memory(root: &Path, groups: &str) -> Option<u64> {
    folders(root, groups, "memory").iter().filter_map(|folder| memory_left(folder)).min()
}

/// The folders of this process's groups and of those around them, for one controller, in both versions of groups.
fn folders(root: &Path, groups: &str, controller: &str) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else {
            continue;
        };
        let roots = if controllers.is_empty() {
            [root.to_owned(), root.join("unified")]
        } else if controllers.split(',').any(|name| name == controller) {
            [root.join(controllers), root.join(controller)]
        } else {
            continue;
        };
        let relative = Path::new(group.trim_start_matches('/'));
        for root in roots {
            folders.extend(relative.ancestors().take(DEEPEST).map(|part| root.join(part)));
        }
    }
    folders
}

fn read(folder: &Path, name: &str) -> Option<String> {
    std::fs::read_to_string(folder.join(name)).ok()
}

fn processor_limit(folder: &Path) -> Option<f64> {
    let (quota, period) = match read(folder, "cpu.max") {
        Some(text) => {
            let (quota, period) = text.trim().split_once(' ')?;
            (quota.parse::<f64>().ok()?, period.parse::<f64>().ok()?)
        }
        None => {
            let number = |name: &str| read(folder, name)?.trim().parse::<f64>().ok();
            (number("cpu.cfs_quota_us")?, number("cpu.cfs_period_us")?)
        }
    };
    Some(quota / period).filter(|allowed| quota > 0.0 && allowed.is_finite())
}

/// The limit less what cannot be dropped; cached file pages, mapped weights among them, can be.
fn memory_left(folder: &Path) -> Option<u64> {
    let limit = read(folder, "memory.max").or_else(|| read(folder, "memory.limit_in_bytes"))?;
    let limit: u64 = limit.trim().parse().ok()?;
    let stat = read(folder, "memory.stat")?;
    let used = field(&stat, "total_rss ").or_else(|| field(&stat, "anon "))?;
    Some(limit.saturating_sub(used))
}

/// The number after the name of a field.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    fn set(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn the_tightest_processor_limit_of_both_versions_counts() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        set(root, "a/cpu.max", "150000 100000\n");
        set(root, "a/b/cpu.max", "max 100000\n");
        set(root, "free/cpu.max", "max 100000\n");
        assert_eq!(processors(root, "0::/a/b\n"), Some(1.5));
        assert_eq!(processors(root, "0::/free\n"), None);
        set(root, "cpu,cpuacct/lab/cpu.cfs_quota_us", "1500\n");
        set(root, "cpu,cpuacct/lab/cpu.cfs_period_us", "10000\n");
        set(root, "cpu/open/cpu.cfs_quota_us", "-1\n");
        set(root, "cpu/open/cpu.cfs_period_us", "100000\n");
        assert_eq!(processors(root, "12:memory:/x\n4:cpu,cpuacct:/lab\n0::/a\n"), Some(0.15));
        assert_eq!(processors(root, "4:cpu:/open\n"), None);
        assert_eq!(processors(root, "nonsense\n::\n"), None);
        assert!(slowdown(1) >= 1.0);
        assert!(cores() > 0.0);
    }

    #[test]
    fn what_all_programs_use_is_that_of_the_tightest_group_or_of_the_machine() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let used = |groups: &str| {
            let (folder, _) = tightest(root, groups)?;
            group_used(root, groups, &folder)
        };
        set(root, "a/cpu.max", "150000 100000\n");
        set(root, "a/cpu.stat", "usage_usec 2500000\nuser_usec 1\n");
        set(root, "a/b/cpu.max", "max 100000\n");
        set(root, "a/b/cpu.stat", "usage_usec 7\n");
        assert_eq!(used("0::/a/b\n"), Some(2.5));
        for tree in ["cpu", "cpuacct"] {
            set(root, &format!("{tree}/x/lab/tasks"), "1\n");
        }
        set(root, "cpu/x/lab/cpu.cfs_quota_us", "1500\n");
        set(root, "cpu/x/lab/cpu.cfs_period_us", "10000\n");
        set(root, "cpuacct/x/lab/cpuacct.usage", "3000000000\n");
        assert_eq!(used("5:cpuacct:/x/lab\n4:cpu:/x/lab\n"), Some(3.0));
        assert_eq!(used("4:cpu:/x/lab\n"), None, "nobody counts");

        let stat = "cpu  100 50 30 999 9 2 3 5 0 0\ncpu0 1 2 3\ncpu1 1 2 3\nintr 5\n";
        assert_eq!(machine_used(stat, 2, 100.0), Some(1.4));
        assert_eq!(machine_used(stat, 1, 100.0), None, "bound to one of two");
        assert_eq!(machine_used("cpu 1 2\n", 0, 100.0), None);
        assert!(processors_used().is_none_or(|used| used > 0.0));
    }

    #[test]
    fn the_memory_that_is_left_is_that_of_the_tightest_group() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        set(root, "a/memory.max", "1000\n");
        set(root, "a/memory.stat", "anon 300\nfile 600\n");
        set(root, "a/b/memory.max", "max\n");
        set(root, "a/b/memory.stat", "anon 300\n");
        assert_eq!(memory(root, "0::/a/b\n"), Some(700));
        set(root, "memory/lab/memory.limit_in_bytes", "500\n");
        set(root, "memory/lab/memory.stat", "rss 1\ntotal_cache 9\ntotal_rss 100\n");
        assert_eq!(memory(root, "3:memory:/lab\n0::/a\n"), Some(400));
        assert_eq!(memory(root, "0::/elsewhere\n"), None);
        assert!(spare_memory() > 0);
    }
}
