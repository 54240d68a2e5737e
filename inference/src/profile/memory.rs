//! How much memory a piece of work needs, as the kernel saw it.

use std::io::Write;

/// Watches this process's resident memory: what it is now, and the most it will be.
#[derive(Debug)]
pub(super) struct Watch {
    before: Option<u64>,
}

impl Watch {
    /// Starts to watch. Where the kernel does not let a process reset its high-water mark, nothing is measured.
    pub(super) fn start() -> Self {
        let reset = std::fs::OpenOptions::new()
            .write(true)
            .open("/proc/self/clear_refs")
            .and_then(|mut file| file.write_all(b"5"));
        Self { before: reset.ok().and_then(|()| field("VmRSS:")) }
    }

    /// The most memory that was resident since the start, beyond what was at the start, in bytes. Other threads'
    /// memory is in it, so that it is rather too much than too little; freed memory that was used again is not.
    pub(super) fn peak(&self) -> Option<u64> {
        Some(field("VmHWM:")?.saturating_sub(self.before?))
    }
}

fn field(name: &str) -> Option<u64> {
    value(&std::fs::read_to_string("/proc/self/status").ok()?, name)
}

/// A field of `/proc/self/status` in bytes; the kernel gives kibibytes.
fn value(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_file_is_read() {
        let status = "Name:\tmesh\nVmHWM:\t  123456 kB\nVmRSS:\t     100 kB\n";
        assert_eq!(value(status, "VmHWM:"), Some(123_456 * 1024));
        assert_eq!(value(status, "VmRSS:"), Some(102_400));
        assert_eq!(value(status, "VmSwap:"), None);
    }
}
