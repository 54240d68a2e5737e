//! Brings a model into the form in which manifests hold it.

use std::collections::HashSet;

use crate::{
    blobs::BlobStore,
    graph::{Graph, Origin},
    manifest::blob_of,
    onnx::{
        GraphProto, ModelProto, NodeProto, TensorProto,
        walk::{Place, tensors_mut},
    },
};

use super::ImportError;

/// Largest tensor in an attribute or function that is kept in the manifest.
const MAX_ATTRIBUTE_BYTES: u64 = 64 << 20;

/// In format versions below this one every initializer is an input as well, and a constant all the same.
const INITIALIZERS_ARE_NO_INPUTS: i64 = 4;

/// Drops what inference does not need, and puts large tensors where ONNX Runtime takes them from blobs.
pub(super) fn prepare(model: &mut ModelProto, store: &BlobStore) -> Result<(), ImportError> {
    if model.opset_import.is_empty() {
        let detail = "no operator set is imported: the file may be cut short".to_owned();
        return Err(ImportError::Version { detail });
    }
    if let Some(graph) = &mut model.graph {
        promote_constants(graph);
        clear_repeated_names(graph);
        let initial: HashSet<String> = initializer_names(graph).map(str::to_owned).collect();
        graph.input.retain(|input| !initial.contains(&input.name));
    }
    model.ir_version = model.ir_version.max(INITIALIZERS_ARE_NO_INPUTS);
    model.configuration.clear();
    tensors_mut(model, &mut |place, tensor| settle(place, tensor, store))?;
    prune(model)
}

fn initializer_names(graph: &GraphProto) -> impl Iterator<Item = &str> {
    let dense = graph.initializer.iter().map(|tensor| tensor.name.as_str());
    dense.chain(graph.sparse_initializer.iter().filter_map(|s| Some(s.values.as_ref()?.name.as_str())))
}

/// Makes an initializer of each `Constant` node whose tensor has become a blob, in subgraphs too.
fn promote_constants(graph: &mut GraphProto) {
    let mut promoted = Vec::new();
    graph.node.retain_mut(|node| match large_constant(node) {
        Some(tensor) => {
            promoted.push(tensor);
            false
        }
        None => true,
    });
    graph.initializer.extend(promoted);
    let attributes = graph.node.iter_mut().flat_map(|node| &mut node.attribute);
    for attribute in attributes {
        attribute.g.iter_mut().chain(&mut attribute.graphs).for_each(promote_constants);
    }
}

/// Takes the name off nodes that share it, which ONNX Runtime would refuse; nothing refers to a node by name.
fn clear_repeated_names(graph: &mut GraphProto) {
    let mut seen = HashSet::new();
    graph.node.iter_mut().filter(|node| !seen.insert(node.name.clone())).for_each(|node| node.name.clear());
}

fn large_constant(node: &mut NodeProto) -> Option<TensorProto> {
    if node.op_type != "Constant" || !matches!(node.domain.as_str(), "" | "ai.onnx") {
        return None;
    }
    let name = node.output.first()?.clone();
    let value = node.attribute.iter_mut().find(|attribute| attribute.name == "value")?;
    let tensor = value.t.take_if(|tensor| tensor.is_external())?;
    Some(TensorProto { name, ..tensor })
}

/// Leaves external data where ONNX Runtime takes it and nowhere else.
fn settle(place: Place, tensor: &mut TensorProto, store: &BlobStore) -> Result<(), ImportError> {
    if !tensor.is_external() {
        // One form for what says nothing, so that one model has one hash.
        tensor.data_location = None;
        tensor.external_data.clear();
        return Ok(());
    }
    match place {
        Place::Initializer => Ok(()),
        Place::Attribute => put_back(tensor, store),
        Place::Elsewhere => Err(ImportError::Tensor {
            tensor: tensor.name.clone(),
            detail: "sparse tensors and functions cannot lie in another file".to_owned(),
        }),
    }
}

/// Takes the tensor of an attribute out of its blob again: ONNX Runtime reads no external data there.
fn put_back(tensor: &mut TensorProto, store: &BlobStore) -> Result<(), ImportError> {
    if let Some(blob) = blob_of(tensor) {
        tensor.raw_data = Some(store.read_all(&blob.hash, MAX_ATTRIBUTE_BYTES)?);
        tensor.data_location = None;
        tensor.external_data.clear();
    }
    Ok(())
}

/// Deletes nodes, initializers and declarations that no output needs; puts the nodes into the order of execution.
fn prune(model: &mut ModelProto) -> Result<(), ImportError> {
    let analysis = Graph::new(model)?;
    let Some(graph) = &mut model.graph else { return Ok(()) };
    let order: Vec<usize> = analysis.weight_order.iter().chain(&analysis.order).copied().collect();
    let live = order.iter().map(|&node| &analysis.nodes[node]);
    let mut used: HashSet<usize> = live
        .flat_map(|node| node.reads.iter().chain(&node.writes))
        .chain(&analysis.outputs)
        .copied()
        .collect();
    let name = |id: usize| analysis.values[id].name.as_str();
    let names: HashSet<&str> = used.iter().map(|&id| name(id)).collect();
    graph.value_info.retain(|info| names.contains(info.name.as_str()));
    graph.quantization_annotation.retain(|note| names.contains(note.tensor_name.as_str()));
    let notes = graph.quantization_annotation.iter().flat_map(|note| &note.quant_parameter_tensor_names);
    used.extend(notes.filter_map(|entry| analysis.value(&entry.value)));
    let origins: HashSet<Origin> = used.iter().map(|&id| analysis.values[id].origin).collect();

    let mut nodes: Vec<Option<NodeProto>> = std::mem::take(&mut graph.node).into_iter().map(Some).collect();
    graph.node = order.iter().filter_map(|&node| nodes[node].take()).collect();
    keep_by_index(&mut graph.initializer, |i| origins.contains(&Origin::Initializer(i)));
    keep_by_index(&mut graph.sparse_initializer, |i| origins.contains(&Origin::Sparse(i)));
    Ok(())
}

fn keep_by_index<T>(items: &mut Vec<T>, keep: impl Fn(usize) -> bool) {
    let mut index = 0..;
    items.retain(|_| index.next().is_some_and(&keep));
}
