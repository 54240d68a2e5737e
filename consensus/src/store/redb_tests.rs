//! What a power cut, a damaged disk, a second process and another version do to the store.

use proptest::prelude::*;

use super::*;
use crate::store::{Conf, EntryKind, MemoryDisk};

fn entry(index: u64, term: u64) -> StoredEntry {
    StoredEntry {
        index,
        term,
        kind: EntryKind::Request,
        data: vec![7; 100 + usize::try_from(index).unwrap()],
    }
}

fn snapshot(index: u64, term: u64) -> StoredSnapshot {
    StoredSnapshot { index, term, conf: Conf { voters: [1].into(), ..Conf::default() }, data: vec![5; 3000] }
}

/// What a store holds, small records included.
#[derive(Debug, Clone, PartialEq)]
struct Contents(Stored, Option<Vec<u8>>);

fn contents(store: &RedbStore) -> Contents {
    Contents(store.load().unwrap(), store.get_record("identity").unwrap())
}

type Step = Box<dyn Fn(&mut RedbStore) -> Result<(), StoreError>>;

/// The steps of a life: founding, appending, a conflict, compaction, a leader's snapshot, records.
fn steps() -> Vec<Step> {
    let hard = |term, commit| Some(StoredHardState { term, vote: 1, commit });
    vec![
        Box::new(move |store| {
            let records = vec![("identity".to_owned(), vec![1, 2, 3])];
            let write =
                Write { install: Some(snapshot(1, 1)), hard_state: hard(1, 1), records, ..Write::default() };
            store.write(&write)
        }),
        Box::new(move |store| {
            let entries = (2..10).map(|index| entry(index, 2)).collect();
            store.write(&Write { entries, hard_state: hard(2, 1), ..Write::default() })
        }),
        Box::new(move |store| {
            let entries = (6..8).map(|index| entry(index, 3)).collect();
            store.write(&Write { entries, hard_state: hard(3, 5), ..Write::default() })
        }),
        Box::new(move |store| store.compact(&snapshot(6, 3), (4, 2))),
        Box::new(move |store| store.put_record("identity", &[9; 5000])),
        Box::new(move |store| {
            store.write(&Write {
                install: Some(snapshot(50, 4)),
                hard_state: hard(4, 50),
                ..Write::default()
            })
        }),
        Box::new(move |store| store.write(&Write { entries: vec![entry(51, 4)], ..Write::default() })),
    ]
}

/// Cuts the power at every single write and sync of the whole life; what was not synced reaches the disk or
/// not, piece by piece, as `keep` says.
fn cut_everywhere(mut keep: impl FnMut() -> bool) {
    let whole = MemoryDisk::new();
    let mut store = RedbStore::open_with_backend(whole.backend()).unwrap();
    steps().iter().for_each(|step| step(&mut store).unwrap());
    for cut in 0..whole.operations() {
        let disk = MemoryDisk::new();
        disk.fail_from(cut);
        let (mut before, mut after) = (None, None);
        if let Ok(mut store) = RedbStore::open_with_backend(disk.backend()) {
            before = Some(contents(&store));
            for (number, step) in steps().iter().enumerate() {
                if step(&mut store).is_ok() {
                    before = Some(contents(&store));
                    continue;
                }
                let shadow = MemoryDisk::new();
                let mut twin = RedbStore::open_with_backend(shadow.backend()).unwrap();
                steps().iter().take(number + 1).for_each(|step| step(&mut twin).unwrap());
                after = Some(contents(&twin));
                break;
            }
        }
        disk.crash(&mut keep);
        let reopened = RedbStore::open_with_backend(disk.backend());
        let Some(before) = before else {
            // A power cut while the file is made: the real one is made aside and renamed, so never seen.
            continue;
        };
        let found = contents(&reopened.unwrap());
        assert!(found == before || Some(&found) == after.as_ref(), "cut at {cut}: {found:?}");
    }
}

#[test]
fn a_power_cut_at_any_write_leaves_the_step_before_or_after() {
    cut_everywhere(|| false);
    cut_everywhere(|| true);
    let mut dice = 1_u64;
    for _ in 0..4 {
        cut_everywhere(|| {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            dice >> 63 == 1
        });
    }
}

#[test]
fn a_store_survives_being_closed() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = RedbStore::open(directory.path()).unwrap();
    steps().iter().for_each(|step| step(&mut store).unwrap());
    let before = contents(&store);
    drop(store);
    assert_eq!(contents(&RedbStore::open(directory.path()).unwrap()), before);
}

