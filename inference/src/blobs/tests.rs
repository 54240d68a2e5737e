#![allow(clippy::disallowed_methods)]

use std::{fs, io};

use super::*;

fn store() -> (tempfile::TempDir, BlobStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = BlobStore::open(dir.path()).unwrap();
    (dir, store)
}

#[test]
fn a_blob_is_found_by_its_hash_and_counted_once() {
    let (_dir, store) = store();
    let (hash, bytes) = store.put(&b"hello"[..]).unwrap();
    assert_eq!((hash, bytes), (Hash::of(b"hello"), 5));
    assert_eq!(store.put(&b"hello"[..]).unwrap().0, hash);
    assert_eq!(store.used_bytes(), 5);
    assert_eq!(store.list().unwrap(), vec![(hash, 5)]);
    assert_eq!(store.read_all(&hash, 5).unwrap(), b"hello");
    assert!(matches!(store.read_all(&hash, 4), Err(BlobError::Length { .. })));
    store.remove(&hash).unwrap();
    store.remove(&hash).unwrap();
    assert_eq!((store.used_bytes(), store.has(&hash)), (0, false));
    assert!(matches!(store.read(&hash), Err(BlobError::Missing(_))));
}

#[test]
fn text_of_a_hash_round_trips_and_other_text_is_refused() {
    let hash = Hash::of(b"x");
    assert_eq!(hash.to_string().parse(), Ok(hash));
    assert_eq!(serde_json::from_str::<Hash>(&serde_json::to_string(&hash).unwrap()).unwrap(), hash);
    for bad in ["", "../../etc/passwd", &hash.to_string().to_uppercase(), &hash.to_string()[1..]] {
        assert!(bad.parse::<Hash>().is_err(), "{bad}");
    }
}

