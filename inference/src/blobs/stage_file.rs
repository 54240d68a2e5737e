//! The model file of a stage, while sessions are made from it.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use super::{BlobError, BlobStore, io_error, write_error};

/// A model file beside its blobs, deleted when dropped. ONNX Runtime needs it only while it makes a session.
#[derive(Debug)]
pub struct StageFile(PathBuf);

impl StageFile {
    pub(super) fn write(store: &BlobStore, name: &str, onnx: &[u8]) -> Result<Self, BlobError> {
        // Not durable and not atomic on purpose: nobody else reads it, and none outlives the process.
        let file = Self(store.stage_path(name));
        let mut open = File::create(&file.0).map_err(|e| io_error("create", &file.0, e))?;
        open.write_all(onnx).map_err(|e| write_error(&file.0, onnx.len() as u64, e))?;
        Ok(file)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for StageFile {
    fn drop(&mut self) {
        // What cannot be deleted now is deleted when the store is opened again.
        let _ = fs::remove_file(&self.0);
    }
}
