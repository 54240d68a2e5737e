//! What can go wrong in the store.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::Hash;

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The limit that was set for the store does not allow for it.
    #[error(
        "the blob store may hold {limit} bytes and holds {used}; {needed} more are needed: raise limits.disk or remove models"
    )]
    OverLimit {
        /// Bytes that were to be added.
        needed: u64,
        /// Bytes in the store.
        used: u64,
        /// Bytes that it may hold.
        limit: u64,
    },
    /// The file system is full, but for what stays free for the cluster's log.
    #[error(
        "the disk is too full for {needed} bytes more in {path}, beside what is kept free for the cluster's log: free \
         some space or remove models"
    )]
    DiskFull {
        /// Bytes that were to be written.
        needed: u64,
        /// The file.
        path: PathBuf,
    },
    /// A blob is not what its name says, fetched so or spoilt since. The bytes have been deleted.
    #[error("blob {expected} has other content (hash {found}); it was deleted, fetch it again")]
    Mismatch {
        /// What its name says.
        expected: Hash,
        /// The hash of what is there.
        found: Hash,
    },
    /// The disk has lost bytes of a blob. What was left has been deleted.
    #[error("blob {hash} cannot be read from the disk; it was deleted, fetch it again")]
    Unreadable {
        /// The blob.
        hash: Hash,
        /// What the disk said.
        #[source]
        source: io::Error,
    },
    /// More or fewer bytes than the blob has.
    #[error("blob {hash} has {expected} bytes, {found} were given")]
    Length {
        /// The blob.
        hash: Hash,
        /// Its length.
        expected: u64,
        /// What was given.
        found: u64,
    },
    /// The blob is not in the store.
    #[error("blob {0} is not in the store: fetch it from another device")]
    Missing(Hash),
    /// Somebody else is writing this blob.
    #[error("blob {0} is being fetched already: wait for that fetch")]
    Busy(Hash),
    /// The source of the bytes failed.
    #[error("the bytes for the blob store could not be read")]
    Source(#[source] io::Error),
    /// The file system failed.
    #[error("cannot {what} {path}: check the data directory and its file system")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl BlobError {
    /// Whether there is no room: the same again will do no better until some is made.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::OverLimit { .. } | Self::DiskFull { .. })
    }
}

pub(super) fn io_error(what: &'static str, path: &Path, source: io::Error) -> BlobError {
    BlobError::Io { what, path: path.to_owned(), source }
}

pub(super) fn write_error(path: &Path, needed: u64, source: io::Error) -> BlobError {
    if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        return BlobError::DiskFull { needed, path: path.to_owned() };
    }
    io_error("write", path, source)
}

pub(super) fn missing_or(what: &'static str, hash: Hash, path: &Path, source: io::Error) -> BlobError {
    if source.kind() == io::ErrorKind::NotFound {
        BlobError::Missing(hash)
    } else {
        io_error(what, path, source)
    }
}
