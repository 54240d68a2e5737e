//! Takes a run of blocks out of a model, as an ONNX model of its own.

use std::collections::{BTreeSet, HashSet};

use prost::Message as _;

use crate::{
    blobs::BlobRef,
    graph::{Origin, ValueId, subgraphs},
    manifest::blob_of,
    model::{Model, ModelError, StageModel, ValueType},
    onnx::{
        Dimension, DimensionValue, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto,
        TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
    },
};

#[cfg(test)]
mod tests;

/// What a run of blocks is made of, as indices into the model's graph.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    /// Nodes in an order in which they can run, those that make weights first.
    nodes: Vec<usize>,
    initializers: BTreeSet<usize>,
    sparse: BTreeSet<usize>,
    pub(crate) blobs: BTreeSet<BlobRef>,
    pub(crate) weight_bytes: u64,
}

impl Model {
    /// The stage that runs blocks `first` to `last`, both included.
    pub fn stage(&self, first: usize, last: usize) -> Result<StageModel, ModelError> {
        let blocks = self.blocks().len();
        if first > last || last >= blocks {
            return Err(ModelError::Blocks { first_asked: first, last_asked: last, last: blocks - 1 });
        }
        let parts = self.parts(first, last);
        let (from, to) = (&self.cuts()[first].tensors, &self.cuts()[last + 1].tensors);
        let arriving: HashSet<&str> = from.iter().map(String::as_str).collect();
        let read: HashSet<&str> = parts.nodes.iter().flat_map(|&node| self.reads(node)).collect();
        let typed = |name: &String| self.types[name].clone();
        let inputs: Vec<ValueType> =
            from.iter().filter(|name| read.contains(name.as_str())).map(typed).collect();
        let (passthrough, made): (Vec<&String>, Vec<&String>) =
            to.iter().partition(|name| arriving.contains(name.as_str()));
        let outputs: Vec<ValueType> = made.into_iter().map(typed).collect();
        Ok(StageModel {
            onnx: self.assemble(&parts, &inputs, &outputs).encode_to_vec(),
            inputs,
            outputs,
            passthrough: passthrough.into_iter().cloned().collect(),
            blobs: parts.blobs.into_iter().collect(),
            weight_bytes: parts.weight_bytes,
        })
    }

    /// What blocks `first` to `last` are made of. The blocks must exist.
    pub(crate) fn parts(&self, first: usize, last: usize) -> Parts {
        let own = &self.graph.order[self.positions[first]..self.positions[last + 1]];
        let mut parts = Parts::default();
        let mut needed: Vec<ValueId> =
            own.iter().flat_map(|&node| self.graph.nodes[node].reads.iter().copied()).collect();
        if self.positions[last + 1] == self.graph.order.len() {
            // Outputs that are weights leave with the last stage.
            needed.extend(&self.graph.outputs);
        }
        let mut makers = HashSet::new();
        self.follow(needed, &mut makers, &mut parts);
        let names = self.names(&makers, own);
        self.follow(self.quantisation(&names), &mut makers, &mut parts);
        let makers_in_order = self.graph.weight_order.iter().copied().filter(|node| makers.contains(node));
        parts.nodes = makers_in_order.chain(own.iter().copied()).collect();
        self.weigh(&mut parts);
        parts
    }

    /// Adds the weights among `needed`, the nodes that make them, and what those need in turn.
    fn follow(&self, mut needed: Vec<ValueId>, makers: &mut HashSet<usize>, parts: &mut Parts) {
        while let Some(value) = needed.pop() {
            let value = &self.graph.values[value];
            match value.origin {
                Origin::Initializer(i) => {
                    parts.initializers.insert(i);
                }
                Origin::Sparse(i) => {
                    parts.sparse.insert(i);
                }
                Origin::Node(node) if value.weight => {
                    if makers.insert(node) {
                        needed.extend(&self.graph.nodes[node].reads);
                    }
                }
                Origin::Node(_) | Origin::Input => {}
            }
        }
    }

    /// Names of all values that the nodes read or write.
    fn names(&self, makers: &HashSet<usize>, own: &[usize]) -> HashSet<&str> {
        let nodes = makers.iter().chain(own).map(|&node| &self.graph.nodes[node]);
        nodes.flat_map(|node| node.reads.iter().chain(&node.writes)).map(|&id| self.name(id)).collect()
    }

    /// Scales and zero points that annotations of the named values point at.
    fn quantisation(&self, names: &HashSet<&str>) -> Vec<ValueId> {
        let annotations = &self.top().quantization_annotation;
        let used = annotations.iter().filter(|a| names.contains(a.tensor_name.as_str()));
        used.flat_map(|a| &a.quant_parameter_tensor_names)
            .filter_map(|entry| self.graph.value(&entry.value))
            .filter(|&id| self.graph.values[id].weight)
            .collect()
    }

