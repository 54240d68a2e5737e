//! Visits every tensor of a model, wherever it is kept.

use super::{AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto};

/// Where a tensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// An initializer of the graph or of a subgraph: ONNX Runtime takes external data here.
    Initializer,
    /// An attribute of a node of the graph or of a subgraph.
    Attribute,
    /// A sparse tensor, or anything in a function.
    Elsewhere,
}

/// Calls `visit` for every tensor. Recursion is bounded by the nesting that prost decodes.
pub(crate) fn tensors_mut<E>(
    model: &mut ModelProto,
    visit: &mut impl FnMut(Place, &mut TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    if let Some(graph) = &mut model.graph {
        in_graph(graph, true, visit)?;
    }
    for function in &mut model.functions {
        function
            .attribute_proto
            .iter_mut()
            .try_for_each(|attribute| in_attribute(attribute, false, visit))?;
        function.node.iter_mut().try_for_each(|node| in_node(node, false, visit))?;
    }
    Ok(())
}

fn in_graph<E>(
    graph: &mut GraphProto,
    outside_functions: bool,
    visit: &mut impl FnMut(Place, &mut TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    let place = if outside_functions { Place::Initializer } else { Place::Elsewhere };
    graph.initializer.iter_mut().try_for_each(|tensor| visit(place, tensor))?;
    graph.sparse_initializer.iter_mut().try_for_each(|sparse| in_sparse(sparse, visit))?;
    graph.node.iter_mut().try_for_each(|node| in_node(node, outside_functions, visit))
}

fn in_node<E>(
    node: &mut NodeProto,
    outside_functions: bool,
    visit: &mut impl FnMut(Place, &mut TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    node.attribute.iter_mut().try_for_each(|attribute| in_attribute(attribute, outside_functions, visit))
}

fn in_attribute<E>(
    attribute: &mut AttributeProto,
    outside_functions: bool,
    visit: &mut impl FnMut(Place, &mut TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    let place = if outside_functions { Place::Attribute } else { Place::Elsewhere };
    let tensors = attribute.t.iter_mut().chain(&mut attribute.tensors);
    tensors.into_iter().try_for_each(|tensor| visit(place, tensor))?;
    let sparse = attribute.sparse_tensor.iter_mut().chain(&mut attribute.sparse_tensors);
    sparse.into_iter().try_for_each(|sparse| in_sparse(sparse, visit))?;
    let graphs = attribute.g.iter_mut().chain(&mut attribute.graphs);
    graphs.into_iter().try_for_each(|graph| in_graph(graph, outside_functions, visit))
}

fn in_sparse<E>(
    sparse: &mut SparseTensorProto,
    visit: &mut impl FnMut(Place, &mut TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    let tensors = sparse.values.iter_mut().chain(&mut sparse.indices);
    tensors.into_iter().try_for_each(|tensor| visit(Place::Elsewhere, tensor))
}
