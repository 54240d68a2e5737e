//! Which blobs are known to be what their names say, and the reading that finds it out.

use std::{
    fs::{self, File, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use rustix::io::Errno;

use super::{BlobError, BlobStore, Hash, hash_file, io_error, missing_or};

/// A blob is read anew when its file has been replaced or written to meanwhile; so often at most.
const READS_MAX: usize = 3;

/// What tells a file from another one under the same name, and from itself before somebody wrote to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(found: &Metadata) -> Self {
        Self {
            device: found.dev(),
            inode: found.ino(),
            bytes: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
        }
    }

    /// Of the file that is there now, if there is one.
    pub(super) fn at(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().map(|found| Self::of(&found))
    }
}

impl BlobStore {
    /// Whether the blob is here, has been found to fit its name since this process started, and has not been written to
    /// since. Reads nothing of it.
    pub fn is_sound(&self, hash: &Hash) -> bool {
        let known = self.state().sound.get(hash).copied();
        known.is_some_and(|known| Stamp::at(&self.path(hash)) == Some(known))
    }

    /// Makes sure that the blob fits its name before it is used: it is read through unless it is known to be sound.
    /// One that does not fit, or that the disk cannot read, is deleted and reported. Takes as long as the disk does.
    pub fn check(&self, hash: &Hash) -> Result<(), BlobError> {
        if self.is_sound(hash) { Ok(()) } else { self.verify(hash) }
    }

    /// Takes back that the blob is known to be sound: the next check reads it.
    pub fn doubt(&self, hash: &Hash) {
        self.state().sound.remove(hash);
    }

    /// Reads the blob again; one that does not fit its name, or that the disk cannot read, is deleted and reported.
    pub fn verify(&self, hash: &Hash) -> Result<(), BlobError> {
        let path = self.path(hash);
        for _ in 0..READS_MAX {
            // Open until the end, so that no other file can have its inode number.
            let file = File::open(&path).map_err(|e| missing_or("open", *hash, &path, e))?;
            let stamp = Stamp::of(&file.metadata().map_err(|e| io_error("look at", &path, e))?);
            let read = hash_file(&file);
            // From here on the file under this name stays the same. It may be another one than was read: removed and
            // fetched again meanwhile, which says nothing against the new one.
            let places = self.places();
            if Stamp::at(&path) != Some(stamp) {
                continue;
            }
            let damage = match read {
                Ok(found) if found == *hash => {
                    self.state().sound.insert(*hash, stamp);
                    return Ok(());
                }
                Ok(found) => BlobError::Mismatch { expected: *hash, found },
                Err(error) if is_damage(&error) => BlobError::Unreadable { hash: *hash, source: error },
                Err(error) => return Err(io_error("read", &path, error)),
            };
            self.discard(&places, hash)?;
            tracing::warn!(%hash, bytes = stamp.bytes, "a blob is damaged; it was deleted and is fetched again when needed");
            return Err(damage);
        }
        Err(BlobError::Busy(*hash))
    }
}

/// Whether the disk has lost the bytes. Anything else may pass, and the file is left where it is.
fn is_damage(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::IO | Errno::BADMSG | Errno::UCLEAN))
}
