//! [`Store`] in one redb file.
//!
//! redb commits copy-on-write with checksums, so a torn write leaves the transaction before it. Every page's
//! checksum is verified on open: a damaged file is reported, never repaired by forgetting. For that all commits go
//! in two phases ([`RedbStore::begin`], ADR 9).

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use redb::{
    Builder, Database, DatabaseError, Error, ReadableDatabase, ReadableTable, StorageBackend,
    TableDefinition, WriteTransaction,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Store, StoreError, Stored, StoredEntry, StoredHardState, StoredSnapshot, Write};

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");

const FORMAT: &str = "format";
const SNAPSHOT: &str = "snapshot";
const COMPACTED: &str = "compacted";
const HARD_STATE: &str = "hard_state";

/// Format version of the file.
const FORMAT_VERSION: u64 = 1;

/// Pages kept in memory. The whole store is about this size.
const CACHE_BYTES: usize = 2 * 1024 * 1024;

/// Name of the file in the data directory.
const FILE_NAME: &str = "cluster.redb";

/// The store of a device, `cluster.redb` in its data directory.
pub struct RedbStore {
    database: Database,
    path: PathBuf,
}

impl fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbStore").field("path", &self.path).finish_non_exhaustive()
    }
}

type Done<T> = Result<T, Error>;

