//! ONNX Runtime: finding and loading the shared library, sessions, runs.
//!
//! The library is loaded at run time, once per process, and stays loaded. Nothing here panics when it is missing,
//! too old or something else: [`Engine::load`] says what was tried and what to do.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ort::environment::Environment;

mod error;
mod search;
mod session;

pub use error::{EngineError, RunError};
pub use session::{CancelToken, Dim, ModelSource, Optimisation, Port, Session, SessionOptions};

/// Oldest ONNX Runtime that is accepted (minor version of 1.x): what the `ort` crate is built for.
pub const OLDEST_MINOR: u32 = ort::MINOR_VERSION;

/// ONNX Runtime, loaded. Clones share it.
#[derive(Debug, Clone)]
pub struct Engine(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    environment: Environment,
    library: PathBuf,
    version: String,
}

/// A process can load one ONNX Runtime, once; everybody gets that one.
static LOADED: Mutex<Option<Engine>> = Mutex::new(None);

impl Engine {
    /// Loads the shared library at `library` (a file, or a folder that holds one), or looks for it: in
    /// `ORT_DYLIB_PATH`, next to the executable, in `target/onnxruntime`, and in the system's library folders.
    ///
    /// A second call gives the engine that is already loaded; it is an error when it asks for another library.
    pub fn load(library: Option<&Path>) -> Result<Self, EngineError> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(engine) = &*loaded {
            return engine.is_what_was_asked_for(library);
        }
        let engine = search::load(library)?;
        *loaded = Some(engine.clone());
        Ok(engine)
    }

    fn is_what_was_asked_for(&self, library: Option<&Path>) -> Result<Self, EngineError> {
        match library {
            Some(asked) if search::resolve(asked).as_deref() != Some(self.library()) => {
                Err(EngineError::AnotherIsLoaded {
                    asked: asked.to_owned(),
                    loaded: self.library().to_owned(),
                })
            }
            Some(_) | None => Ok(self.clone()),
        }
    }

    /// Version of the loaded library, such as `1.31.1`; without the last number when only `1.31` can be known.
    pub fn version(&self) -> &str {
        &self.0.version
    }

    /// The file that was loaded.
    pub fn library(&self) -> &Path {
        &self.0.library
    }

    /// Makes a session: parses, checks and optimises the model and allocates its weights.
    pub fn session(&self, source: ModelSource<'_>, options: &SessionOptions) -> Result<Session, EngineError> {
        session::create(self, source, options)
    }

    /// Refuses execution providers that this library or this machine does not have, before any model needs them.
    pub fn check_providers(&self, names: &[String]) -> Result<(), EngineError> {
        session::check_providers(self, names)
    }

    /// A token with which another thread can end one run.
    pub fn cancel_token(&self) -> Result<CancelToken, EngineError> {
        CancelToken::new()
    }

    fn environment(&self) -> &Environment {
        &self.0.environment
    }
}

#[cfg(test)]
pub(crate) mod tests;
