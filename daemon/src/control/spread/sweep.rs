//! Removing what no model needs.

use std::collections::BTreeSet;

use mesh_inference::blobs::{BlobStore, Hash};

use crate::control::deploy::{Imports, Quiet};

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Swept {
    /// Something was removed.
    pub(super) has_freed: bool,
    /// All was looked at, and nothing stays that may go in a moment.
    pub(super) is_complete: bool,
}

/// Removes all blobs and unfinished fetches but these. Ends when an import begins, which may count on any blob that it
/// finds here, or may have made one: that is asked before each removal.
pub(super) fn sweep(store: &BlobStore, keep: &BTreeSet<Hash>, imports: &Imports, quiet: Quiet) -> Swept {
    let mut swept = Swept { has_freed: false, is_complete: false };
    let (Ok(blobs), Ok(partials)) = (store.list(), store.list_partials()) else { return swept };
    let mut is_complete = true;
    let blobs = blobs.into_iter().map(|(hash, bytes)| (hash, bytes, true));
    let partials = partials.into_iter().map(|(hash, bytes)| (hash, bytes, false));
    for (hash, bytes, is_whole) in blobs.chain(partials).filter(|(hash, ..)| !keep.contains(hash)) {
        let removed = imports.if_still(quiet, || match is_whole {
            true => store.remove(&hash).map(|()| true),
            false => store.remove_partial(&hash),
        });
        match removed {
            None => return swept,
            Some(Ok(true)) => {
                tracing::debug!(%hash, bytes, is_whole, "blob of no model removed");
                swept.has_freed = true;
            }
            // Somebody still fetches it.
            Some(Ok(false)) => is_complete = false,
            Some(Err(error)) => tracing::warn!(%hash, %error, "a blob of no model cannot be removed"),
        }
    }
    swept.is_complete = is_complete;
    swept
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Swept = Swept { has_freed: true, is_complete: true };
    const NOTHING: Swept = Swept { has_freed: false, is_complete: true };

    /// A store with two blobs and two unfinished fetches, one each of a model.
    fn store() -> (tempfile::TempDir, BlobStore, BTreeSet<Hash>) {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::open(folder.path()).unwrap();
        let (kept, _) = store.put(&b"kept"[..]).unwrap();
        store.put(&b"nobody's"[..]).unwrap();
        for whole in [&b"fetched"[..], b"given up"] {
            let mut fetch = store.put_expected(Hash::of(whole), whole.len() as u64).unwrap();
            fetch.append(&whole[..5]).unwrap();
        }
        (folder, store, BTreeSet::from([kept, Hash::of(b"fetched")]))
    }

    /// Swept while nothing is imported.
    fn swept(store: &BlobStore, keep: &BTreeSet<Hash>) -> Swept {
        let imports = Imports::default();
        sweep(store, keep, &imports, imports.quiet().unwrap())
    }

    fn held(store: &BlobStore) -> (usize, usize) {
        (store.list().unwrap().len(), store.list_partials().unwrap().len())
    }

    #[test]
    fn what_no_model_needs_goes_unfinished_fetches_too() {
        let (_folder, store, keep) = store();
        assert_eq!(swept(&store, &keep), ALL);
        assert_eq!((held(&store), store.used_bytes()), ((1, 1), 9));
        assert_eq!(swept(&store, &keep), NOTHING);
        assert_eq!(swept(&store, &BTreeSet::new()), ALL);
        assert_eq!((held(&store), store.used_bytes()), ((0, 0), 0));
    }

    #[test]
    fn a_fetch_under_way_is_looked_at_again() {
        let (_folder, store, keep) = store();
        let whole = b"given up";
        let fetch = store.put_expected(Hash::of(whole), whole.len() as u64).unwrap();
        assert_eq!(swept(&store, &keep), Swept { has_freed: true, is_complete: false });
        assert_eq!(held(&store), (1, 2));
        drop(fetch);
        assert_eq!(swept(&store, &keep), ALL);
    }

    /// One that has ended, too: it may be the model of what `keep` does not name yet.
    #[test]
    fn an_import_keeps_everything() {
        let (_folder, store, keep) = store();
        let imports = Imports::default();
        let quiet = imports.quiet().unwrap();
        for import in [Some(imports.begin()), None] {
            assert_eq!(sweep(&store, &keep, &imports, quiet), Swept { has_freed: false, is_complete: false });
            drop(import);
        }
        assert_eq!(held(&store), (2, 2));
        assert_eq!(sweep(&store, &keep, &imports, imports.quiet().unwrap()), ALL);
    }
}
