//! The log against raft-rs' own memory storage, through random histories with restarts in between.

use proptest::prelude::*;
use raft::eraftpb::Entry;
use raft::storage::MemStorage;
use raft::{GetEntriesContext, Storage};

use super::*;
use crate::store::{MemoryDisk, RedbStore};

#[derive(Debug, Clone)]
enum Step {
    /// Cuts off so many entries after the commit index and appends others, in a newer term.
    Append {
        cut: u64,
        sizes: Vec<usize>,
        new_term: bool,
    },
    Commit(u64),
    Compact {
        keep: u64,
    },
    Install {
        ahead: u64,
    },
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0_u64..4, prop::collection::vec(0_usize..300, 1..6), any::<bool>())
            .prop_map(|(cut, sizes, new_term)| Step::Append { cut, sizes, new_term }),
        2 => (0_u64..5).prop_map(Step::Commit),
        2 => (0_u64..4).prop_map(|keep| Step::Compact { keep }),
        1 => (1_u64..5).prop_map(|ahead| Step::Install { ahead }),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..40)
}

struct Pair {
    disk: MemoryDisk,
    log: Log<RedbStore>,
    oracle: MemStorage,
    term: u64,
    commit: u64,
}

impl Pair {
    fn new() -> Self {
        let disk = MemoryDisk::new();
        let log = Log::load(RedbStore::open_with_backend(disk.backend()).unwrap()).unwrap();
        let mut pair = Self { disk, log, oracle: MemStorage::new(), term: 1, commit: 0 };
        pair.install(1);
        pair
    }

    fn snapshot(&self, index: u64, term: u64) -> StoredSnapshot {
        let conf = Conf { voters: [1].into(), ..Conf::default() };
        StoredSnapshot { index, term, conf, data: vec![9; usize::try_from(index).unwrap()] }
    }

    fn install(&mut self, index: u64) {
        let snapshot = self.snapshot(index, self.term);
        self.oracle.wl().apply_snapshot(to_snapshot(snapshot.clone())).unwrap();
        self.log.write(Write { install: Some(snapshot), ..Write::default() }).unwrap();
        self.commit = index;
    }

    /// The memory storage has no compaction that remembers the term; a snapshot and the tail are the same.
    fn compact_oracle(&self, up_to: u64) {
        let context = GetEntriesContext::empty(false);
        let last = self.oracle.last_index().unwrap();
        let tail = match up_to < last {
            true => self.oracle.entries(up_to + 1, last + 1, None, context).unwrap(),
            false => Vec::new(),
        };
        let term = self.oracle.term(up_to).unwrap();
        self.oracle.wl().apply_snapshot(to_snapshot(self.snapshot(up_to, term))).unwrap();
        self.oracle.wl().append(&tail).unwrap();
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Append { cut, sizes, new_term } => {
                let first = (self.log.last() + 1).saturating_sub(cut).max(self.commit + 1);
                self.term += u64::from(new_term || cut > 0);
                let entries: Vec<_> = (first..)
                    .zip(&sizes)
                    .map(|(index, size)| StoredEntry {
                        index,
                        term: self.term,
                        kind: EntryKind::Request,
                        data: vec![1; *size],
                    })
                    .collect();
                let theirs: Vec<Entry> = entries.iter().cloned().map(to_entry).collect();
                self.oracle.wl().append(&theirs).unwrap();
                let hard_state = StoredHardState { term: self.term, vote: 1, commit: self.commit };
                self.log.write(Write { entries, hard_state: Some(hard_state), ..Write::default() }).unwrap();
            }
            Step::Commit(more) => self.commit = (self.commit + more).min(self.log.last()),
            Step::Compact { keep } => {
                let term = self.log.term_of(self.commit).unwrap();
                let snapshot = self.snapshot(self.commit, term);
                let up_to = self.commit.saturating_sub(keep);
                self.log.compact(snapshot, up_to).unwrap();
                if up_to >= self.oracle.first_index().unwrap() {
                    self.compact_oracle(up_to);
                }
            }
            Step::Install { ahead } => self.install(self.log.last() + ahead),
            Step::Restart => {
                self.disk.crash(|| false);
                self.log = Log::load(RedbStore::open_with_backend(self.disk.backend()).unwrap()).unwrap();
            }
        }
    }

    fn compare(&self) {
        let first = self.log.first_index().unwrap();
        let last = self.log.last_index().unwrap();
        assert_eq!((first, last), (self.oracle.first_index().unwrap(), self.oracle.last_index().unwrap()));
        assert!(self.log.term(first - 1).is_ok(), "the term before the first entry must be known");
        for index in first..=last {
            assert_eq!(self.log.term(index).unwrap(), self.oracle.term(index).unwrap());
        }
        assert!(self.log.term(last + 1).is_err());
        for (low, high) in [(first, last + 1), (first + 1, last), (last, last + 1)] {
            if low < first || low >= high {
                continue;
            }
            for limit in [None, Some(0), Some(150), Some(u64::MAX)] {
                let ours = self.log.entries(low, high, limit, GetEntriesContext::empty(false)).unwrap();
                let theirs = self.oracle.entries(low, high, limit, GetEntriesContext::empty(false)).unwrap();
                assert_eq!(ours, theirs);
            }
        }
        let compacted = self.log.entries(first - 1, last + 1, None, GetEntriesContext::empty(false));
        assert_eq!(compacted, Err(raft::Error::Store(StorageError::Compacted)));
        let bytes: usize = self.log.entries.iter().map(|entry| entry.data.len()).sum();
        assert_eq!(self.log.entry_bytes(), bytes);
        let commit = self.log.initial_state().unwrap().hard_state.commit;
        assert!(commit >= self.log.snapshot().unwrap().index && commit <= last);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn behaves_as_raft_own_memory_storage(steps in steps()) {
        let mut pair = Pair::new();
        for step in steps {
            pair.take(step);
            pair.compare();
        }
    }
}

#[test]
fn an_empty_log_is_what_raft_expects() {
    let log = Log::load(RedbStore::open_with_backend(MemoryDisk::new().backend()).unwrap()).unwrap();
    assert_eq!((log.first_index().unwrap(), log.last_index().unwrap(), log.term(0).unwrap()), (1, 0, 0));
    assert_eq!(
        Storage::snapshot(&log, 0, 1).unwrap_err(),
        raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable)
    );
}
