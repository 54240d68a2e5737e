//! Model files and arrays that are wrong in one way each.

use std::path::{Path, PathBuf};

use mesh_inference::onnx::{
    Dimension, DimensionValue, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};
use mesh_tests::digits;
use prost::Message;

const FLOAT: i32 = 1;

fn value(name: &str, extents: &[i64]) -> ValueInfoProto {
    let dim = |&extent: &i64| Dimension {
        value: Some(DimensionValue::DimValue(extent)),
        denotation: String::new(),
    };
    let shape = TensorShapeProto { dim: extents.iter().map(dim).collect() };
    let tensor = type_proto::Tensor { elem_type: FLOAT, shape: Some(shape) };
    let kind = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), denotation: String::new() };
    ValueInfoProto { name: name.into(), r#type: Some(kind), ..ValueInfoProto::default() }
}

/// `y = OP(x, weights)` with `x` of `[1, n]`.
fn model(op: &str, n: i64, weights: Option<TensorProto>) -> ModelProto {
    let input = std::iter::once("x".to_owned()).chain(weights.iter().map(|w| w.name.clone())).collect();
    let node = NodeProto { op_type: op.into(), input, output: vec!["y".into()], ..NodeProto::default() };
    let graph = GraphProto {
        name: "g".into(),
        node: vec![node],
        input: vec![value("x", &[1, n])],
        output: vec![value("y", &[1, n])],
        initializer: weights.into_iter().collect(),
        ..GraphProto::default()
    };
    ModelProto {
        ir_version: 8,
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 17 }],
        ..ModelProto::default()
    }
}

fn weights(n: i64) -> TensorProto {
    TensorProto { name: "w".into(), dims: vec![n, n], data_type: FLOAT, ..TensorProto::default() }
}

fn matmul(n: i64) -> ModelProto {
    let bytes = usize::try_from(n * n * 4).expect("a size");
    model("MatMul", n, Some(TensorProto { raw_data: Some(vec![0; bytes]), ..weights(n) }))
}

fn external(n: i64, file: &str) -> ModelProto {
    let entry = |key: &str, value: &str| StringStringEntryProto { key: key.into(), value: value.into() };
    let tensor = TensorProto {
        external_data: vec![entry("location", file), entry("length", &(n * n * 4).to_string())],
        data_location: Some(1),
        ..weights(n)
    };
    model("MatMul", n, Some(tensor))
}

/// A numpy array file of zeros.
fn npy(kind: &str, shape: &str, bytes: usize) -> Vec<u8> {
    let header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}");
    let padding = 64 - (10 + header.len() + 1) % 64;
    let header = format!("{header}{}\n", " ".repeat(padding));
    let len = u16::try_from(header.len()).expect("a short header");
    [b"\x93NUMPY\x01\x00".as_slice(), &len.to_le_bytes(), header.as_bytes(), &vec![0; bytes]].concat()
}

/// Writes them all into `folder`.
pub(crate) fn write(folder: &Path) {
    let digits = std::fs::read(digits::model()).expect("the digits model");
    let mut newer = matmul(4);
    newer.ir_version = 1000;
    let files: [(&str, Vec<u8>); 13] = [
        ("text.onnx", b"This is no model.\n".to_vec()),
        ("empty.onnx", Vec::new()),
        ("truncated.onnx", digits[..3000].to_vec()),
        ("unknown_operator.onnx", model("Frobnicate", 4, None).encode_to_vec()),
        ("newer.onnx", newer.encode_to_vec()),
        ("big.onnx", matmul(2048).encode_to_vec()),
        ("no_data.onnx", external(256, "gone.data").encode_to_vec()),
        ("short_data.onnx", external(256, "short.data").encode_to_vec()),
        ("short.data", vec![0; 1000]),
        ("image.npy", npy("<f4", "(1, 1, 8, 8)", 256)),
        ("image_int32.npy", npy("<i4", "(1, 1, 8, 8)", 256)),
        ("image_colour.npy", npy("<f4", "(1, 3, 8, 8)", 768)),
        ("broken.npy", b"\x93NUMPY\x01\x00".to_vec()),
    ];
    for (name, bytes) in files {
        std::fs::write(folder.join(name), bytes).expect("a file of the test");
    }
}

/// The digits model's path as text.
pub(crate) fn digits_model() -> String {
    let path: PathBuf = digits::model();
    path.display().to_string()
}
