//! How much of the processors this process may use, where a control group limits it.

use std::path::{Path, PathBuf};

/// How many times longer work on `threads` threads (0: one per core) takes than without the group's limit.
pub(super) fn slowdown(threads: usize) -> f64 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let used = if threads == 0 { cores } else { threads.min(cores) };
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    match processors(Path::new("/sys/fs/cgroup"), &groups) {
        Some(allowed) => (used as f64 / allowed).max(1.0),
        None => 1.0,
    }
}

/// The smallest number of processors that a group of this process or one around it allows; `None` without a limit.
/// Knows both versions of control groups.
fn processors(root: &Path, groups: &str) -> Option<f64> {
    let mut smallest: Option<f64> = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else {
            continue;
        };
        let unified = controllers.is_empty();
        if !unified && !controllers.split(',').any(|controller| controller == "cpu") {
            continue;
        }
        let roots = if unified {
            vec![root.to_owned(), root.join("unified")]
        } else {
            vec![root.join(controllers), root.join("cpu")]
        };
        for limit in roots.iter().flat_map(|root| chain(root, group)).filter_map(|folder| limit(&folder)) {
            smallest = Some(smallest.map_or(limit, |before| before.min(limit)));
        }
    }
    smallest
}

/// The group's folder and those around it, up to the root.
fn chain(root: &Path, group: &str) -> Vec<PathBuf> {
    let relative = Path::new(group.trim_start_matches('/'));
    relative.ancestors().take(64).map(|part| root.join(part)).collect()
}

fn limit(folder: &Path) -> Option<f64> {
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
    let (quota, period) = match read("cpu.max") {
        Some(text) => {
            let (quota, period) = text.trim().split_once(' ')?;
            (quota.parse::<f64>().ok()?, period.parse::<f64>().ok()?)
        }
        None => {
            let number = |name: &str| read(name)?.trim().parse::<f64>().ok();
            (number("cpu.cfs_quota_us")?, number("cpu.cfs_period_us")?)
        }
    };
    Some(quota / period).filter(|allowed| quota > 0.0 && allowed.is_finite())
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
    fn the_tightest_limit_of_both_versions_counts() {
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
    }
}
