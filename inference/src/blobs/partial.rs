//! A blob that is fetched from other devices, in order, over any number of tries.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::PathBuf,
};

use super::{BlobError, BlobStore, Hash, hash_file, io_error, write_error};

/// The writer of one blob whose hash and length are known. Dropped unfinished, the bytes stay for
/// the next try, unless there was no room for the rest.
#[derive(Debug)]
pub struct PartialBlob {
    store: BlobStore,
    hash: Hash,
    bytes: u64,
    have: u64,
    path: PathBuf,
    file: Option<File>,
}

impl PartialBlob {
    pub(super) fn open(store: &BlobStore, hash: Hash, bytes: u64) -> Result<Self, BlobError> {
        if !store.state().writing.insert(hash) {
            return Err(BlobError::Busy(hash));
        }
        let path = store.partial_path(&hash);
        // From here on the drop of `blob` gives the hash free again.
        let mut blob = Self { store: store.clone(), hash, bytes, have: 0, path, file: None };
        if store.has(&hash) {
            blob.have = store.bytes(&hash)?;
            return if blob.have == bytes { Ok(blob) } else { Err(blob.wrong_length(blob.have)) };
        }
        let file = OpenOptions::new().append(true).create(true).open(&blob.path);
        let file = file.map_err(|e| io_error("open", &blob.path, e))?;
        blob.have = file.metadata().map_err(|e| io_error("look at", &blob.path, e))?.len();
        if blob.have > bytes {
            // Left by a peer that lied about the length: worthless.
            file.set_len(0).map_err(|e| io_error("truncate", &blob.path, e))?;
            store.release(blob.have);
            blob.have = 0;
        }
        blob.file = Some(file);
        // Rather now than after most of it has come. What has come whole needs no room.
        let missing = bytes - blob.have;
        if missing > 0
            && let Err(error) = store.fits(missing, &blob.path).map(drop)
        {
            return Err(blob.failed(error));
        }
        Ok(blob)
    }

    /// Gives up where there is no room for the rest: what has come would only keep others out. The next try starts at 0.
    fn failed(&mut self, error: BlobError) -> BlobError {
        if error.is_full() {
            (self.file, self.have) = (None, 0);
            if let Err(error) = self.store.delete(&self.path) {
                tracing::warn!(%error, "an unfinished fetch for which there is no room stays");
            }
        }
        error
    }

    /// Bytes on disk: the offset at which to go on.
    pub fn len(&self) -> u64 {
        self.have
    }

    /// True when nothing has been fetched yet.
    pub fn is_empty(&self) -> bool {
        self.have == 0
    }

    /// True when all bytes are there and `finish` can be called.
    pub fn is_complete(&self) -> bool {
        self.have == self.bytes
    }

    /// Adds the next bytes. More than the blob has are refused before anything is written.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        let needed = bytes.len() as u64;
        let sum = self.have.saturating_add(needed);
        if sum > self.bytes {
            return Err(self.wrong_length(sum));
        }
        if needed == 0 {
            return Ok(());
        }
        // It was given up: a blob that is here has no next bytes.
        let Some(file) = self.file.as_mut() else { return Err(self.wrong_length(sum)) };
        if let Err(error) = self.store.reserve(needed, &self.path) {
            return Err(self.failed(error));
        }
        if let Err(error) = file.write_all(bytes) {
            // Part of the write may be on disk: go back to what is known.
            if file.set_len(self.have).is_ok() {
                self.store.release(needed);
            }
            let error = write_error(&self.path, needed, error);
            return Err(self.failed(error));
        }
        self.have = sum;
        Ok(())
    }

    /// Checks the hash and makes it a blob. Wrong content is deleted: the next try starts at 0.
    pub fn finish(mut self) -> Result<(), BlobError> {
        if !self.is_complete() {
            return Err(self.wrong_length(self.have));
        }
        let Some(file) = self.file.take() else { return self.store.check(&self.hash) };
        // Some file systems find out only now that they are full.
        if let Err(error) = file.sync_all() {
            let error = write_error(&self.path, self.bytes, error);
            return Err(self.failed(error));
        }
        let found = File::open(&self.path)
            .and_then(|f| hash_file(&f))
            .map_err(|e| io_error("read", &self.path, e))?;
        if found != self.hash {
            self.store.delete(&self.path)?;
            return Err(BlobError::Mismatch { expected: self.hash, found });
        }
        if self.store.place(&self.path, self.hash)? {
            return self.store.sync_dir();
        }
        // Imported meanwhile by another way.
        self.store.delete(&self.path)
    }

    fn wrong_length(&self, found: u64) -> BlobError {
        BlobError::Length { hash: self.hash, expected: self.bytes, found }
    }
}

impl Drop for PartialBlob {
    fn drop(&mut self) {
        self.store.state().writing.remove(&self.hash);
    }
}