#[test]
fn the_limit_is_kept_and_a_refused_blob_leaves_nothing() {
    let (dir, store) = store();
    store.set_limit(8);
    store.put(&b"12345"[..]).unwrap();
    let error = store.put(&b"abcdef"[..]).unwrap_err();
    assert!(matches!(error, BlobError::OverLimit { needed: 6, used: 5, limit: 8 }), "{error}");
    assert_eq!((store.used_bytes(), store.free_bytes()), (5, 3));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_source_that_fails_leaves_nothing() {
    struct Broken(bool);
    impl io::Read for Broken {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if std::mem::replace(&mut self.0, true) {
                return Err(io::Error::other("gone"));
            }
            buffer[0] = 1;
            Ok(1)
        }
    }
    let (dir, store) = store();
    assert!(matches!(store.put(Broken(false)), Err(BlobError::Source(_))));
    assert_eq!(store.used_bytes(), 0);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_fetch_goes_on_after_a_restart() {
    let (dir, store) = store();
    let hash = Hash::of(b"abcdef");
    let mut fetch = store.put_expected(hash, 6).unwrap();
    assert!(matches!(store.put_expected(hash, 6), Err(BlobError::Busy(_))));
    fetch.append(b"abc").unwrap();
    drop((fetch, store));

    let store = BlobStore::open(dir.path()).unwrap();
    assert_eq!((store.partial_len(&hash), store.used_bytes(), store.has(&hash)), (3, 3, false));
    let mut fetch = store.put_expected(hash, 6).unwrap();
    assert_eq!(fetch.len(), 3);
    assert!(matches!(fetch.append(b"defg"), Err(BlobError::Length { .. })));
    fetch.append(b"def").unwrap();
    assert!(fetch.is_complete());
    fetch.finish().unwrap();
    assert_eq!((store.read_all(&hash, 9).unwrap().as_slice(), store.used_bytes()), (&b"abcdef"[..], 6));

    let again = store.put_expected(hash, 6).unwrap();
    assert!(again.is_complete());
    again.finish().unwrap();
}

#[test]
fn wrong_or_short_content_never_becomes_a_blob() {
    let (dir, store) = store();
    let hash = Hash::of(b"good");
    let mut fetch = store.put_expected(hash, 4).unwrap();
    fetch.append(b"ba").unwrap();
    assert!(matches!(fetch.finish(), Err(BlobError::Length { expected: 4, found: 2, .. })));
    let mut fetch = store.put_expected(hash, 4).unwrap();
    fetch.append(b"ad").unwrap();
    assert!(matches!(fetch.finish(), Err(BlobError::Mismatch { .. })));
    assert_eq!((store.used_bytes(), store.has(&hash)), (0, false));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    assert!(store.put_expected(hash, 4).unwrap().is_empty());
}

/// A store on a disk of 1 GiB with so much room, beside what stays free.
fn on_disk(room: u64) -> (tempfile::TempDir, BlobStore, Arc<AtomicU64>) {
    let dir = tempfile::tempdir().unwrap();
    let room = Arc::new(AtomicU64::new(room));
    let told = Arc::clone(&room);
    let look =
        move |_: &Path| Ok(Disk { bytes: 1 << 30, free: Disk::RESERVE_MIN + told.load(Ordering::Relaxed) });
    let store = BlobStore::open_on(dir.path(), look).unwrap();
    (dir, store, room)
}

#[test]
fn what_stays_free_of_the_disk_is_left_alone() {
    let (dir, store, room) = on_disk(5);
    store.put(&b"hello"[..]).unwrap();
    let error = store.put(&b"hello!"[..]).unwrap_err();
    assert!(matches!(error, BlobError::DiskFull { needed: 6, .. }) && error.is_full(), "{error}");
    assert_eq!((store.used_bytes(), fs::read_dir(dir.path()).unwrap().count()), (5, 1));
    room.store(6, Ordering::Relaxed);
    store.put(&b"hello!"[..]).unwrap();

    let dir = tempfile::tempdir().unwrap();
    let store = BlobStore::open_on(dir.path(), |_| Err(io::Error::other("gone"))).unwrap();
    assert!(matches!(store.put(&b"hello"[..]), Err(BlobError::Io { .. })));
    assert_eq!((store.used_bytes(), fs::read_dir(dir.path()).unwrap().count()), (0, 0));
}

#[test]
fn a_fetch_without_room_leaves_nothing() {
    let (dir, store, room) = on_disk(6);
    let hash = Hash::of(b"abcdef");
    let left = || (store.partial_len(&hash), store.used_bytes(), fs::read_dir(dir.path()).unwrap().count());
    let mut fetch = store.put_expected(hash, 6).unwrap();
    fetch.append(b"abc").unwrap();
    room.store(2, Ordering::Relaxed);
    assert!(matches!(fetch.append(b"def"), Err(BlobError::DiskFull { needed: 3, .. })));
    assert_eq!(left(), (0, 0, 0));
    assert!(fetch.is_empty() && fetch.append(b"def").is_err() && fetch.finish().is_err());

    // What does not fit is not begun.
    assert!(matches!(store.put_expected(hash, 6), Err(BlobError::DiskFull { needed: 6, .. })));
    assert_eq!(left(), (0, 0, 0));
    room.store(6, Ordering::Relaxed);
    store.set_limit(5);
    assert!(matches!(store.put_expected(hash, 6), Err(BlobError::OverLimit { needed: 6, .. })));
    assert_eq!(left(), (0, 0, 0));
    store.set_limit(6);
    let mut fetch = store.put_expected(hash, 6).unwrap();
    fetch.append(b"abc").unwrap();
    drop(fetch);
    assert_eq!(left(), (3, 3, 1));
    // Nor is it taken up again: what has come makes room for others.
    room.store(2, Ordering::Relaxed);
    assert!(matches!(store.put_expected(hash, 6), Err(BlobError::DiskFull { needed: 3, .. })));
    assert_eq!(left(), (0, 0, 0));
    // What has come whole is kept, on whatever disk.
    room.store(6, Ordering::Relaxed);
    let mut fetch = store.put_expected(hash, 6).unwrap();
    fetch.append(b"abcdef").unwrap();
    drop(fetch);
    let full = |_: &Path| Ok(Disk { bytes: 1 << 30, free: 0 });
    let store = BlobStore::open_on(dir.path(), full).unwrap();
    store.put_expected(hash, 6).unwrap().finish().unwrap();
    assert!(store.is_sound(&hash));
}

#[test]
fn unfinished_fetches_are_listed_and_go_unless_somebody_is_at_work() {
    let (_dir, store) = store();
    let hash = Hash::of(b"abcdef");
    let (whole, _) = store.put(&b"hello"[..]).unwrap();
    let mut fetch = store.put_expected(hash, 6).unwrap();
    fetch.append(b"abc").unwrap();
    assert_eq!(store.list_partials().unwrap(), vec![(hash, 3)]);
    assert!(!store.remove_partial(&hash).unwrap());
    store.remove(&hash).unwrap();
    assert_eq!(store.partial_len(&hash), 3);
    drop(fetch);
    assert!(store.remove_partial(&hash).unwrap() && store.remove_partial(&hash).unwrap());
    assert_eq!((store.list_partials().unwrap(), store.used_bytes()), (vec![], 5));
    assert_eq!(store.list().unwrap(), vec![(whole, 5)]);
}

#[test]
fn a_damaged_blob_is_found_and_deleted() {
    let (_dir, store) = store();
    let (hash, _) = store.put(&b"hello"[..]).unwrap();
    store.verify(&hash).unwrap();
    fs::write(store.path(&hash), b"hellO").unwrap();
    assert!(matches!(store.verify(&hash), Err(BlobError::Mismatch { .. })));
    assert_eq!((store.has(&hash), store.used_bytes()), (false, 0));
    assert!(matches!(store.check(&hash), Err(BlobError::Missing(_))));
}

/// What a disk does: other bytes, and nothing that shows it.
fn spoil(path: &Path, bytes: &[u8]) {
    let modified = fs::metadata(path).unwrap().modified().unwrap();
    fs::write(path, bytes).unwrap();
    File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
}

#[test]
fn a_blob_is_read_through_once_and_again_when_it_is_doubted() {
    let (dir, store) = store();
    let (hash, _) = store.put(&b"hello"[..]).unwrap();
    assert!(store.is_sound(&hash), "its bytes were hashed on the way in");
    let store = BlobStore::open(dir.path()).unwrap();
    assert!(!store.is_sound(&hash), "an earlier process knew");
    store.check(&hash).unwrap();
    assert!(store.is_sound(&hash));

    spoil(&store.path(&hash), b"hellO");
    store.check(&hash).unwrap();
    store.doubt(&hash);
    assert!(matches!(store.check(&hash), Err(BlobError::Mismatch { .. })));
    assert_eq!((store.has(&hash), store.is_sound(&hash), store.used_bytes()), (false, false, 0));
}

#[test]
fn a_blob_that_somebody_wrote_to_is_read_again() {
    let (_dir, store) = store();
    for other in [&b"hell"[..], b"hello and more", b""] {
        let (hash, _) = store.put(&b"hello"[..]).unwrap();
        fs::write(store.path(&hash), other).unwrap();
        assert!(!store.is_sound(&hash));
        assert!(matches!(store.read_all(&hash, 100), Err(BlobError::Mismatch { .. })));
        assert!(!store.has(&hash));
    }
    let (hash, _) = store.put(&b"hello"[..]).unwrap();
    File::options().write(true).open(store.path(&hash)).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    assert!(!store.is_sound(&hash));
    assert_eq!(store.read_all(&hash, 5).unwrap(), b"hello");
    assert!(store.is_sound(&hash), "only touched");
}

#[test]
fn what_comes_again_takes_the_place_of_a_damaged_blob() {
    let (dir, store) = store();
    let (hash, _) = store.put(&b"hello"[..]).unwrap();
    fs::write(store.path(&hash), b"hellO there").unwrap();

    let store = BlobStore::open(dir.path()).unwrap();
    assert_eq!(store.put(&b"hello"[..]).unwrap(), (hash, 5));
    assert_eq!((store.is_sound(&hash), store.used_bytes()), (true, 5));
    assert_eq!(store.read_all(&hash, 5).unwrap(), b"hello");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

    store.remove(&hash).unwrap();
    let mut fetch = store.put_expected(hash, 5).unwrap();
    fetch.append(b"hello").unwrap();
    fs::write(store.path(&hash), b"other").unwrap();
    fetch.finish().unwrap();
    assert!(store.is_sound(&hash));
    assert_eq!(store.read_all(&hash, 5).unwrap(), b"hello");
}

#[test]
fn what_the_disk_cannot_read_is_deleted() {
    let (dir, store) = store();
    let hash = Hash::of(b"hello");
    // Nothing is at this process's address 0: the system answers as a broken disk does.
    std::os::unix::fs::symlink("/proc/self/mem", store.path(&hash)).unwrap();
    assert!(matches!(store.check(&hash), Err(BlobError::Unreadable { .. })));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// A check reads `given` from a pipe in the place of a blob; `meanwhile` happens before it has read to the end.
fn checked_while(
    store: &BlobStore,
    hash: Hash,
    given: &[u8],
    meanwhile: impl FnOnce(),
) -> Result<(), BlobError> {
    let path = store.path(&hash);
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
    std::thread::scope(|scope| {
        let check = scope.spawn(|| store.check(&hash));
        let mut pipe = File::options().write(true).open(&path).unwrap();
        pipe.write_all(given).unwrap();
        meanwhile();
        drop(pipe);
        check.join().unwrap()
    })
}

#[test]
fn a_check_deletes_nothing_that_came_while_it_read() {
    let (_dir, store) = store();
    let hash = Hash::of(b"hello");
    let put = || assert_eq!(store.put(&b"hello"[..]).unwrap().0, hash);
    checked_while(&store, hash, b"hellO", put).unwrap();
    assert_eq!((store.is_sound(&hash), store.used_bytes()), (true, 5));
    assert_eq!(store.read_all(&hash, 5).unwrap(), b"hello");
}

#[test]
fn a_check_remembers_nothing_of_what_went_while_it_read() {
    let (_dir, store) = store();
    let hash = Hash::of(b"hello");
    let found = checked_while(&store, hash, b"hello", || store.remove(&hash).unwrap());
    assert!(matches!(found, Err(BlobError::Missing(_))), "{found:?}");
    assert!(store.state().sound.is_empty());
}

#[test]
fn nothing_is_remembered_of_blobs_that_are_gone() {
    let (_dir, store) = store();
    for i in 0..10_u8 {
        let (hash, _) = store.put(&[i][..]).unwrap();
        if i % 2 == 0 {
            store.remove(&hash).unwrap();
        } else {
            spoil(&store.path(&hash), b"x");
            store.verify(&hash).unwrap_err();
        }
    }
    assert!(store.state().sound.is_empty());
}

#[test]
fn opening_clears_stage_models_and_unfinished_writes() {
    let (dir, store) = store();
    let kept = store.write_stage("resnet50/3..4", b"x").unwrap();
    let path = kept.path().to_owned();
    assert!(path.is_file());
    drop(kept);
    assert!(!path.exists());
    fs::write(path, b"x").unwrap();
    assert_eq!(store.stage_path("a/../b").parent(), Some(dir.path()));
    fs::write(dir.path().join(".new-7"), b"x").unwrap();
    fs::write(dir.path().join("README"), b"x").unwrap();
    let store = BlobStore::open(dir.path()).unwrap();
    assert_eq!((fs::read_dir(dir.path()).unwrap().count(), store.used_bytes()), (1, 0));
}
