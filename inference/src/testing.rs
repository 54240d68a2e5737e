//! Hand-built models for this crate's tests.
#![allow(clippy::disallowed_methods)]

use std::{collections::HashMap, fs, path::PathBuf};

use prost::Message as _;

use crate::{
    blobs::BlobStore,
    extract::value_info,
    import::{self, ImportError, Imported},
    model::{Model, ValueType},
    onnx::*,
    runtime::{Engine, ModelSource, Optimisation, SessionOptions, tests::engine},
    tensor::{DType, Tensor},
};

/// Attribute types of `AttributeProto.AttributeType`.
pub(crate) const INT: i32 = 2;
pub(crate) const TENSOR: i32 = 4;
pub(crate) const GRAPH: i32 = 5;
pub(crate) const INTS: i32 = 7;

pub(crate) fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        op_type: op.to_owned(),
        input: inputs.iter().map(|s| (*s).to_owned()).collect(),
        output: outputs.iter().map(|s| (*s).to_owned()).collect(),
        ..NodeProto::default()
    }
}

impl NodeProto {
    pub(crate) fn with(mut self, attribute: AttributeProto) -> Self {
        self.attribute.push(attribute);
        self
    }

    pub(crate) fn named(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }
}

fn attribute(name: &str, kind: i32) -> AttributeProto {
    AttributeProto { name: name.to_owned(), r#type: Some(kind), ..AttributeProto::default() }
}

pub(crate) fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { i: Some(i), ..attribute(name, INT) }
}

pub(crate) fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto { ints: values.to_vec(), ..attribute(name, INTS) }
}

pub(crate) fn subgraph(name: &str, g: GraphProto) -> AttributeProto {
    AttributeProto { g: Some(g), ..attribute(name, GRAPH) }
}

pub(crate) fn tensor_attribute(name: &str, t: TensorProto) -> AttributeProto {
    AttributeProto { t: Some(t), ..attribute(name, TENSOR) }
}

pub(crate) fn value(name: &str, dtype: DType, shape: &[i64]) -> ValueInfoProto {
    let symbols = shape.iter().map(|&e| if e < 0 { "n".to_owned() } else { String::new() }).collect();
    value_info(&ValueType { name: name.to_owned(), dtype, shape: shape.to_vec(), ranked: true, symbols })
}

pub(crate) fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: dims.to_vec(),
        data_type: data_type::FLOAT,
        raw_data: Some(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        ..TensorProto::default()
    }
}

/// A tensor that becomes a blob: `rows` times 8 numbers.
pub(crate) fn heavy(name: &str, rows: usize) -> TensorProto {
    let values: Vec<f32> = (0..rows * 8).map(|i| (i % 17) as f32 / 16. - 0.5).collect();
    floats(name, &[rows as i64, 8], &values)
}

pub(crate) fn longs(name: &str, dims: &[i64], values: &[i64]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: dims.to_vec(),
        data_type: data_type::INT64,
        int64_data: values.to_vec(),
        ..TensorProto::default()
    }
}

pub(crate) fn graph(
    inputs: Vec<ValueInfoProto>,
    outputs: Vec<ValueInfoProto>,
    initializer: Vec<TensorProto>,
    node: Vec<NodeProto>,
) -> GraphProto {
    GraphProto {
        name: "g".to_owned(),
        input: inputs,
        output: outputs,
        initializer,
        node,
        ..GraphProto::default()
    }
}

pub(crate) fn model(graph: GraphProto) -> ModelProto {
    let opset = OperatorSetIdProto { domain: String::new(), version: 17 };
    ModelProto { ir_version: 8, graph: Some(graph), opset_import: vec![opset], ..ModelProto::default() }
}

/// A model of float vectors named by its inputs and outputs.
pub(crate) fn vectors(
    inputs: &[&str],
    outputs: &[&str],
    initializer: Vec<TensorProto>,
    nodes: Vec<NodeProto>,
) -> ModelProto {
    let float = |name: &&str| value(name, DType::Fp32, &[-1, 8]);
    let out = |name: &&str| {
        let tensor = type_proto::Tensor { elem_type: data_type::FLOAT, shape: None };
        let value = Some(type_proto::Value::TensorType(tensor));
        let r#type = Some(TypeProto { value, denotation: String::new() });
        ValueInfoProto { name: (*name).to_owned(), r#type, ..ValueInfoProto::default() }
    };
    model(graph(inputs.iter().map(float).collect(), outputs.iter().map(out).collect(), initializer, nodes))
}

/// An imported model with the folder that it lies in.
pub(crate) struct Scene {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) store: BlobStore,
    pub(crate) imported: Imported,
}