impl RedbStore {
    /// Opens the store in a data directory; makes an empty one when there is none. The directory must exist.
    ///
    /// # Errors
    /// When another process has it, when it is damaged or of another format, or when the disk refuses.
    pub fn open(data_dir: &Path) -> Result<Self, StoreError> {
        let path = data_dir.join(FILE_NAME);
        let io = |error: std::io::Error| StoreError::Io {
            path: path.clone(),
            action: "opened",
            source: Box::new(Error::Io(error)),
        };
        match fs::metadata(&path) {
            Ok(found) if found.len() == 0 => {
                return Err(StoreError::Corrupt { path, what: "the file is empty".to_owned() });
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                // Made aside and renamed: a crash in between leaves no half-made store behind.
                let aside = data_dir.join(format!("{FILE_NAME}.new"));
                match fs::remove_file(&aside) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
                    Ok(()) | Err(_) => {}
                }
                drop(Self::prepare(builder().create(&aside), aside.clone())?);
                fs::rename(&aside, &path).map_err(io)?;
                File::open(data_dir).and_then(|directory| directory.sync_all()).map_err(io)?;
            }
            Err(error) => return Err(io(error)),
        }
        Self::prepare(builder().open(&path), path)
    }

    /// Puts an empty store with these records in the place of the one in a data directory, at once or not at all:
    /// a lone founder gives its cluster up for another one. The old store must not be open.
    ///
    /// # Errors
    /// As [`RedbStore::open`].
    pub fn replace(data_dir: &Path, records: &[(&str, &[u8])]) -> Result<Self, StoreError> {
        let path = data_dir.join(FILE_NAME);
        let aside = data_dir.join(format!("{FILE_NAME}.next"));
        let io = |error: std::io::Error| StoreError::Io {
            path: path.clone(),
            action: "replaced",
            source: Box::new(Error::Io(error)),
        };
        match fs::remove_file(&aside) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
            Ok(()) | Err(_) => {}
        }
        let mut fresh = Self::prepare(builder().create(&aside), aside.clone())?;
        for (name, bytes) in records {
            fresh.put_record(name, bytes)?;
        }
        drop(fresh);
        fs::rename(&aside, &path).map_err(io)?;
        File::open(data_dir).and_then(|directory| directory.sync_all()).map_err(io)?;
        Self::open(data_dir)
    }

    /// Opens or makes a store on a disk given by the caller: a simulated one.
    ///
    /// # Errors
    /// As [`RedbStore::open`].
    pub fn open_with_backend(backend: impl StorageBackend) -> Result<Self, StoreError> {
        Self::prepare(builder().create_with_backend(backend), PathBuf::from("(simulated disk)"))
    }

    fn prepare(opened: Result<Database, DatabaseError>, path: PathBuf) -> Result<Self, StoreError> {
        let database = opened.map_err(|error| classify(Error::from(error), &path, "opened"))?;
        let store = Self { database, path };
        match store.format() {
            Ok(Some(FORMAT_VERSION)) => Ok(store),
            Ok(Some(found)) => {
                Err(StoreError::UnknownVersion { path: store.path, found, known: FORMAT_VERSION })
            }
            Ok(None) => {
                store.initialise().map_err(|error| store.failed(error, "written"))?;
                Ok(store)
            }
            Err(error) => Err(store.failed(error, "read")),
        }
    }

    fn format(&self) -> Done<Option<u64>> {
        let transaction = self.database.begin_read()?;
        let table = match transaction.open_table(META) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let format = table.get(FORMAT)?;
        Ok(format.map(|bytes| bytes.value().try_into().map_or(u64::MAX, u64::from_be_bytes)))
    }

    /// Begins a write that is committed in two phases: data, fsync, the mark of which transaction is the newest, fsync.
    /// With one phase, redb cannot tell after an unclean end whether a newest transaction that does not fit its
    /// checksums was torn or has been damaged since. It takes the one before then, and a vote or an acknowledged
    /// entry is gone without a word. With two, what is marked was on the disk, and damage is reported. It costs one more
    /// fsync for each step. One commit in one phase would undo that for all before it, so none is.
    fn begin(&self) -> Done<WriteTransaction> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_two_phase_commit(true);
        Ok(transaction)
    }

    fn initialise(&self) -> Done<()> {
        let transaction = self.begin()?;
        transaction.open_table(META)?.insert(FORMAT, FORMAT_VERSION.to_be_bytes().as_slice())?;
        transaction.open_table(LOG)?;
        transaction.open_table(RECORDS)?;
        transaction.commit()?;
        Ok(())
    }

    fn failed(&self, error: impl Into<Error>, action: &'static str) -> StoreError {
        classify(error.into(), &self.path, action)
    }

    fn corrupt(&self, what: impl Into<String>) -> StoreError {
        StoreError::Corrupt { path: self.path.clone(), what: what.into() }
    }

    fn decode<T: DeserializeOwned>(&self, what: &str, bytes: &[u8]) -> Result<T, StoreError> {
        ciborium::from_reader(bytes).map_err(|error| self.corrupt(format!("{what}: {error}")))
    }

    fn raw(&self) -> Done<RawContents> {
        let transaction = self.database.begin_read()?;
        let meta = transaction.open_table(META)?;
        let read = |key| meta.get(key).map(|bytes| bytes.map(|bytes| bytes.value().to_vec()));
        let mut contents = RawContents {
            snapshot: read(SNAPSHOT)?,
            compacted: read(COMPACTED)?,
            hard_state: read(HARD_STATE)?,
            entries: Vec::new(),
        };
        for row in transaction.open_table(LOG)?.iter()? {
            let (index, bytes) = row?;
            contents.entries.push((index.value(), bytes.value().to_vec()));
        }
        Ok(contents)
    }

    fn write_step(&self, write: &Write) -> Done<()> {
        let transaction = self.begin()?;
        {
            let mut meta = transaction.open_table(META)?;
            let mut log = transaction.open_table(LOG)?;
            if let Some(snapshot) = &write.install {
                log.retain(|_, _| false)?;
                meta.insert(SNAPSHOT, encode(snapshot).as_slice())?;
                meta.insert(COMPACTED, encode(&(snapshot.index, snapshot.term)).as_slice())?;
            }
            if let Some(first) = write.entries.first() {
                log.retain_in(first.index.., |_, _| false)?;
            }
            for entry in &write.entries {
                log.insert(entry.index, encode(entry).as_slice())?;
            }
            if let Some(hard_state) = &write.hard_state {
                meta.insert(HARD_STATE, encode(hard_state).as_slice())?;
            }
            let mut records = transaction.open_table(RECORDS)?;
            for (name, bytes) in &write.records {
                records.insert(name.as_str(), bytes.as_slice())?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    fn write_compaction(
        &self,
        snapshot: &StoredSnapshot,
        compacted: (u64, u64),
        hard_state: StoredHardState,
    ) -> Done<()> {
        let transaction = self.begin()?;
        {
            let mut meta = transaction.open_table(META)?;
            meta.insert(SNAPSHOT, encode(snapshot).as_slice())?;
            meta.insert(COMPACTED, encode(&compacted).as_slice())?;
            meta.insert(HARD_STATE, encode(&hard_state).as_slice())?;
            transaction.open_table(LOG)?.retain_in(..=compacted.0, |_, _| false)?;
        }
        transaction.commit()?;
        Ok(())
    }

    fn read_record(&self, name: &str) -> Done<Option<Vec<u8>>> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(RECORDS)?;
        let record = table.get(name)?;
        Ok(record.map(|bytes| bytes.value().to_vec()))
    }

    fn write_record(&self, name: &str, bytes: &[u8]) -> Done<()> {
        let transaction = self.begin()?;
        transaction.open_table(RECORDS)?.insert(name, bytes)?;
        transaction.commit()?;
        Ok(())
    }

    fn hard_state(&self) -> Result<StoredHardState, StoreError> {
        let bytes = self.raw().map_err(|error| self.failed(error, "read"))?.hard_state;
        bytes.map_or(Ok(StoredHardState::default()), |bytes| self.decode("term and vote", &bytes))
    }
}

/// What the tables hold, not yet decoded.
struct RawContents {
    snapshot: Option<Vec<u8>>,
    compacted: Option<Vec<u8>>,
    hard_state: Option<Vec<u8>>,
    entries: Vec<(u64, Vec<u8>)>,
}

impl Store for RedbStore {
    fn load(&self) -> Result<Stored, StoreError> {
        let raw = self.raw().map_err(|error| self.failed(error, "read"))?;
        let mut stored = Stored::default();
        if let Some(bytes) = raw.snapshot {
            let snapshot: StoredSnapshot = self.decode("snapshot", &bytes)?;
            if !snapshot.conf.is_valid() {
                return Err(self.corrupt("impossible configuration in the snapshot"));
            }
            stored.snapshot = Some(snapshot);
        }
        if let Some(bytes) = raw.compacted {
            stored.compacted = self.decode("compaction mark", &bytes)?;
        }
        if let Some(bytes) = raw.hard_state {
            stored.hard_state = self.decode("term and vote", &bytes)?;
        }
        for (index, bytes) in raw.entries {
            let entry: StoredEntry = self.decode("log entry", &bytes)?;
            let expected = stored.compacted.0 + 1 + stored.entries.len() as u64;
            if entry.index != index || index != expected {
                return Err(self.corrupt(format!("log entry {index} found where {expected} should be")));
            }
            stored.entries.push(entry);
        }
        let snapshot_index = stored.snapshot.as_ref().map_or(0, |snapshot| snapshot.index);
        let last = stored.compacted.0 + stored.entries.len() as u64;
        let commit = stored.hard_state.commit;
        if snapshot_index < stored.compacted.0 || commit < snapshot_index || commit > last {
            let compacted = stored.compacted.0;
            return Err(self.corrupt(format!(
                "log {compacted}..={last}, snapshot at {snapshot_index} and commit index {commit} do not fit"
            )));
        }
        Ok(stored)
    }

    fn write(&mut self, write: &Write) -> Result<(), StoreError> {
        self.write_step(write).map_err(|error| self.failed(error, "written"))
    }

    fn compact(&mut self, snapshot: &StoredSnapshot, compacted: (u64, u64)) -> Result<(), StoreError> {
        let mut hard_state = self.hard_state()?;
        hard_state.commit = hard_state.commit.max(snapshot.index);
        self.write_compaction(snapshot, compacted, hard_state).map_err(|error| self.failed(error, "written"))
    }

    fn get_record(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.read_record(name).map_err(|error| self.failed(error, "read"))
    }

    fn put_record(&mut self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.write_record(name, bytes).map_err(|error| self.failed(error, "written"))
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).expect("writing plain types into memory cannot fail");
    bytes
}

/// Tells damage and a second process from an unwilling disk.
#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "redb's errors are many and grow; these four need a remedy"
)]
fn classify(error: Error, path: &Path, action: &'static str) -> StoreError {
    let path = path.to_owned();
    match error {
        Error::DatabaseAlreadyOpen | Error::LockProtocolMismatch => StoreError::InUse(path),
        Error::Corrupted(what) => StoreError::Corrupt { path, what },
        Error::UpgradeRequired(_) | Error::TableDoesNotExist(_) | Error::TableTypeMismatch { .. } => {
            StoreError::Corrupt { path, what: error.to_string() }
        }
        Error::Io(source) if source.kind() == std::io::ErrorKind::InvalidData => {
            StoreError::Corrupt { path, what: source.to_string() }
        }
        other => StoreError::Io { path, action, source: Box::new(other) },
    }
}

#[cfg(test)]
#[path = "redb_tests.rs"]
mod tests;
