//! Uploads and imports that are under way.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

/// Counts uploads and imports that are under way. What they cost is no rest; and the blobs of imports belong to no model
/// yet and must not be swept away. Nor must a blob that an import finds here and counts on.
#[derive(Debug, Clone, Default)]
pub struct Imports(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// Locked while a blob of no model is removed, so that no import begins meanwhile.
    imports: Mutex<Count>,
    uploads: AtomicUsize,
}

#[derive(Debug, Default)]
struct Count {
    under_way: usize,
    begun: u64,
    in_vain: u64,
}

/// No import is under way, and none has begun since this was so before, if it is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quiet {
    begun: u64,
    /// Imports that have ended without a model since the start: their blobs are nobody's.
    pub in_vain: u64,
}

impl Imports {
    /// Whether any import or upload is under way.
    pub fn is_at_work(&self) -> bool {
        self.quiet().is_none() || self.0.uploads.load(Ordering::Acquire) > 0
    }

    /// Whether no import is under way.
    pub fn quiet(&self) -> Option<Quiet> {
        let count = self.lock();
        (count.under_way == 0).then_some(Quiet { begun: count.begun, in_vain: count.in_vain })
    }

    /// Does this unless an import has begun since. None begins before it is done.
    pub fn if_still<T>(&self, quiet: Quiet, work: impl FnOnce() -> T) -> Option<T> {
        let count = self.lock();
        (count.under_way == 0 && count.begun == quiet.begun).then(work)
    }

    /// An import begins. It ends when the guard is dropped.
    pub fn begin(&self) -> ImportGuard {
        let mut count = self.lock();
        count.under_way += 1;
        count.begun += 1;
        ImportGuard { imports: self.clone(), in_vain: true }
    }

    /// A file of an upload comes in, until the guard is dropped. A client that is slow for hours keeps nothing from
    /// being swept.
    pub fn begin_upload(&self) -> UploadGuard {
        self.0.uploads.fetch_add(1, Ordering::AcqRel);
        UploadGuard(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Count> {
        self.0.imports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An import that is under way.
#[derive(Debug)]
pub struct ImportGuard {
    imports: Imports,
    in_vain: bool,
}

impl ImportGuard {
    /// There is a model that its blobs belong to, or there will be.
    pub fn was_not_in_vain(&mut self) {
        self.in_vain = false;
    }
}

impl Drop for ImportGuard {
    fn drop(&mut self) {
        let mut count = self.imports.lock();
        count.under_way -= 1;
        count.in_vain += u64::from(self.in_vain);
    }
}

/// An upload that is under way.
#[derive(Debug)]
pub struct UploadGuard(Imports);

impl Drop for UploadGuard {
    fn drop(&mut self) {
        self.0.0.uploads.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn an_import_ends_the_quiet_for_good() {
        let imports = Imports::default();
        let before = imports.quiet().unwrap();
        assert_eq!(imports.if_still(before, || 7), Some(7));
        let (mut first, second) = (imports.begin(), imports.begin());
        first.was_not_in_vain();
        drop(first);
        assert_eq!(
            (imports.if_still(before, || 7), imports.quiet(), imports.is_at_work()),
            (None, None, true)
        );
        drop(second);
        let after = imports.quiet().unwrap();
        assert_eq!((before.in_vain, after.in_vain), (0, 1));
        assert_eq!((imports.if_still(before, || 7), imports.if_still(after, || 7)), (None, Some(7)));
        let upload = imports.begin_upload();
        assert_eq!((imports.if_still(after, || 7), imports.is_at_work()), (Some(7), true));
        drop(upload);
        assert!(!imports.is_at_work());
    }

    #[test]
    fn no_import_begins_while_something_is_removed() {
        let imports = Imports::default();
        let quiet = imports.quiet().unwrap();
        let (is_in, may_go) = (Barrier::new(2), Barrier::new(2));
        std::thread::scope(|scope| {
            let removal = scope.spawn(|| {
                imports.if_still(quiet, || {
                    is_in.wait();
                    may_go.wait();
                })
            });
            is_in.wait();
            let import = scope.spawn(|| drop(imports.begin()));
            assert!(imports.0.imports.try_lock().is_err());
            may_go.wait();
            import.join().unwrap();
            assert_eq!(removal.join().unwrap(), Some(()));
        });
        assert_eq!(imports.quiet().map(|quiet| quiet.in_vain), Some(1));
    }
}
