//! What depends on what in an ONNX graph: the nodes that run for every request in a fixed order, and the
//! values that depend on initializers alone.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap, HashSet},
};

use crate::onnx::{FunctionProto, GraphProto, ModelProto, NodeProto};

mod random;
#[cfg(test)]
mod tests;

use random::Random;

/// Index of a value in [`Graph::values`].
pub(crate) type ValueId = usize;

/// What a graph does that no plan can be made for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// There is no graph in the model.
    #[error("the model holds no graph: export it again")]
    NoGraph,
    /// Nothing can be sent to the model.
    #[error("the model has no inputs: there is nothing to send to it")]
    NoInputs,
    /// Nothing comes back.
    #[error("the model has no outputs: name one when the model is exported")]
    NoOutputs,
    /// No node depends on an input.
    #[error(
        "no operator of the model depends on its inputs: its outputs are constants or copies of its inputs"
    )]
    NothingToRun,
    /// Two values of one name.
    #[error("the value '{0}' is defined twice: the graph is not valid ONNX, export it again")]
    Duplicate(String),
    /// A value that nothing produces.
    #[error(
        "the {reader} reads '{value}', which nothing produces: the graph is not valid ONNX, export it again"
    )]
    Undefined {
        /// Node or output that needs it.
        reader: String,
        /// The value.
        value: String,
    },
    /// Nodes that need each other's outputs.
    #[error("the {0} depends on its own output: the graph is not valid ONNX, export it again")]
    Cycle(String),
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Origin {
    /// A model input (by position in [`Graph::inputs`]).
    Input,
    /// `graph.initializer[i]`.
    Initializer(usize),
    /// `graph.sparse_initializer[i]`.
    Sparse(usize),
    /// `graph.node[i]`.
    Node(usize),
}

#[derive(Debug, Clone)]
pub(crate) struct Value {
    pub(crate) name: String,
    pub(crate) origin: Origin,
    /// Depends on initializers alone.
    pub(crate) weight: bool,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Links {
    /// Values that the node reads, names captured by its subgraphs included, each once.
    pub(crate) reads: Vec<ValueId>,
    pub(crate) writes: Vec<ValueId>,
    pub(crate) weight: bool,
    pub(crate) live: bool,
}

/// The analysis of one graph. Indices point into the `ModelProto` that it was made from.
#[derive(Debug, Clone)]
pub(crate) struct Graph {
    pub(crate) values: Vec<Value>,
    /// As long as `graph.node`.
    pub(crate) nodes: Vec<Links>,
    /// Nodes that run for every request, in the order of execution.
    pub(crate) order: Vec<usize>,
    /// Live nodes that depend on initializers alone, in an order in which they can run.
    pub(crate) weight_order: Vec<usize>,
    /// Model inputs that are not initializers, in the model's order.
    pub(crate) inputs: Vec<ValueId>,
    pub(crate) outputs: Vec<ValueId>,
    by_name: HashMap<String, ValueId>,
}

impl Graph {
    /// Analyses the model's graph. The result depends on the model alone, on every device.
    pub(crate) fn new(model: &ModelProto) -> Result<Self, GraphError> {
        let proto = model.graph.as_ref().ok_or(GraphError::NoGraph)?;
        let mut graph = Self {
            values: Vec::new(),
            nodes: Vec::new(),
            order: Vec::new(),
            weight_order: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            by_name: HashMap::new(),
        };
        graph.define_values(proto)?;
        graph.link_nodes(proto)?;
        let order = graph.topological(proto)?;
        graph.mark_weights(proto, &model.functions, &order);
        graph.mark_live();
        for node in order {
            let links = &graph.nodes[node];
            if links.live {
                if links.weight { &mut graph.weight_order } else { &mut graph.order }.push(node);
            }
        }
        graph.check()?;
        Ok(graph)
    }

    /// The value of that name.
    pub(crate) fn value(&self, name: &str) -> Option<ValueId> {
        self.by_name.get(name).copied()
    }

    fn define(&mut self, name: &str, origin: Origin) -> Result<ValueId, GraphError> {
        let id = self.values.len();
        if self.by_name.insert(name.to_owned(), id).is_some() {
            return Err(GraphError::Duplicate(name.to_owned()));
        }
        let weight = matches!(origin, Origin::Initializer(_) | Origin::Sparse(_));
        self.values.push(Value { name: name.to_owned(), origin, weight });
        Ok(id)
    }

    fn define_values(&mut self, proto: &GraphProto) -> Result<(), GraphError> {
        for (i, tensor) in proto.initializer.iter().enumerate() {
            self.define(&tensor.name, Origin::Initializer(i))?;
        }
        for (i, sparse) in proto.sparse_initializer.iter().enumerate() {
            let name = sparse.values.as_ref().map_or("", |values| &values.name);
            self.define(name, Origin::Sparse(i))?;
        }
        for input in &proto.input {
            // An input with an initializer of its name is a weight with a default, which is what it stays.
            let default = self.value(&input.name).map(|id| self.values[id].origin);
            if !matches!(default, Some(Origin::Initializer(_) | Origin::Sparse(_))) {
                let id = self.define(&input.name, Origin::Input)?;
                self.inputs.push(id);
            }
        }
        for (i, node) in proto.node.iter().enumerate() {
            let mut links = Links::default();
            for name in node.output.iter().filter(|name| !name.is_empty()) {
                links.writes.push(self.define(name, Origin::Node(i))?);
            }
            self.nodes.push(links);
        }
        Ok(())
    }

