//! The log in memory over a durable [`Store`]: what raft-rs reads from.
//!
//! Writes go to the store first and to memory after, so that raft-rs never reads what a crash could take back.

use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use super::{Conf, EntryKind, Store, StoreError, StoredEntry, StoredHardState, StoredSnapshot, Write};

/// A replica's log, snapshot and hard state.
pub(crate) struct Log<S> {
    store: S,
    snapshot: Option<StoredSnapshot>,
    compacted: (u64, u64),
    entries: VecDeque<StoredEntry>,
    entry_bytes: usize,
    hard_state: StoredHardState,
}

impl<S: Store> Log<S> {
    /// Reads everything from the store.
    pub(crate) fn load(store: S) -> Result<Self, StoreError> {
        let stored = store.load()?;
        let entry_bytes = stored.entries.iter().map(|entry| entry.data.len()).sum();
        Ok(Self {
            store,
            snapshot: stored.snapshot,
            compacted: stored.compacted,
            entries: stored.entries.into(),
            entry_bytes,
            hard_state: stored.hard_state,
        })
    }

    pub(crate) fn store(&self) -> &S {
        &self.store
    }

    pub(crate) fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }

    pub(crate) fn snapshot(&self) -> Option<&StoredSnapshot> {
        self.snapshot.as_ref()
    }

    pub(crate) fn last(&self) -> u64 {
        self.compacted.0 + self.entries.len() as u64
    }

    /// Bytes of the entries that are not compacted.
    pub(crate) fn entry_bytes(&self) -> usize {
        self.entry_bytes
    }

    /// One step of the protocol: durable when it returns.
    pub(crate) fn write(&mut self, mut write: Write) -> Result<(), StoreError> {
        if let Some(snapshot) = &write.install {
            // A snapshot without a hard state would leave a commit index below the log's start.
            let hard_state = write.hard_state.get_or_insert(self.hard_state);
            hard_state.commit = hard_state.commit.max(snapshot.index);
        }
        self.store.write(&write)?;
        if let Some(snapshot) = write.install {
            self.compacted = (snapshot.index, snapshot.term);
            self.entries.clear();
            self.entry_bytes = 0;
            self.snapshot = Some(snapshot);
        }
        if let Some(first) = write.entries.first() {
            while self.entries.back().is_some_and(|entry| entry.index >= first.index) {
                self.entry_bytes -= self.entries.pop_back().map_or(0, |entry| entry.data.len());
            }
        }
        self.entry_bytes += write.entries.iter().map(|entry| entry.data.len()).sum::<usize>();
        self.entries.extend(write.entries);
        if let Some(hard_state) = write.hard_state {
            self.hard_state = hard_state;
        }
        Ok(())
    }

    /// Keeps a snapshot of this replica's own state and forgets entries up to `up_to`, which the snapshot covers.
    pub(crate) fn compact(&mut self, snapshot: StoredSnapshot, up_to: u64) -> Result<(), StoreError> {
        let up_to = up_to.clamp(self.compacted.0, snapshot.index);
        let compacted = (up_to, self.term_of(up_to).unwrap_or(self.compacted.1));
        self.store.compact(&snapshot, compacted)?;
        while self.entries.front().is_some_and(|entry| entry.index <= up_to) {
            self.entry_bytes -= self.entries.pop_front().map_or(0, |entry| entry.data.len());
        }
        self.compacted = compacted;
        self.hard_state.commit = self.hard_state.commit.max(snapshot.index);
        self.snapshot = Some(snapshot);
        Ok(())
    }

    /// The term of an entry, or of the last compacted one.
    pub(crate) fn term_of(&self, index: u64) -> Option<u64> {
        if index == self.compacted.0 {
            return Some(self.compacted.1);
        }
        let place = index.checked_sub(self.compacted.0 + 1)?;
        self.entries.get(usize::try_from(place).ok()?).map(|entry| entry.term)
    }
}