#[test]
fn a_second_opener_is_told_so() {
    let directory = tempfile::tempdir().unwrap();
    let _first = RedbStore::open(directory.path()).unwrap();
    let second = RedbStore::open(directory.path());
    assert!(matches!(second, Err(StoreError::InUse(_))), "{second:?}");
}

#[test]
fn another_format_version_is_refused() {
    let disk = MemoryDisk::new();
    let store = RedbStore::open_with_backend(disk.backend()).unwrap();
    let transaction = store.database.begin_write().unwrap();
    transaction.open_table(META).unwrap().insert(FORMAT, 77_u64.to_be_bytes().as_slice()).unwrap();
    transaction.commit().unwrap();
    drop(store);
    let reopened = RedbStore::open_with_backend(disk.backend());
    assert!(matches!(reopened, Err(StoreError::UnknownVersion { found: 77, .. })), "{reopened:?}");
}

#[test]
fn a_file_that_is_no_store_is_refused_and_left_alone() {
    let whole = {
        let directory = tempfile::tempdir().unwrap();
        let mut store = RedbStore::open(directory.path()).unwrap();
        steps().iter().for_each(|step| step(&mut store).unwrap());
        drop(store);
        std::fs::read(directory.path().join(FILE_NAME)).unwrap()
    };
    let half = whole[..whole.len() / 2].to_vec();
    for (what, image) in [
        ("empty", Vec::new()),
        ("text", b"hello, this is not a database".to_vec()),
        ("zeros", vec![0; 100_000]),
        ("half", half),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE_NAME);
        std::io::Write::write_all(&mut File::create(&path).unwrap(), &image).unwrap();
        let opened = RedbStore::open(directory.path());
        assert!(matches!(opened, Err(StoreError::Corrupt { .. })), "{what}: {opened:?}");
        assert!(opened.unwrap_err().to_string().contains("Move the data directory away"));
        assert_eq!(std::fs::read(&path).unwrap(), image, "{what} was changed");
    }
}

/// Both descriptions of a transaction in redb's header. Before them is which of the two is the newest: one bit that redb
/// has no second copy of (ADR 9).
const COMMIT_SLOTS: std::ops::Range<usize> = 64..320;
const PAGE: usize = 4096;

/// Without a clean end the newest transaction may be one that was torn. One that was acknowledged is not: where it does
/// not fit its checksums, nothing older takes its place.
#[test]
fn damage_after_a_power_cut_is_reported_or_harmless() {
    let disk = MemoryDisk::new();
    let mut store = RedbStore::open_with_backend(disk.backend()).unwrap();
    let (mut reported, mut harmless) = (0, 0);
    for step in steps() {
        step(&mut store).unwrap();
        let newest = contents(&store);
        let image = disk.image();
        let pages = (PAGE..image.len()).step_by(PAGE).flat_map(|page| [page, page + 40, page + 1500]);
        // A part of them after every step: the trees have another shape each time.
        for place in COMMIT_SLOTS.step_by(5).chain(pages.step_by(7)) {
            let mut damaged = image.clone();
            damaged[place] ^= 0x55;
            match RedbStore::open_with_backend(MemoryDisk::from_image(damaged).backend()) {
                Ok(store) => {
                    assert_eq!(contents(&store), newest, "byte {place}");
                    harmless += 1;
                }
                Err(error) => {
                    assert!(matches!(error, StoreError::Corrupt { .. }), "byte {place}: {error:?}");
                    reported += 1;
                }
            }
        }
    }
    assert!(reported > 100 && harmless > 100, "{reported} reported, {harmless} harmless");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    /// Flipped bytes are found, or were in a place that nobody reads.
    #[test]
    fn damage_is_reported_or_harmless(flips in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..4)) {
        let disk = MemoryDisk::new();
        let mut store = RedbStore::open_with_backend(disk.backend()).unwrap();
        steps().iter().for_each(|step| step(&mut store).unwrap());
        let before = contents(&store);
        drop(store);
        let mut image = disk.image();
        for (place, flip) in flips {
            let place = place.index(image.len());
            image[place] ^= flip;
        }
        match RedbStore::open_with_backend(MemoryDisk::from_image(image).backend()) {
            Ok(store) => prop_assert_eq!(contents(&store), before),
            Err(error) => prop_assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}"),
        }
    }
}
