//! Content-addressed store: one file per blob, named by its BLAKE3 hash, in one flat folder.
//!
//! Stage models are written into the same folder, because ONNX Runtime takes external data only
//! from the folder of the model file. A blob appears by rename after its bytes are on disk, so
//! whatever carries a hash for a name was whole once. Disks forget, and people write to files: before
//! anybody gets a blob that this process has not made itself, it is read through ([`BlobStore::check`]).
//!
//! A part of the disk stays free whatever comes ([`Disk::reserve`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

mod error;
mod hash;
mod partial;
mod room;
mod sound;
mod stage_file;
#[cfg(test)]
mod tests;

pub use error::BlobError;
pub use hash::{BlobRef, Hash, HashTextError};
pub use partial::PartialBlob;
pub use room::Disk;
pub use stage_file::StageFile;

use error::{io_error, missing_or, write_error};
use room::Gauge;
use sound::Stamp;

const CHUNK: usize = 256 * 1024;
const TEMPORARY: &str = ".new-";
const PARTIAL: &str = ".part";
const STAGE: &str = "stage-";

/// What one directory entry of the store is.
enum Entry {
    Blob(Hash),
    Partial(Hash),
    Stale,
    Other,
}

fn entry_kind(name: &str) -> Entry {
    if let Ok(hash) = name.parse() {
        return Entry::Blob(hash);
    }
    if let Some(Ok(hash)) = name.strip_suffix(PARTIAL).map(str::parse::<Hash>) {
        return Entry::Partial(hash);
    }
    if name.starts_with(TEMPORARY) || name.starts_with(STAGE) { Entry::Stale } else { Entry::Other }
}

#[derive(Debug)]
struct State {
    used: u64,
    limit: u64,
    writing: BTreeSet<Hash>,
    /// Blobs that are known to fit their names, with the files that they are in. None that is not in the store.
    sound: BTreeMap<Hash, Stamp>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    gauge: Gauge,
    state: Mutex<State>,
    /// Held while a blob's name is given to a file or taken away.
    places: Mutex<()>,
    next: AtomicU64,
}

/// Handle on the store; clones share it. One process may have a folder open at a time.
#[derive(Debug, Clone)]
pub struct BlobStore(Arc<Inner>);

impl BlobStore {
    /// Opens the store in `dir`, made if absent, without a limit but the disk's. Stage models and unfinished writes
    /// of an earlier run are deleted; unfinished fetches are kept.
    pub fn open(dir: &Path) -> Result<Self, BlobError> {
        Self::open_on(dir, Disk::of)
    }

    /// Like [`Self::open`], on a disk that is as full as `look` says.
    pub fn open_on(
        dir: &Path,
        look: impl Fn(&Path) -> io::Result<Disk> + Send + Sync + 'static,
    ) -> Result<Self, BlobError> {
        fs::create_dir_all(dir).map_err(|e| io_error("create", dir, e))?;
        let mut used = 0;
        for entry in fs::read_dir(dir).map_err(|e| io_error("list", dir, e))? {
            let entry = entry.map_err(|e| io_error("list", dir, e))?;
            let path = entry.path();
            match entry_kind(&entry.file_name().to_string_lossy()) {
                Entry::Blob(_) | Entry::Partial(_) => {
                    used += entry.metadata().map_err(|e| io_error("look at", &path, e))?.len();
                }
                Entry::Stale => fs::remove_file(&path).map_err(|e| io_error("delete", &path, e))?,
                Entry::Other => tracing::warn!(path = %path.display(), "unknown file in the blob store"),
            }
        }
        let state = State { used, limit: u64::MAX, writing: BTreeSet::new(), sound: BTreeMap::new() };
        let inner = Inner {
            dir: dir.to_owned(),
            gauge: Gauge::new(look),
            state: Mutex::new(state),
            places: Mutex::new(()),
            next: AtomicU64::new(0),
        };
        Ok(Self(Arc::new(inner)))
    }

    /// Sets how many bytes the store may hold; what is there stays even when it is more.
    pub fn set_limit(&self, bytes: u64) {
        self.state().limit = bytes;
    }

    /// The store's folder, for ONNX Runtime to find external data in.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// Bytes in blobs and unfinished fetches.
    pub fn used_bytes(&self) -> u64 {
        self.state().used
    }

    /// Bytes that may still be added under the limit.
    pub fn free_bytes(&self) -> u64 {
        let state = self.state();
        state.limit.saturating_sub(state.used)
    }

    /// Whether there is such a blob here. Nothing is read: [`Self::check`] tells whether it is sound.
    pub fn has(&self, hash: &Hash) -> bool {
        self.path(hash).is_file()
    }

