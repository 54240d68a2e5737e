//! Memory that was freed and is still the process's.

/// Gives the pages of freed memory back to the system.
///
/// glibc keeps what is freed in one of many heaps, as threads come and go, and gives back only what lies on top of one.
/// Models that are loaded and unloaded, each by a thread of its own, left a device that held 27 MB of weights with
/// 578 MB; 198 MB were left after this. It takes milliseconds, in which other threads may wait for memory: meant for
/// when a model has been loaded or unloaded. Other systems' allocators need no call.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "no library offers this call of glibc as a safe function")]
    // SAFETY: it takes a number and no pointer, and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Gives memory back when it is dropped: the last field of whatever frees much.
#[derive(Debug)]
pub(crate) struct GivesBack;

impl Drop for GivesBack {
    fn drop(&mut self) {
        give_back();
    }
}

#[cfg(test)]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;
    /// Below what glibc asks the system for by itself.
    const PIECE: usize = 32 << 10;

    /// Resident memory that belongs to no file, in bytes.
    fn resident() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }

    #[test]
    fn what_was_freed_under_something_that_lives_is_given_back() {
        let pieces = || (0..64 * MIB / PIECE).map(|_| vec![1u8; PIECE]).collect::<Vec<_>>();
        let (freed, last) = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let pieces = pieces();
                    (pieces, vec![1u8; PIECE])
                })
                .join()
                .unwrap()
        });
        drop(freed);
        let before = resident();
        give_back();
        let after = resident();
        assert!(after + 48 * MIB < before, "{before} bytes before, {after} after");
        assert_eq!(last[PIECE - 1], 1);
    }
}