    fn link_nodes(&mut self, proto: &GraphProto) -> Result<(), GraphError> {
        for (i, node) in proto.node.iter().enumerate() {
            let mut reads = BTreeSet::new();
            for name in read_names(node) {
                let undefined = || GraphError::Undefined { reader: describe(node), value: name.to_owned() };
                reads.insert(self.value(name).ok_or_else(undefined)?);
            }
            self.nodes[i].reads = reads.into_iter().collect();
        }
        let mut seen = HashSet::new();
        for output in &proto.output {
            let undefined =
                || GraphError::Undefined { reader: "model's output".to_owned(), value: output.name.clone() };
            let id = self.value(&output.name).ok_or_else(undefined)?;
            if !seen.insert(id) {
                return Err(GraphError::Duplicate(output.name.clone()));
            }
            self.outputs.push(id);
        }
        Ok(())
    }

    /// All nodes such that each comes after those it reads from; as near to the file's order as that allows.
    fn topological(&self, proto: &GraphProto) -> Result<Vec<usize>, GraphError> {
        let mut waits = vec![0_usize; self.nodes.len()];
        let mut readers: Vec<Vec<usize>> = vec![Vec::new(); self.nodes.len()];
        for (i, node) in self.nodes.iter().enumerate() {
            for &value in &node.reads {
                if let Origin::Node(producer) = self.values[value].origin {
                    waits[i] += 1;
                    readers[producer].push(i);
                }
            }
        }
        let mut ready: BinaryHeap<Reverse<usize>> =
            waits.iter().enumerate().filter(|(_, n)| **n == 0).map(|(i, _)| Reverse(i)).collect();
        let mut order = Vec::with_capacity(self.nodes.len());
        while let Some(Reverse(node)) = ready.pop() {
            order.push(node);
            for &reader in &readers[node] {
                waits[reader] -= 1;
                if waits[reader] == 0 {
                    ready.push(Reverse(reader));
                }
            }
        }
        match waits.iter().position(|&n| n > 0) {
            Some(stuck) => Err(GraphError::Cycle(describe(&proto.node[stuck]))),
            None => Ok(order),
        }
    }

    fn mark_weights(&mut self, proto: &GraphProto, functions: &[FunctionProto], order: &[usize]) {
        let random = Random::new(functions);
        for &i in order {
            let weight = self.nodes[i].reads.iter().all(|&value| self.values[value].weight)
                && !random.node(&proto.node[i]);
            if weight {
                self.nodes[i].weight = true;
                for &value in &self.nodes[i].writes {
                    self.values[value].weight = true;
                }
            }
        }
    }

    fn mark_live(&mut self) {
        let mut needed = self.outputs.clone();
        while let Some(value) = needed.pop() {
            if let Origin::Node(node) = self.values[value].origin
                && !std::mem::replace(&mut self.nodes[node].live, true)
            {
                needed.extend(&self.nodes[node].reads);
            }
        }
    }

    fn check(&self) -> Result<(), GraphError> {
        if self.inputs.is_empty() {
            return Err(GraphError::NoInputs);
        }
        if self.outputs.is_empty() {
            return Err(GraphError::NoOutputs);
        }
        if self.order.is_empty() { Err(GraphError::NothingToRun) } else { Ok(()) }
    }
}

/// Names that a node reads: its inputs, and what its subgraphs take from around them.
fn read_names(node: &NodeProto) -> Vec<&str> {
    let mut names: Vec<&str> =
        node.input.iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
    for graph in subgraphs(node) {
        names.extend(captured(graph));
    }
    names
}

/// The graphs in a node's attributes.
pub(crate) fn subgraphs(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs))
}

/// Names that a subgraph uses and does not define. Recursion is bounded by the nesting that prost decodes.
fn captured(graph: &GraphProto) -> Vec<&str> {
    let mut local: HashSet<&str> = graph.input.iter().map(|input| input.name.as_str()).collect();
    local.extend(graph.initializer.iter().map(|tensor| tensor.name.as_str()));
    local.extend(graph.sparse_initializer.iter().filter_map(|s| Some(s.values.as_ref()?.name.as_str())));
    local.extend(graph.node.iter().flat_map(|node| node.output.iter().map(String::as_str)));
    let used = graph.node.iter().flat_map(read_names);
    used.chain(graph.output.iter().map(|output| output.name.as_str()))
        .filter(|name| !name.is_empty() && !local.contains(name))
        .collect()
}

/// A node in a message.
fn describe(node: &NodeProto) -> String {
    if node.name.is_empty() {
        format!("{} node that writes '{}'", node.op_type, node.output.first().map_or("", |name| name))
    } else {
        format!("{} node '{}'", node.op_type, node.name)
    }
}
