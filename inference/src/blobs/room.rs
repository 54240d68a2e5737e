//! How much of its disk the store leaves alone.
//!
//! The cluster's log lies on the same disk, and a device that cannot write its log takes no part in decisions any more.
//! Weights come by the gigabyte, so they stop early enough.

use std::{fmt, io, path::Path};

const MIB: u64 = 1 << 20;
/// One part in so many of a disk stays free...
const RESERVE_PART: u64 = 50;
/// ...and this at most: of a large disk neither the log nor the system needs more.
const RESERVE_MAX: u64 = 4096 * MIB;

/// How large and how full a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Its size.
    pub bytes: u64,
    /// What programs may still write to it.
    pub free: u64,
}

impl Disk {
    /// What stays free of any disk that is not tiny.
    pub const RESERVE_MIN: u64 = 256 * MIB;

    /// The disk that a folder is on, as it is now.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn of(folder: &Path) -> io::Result<Self> {
        let stat = rustix::fs::statvfs(folder)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Self { bytes: bytes(stat.f_blocks), free: bytes(stat.f_bavail) })
    }

    /// What stays free for the cluster's log and the system: 2 %, but 256 MiB at least and 4 GiB at most; of a tiny
    /// disk half.
    pub fn reserve(&self) -> u64 {
        (self.bytes / RESERVE_PART).clamp(Self::RESERVE_MIN, RESERVE_MAX).min(self.bytes / 2)
    }

    /// Whether so many bytes more may be written. A file system that does not know its size has room until it says
    /// otherwise.
    pub fn fits(&self, bytes: u64) -> bool {
        self.bytes == 0 || self.free >= self.reserve().saturating_add(bytes)
    }
}

type Look = dyn Fn(&Path) -> io::Result<Disk> + Send + Sync;

/// Where the store learns how full its disk is.
pub(super) struct Gauge(Box<Look>);

impl Gauge {
    pub(super) fn new(look: impl Fn(&Path) -> io::Result<Disk> + Send + Sync + 'static) -> Self {
        Self(Box::new(look))
    }

    pub(super) fn look(&self, folder: &Path) -> io::Result<Disk> {
        (self.0)(folder)
    }
}

impl fmt::Debug for Gauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gauge").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn what_stays_free_fits_the_disk() {
        for (bytes, reserve) in [
            (0, 0),
            (64 * MIB, 32 * MIB),
            (400 * MIB, 200 * MIB),
            (GIB, 256 * MIB),
            (32 * GIB, 32 * GIB / 50),
            (252 * GIB, 4 * GIB),
            (u64::MAX, 4 * GIB),
        ] {
            assert_eq!(Disk { bytes, free: 0 }.reserve(), reserve, "{bytes}");
        }
        assert!(Disk { bytes: 0, free: 0 }.fits(GIB), "a file system that tells nothing");
        let disk = Disk { bytes: GIB, free: 300 * MIB };
        assert!(disk.fits(44 * MIB) && !disk.fits(44 * MIB + 1) && !disk.fits(u64::MAX));
        assert!(!Disk { free: 255 * MIB, ..disk }.fits(0));
    }

    #[test]
    fn this_disk_tells() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::of(folder.path()).unwrap();
        assert!(disk.free <= disk.bytes, "{disk:?}");
    }

    proptest! {
        #[test]
        fn what_fits_leaves_the_reserve(bytes in 1_u64.., free in any::<u64>(), more in any::<u64>()) {
            let disk = Disk { bytes, free };
            prop_assert!(disk.reserve() <= disk.bytes / 2 && disk.reserve() <= RESERVE_MAX);
            prop_assert!(!disk.fits(more) || free - more >= disk.reserve());
        }
    }
}