    /// Where the blob's file is, or would be.
    pub fn path(&self, hash: &Hash) -> PathBuf {
        self.0.dir.join(hash.to_string())
    }

    /// Where to write the stage model called `name` (any text); it finds its blobs beside it.
    pub fn stage_path(&self, name: &str) -> PathBuf {
        let safe: String = name
            .chars()
            .take(80)
            .map(|c| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '_' })
            .collect();
        self.0.dir.join(format!("{STAGE}{safe}.onnx"))
    }

    /// Writes the model of a stage (of [`crate::model::Model::stage`]) beside its blobs.
    pub fn write_stage(&self, name: &str, onnx: &[u8]) -> Result<StageFile, BlobError> {
        StageFile::write(self, name, onnx)
    }

    /// The blob's length.
    pub fn bytes(&self, hash: &Hash) -> Result<u64, BlobError> {
        let path = self.path(hash);
        match fs::metadata(&path) {
            Ok(found) => Ok(found.len()),
            Err(error) => Err(missing_or("look at", *hash, &path, error)),
        }
    }

    /// Opens the blob for reading, once it is known to be sound.
    pub fn read(&self, hash: &Hash) -> Result<File, BlobError> {
        self.check(hash)?;
        let path = self.path(hash);
        File::open(&path).map_err(|e| missing_or("open", *hash, &path, e))
    }

    /// The whole blob in memory; refused when it has more than `cap` bytes.
    pub fn read_all(&self, hash: &Hash, cap: u64) -> Result<Vec<u8>, BlobError> {
        let length = self.bytes(hash)?;
        if length > cap {
            return Err(BlobError::Length { hash: *hash, expected: cap, found: length });
        }
        let mut bytes = Vec::new();
        let mut file = self.read(hash)?.take(cap);
        file.read_to_end(&mut bytes).map_err(|e| io_error("read", &self.path(hash), e))?;
        Ok(bytes)
    }

    /// Stores what `reader` gives, a chunk at a time. Returns its hash and length.
    pub fn put(&self, mut reader: impl Read) -> Result<(Hash, u64), BlobError> {
        let mut fresh = Fresh::create(self)?;
        let mut hasher = blake3::Hasher::new();
        let mut chunk = vec![0; CHUNK];
        loop {
            let got = match reader.read(&mut chunk) {
                Ok(0) => break,
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(BlobError::Source(error)),
            };
            hasher.update(&chunk[..got]);
            fresh.write(&chunk[..got])?;
        }
        let hash = Hash::from_bytes(*hasher.finalize().as_bytes());
        let bytes = fresh.written;
        fresh.keep_as(hash)?;
        Ok((hash, bytes))
    }

    /// Bytes of an unfinished fetch of `hash` that are on disk; 0 when there are none.
    pub fn partial_len(&self, hash: &Hash) -> u64 {
        fs::metadata(self.partial_path(hash)).map_or(0, |found| found.len())
    }

    /// Starts or takes up again the fetch of a blob of `bytes` bytes.
    pub fn put_expected(&self, hash: Hash, bytes: u64) -> Result<PartialBlob, BlobError> {
        PartialBlob::open(self, hash, bytes)
    }

    /// Deletes the blob and any unfinished fetch of it. A blob that is not here is no error.
    pub fn remove(&self, hash: &Hash) -> Result<(), BlobError> {
        self.discard(&self.places(), hash)?;
        self.remove_partial(hash).map(drop)
    }

    /// Deletes an unfinished fetch, so that the next try starts at 0. False while somebody is at work on it: it stays.
    pub fn remove_partial(&self, hash: &Hash) -> Result<bool, BlobError> {
        // Nobody takes it up while it goes.
        if !self.state().writing.insert(*hash) {
            return Ok(false);
        }
        let deleted = self.delete(&self.partial_path(hash));
        self.state().writing.remove(hash);
        deleted.map(|()| true)
    }

    /// All whole blobs with their lengths, by hash.
    pub fn list(&self) -> Result<Vec<(Hash, u64)>, BlobError> {
        self.entries(|entry| if let Entry::Blob(hash) = entry { Some(hash) } else { None })
    }

    /// All unfinished fetches with the bytes that have come, by hash.
    pub fn list_partials(&self) -> Result<Vec<(Hash, u64)>, BlobError> {
        self.entries(|entry| if let Entry::Partial(hash) = entry { Some(hash) } else { None })
    }

    fn entries(&self, of: impl Fn(Entry) -> Option<Hash>) -> Result<Vec<(Hash, u64)>, BlobError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.0.dir).map_err(|e| io_error("list", &self.0.dir, e))? {
            let entry = entry.map_err(|e| io_error("list", &self.0.dir, e))?;
            // What was deleted meanwhile has no metadata any more and is left out.
            if let (Some(hash), Ok(metadata)) =
                (of(entry_kind(&entry.file_name().to_string_lossy())), entry.metadata())
            {
                found.push((hash, metadata.len()));
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    fn partial_path(&self, hash: &Hash) -> PathBuf {
        self.0.dir.join(format!("{hash}{PARTIAL}"))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is consistent after every statement, so a panic elsewhere does not spoil it.
        self.0.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The right to give and take names of blobs.
    fn places(&self) -> MutexGuard<'_, ()> {
        self.0.places.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Takes a blob out.
    fn discard(&self, _places: &MutexGuard<'_, ()>, hash: &Hash) -> Result<(), BlobError> {
        self.state().sound.remove(hash);
        self.delete(&self.path(hash))
    }

    /// Gives a file that fits `hash`, and is on disk, its name, durable once the folder is. It takes the place of one that
    /// is not known to be sound. False when a sound one is there: the file stays where it is.
    fn place(&self, file: &Path, hash: Hash) -> Result<bool, BlobError> {
        let target = self.path(&hash);
        let _places = self.places();
        if self.is_sound(&hash) {
            return Ok(false);
        }
        let before = fs::metadata(&target).map_or(0, |found| found.len());
        fs::rename(file, &target).map_err(|e| io_error("rename", file, e))?;
        let stamp = Stamp::at(&target);
        let mut state = self.state();
        state.used = state.used.saturating_sub(before);
        state.sound.extend(stamp.map(|stamp| (hash, stamp)));
        Ok(true)
    }

    /// Counts bytes that are about to be written to `path`, if they fit.
    fn reserve(&self, needed: u64, path: &Path) -> Result<(), BlobError> {
        self.fits(needed, path)?.used += needed;
        Ok(())
    }

    /// Whether so many bytes more fit: beside what stays free of the disk, and under the limit.
    fn fits(&self, needed: u64, path: &Path) -> Result<MutexGuard<'_, State>, BlobError> {
        // Before the lock: a disk may take its time to answer.
        let disk =
            self.0.gauge.look(&self.0.dir).map_err(|e| io_error("look at the disk of", &self.0.dir, e))?;
        if !disk.fits(needed) {
            return Err(BlobError::DiskFull { needed, path: path.to_owned() });
        }
        let state = self.state();
        let (used, limit) = (state.used, state.limit);
        match used.checked_add(needed) {
            Some(sum) if sum <= limit => Ok(state),
            Some(_) | None => Err(BlobError::OverLimit { needed, used, limit }),
        }
    }

    fn release(&self, bytes: u64) {
        let mut state = self.state();
        state.used = state.used.saturating_sub(bytes);
    }

    fn delete(&self, path: &Path) -> Result<(), BlobError> {
        let Ok(found) = fs::metadata(path) else { return Ok(()) };
        match fs::remove_file(path) {
            Ok(()) => {
                self.release(found.len());
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io_error("delete", path, error)),
        }
    }

    /// Makes renames in the folder durable.
    fn sync_dir(&self) -> Result<(), BlobError> {
        File::open(&self.0.dir).and_then(|dir| dir.sync_all()).map_err(|e| io_error("sync", &self.0.dir, e))
    }
}

/// A blob on its way in, whose hash is not known yet; deleted when dropped unfinished.
struct Fresh<'a> {
    store: &'a BlobStore,
    path: PathBuf,
    file: File,
    written: u64,
    kept: bool,
}