impl<S: Store> Storage for Log<S> {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let conf_state =
            self.snapshot.as_ref().map_or_else(ConfState::default, |snapshot| to_conf_state(&snapshot.conf));
        Ok(RaftState { hard_state: to_hard_state(self.hard_state), conf_state })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.compacted.0 {
            return Err(StorageError::Compacted.into());
        }
        if high > self.last() + 1 {
            return Err(StorageError::Unavailable.into());
        }
        let limit = max_size.into().unwrap_or(u64::MAX);
        let skip = usize::try_from(low - self.compacted.0 - 1).map_err(|_| StorageError::Unavailable)?;
        let count = usize::try_from(high.saturating_sub(low)).map_err(|_| StorageError::Unavailable)?;
        let mut taken = Vec::new();
        let mut bytes = 0;
        for entry in self.entries.iter().skip(skip).take(count) {
            let entry = to_entry(entry.clone());
            bytes += u64::from(protobuf::Message::compute_size(&entry));
            if !taken.is_empty() && bytes > limit {
                break;
            }
            taken.push(entry);
        }
        Ok(taken)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        match self.term_of(index) {
            Some(term) => Ok(term),
            None if index < self.compacted.0 => Err(StorageError::Compacted.into()),
            None => Err(StorageError::Unavailable.into()),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.compacted.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        match &self.snapshot {
            Some(snapshot) if snapshot.index >= request_index => Ok(to_snapshot(snapshot.clone())),
            Some(_) | None => Err(StorageError::SnapshotTemporarilyUnavailable.into()),
        }
    }
}

pub(crate) fn to_conf_state(conf: &Conf) -> ConfState {
    let mut state = ConfState::default();
    state.set_voters(conf.voters.iter().copied().collect());
    state.set_learners(conf.learners.iter().copied().collect());
    state.set_voters_outgoing(conf.outgoing.iter().copied().collect());
    state.set_learners_next(conf.learners_next.iter().copied().collect());
    state
}

pub(crate) fn from_conf_state(state: &ConfState) -> Conf {
    Conf {
        voters: state.get_voters().iter().copied().collect(),
        learners: state.get_learners().iter().copied().collect(),
        outgoing: state.get_voters_outgoing().iter().copied().collect(),
        learners_next: state.get_learners_next().iter().copied().collect(),
    }
}

pub(crate) fn to_hard_state(stored: StoredHardState) -> HardState {
    let mut state = HardState::default();
    state.set_term(stored.term);
    state.set_vote(stored.vote);
    state.set_commit(stored.commit);
    state
}

pub(crate) fn from_hard_state(state: &HardState) -> StoredHardState {
    StoredHardState { term: state.get_term(), vote: state.get_vote(), commit: state.get_commit() }
}

pub(crate) fn to_entry(stored: StoredEntry) -> Entry {
    let mut entry = Entry::default();
    entry.set_index(stored.index);
    entry.set_term(stored.term);
    entry.set_entry_type(match stored.kind {
        EntryKind::Request => EntryType::EntryNormal,
        EntryKind::ConfChange => EntryType::EntryConfChangeV2,
    });
    entry.set_data(stored.data.into());
    entry
}

/// `None` for the old kind of membership change, which nothing here makes.
pub(crate) fn from_entry(entry: &Entry) -> Option<StoredEntry> {
    let kind = match entry.get_entry_type() {
        EntryType::EntryNormal => EntryKind::Request,
        EntryType::EntryConfChangeV2 => EntryKind::ConfChange,
        EntryType::EntryConfChange => return None,
    };
    Some(StoredEntry {
        index: entry.get_index(),
        term: entry.get_term(),
        kind,
        data: entry.get_data().to_vec(),
    })
}

pub(crate) fn to_snapshot(stored: StoredSnapshot) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let metadata = snapshot.mut_metadata();
    metadata.set_index(stored.index);
    metadata.set_term(stored.term);
    metadata.set_conf_state(to_conf_state(&stored.conf));
    snapshot.set_data(stored.data.into());
    snapshot
}

pub(crate) fn from_snapshot(snapshot: &Snapshot) -> StoredSnapshot {
    let metadata = snapshot.get_metadata();
    StoredSnapshot {
        index: metadata.get_index(),
        term: metadata.get_term(),
        conf: from_conf_state(metadata.get_conf_state()),
        data: snapshot.get_data().to_vec(),
    }
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
