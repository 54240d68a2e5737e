//! Models that this device knows: manifests fetched when needed, parsed once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, atomic::AtomicU64},
};

use mesh_inference::{blobs::Hash, model::Model};

use super::{
    planning::StoredProfile,
    transfer::{FetchError, Transfer, Wanted},
};

/// Why a model's description is not at hand.
#[derive(Debug, thiserror::Error)]
pub enum ModelsError {
    /// Not here and nobody has it.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The replicated hash is no hash.
    #[error("`{0}` is not a model hash")]
    BadHash(String),
    /// Here, but it cannot be read.
    #[error("{what} {hash} cannot be read: {why}")]
    Unreadable {
        /// Manifest or profile.
        what: &'static str,
        /// Its hash.
        hash: Hash,
        /// Why.
        why: String,
    },
}

/// Shared cache of parsed manifests and profiles.
#[derive(Debug, Clone)]
pub struct Models {
    transfer: Transfer,
    parsed: Arc<Mutex<HashMap<String, Arc<Model>>>>,
    profiles: Arc<Mutex<HashMap<String, Arc<StoredProfile>>>>,
}

impl Models {
    /// Empty, fetching through `transfer`.
    pub fn new(transfer: Transfer) -> Self {
        Self { transfer, parsed: Arc::default(), profiles: Arc::default() }
    }

    /// A model if it has been parsed already.
    pub fn get(&self, hash: &str) -> Option<Arc<Model>> {
        lock(&self.parsed).get(hash).cloned()
    }

    /// Keeps a model that was just imported.
    pub fn put(&self, hash: &str, model: Arc<Model>) {
        lock(&self.parsed).insert(hash.to_owned(), model);
    }

    /// Drops what is not in `keep`.
    pub fn retain(&self, keep: &dyn Fn(&str) -> bool) {
        lock(&self.parsed).retain(|hash, _| keep(hash));
    }

    /// The model, fetching its manifest if it is not here.
    pub async fn ensure(&self, hash: &str) -> Result<Arc<Model>, ModelsError> {
        if let Some(model) = self.get(hash) {
            return Ok(model);
        }
        let (id, bytes) = self.read(hash).await?;
        let parsed = crate::background::spawn(move || Model::load(&bytes)).await;
        let unreadable = |why: String| ModelsError::Unreadable { what: "manifest", hash: id, why };
        let model = parsed.map_err(|e| unreadable(e.to_string()))?.map_err(|e| unreadable(e.to_string()))?;
        let model = Arc::new(model);
        self.put(hash, Arc::clone(&model));
        Ok(model)
    }

    /// A profile, fetching it if it is not here.
    pub async fn profile(&self, hash: &str) -> Result<Arc<StoredProfile>, ModelsError> {
        if let Some(profile) = lock(&self.profiles).get(hash).cloned() {
            return Ok(profile);
        }
        let (id, bytes) = self.read(hash).await?;
        let profile: StoredProfile = super::rpc::decode(&bytes).ok_or_else(|| ModelsError::Unreadable {
            what: "profile",
            hash: id,
            why: "it is no profile of this version".into(),
        })?;
        let profile = Arc::new(profile);
        lock(&self.profiles).insert(hash.to_owned(), Arc::clone(&profile));
        Ok(profile)
    }

    /// The bytes of a manifest or a profile. A copy that is damaged here is fetched again before; what cannot be read all
    /// the same was made so, and no other device has it otherwise.
    async fn read(&self, hash: &str) -> Result<(Hash, Vec<u8>), ModelsError> {
        let id: Hash = hash.parse().map_err(|_| ModelsError::BadHash(hash.to_owned()))?;
        self.transfer.fetch(&[Wanted { hash: id, bytes: None }], &AtomicU64::new(0)).await?;
        let path = self.transfer.store().path(&id);
        let bytes = tokio::fs::read(&path).await.map_err(|e| ModelsError::Unreadable {
            what: "blob",
            hash: id,
            why: e.to_string(),
        })?;
        Ok((id, bytes))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
