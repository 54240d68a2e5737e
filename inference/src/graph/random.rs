//! Which nodes give something else at every run: they must run once per request, whatever they depend on.

use std::{cell::RefCell, collections::HashMap};

use crate::onnx::{FunctionProto, NodeProto};

use super::subgraphs;

const RANDOM: [&str; 6] =
    ["Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"];

/// Functions that call functions deeper than this count as random, which is always safe.
const MAX_DEPTH: usize = 50;

type Key<'a> = (&'a str, &'a str, &'a str);

fn key(function: &FunctionProto) -> Key<'_> {
    (&function.domain, &function.name, &function.overload)
}

pub(super) struct Random<'a> {
    functions: HashMap<Key<'a>, &'a FunctionProto>,
    known: RefCell<HashMap<Key<'a>, bool>>,
}

impl<'a> Random<'a> {
    pub(super) fn new(functions: &'a [FunctionProto]) -> Self {
        let functions = functions.iter().map(|function| (key(function), function)).collect();
        Self { functions, known: RefCell::new(HashMap::new()) }
    }

    /// Whether two runs of the node on the same inputs may differ.
    pub(super) fn node(&self, node: &NodeProto) -> bool {
        self.node_at(node, 0)
    }

    fn node_at(&self, node: &NodeProto, depth: usize) -> bool {
        if depth > MAX_DEPTH || RANDOM.contains(&node.op_type.as_str()) {
            return true;
        }
        let called = (node.domain.as_str(), node.op_type.as_str(), node.overload.as_str());
        if let Some(&function) = self.functions.get(&called) {
            let key = key(function);
            let known = self.known.borrow().get(&key).copied();
            return known.unwrap_or_else(|| {
                // A function that calls itself would not end; it is no valid ONNX, and random while it is looked at.
                self.known.borrow_mut().insert(key, true);
                let random = function.node.iter().any(|inner| self.node_at(inner, depth + 1));
                self.known.borrow_mut().insert(key, random);
                random
            });
        }
        subgraphs(node).any(|graph| graph.node.iter().any(|inner| self.node_at(inner, depth + 1)))
    }
}
