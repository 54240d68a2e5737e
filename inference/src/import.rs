//! Import of an ONNX file: large tensors go into the blob store one at a time, the rest becomes the manifest.

use std::{collections::HashMap, path::Path, sync::Arc};

use crate::{
    blobs::{BlobStore, Hash},
    cut,
    graph::Graph,
    manifest::Manifest,
    memory::Thrift,
    model::{Model, ValueType},
    onnx::ModelProto,
    runtime::Engine,
};

mod error;
mod payload;
mod prepare;
mod skim;
#[cfg(test)]
mod tests;
mod typing;
mod wire;

pub use crate::manifest::MAX_MANIFEST_BYTES;
pub use error::ImportError;

/// What an import is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Reading the files and storing their tensors.
    Reading,
    /// ONNX Runtime infers the types of intermediate values.
    Typing,
    /// Choosing cut positions and writing the manifest.
    Cutting,
}

/// How far an import is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// Bytes read.
    pub done_bytes: u64,
    /// Bytes of the model file and of those external files that have been met so far.
    pub total_bytes: u64,
}

/// An imported model. Its manifest and its blobs are in the store.
#[derive(Debug, Clone)]
pub struct Imported {
    /// Hash of the manifest: the model's name in the cluster, and its manifest's in the store.
    pub hash: Hash,
    /// The model.
    pub model: Arc<Model>,
}

/// Imports the ONNX file at `file`, whose external data lie in `folder`. Memory holds the graph and its small
/// tensors, never a large tensor. Blobs that are in the store before an error stay there.
pub fn import(
    file: &Path,
    folder: &Path,
    store: &BlobStore,
    engine: &Engine,
    progress: &mut dyn FnMut(Progress),
) -> Result<Imported, ImportError> {
    let _thrift = Thrift::start();
    let mut last = Progress { phase: Phase::Reading, done_bytes: 0, total_bytes: 0 };
    let mut proto = skim::skim(file, folder, store, &mut |now| {
        last = now;
        progress(now);
    })?;
    prepare::prepare(&mut proto, store)?;
    let graph = Graph::new(&proto)?;
    let spans = cut::spans(&graph);
    progress(Progress { phase: Phase::Typing, ..last });
    let types = typing::types(&proto, &graph, &spans, store, engine)?;
    progress(Progress { phase: Phase::Cutting, ..last });
    let manifest = manifest(&proto, &graph, &spans, &types).encode();
    let model = Arc::new(Model::load(&manifest)?);
    let (hash, _) = store.put(manifest.as_slice())?;
    Ok(Imported { hash, model })
}

/// Chooses the cuts and keeps the types of what crosses them.
fn manifest(
    proto: &ModelProto,
    graph: &Graph,
    spans: &[Option<cut::Span>],
    types: &HashMap<String, ValueType>,
) -> Manifest {
    let type_of = |id: usize| types.get(&graph.values[id].name);
    let sizes = (0..graph.values.len()).map(|id| type_of(id).map(ValueType::typical_bytes)).collect();
    let positions = cut::positions(graph, spans, &sizes);
    let mut crossing: Vec<usize> =
        positions.iter().flat_map(|&position| cut::crossing(graph, spans, position)).collect();
    crossing.sort_unstable();
    crossing.dedup();
    let kept = crossing.into_iter().filter_map(|id| type_of(id).cloned()).collect();
    Manifest::new(cut::CUT_VERSION, positions, kept, proto)
}