impl<'a> Fresh<'a> {
    fn create(store: &'a BlobStore) -> Result<Self, BlobError> {
        let number = store.0.next.fetch_add(1, Ordering::Relaxed);
        let path = store.0.dir.join(format!("{TEMPORARY}{number}"));
        let open = OpenOptions::new().write(true).create(true).truncate(true).open(&path);
        let file = open.map_err(|e| io_error("create", &path, e))?;
        Ok(Self { store, path, file, written: 0, kept: false })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        let needed = bytes.len() as u64;
        self.store.reserve(needed, &self.path)?;
        self.written += needed;
        self.file.write_all(bytes).map_err(|e| write_error(&self.path, needed, e))
    }

    fn keep_as(mut self, hash: Hash) -> Result<(), BlobError> {
        if self.store.is_sound(&hash) {
            return Ok(());
        }
        self.file.sync_all().map_err(|e| write_error(&self.path, self.written, e))?;
        self.kept = self.store.place(&self.path, hash)?;
        if self.kept { self.store.sync_dir() } else { Ok(()) }
    }
}

impl Drop for Fresh<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.store.release(self.written);
            // What cannot be deleted now is deleted at the next open.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn hash_file(file: &File) -> io::Result<Hash> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file)?;
    Ok(Hash::from_bytes(*hasher.finalize().as_bytes()))
}
