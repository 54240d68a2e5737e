//! Small ONNX graphs written in code.

use prost::Message;

use crate::onnx::{
    AttributeProto, Dimension, DimensionValue, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};
use crate::tensor::DType;

/// Operator set and file version that every ONNX Runtime since 1.14 knows.
const OPSET: i64 = 17;
const IR_VERSION: i64 = 8;

/// `AttributeProto.AttributeType` of a list of integers.
const ATTRIBUTE_INTS: i32 = 7;
const ATTRIBUTE_INT: i32 = 2;

/// Builds a model node by node.
#[derive(Debug, Default)]
pub(crate) struct GraphBuilder {
    graph: GraphProto,
}

impl GraphBuilder {
    pub(crate) fn new() -> Self {
        Self { graph: GraphProto { name: "graph".to_owned(), ..GraphProto::default() } }
    }

    pub(crate) fn input(mut self, name: &str, dtype: DType, shape: &[i64]) -> Self {
        self.graph.input.push(value(name, dtype, shape));
        self
    }

    pub(crate) fn output(mut self, name: &str, dtype: DType, shape: &[i64]) -> Self {
        self.graph.output.push(value(name, dtype, shape));
        self
    }

    /// An operator of ONNX's own domain, or `domain:operator`.
    pub(crate) fn node(self, op: &str, inputs: &[&str], outputs: &[&str]) -> Self {
        self.node_with(op, inputs, outputs, Vec::new())
    }

    pub(crate) fn node_with(
        mut self,
        op: &str,
        inputs: &[&str],
        outputs: &[&str],
        attribute: Vec<AttributeProto>,
    ) -> Self {
        let (domain, op_type) = op.split_once(':').unwrap_or(("", op));
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(ToString::to_string).collect(),
            output: outputs.iter().map(ToString::to_string).collect(),
            name: outputs.first().map(ToString::to_string).unwrap_or_default(),
            op_type: op_type.to_owned(),
            domain: domain.to_owned(),
            attribute,
            ..NodeProto::default()
        });
        self
    }

    pub(crate) fn weight(mut self, name: &str, dtype: DType, shape: &[i64], bytes: Vec<u8>) -> Self {
        self.graph.initializer.push(TensorProto {
            name: name.to_owned(),
            dims: shape.to_vec(),
            data_type: dtype.to_onnx(),
            raw_data: Some(bytes),
            ..TensorProto::default()
        });
        self
    }

    /// Weights between -1 and 1, scaled so that a product over `fan_in` of them stays of the same magnitude.
    pub(crate) fn random_weight(self, name: &str, shape: &[i64], fan_in: i64) -> Self {
        let count: i64 = shape.iter().product();
        let scale = (3.0 / fan_in.max(1) as f64).sqrt() as f32;
        let bytes = noise(name, count).flat_map(|value| (value * scale).to_le_bytes()).collect();
        self.weight(name, DType::Fp32, shape, bytes)
    }

    pub(crate) fn model(self) -> Vec<u8> {
        let mut domains: Vec<&str> = self.graph.node.iter().map(|node| node.domain.as_str()).collect();
        domains.push("");
        domains.sort_unstable();
        domains.dedup();
        let version = |domain: &str| if domain.is_empty() { OPSET } else { 1 };
        let opset_import = domains
            .iter()
            .map(|domain| OperatorSetIdProto { domain: (*domain).to_owned(), version: version(domain) })
            .collect();
        ModelProto {
            ir_version: IR_VERSION,
            producer_name: "mesh".to_owned(),
            opset_import,
            graph: Some(self.graph),
            ..ModelProto::default()
        }
        .encode_to_vec()
    }
}

/// Numbers in -1..1 that depend on the name alone.
fn noise(name: &str, count: i64) -> impl Iterator<Item = f32> {
    let mut state =
        name.bytes().fold(0x9e37_79b9_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (0..count).map(move |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    })
}

pub(crate) fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        ints: values.to_vec(),
        r#type: Some(ATTRIBUTE_INTS),
        ..AttributeProto::default()
    }
}

pub(crate) fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        i: Some(value),
        r#type: Some(ATTRIBUTE_INT),
        ..AttributeProto::default()
    }
}

/// Negative extents become the symbol `n`.
fn value(name: &str, dtype: DType, shape: &[i64]) -> ValueInfoProto {
    let dim = shape
        .iter()
        .map(|extent| Dimension {
            value: Some(if *extent < 0 {
                DimensionValue::DimParam("n".to_owned())
            } else {
                DimensionValue::DimValue(*extent)
            }),
            denotation: String::new(),
        })
        .collect();
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: dtype.to_onnx(),
                shape: Some(TensorShapeProto { dim }),
            })),
            denotation: String::new(),
        }),
        ..ValueInfoProto::default()
    }
}
