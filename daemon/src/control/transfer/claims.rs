//! Who in this process is fetching which blob, or reading it through: two that want the same one share the work.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mesh_inference::blobs::Hash;
use tokio::sync::Notify;

/// The blobs that are being worked on.
#[derive(Debug, Clone, Default)]
pub(super) struct Claims(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    held: Mutex<BTreeSet<Hash>>,
    freed: Notify,
}

/// The right to work on one blob, until dropped.
#[derive(Debug)]
pub(super) struct Claim {
    claims: Claims,
    hash: Hash,
}

impl Claims {
    /// Waits until nobody else works on the blob. That is bounded by the other's own limits, because whoever holds a
    /// claim waits for no other one. The blob may be in the store by then.
    pub(super) async fn claim(&self, hash: Hash) -> Claim {
        loop {
            // Made before the look, so that a claim given up in between is not missed.
            let freed = self.0.freed.notified();
            if self.held().insert(hash) {
                return Claim { claims: self.clone(), hash };
            }
            freed.await;
        }
    }

    fn held(&self) -> MutexGuard<'_, BTreeSet<Hash>> {
        // The set is right after every statement, so a panic elsewhere does not spoil it.
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.held().remove(&self.hash);
        self.claims.0.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        time::Duration,
    };

    use mesh_inference::blobs::Hash;

    use super::Claims;

    #[tokio::test]
    async fn claims_of_one_blob_come_one_after_the_other() {
        let (claims, inside) = (Claims::default(), Arc::new(AtomicUsize::new(0)));
        let fetches = (0..50).map(|i| {
            let (claims, inside) = (claims.clone(), Arc::clone(&inside));
            tokio::spawn(async move {
                let _claim = claims.claim(Hash::from_bytes([i % 3; 32])).await;
                let others = inside.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                inside.fetch_sub(1, Ordering::SeqCst);
                others
            })
        });
        let all = futures::future::join_all(fetches.collect::<Vec<_>>());
        let seen = tokio::time::timeout(Duration::from_secs(10), all).await.unwrap();
        assert!(seen.into_iter().all(|others| others.unwrap() < 3), "one per blob, three blobs");
        assert!(claims.held().is_empty());
    }

    #[tokio::test]
    async fn a_fetch_that_is_given_up_frees_the_blob() {
        let (claims, hash) = (Claims::default(), Hash::from_bytes([7; 32]));
        let held = claims.claim(hash).await;
        let waiting = tokio::spawn({
            let claims = claims.clone();
            async move { drop(claims.claim(hash).await) }
        });
        tokio::task::yield_now().await;
        drop(held);
        tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
    }
}
