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

#[test]
fn a_damaged_blob_is_found_and_deleted() {
    let (_dir, store) = store();
    let (hash, _) = store.put(&b"hello"[..]).unwrap();
    store.verify(&hash).unwrap();
    fs::write(store.path(&hash), b"hellO").unwrap();
    assert!(matches!(store.verify(&hash), Err(BlobError::Mismatch { .. })));
    assert!(!store.has(&hash));
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
