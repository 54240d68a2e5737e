//! Where the shared library may be, and loading it.

use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ort::logging::LogLevel;

use super::{Engine, EngineError, Inner};

const STEM: &str = "libonnxruntime.so";

/// Loads what was named, or the first usable library of the usual places.
pub(super) fn load(library: Option<&Path>) -> Result<Engine, EngineError> {
    let named = library
        .map(Path::to_owned)
        .or_else(|| std::env::var_os("ORT_DYLIB_PATH").filter(|value| !value.is_empty()).map(PathBuf::from));
    if let Some(path) = named {
        let unusable = |reason| EngineError::Unusable { path: path.clone(), reason };
        let file = resolve(&path).ok_or_else(|| unusable("there is no such file".to_owned()))?;
        return load_file(file).map_err(unusable);
    }
    let mut tried = Vec::new();
    for folder in folders() {
        let Some(file) = resolve(&folder).filter(|_| folder.is_dir()) else {
            tried.push(format!("{}: none", folder.display()));
            continue;
        };
        match load_file(file.clone()) {
            Ok(engine) => return Ok(engine),
            Err(reason) => tried.push(format!("{}: {reason}", file.display())),
        }
    }
    Err(EngineError::NotFound { tried })
}

/// The file behind a path: itself with links followed, or the newest library in the folder that it is.
pub(super) fn resolve(path: &Path) -> Option<PathBuf> {
    if path.is_dir() { newest_in(path)?.canonicalize().ok() } else { path.canonicalize().ok() }
}

/// The library with the highest version in its name; the plain name counts as the highest, being what was chosen.
fn newest_in(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name();
            let version = version_in_name(&name)?;
            Some((version.is_empty(), version, folder.join(name)))
        })
        .max()
        .map(|(_, _, path)| path)
}

/// The numbers after `libonnxruntime.so`; `None` for any other file.
fn version_in_name(name: &OsStr) -> Option<Vec<u32>> {
    let rest = name.to_str()?.strip_prefix(STEM)?;
    if rest.is_empty() {
        return Some(Vec::new());
    }
    rest.strip_prefix('.')?.split('.').map(|part| part.parse().ok()).collect()
}

fn folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if let Some(folder) = std::env::current_exe().ok().as_deref().and_then(Path::parent) {
        folders.extend([folder.to_owned(), folder.join("../lib/mesh"), folder.join("../onnxruntime")]);
        folders.push(folder.join("../target/onnxruntime"));
    }
    folders.push(PathBuf::from("target/onnxruntime"));
    let triplet = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    for folder in
        ["/usr/lib/mesh", "/usr/local/lib", "/usr/lib", &triplet, "/usr/lib64", "/opt/onnxruntime/lib"]
    {
        folders.push(PathBuf::from(folder));
    }
    folders
}

fn load_file(library: PathBuf) -> Result<Engine, String> {
    // The `ort` crate panics on libraries that lie about their interface; to us that is one more unusable file.
    let environment = catch_unwind(AssertUnwindSafe(|| {
        let builder = ort::init_from(&library).map_err(reason)?;
        builder.with_name("mesh").with_telemetry(false).build().map_err(|error| error.to_string())
    }))
    .unwrap_or_else(|_| {
        Err("it does not offer the interface of ONNX Runtime that it claims to".to_owned())
    })?;
    // Failures come back as errors with the same text, and verbose messages cost time even when nobody reads them.
    let verbose = tracing::enabled!(target: "ort", tracing::Level::TRACE);
    environment.set_log_level(if verbose { LogLevel::Verbose } else { LogLevel::Fatal });
    let version = version(&library);
    tracing::info!(library = %library.display(), version, "ONNX Runtime is loaded");
    Ok(Engine(Arc::new(Inner { environment, library, version })))
}

/// What is wrong with a library, without its path.
fn reason(error: ort::LoadDynamicError) -> String {
    use ort::LoadDynamicError as E;
    match error {
        E::Dlopen { error, .. } => {
            // What the loader said is in the source; the error itself says only that it failed.
            std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string)
        }
        E::MissingApi { .. } => "it is another library, not ONNX Runtime".to_owned(),
        E::InvalidVersionString => "it gives no readable version".to_owned(),
        E::BadVersion { version_str, .. } => format!("its version {version_str} is too old"),
    }
}

/// The library tells its minor version; its file name usually tells the rest.
fn version(library: &Path) -> String {
    let minor = ort::util::probe(library).unwrap_or(super::OLDEST_MINOR);
    let named = library.file_name().and_then(version_in_name).unwrap_or_default();
    if named.len() > 2 && named[..2] == [1, minor] {
        let parts: Vec<String> = named.iter().map(u32::to_string).collect();
        return parts.join(".");
    }
    format!("1.{minor}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_library_of_a_folder_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let touch = |name: &str| drop(std::fs::File::create(folder.path().join(name)).unwrap());
        touch("libonnxruntime_providers_shared.so");
        touch("libonnxruntime.so.txt");
        assert_eq!(newest_in(folder.path()), None);
        touch("libonnxruntime.so.1.9.1");
        touch("libonnxruntime.so.1.31.1");
        touch("libonnxruntime.so.1");
        assert_eq!(newest_in(folder.path()), Some(folder.path().join("libonnxruntime.so.1.31.1")));
        touch("libonnxruntime.so");
        assert_eq!(newest_in(folder.path()), Some(folder.path().join("libonnxruntime.so")));
    }
}
