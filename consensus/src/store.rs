//! What must survive a power cut: the log, the newest snapshot, term and vote, and a few small records.
//!
//! [`Store`] is the durable side only. Reads of the log while running come from a copy in memory
//! (`Log`, in this folder), which compaction keeps to a few hundred entries.

mod log;
mod memory_disk;
mod redb;

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub(crate) use log::{
    Log, from_conf_state, from_entry, from_hard_state, from_snapshot, to_entry, to_snapshot,
};
pub use memory_disk::{DiskLie, MemoryDisk};
pub use redb::RedbStore;

use crate::ids::RaftId;

/// Who votes and who only listens.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Conf {
    /// Replicas that vote (the incoming side of a joint configuration).
    pub voters: BTreeSet<RaftId>,
    /// Replicas that only listen.
    pub learners: BTreeSet<RaftId>,
    /// Voters of the configuration that is being left; not empty only in a joint configuration.
    pub outgoing: BTreeSet<RaftId>,
    /// Outgoing voters that will listen once the joint configuration is left.
    pub learners_next: BTreeSet<RaftId>,
}

impl Conf {
    /// A change is half way: majorities of both sides are needed.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// True for every replica that the configuration names.
    pub fn contains(&self, id: RaftId) -> bool {
        self.voters.contains(&id) || self.learners.contains(&id) || self.outgoing.contains(&id)
    }

    /// A configuration that a Raft group can have.
    pub(crate) fn is_valid(&self) -> bool {
        !self.voters.is_empty()
            && !self.contains(0)
            && self.learners.is_disjoint(&self.voters)
            && self.learners.is_disjoint(&self.outgoing)
            && self.learners_next.is_subset(&self.outgoing)
            && self.learners_next.is_disjoint(&self.voters)
    }
}

/// What a log entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    /// A request, or nothing (the first entry of a leader).
    Request,
    /// A membership change of the Raft group.
    ConfChange,
}

/// A log entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredEntry {
    /// Its place in the log, from 1.
    pub index: u64,
    /// The term of the leader that made it.
    pub term: u64,
    /// What it is.
    pub kind: EntryKind,
    /// Its bytes.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
}

/// Term, vote and commit index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StoredHardState {
    /// The newest term seen.
    pub term: u64,
    /// Who got this replica's vote in that term; 0 for nobody.
    pub vote: RaftId,
    /// Entries up to this one are known to be committed.
    pub commit: u64,
}

/// The state at one index of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSnapshot {
    /// The last entry that is in it.
    pub index: u64,
    /// That entry's term.
    pub term: u64,
    /// The configuration at that index.
    pub conf: Conf,
    /// The encoded state.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
}

/// Everything that a store holds of the log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stored {
    /// The newest snapshot.
    pub snapshot: Option<StoredSnapshot>,
    /// Index and term of the last entry that was compacted away.
    pub compacted: (u64, u64),
    /// The entries after that one, without a gap.
    pub entries: Vec<StoredEntry>,
    /// Term, vote and commit index.
    pub hard_state: StoredHardState,
}

/// One step of the protocol, written whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Write {
    /// Replaces state and the whole log by a leader's snapshot.
    pub install: Option<StoredSnapshot>,
    /// Appended after everything from the first one's index on has been cut off.
    pub entries: Vec<StoredEntry>,
    /// Term, vote and commit index. Never below the snapshot's index.
    pub hard_state: Option<StoredHardState>,
    /// Small records that must not be there without the rest: name and bytes.
    pub records: Vec<(String, Vec<u8>)>,
}

/// Durable storage of one replica. Every call that changes something returns once it is on the disk.
pub trait Store: Send + 'static {
    /// Everything that is stored of the log.
    ///
    /// # Errors
    /// When it cannot be read or makes no sense.
    fn load(&self) -> Result<Stored, StoreError>;

    /// Writes one step in one transaction: snapshot, then entries, then hard state.
    ///
    /// # Errors
    /// When it is not certain that it is on the disk. The caller must not go on.
    fn write(&mut self, write: &Write) -> Result<(), StoreError>;

    /// Takes a snapshot of this replica's own state, and forgets entries up to `compacted` (index and term);
    /// the rest of the log stays for followers that are behind. Raises the commit index to the snapshot's.
    ///
    /// # Errors
    /// When it is not certain that it is on the disk.
    fn compact(&mut self, snapshot: &StoredSnapshot, compacted: (u64, u64)) -> Result<(), StoreError>;

    /// A small record by name, such as the identity or what is known of the founding.
    ///
    /// # Errors
    /// When it cannot be read.
    fn get_record(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError>;

    /// Writes a small record; on the disk when this returns.
    ///
    /// # Errors
    /// When it is not certain that it is on the disk.
    fn put_record(&mut self, name: &str, bytes: &[u8]) -> Result<(), StoreError>;
}

/// What can be wrong with a store.
#[derive(Debug, Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("{} is in use by another process; stop the other mesh daemon, or give this one another data_dir", .0.display())]
    InUse(PathBuf),
    /// Its contents make no sense.
    #[error(
        "cluster store {} is damaged ({what}); nothing was changed. Move the data directory away and start again: \
         the device then joins the cluster as a new one",
        path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// Written by a newer build.
    #[error("cluster store {} has format version {found}, this build reads {known}; install the version of mesh that wrote it", path.display())]
    UnknownVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// What this build reads.
        known: u64,
    },
    /// The operating system refused.
    #[error("cluster store {} cannot be {action}; check the disk's space, health and permissions", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// "opened", "read" or "written".
        action: &'static str,
        /// What went wrong.
        #[source]
        source: Box<::redb::Error>,
    },
}
