//! Memory that was freed and is still the process's.

use std::sync::{Mutex, PoisonError};

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

/// While one lives, large pieces of memory are asked from the system one by one, and are its again as soon as they are
/// freed.
///
/// Meant for work that takes much memory for a moment, as loading a model does. glibc by itself keeps pieces of up to
/// 32 MiB in heaps once one of them has been freed, and holes remain between them: a daemon that loaded ResNet-50 took
/// 183 MiB for a moment and 131 MiB afterwards, and takes 152 and 114 MiB with this. While requests are served heaps are
/// the better place: a chain of ResNet-50 spent 3 % of its processor time on giving large pieces back and taking them
/// again. Other systems' allocators are left alone.
#[derive(Debug)]
pub(crate) struct Thrift(());

impl Thrift {
    pub(crate) fn start() -> Self {
        let mut living = LIVING.lock().unwrap_or_else(PoisonError::into_inner);
        if *living == 0 {
            keep_freed(LARGE_BYTES, TOP_BYTES);
        }
        *living += 1;
        Self(())
    }
}

impl Drop for Thrift {
    fn drop(&mut self) {
        let mut living = LIVING.lock().unwrap_or_else(PoisonError::into_inner);
        *living -= 1;
        if *living == 0 {
            keep_freed(MOST_LARGE_BYTES, SERVING_TOP_BYTES);
        }
    }
}

static LIVING: Mutex<usize> = Mutex::new(0);
/// Smaller pieces are no part of what convolutions take while they are loaded; more of them from the system cost time.
const LARGE_BYTES: i32 = 2 << 20;
/// What glibc starts with: freed memory at the end of a heap that is not given back.
const TOP_BYTES: i32 = 128 << 10;
/// The same while requests are served: room for the activations that come and go. With 8 MiB a chain of ResNet-50 spent
/// 2 % of its processor time on pages given back and taken again, with this next to nothing.
const SERVING_TOP_BYTES: i32 = 32 << 20;
/// Where glibc itself ends as larger and larger pieces are freed; it refuses more.
const MOST_LARGE_BYTES: i32 = 32 << 20;

/// Pieces from `large` bytes on are the system's as soon as they are freed, and so is the end of a heap beyond `top`.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "no library offers these calls of glibc as safe functions")]
fn keep_freed(large: i32, top: i32) {
    // SAFETY: they take numbers and no pointers. glibc's manual wants them called before there are threads, as others read
    // the two numbers without a lock. glibc itself changes the same numbers in that way whenever a larger piece is freed;
    // each is one word, and either value of it is right for whoever reads it.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, large);
        libc::mallopt(libc::M_TRIM_THRESHOLD, top);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_freed(_large: i32, _top: i32) {}

/// For tests that look at the memory of the whole process: one at a time.
#[cfg(test)]
pub(crate) static LOOKED_AT: Mutex<()> = Mutex::new(());

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
    fn large_pieces_leave_no_holes_while_memory_is_short() {
        let _alone = LOOKED_AT.lock().unwrap_or_else(PoisonError::into_inner);
        let thrift = Thrift::start();
        let pieces: Vec<Vec<u8>> = (0..32).map(|_| vec![1; 4 * MIB]).collect();
        let small: Vec<Vec<u8>> = (0..16).map(|_| vec![1; PIECE]).collect();
        let before = resident();
        drop(pieces);
        let after = resident();
        // Half of it: other tests take memory meanwhile.
        assert!(after + 64 * MIB < before, "{before} bytes before, {after} after");
        drop(thrift);
        assert_eq!(small[15][PIECE - 1], 1);
    }

    #[test]
    fn what_was_freed_under_something_that_lives_is_given_back() {
        let _alone = LOOKED_AT.lock().unwrap_or_else(PoisonError::into_inner);
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