    fn weigh(&self, parts: &mut Parts) {
        let top = self.top();
        let Parts { nodes, initializers, sparse, blobs, weight_bytes } = parts;
        let mut inline = 0;
        initializers.iter().for_each(|&i| weigh_tensor(&top.initializer[i], blobs, &mut inline));
        sparse.iter().for_each(|&i| weigh_sparse(&top.sparse_initializer[i], blobs, &mut inline));
        nodes.iter().for_each(|&node| weigh_node(&top.node[node], blobs, &mut inline));
        *weight_bytes = blobs.iter().map(|blob| blob.bytes).fold(inline, u64::saturating_add);
    }

    fn assemble(&self, parts: &Parts, inputs: &[ValueType], outputs: &[ValueType]) -> ModelProto {
        let top = self.top();
        let ends: HashSet<&str> = inputs.iter().chain(outputs).map(|value| value.name.as_str()).collect();
        let names: HashSet<&str> =
            parts.nodes.iter().flat_map(|&node| self.reads(node).chain(self.writes(node))).collect();
        let inside = |name: &str| names.contains(name) && !ends.contains(name);
        let graph = GraphProto {
            node: parts.nodes.iter().map(|&node| top.node[node].clone()).collect(),
            name: top.name.clone(),
            initializer: parts.initializers.iter().map(|&i| top.initializer[i].clone()).collect(),
            sparse_initializer: parts.sparse.iter().map(|&i| top.sparse_initializer[i].clone()).collect(),
            input: inputs.iter().map(value_info).collect(),
            output: outputs.iter().map(value_info).collect(),
            value_info: top.value_info.iter().filter(|info| inside(&info.name)).cloned().collect(),
            quantization_annotation: top
                .quantization_annotation
                .iter()
                .filter(|annotation| names.contains(annotation.tensor_name.as_str()))
                .cloned()
                .collect(),
            doc_string: String::new(),
            metadata_props: top.metadata_props.clone(),
        };
        ModelProto { graph: Some(graph), ..self.shell() }
    }

    /// The model without its graph.
    fn shell(&self) -> ModelProto {
        let proto = &self.proto;
        ModelProto {
            ir_version: proto.ir_version,
            producer_name: proto.producer_name.clone(),
            producer_version: proto.producer_version.clone(),
            domain: proto.domain.clone(),
            model_version: proto.model_version,
            doc_string: String::new(),
            graph: None,
            opset_import: proto.opset_import.clone(),
            metadata_props: proto.metadata_props.clone(),
            training_info: Vec::new(),
            functions: proto.functions.clone(),
            configuration: Vec::new(),
        }
    }

    fn top(&self) -> &GraphProto {
        self.proto.graph.as_ref().expect("a model is only made with a graph")
    }

    fn name(&self, id: ValueId) -> &str {
        &self.graph.values[id].name
    }

    fn reads(&self, node: usize) -> impl Iterator<Item = &str> {
        self.graph.nodes[node].reads.iter().map(|&id| self.name(id))
    }

    fn writes(&self, node: usize) -> impl Iterator<Item = &str> {
        self.graph.nodes[node].writes.iter().map(|&id| self.name(id))
    }
}

fn weigh_tensor(tensor: &TensorProto, blobs: &mut BTreeSet<BlobRef>, inline: &mut u64) {
    match blob_of(tensor) {
        Some(blob) => {
            blobs.insert(blob);
        }
        None => *inline = inline.saturating_add(tensor.encoded_len() as u64),
    }
}

fn weigh_sparse(sparse: &SparseTensorProto, blobs: &mut BTreeSet<BlobRef>, inline: &mut u64) {
    sparse.values.iter().chain(&sparse.indices).for_each(|tensor| weigh_tensor(tensor, blobs, inline));
}

/// Weights that a node carries in its attributes.
fn weigh_node(node: &NodeProto, blobs: &mut BTreeSet<BlobRef>, inline: &mut u64) {
    for attribute in &node.attribute {
        let tensors = attribute.t.iter().chain(&attribute.tensors);
        tensors.for_each(|tensor| weigh_tensor(tensor, blobs, inline));
    }
    for graph in subgraphs(node) {
        graph.initializer.iter().for_each(|tensor| weigh_tensor(tensor, blobs, inline));
        graph.sparse_initializer.iter().for_each(|sparse| weigh_sparse(sparse, blobs, inline));
        graph.node.iter().for_each(|inner| weigh_node(inner, blobs, inline));
    }
}

/// The declaration of a graph input or output. No shape is declared where the rank is not known: an empty one
/// would say scalar.
pub(crate) fn value_info(value: &ValueType) -> ValueInfoProto {
    let dims = value.shape.iter().zip(&value.symbols).map(|(&extent, symbol)| Dimension {
        value: match u64::try_from(extent) {
            Ok(_) => Some(DimensionValue::DimValue(extent)),
            Err(_) if symbol.is_empty() => None,
            Err(_) => Some(DimensionValue::DimParam(symbol.clone())),
        },
        denotation: String::new(),
    });
    let dim: Vec<Dimension> = dims.collect();
    let shape = value.ranked.then_some(TensorShapeProto { dim });
    let tensor = type_proto::Tensor { elem_type: value.dtype.to_onnx(), shape };
    let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), denotation: String::new() };
    ValueInfoProto { name: value.name.clone(), r#type: Some(r#type), ..ValueInfoProto::default() }
}
