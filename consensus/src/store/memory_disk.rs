//! A disk in memory that forgets what was not synced when the power goes: for simulators and tests.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

/// Writes are kept or lost in pieces of this size when the power goes.
const SECTOR: usize = 512;

/// A simulated disk. [`RedbStore::open_with_backend`](super::RedbStore::open_with_backend) of
/// [`MemoryDisk::backend`] puts the real store on it.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk(Arc<Mutex<Platter>>);

#[derive(Debug, Default)]
struct Platter {
    /// What reads see.
    current: Vec<u8>,
    /// What is left after a crash, whatever happens.
    synced: Vec<u8>,
    /// Changes since the last sync, in order.
    pending: Vec<Change>,
    /// Handles of an earlier power cycle are dead.
    power_cycle: u64,
    /// Writes and syncs since the disk was made.
    operations: u64,
    /// From this operation on, everything fails.
    fails_from: Option<u64>,
    lie: Option<DiskLie>,
    /// With [`DiskLie::SyncsLate`]: changes before the last sync, which the next one writes.
    owed: usize,
}

/// How a disk breaks its word. Nobody can build on such a disk: a check that does not find it is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskLie {
    /// A sync says that it is done and does nothing.
    SkipsSync,
    /// A sync says that it is done and writes what the one before it should have written.
    SyncsLate,
}

#[derive(Debug)]
enum Change {
    Length(usize),
    Sector { offset: usize, bytes: Vec<u8> },
}

impl MemoryDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty disk that breaks its word.
    pub fn lying(lie: DiskLie) -> Self {
        Self(Arc::new(Mutex::new(Platter { lie: Some(lie), ..Platter::default() })))
    }

    /// A handle for redb. It dies with the next [`MemoryDisk::crash`].
    pub fn backend(&self) -> impl StorageBackend + use<> {
        DiskHandle { power_cycle: self.platter().power_cycle, disk: self.clone() }
    }

    /// Cuts the power. For each piece written since the last sync, in order, `keep` says whether it reached the
    /// disk. Handles from before see errors from now on.
    pub fn crash(&self, mut keep: impl FnMut() -> bool) {
        let mut platter = self.platter();
        let pending = std::mem::take(&mut platter.pending);
        let mut image = std::mem::take(&mut platter.synced);
        for change in pending {
            if keep() {
                change.apply(&mut image);
            }
        }
        platter.current.clone_from(&image);
        platter.synced = image;
        platter.power_cycle += 1;
        platter.fails_from = None;
        platter.owed = 0;
    }

    /// Writes and syncs so far.
    pub fn operations(&self) -> u64 {
        self.platter().operations
    }

    /// Makes every write and sync fail once [`MemoryDisk::operations`] has reached this number, until the next
    /// [`MemoryDisk::crash`].
    pub fn fail_from(&self, operation: u64) {
        self.platter().fails_from = Some(operation);
    }

    /// A copy of what is on the disk, for tests that damage it.
    pub fn image(&self) -> Vec<u8> {
        self.platter().current.clone()
    }

    /// A disk with these contents.
    pub fn from_image(image: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(Platter { synced: image.clone(), current: image, ..Platter::default() })))
    }

    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Change {
    fn apply(self, image: &mut Vec<u8>) {
        match self {
            Self::Length(length) => image.resize(length, 0),
            Self::Sector { offset, bytes } => {
                let end = offset + bytes.len();
                if image.len() < end {
                    image.resize(end, 0);
                }
                image[offset..end].copy_from_slice(&bytes);
            }
        }
    }
}

impl Platter {
    fn operate(&mut self) -> io::Result<()> {
        self.operations += 1;
        match self.fails_from {
            Some(first) if self.operations > first => Err(io::Error::other("simulated disk failure")),
            Some(_) | None => Ok(()),
        }
    }
}

#[derive(Debug)]
struct DiskHandle {
    disk: MemoryDisk,
    power_cycle: u64,
}

impl DiskHandle {
    fn live(&self) -> io::Result<MutexGuard<'_, Platter>> {
        let platter = self.disk.platter();
        if platter.power_cycle != self.power_cycle {
            return Err(io::Error::other("the simulated power was cut"));
        }
        Ok(platter)
    }
}

fn place(value: u64) -> io::Result<usize> {
    usize::try_from(value).map_err(io::Error::other)
}

impl StorageBackend for DiskHandle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.live()?.current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.live()?;
        let start = place(offset)?;
        let piece = platter.current.get(start..start + out.len());
        out.copy_from_slice(piece.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut platter = self.live()?;
        platter.operate()?;
        let length = place(len)?;
        platter.current.resize(length, 0);
        platter.pending.push(Change::Length(length));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.live()?;
        platter.operate()?;
        let Platter { pending, synced, lie, owed, .. } = &mut *platter;
        let written = match lie {
            None => pending.len(),
            Some(DiskLie::SkipsSync) => 0,
            Some(DiskLie::SyncsLate) => *owed,
        };
        pending.drain(..written).for_each(|change| change.apply(synced));
        *owed = pending.len();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut platter = self.live()?;
        platter.operate()?;
        let start = place(offset)?;
        let end = start + data.len();
        platter.current.get_mut(start..end).ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(data);
        for (piece, bytes) in data.chunks(SECTOR).enumerate() {
            let offset = start + piece * SECTOR;
            platter.pending.push(Change::Sector { offset, bytes: bytes.to_vec() });
        }
        Ok(())
    }
}