impl Scene {
    pub(crate) fn model(&self) -> &Model {
        &self.imported.model
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join("model.onnx")
    }
}

pub(crate) fn import_model(model: &ModelProto) -> Result<Scene, ImportError> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.onnx");
    fs::write(&file, model.encode_to_vec()).unwrap();
    let store = BlobStore::open(&folder.path().join("store")).unwrap();
    let imported = import::import(&file, folder.path(), &store, &engine(), &mut |_| {})?;
    Ok(Scene { folder, store, imported })
}

type Values = HashMap<String, Tensor>;

fn options() -> SessionOptions {
    SessionOptions { optimisation: Optimisation::Basic, ..SessionOptions::default() }
}

fn run_whole(engine: &Engine, scene: &Scene, inputs: &Values) -> Values {
    let mut session = engine.session(ModelSource::File(&scene.file()), &options()).unwrap();
    let taken: Vec<(String, Tensor)> =
        session.inputs().iter().map(|p| (p.name.clone(), inputs[&p.name].clone())).collect();
    let names: Vec<String> = session.outputs().iter().map(|p| p.name.clone()).collect();
    names.into_iter().zip(session.run(&taken).unwrap()).collect()
}

fn run_stage(engine: &Engine, scene: &Scene, first: usize, last: usize, alive: &Values) -> Values {
    let stage = scene.model().stage(first, last).unwrap();
    let file = scene.store.write_stage("test", &stage.onnx).unwrap();
    let session = engine.session(ModelSource::File(file.path()), &options());
    let mut session = session.unwrap_or_else(|e| panic!("blocks {first} to {last}: {e}"));
    let taken: Vec<(String, Tensor)> =
        stage.inputs.iter().map(|v| (v.name.clone(), alive[&v.name].clone())).collect();
    let made = session.run(&taken).unwrap_or_else(|e| panic!("blocks {first} to {last}: {e}"));
    let mut next: Values = stage.passthrough.iter().map(|name| (name.clone(), alive[name].clone())).collect();
    next.extend(stage.outputs.iter().map(|v| v.name.clone()).zip(made));
    assert_eq!(next.len(), scene.model().cuts()[last + 1].tensors.len());
    next
}

/// Imports the model and compares every two-stage split, and one stage per block, with ONNX Runtime's answer for
/// the file as it was: the same bytes.
pub(crate) fn check_every_cut(proto: &ModelProto, inputs: Vec<(&str, Tensor)>) -> Scene {
    let scene = import_model(proto).unwrap_or_else(|e| panic!("{e}"));
    let engine = engine();
    let inputs: Values = inputs.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect();
    let whole = run_whole(&engine, &scene, &inputs);
    let blocks = scene.model().blocks().len();
    let mut splits: Vec<Vec<usize>> = (1..blocks).map(|cut| vec![0, cut]).collect();
    splits.push(vec![0]);
    splits.push((0..blocks).collect());
    for starts in splits {
        let mut alive = inputs.clone();
        for (i, &first) in starts.iter().enumerate() {
            let last = starts.get(i + 1).map_or(blocks - 1, |next| next - 1);
            alive = run_stage(&engine, &scene, first, last, &alive);
        }
        for (name, expected) in &whole {
            let found = &alive[name];
            assert_eq!((found.shape(), found.dtype()), (expected.shape(), expected.dtype()), "{name}");
            assert_eq!(found.bytes(), expected.bytes(), "{name} with stages from {starts:?}");
        }
        assert_eq!(alive.len(), whole.len());
    }
    scene
}

/// Two rows of numbers for an input of a model made by [`vectors`].
pub(crate) fn rows() -> Tensor {
    let values: Vec<f32> = (0..16).map(|i| i as f32 / 4. - 2.).collect();
    Tensor::from_slice(&[2, 8], &values).unwrap()
}
