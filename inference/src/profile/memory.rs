//! How much memory a piece of work needs, as the kernel saw it.

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::blocks::Measured;

/// With fewer bytes of weights, a session's memory cannot be told from the rest of the process.
const WEIGHTS_MIN: u64 = 8 << 20;
/// More bytes of memory for one of weights are not believed: something else must have taken them.
const PER_WEIGHT_MAX: f64 = 3.0;

/// While a session is loaded it may take so many times what stages may use: what is left to the rest of the device is
/// there for that moment, too.
const WHILE_LOADING: f64 = 1.4;
/// Memory is looked at this often while a session is loaded.
const LOOK: Duration = Duration::from_millis(4);

/// Bytes of memory that a byte of weights is to be counted as, by the longer runs of blocks: the most that one of them
/// took while it was loaded and run once, what its blocks need while they run not counted. Pages of the weights' own file
/// do not count either, as the kernel can drop them; so 1 is the least, for whoever wants them to stay.
pub(super) fn per_weight(measured: &Measured, weights: &[u64]) -> f64 {
    let windows = measured.windows.iter().zip(&measured.held);
    let factors = windows.filter_map(|(window, held)| {
        let weight: u64 = weights[window.blocks.clone()].iter().sum();
        let peak = measured.peaks[window.blocks.clone()].iter().copied().max().unwrap_or(0);
        (weight >= WEIGHTS_MIN).then(|| held.saturating_sub(peak) as f64 / weight as f64 / WHILE_LOADING)
    });
    factors.fold(1.0, f64::max).min(PER_WEIGHT_MAX)
}

/// Watches this process's resident memory: what it is now, and the most it will be.
#[derive(Debug)]
pub(super) struct Watch {
    before: Option<u64>,
    anonymous: Option<u64>,
}

impl Watch {
    /// Starts to watch. Where the kernel does not let a process reset its high-water mark, nothing is measured.
    pub(super) fn start() -> Self {
        let reset = std::fs::OpenOptions::new()
            .write(true)
            .open("/proc/self/clear_refs")
            .and_then(|mut file| file.write_all(b"5"));
        Self { before: reset.ok().and_then(|()| field("VmRSS:")), anonymous: field("RssAnon:") }
    }

    /// The most memory that is taken while something is done beyond what was at the start, pages of files not counted, in
    /// bytes; 0 where there are few `weights`, or nothing can be measured.
    pub(super) fn most_held<T>(&self, weights: u64, work: impl FnOnce() -> T) -> (T, u64) {
        if weights < WEIGHTS_MIN {
            return (work(), 0);
        }
        let (is_over, most) = (AtomicBool::new(false), AtomicU64::new(0));
        let look = || most.fetch_max(field("RssAnon:").unwrap_or(0), Ordering::Relaxed);
        let done = std::thread::scope(|scope| {
            // Also when the work panics: the scope waits for the thread.
            let over = Over(&is_over);
            let looker = std::thread::Builder::new().spawn_scoped(scope, || {
                while !is_over.load(Ordering::Relaxed) {
                    look();
                    std::thread::park_timeout(LOOK);
                }
            });
            if let Err(error) = looker {
                tracing::debug!(%error, "memory is looked at in the end only");
            }
            let done = work();
            drop(over);
            done
        });
        look();
        let before = self.anonymous.unwrap_or(u64::MAX);
        (done, most.load(Ordering::Relaxed).saturating_sub(before))
    }

    /// The most memory that was resident since the start, beyond what was at the start, in bytes. Other threads'
    /// memory is in it, so that it is rather too much than too little; freed memory that was used again is not.
    pub(super) fn peak(&self) -> Option<u64> {
        Some(field("VmHWM:")?.saturating_sub(self.before?))
    }
}

/// Says that something is over when it is dropped.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
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

    #[test]
    fn what_is_taken_for_a_moment_is_seen() {
        let _alone = crate::memory::LOOKED_AT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let watch = Watch::start();
        let take = || {
            let taken = vec![1_u8; 64 << 20];
            std::hint::black_box(&taken);
            std::thread::sleep(10 * LOOK);
        };
        assert!(watch.most_held(WEIGHTS_MIN, take).1 >= 60 << 20);
        assert_eq!(watch.most_held(WEIGHTS_MIN - 1, || 7), (7, 0));
        let fails = || watch.most_held(WEIGHTS_MIN, || panic!("a run may"));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(fails)).is_err(), "and does not hang");
    }

    #[test]
    fn long_runs_say_what_loaded_weights_take() {
        let window = |blocks: std::ops::Range<usize>| super::super::correct::Window { blocks, seconds: 1.0 };
        let mut measured = Measured {
            peaks: vec![1 << 20, 3 << 20],
            windows: vec![window(0..1), window(0..2)],
            held: vec![50 << 20, 45 << 20],
            ..Measured::default()
        };
        let weights = [4 << 20, 16 << 20];
        assert_eq!(per_weight(&measured, &weights), 42.0 / 20.0 / WHILE_LOADING, "4 MiB say nothing");
        measured.held[1] = 10 << 20;
        assert_eq!(per_weight(&measured, &weights), 1.0, "mapped weights");
        measured.held[1] = 900 << 20;
        assert_eq!(per_weight(&measured, &weights), PER_WEIGHT_MAX);
    }
}
