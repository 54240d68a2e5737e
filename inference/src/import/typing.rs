//! Element types and shapes of what a model makes on the way, as ONNX Runtime infers them.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::atomic::{AtomicU64, Ordering},
};

use prost::Message as _;

use crate::{
    blobs::BlobStore,
    cut::{Span, candidates},
    graph::{Graph, GraphError, Origin, ValueId},
    model::ValueType,
    onnx::{
        Dimension, DimensionValue, GraphProto, ModelProto, NodeProto, TensorProto, TensorShapeProto,
        TypeProto, ValueInfoProto, type_proto,
    },
    runtime::{Dim, Engine, EngineError, ModelSource, Optimisation, Port, SessionOptions},
    tensor::DType,
};

use super::ImportError;

/// Types of all values that may cross a cut, by name. Values that are no tensors of travelling element types are
/// left out.
pub(super) fn types(
    model: &ModelProto,
    graph: &Graph,
    spans: &[Option<Span>],
    store: &BlobStore,
    engine: &Engine,
) -> Result<HashMap<String, ValueType>, ImportError> {
    let declared = declared_inputs(model)?;
    let name = |id: ValueId| graph.values[id].name.as_str();
    let made = |id: &ValueId| matches!(graph.values[*id].origin, Origin::Node(_));
    let mut wanted: BTreeSet<&str> = candidates(graph, spans).into_iter().map(name).collect();
    wanted.extend(graph.outputs.iter().copied().filter(made).map(name));
    let (ports, light) = match infer(model, &wanted, true, store, engine) {
        Ok(ports) => (ports, true),
        // Some operators take constants alone where weights stood in as inputs: again, with the real ones.
        Err(ImportError::Blob(error)) => return Err(ImportError::Blob(error)),
        Err(_) => (infer(model, &wanted, false, store, engine)?, false),
    };
    let scalars = scalars(model, &ports, light, store, engine);
    let ranked = |port: &Port| !port.dims.is_empty() || scalars.contains(&port.name);
    let mut types: HashMap<String, ValueType> = ports
        .iter()
        .filter_map(|port| value_type(port, ranked(port)))
        .chain(declared)
        .map(|value| (value.name.clone(), value))
        .collect();
    add_outputs(model, graph, &mut types)?;
    Ok(types)
}

/// Which of the ports without extents are scalars; of the others ONNX Runtime does not know the rank. It gives
/// both away in the same form, but the shape of a scalar has the extent 0.
fn scalars(
    model: &ModelProto,
    ports: &[Port],
    light: bool,
    store: &BlobStore,
    engine: &Engine,
) -> HashSet<String> {
    let unclear = ports.iter().filter(|port| port.dims.is_empty() && port.dtype.is_some());
    let shapes: HashMap<String, String> =
        unclear.enumerate().map(|(i, port)| (format!("mesh.shape.{i}"), port.name.clone())).collect();
    if shapes.is_empty() {
        return HashSet::new();
    }
    let mut probe = model.clone();
    let nodes = shapes.iter().map(|(shape, value)| NodeProto {
        op_type: "Shape".to_owned(),
        input: vec![value.clone()],
        output: vec![shape.clone()],
        ..NodeProto::default()
    });
    probe.graph.iter_mut().for_each(|graph| graph.node.extend(nodes.clone()));
    let wanted = shapes.keys().map(String::as_str).collect();
    // Where this fails, the ranks stay unknown, which every operator that could run before can live with.
    let found = infer(&probe, &wanted, light, store, engine).unwrap_or_default();
    let scalar = found.iter().filter(|port| port.dims == [Dim::Fixed(0)]);
    scalar.filter_map(|port| shapes.get(&port.name).cloned()).collect()
}

fn declared_inputs(model: &ModelProto) -> Result<Vec<ValueType>, ImportError> {
    let inputs = model.graph.iter().flat_map(|graph| &graph.input);
    let declared = inputs.map(|info| {
        let no_tensor = || ImportError::NoTensor { what: "input", name: info.name.clone() };
        ValueType::from_info(info).ok_or_else(no_tensor)
    });
    declared.collect()
}

/// Adds outputs that are initializers, and makes sure that every output can travel.
fn add_outputs(
    model: &ModelProto,
    graph: &Graph,
    types: &mut HashMap<String, ValueType>,
) -> Result<(), ImportError> {
    let proto = model.graph.as_ref().ok_or(GraphError::NoGraph)?;
    for &output in &graph.outputs {
        let value = &graph.values[output];
        if let Origin::Initializer(i) = value.origin
            && let Some(value) = tensor_type(&proto.initializer[i])
        {
            types.insert(value.name.clone(), value);
        }
        if !types.contains_key(&value.name) {
            return Err(ImportError::NoTensor { what: "output", name: value.name.clone() });
        }
    }
    Ok(())
}

fn tensor_type(tensor: &TensorProto) -> Option<ValueType> {
    Some(ValueType {
        name: tensor.name.clone(),
        dtype: DType::from_onnx(tensor.data_type)?,
        shape: tensor.dims.clone(),
        ranked: true,
        symbols: vec![String::new(); tensor.dims.len()],
    })
}

fn value_type(port: &Port, ranked: bool) -> Option<ValueType> {
    let symbol = |dim: &Dim| match dim {
        Dim::Fixed(_) => String::new(),
        Dim::Dynamic(symbol) => symbol.clone(),
    };
    Some(ValueType {
        name: port.name.clone(),
        dtype: port.dtype?,
        shape: port.dims.iter().map(Dim::or_minus_one).collect(),
        ranked,
        symbols: port.dims.iter().map(symbol).collect(),
    })
}

/// Makes a session whose outputs are the wanted values and reads their types. With `light`, large weights are
/// graph inputs, so that none is read.
fn infer(
    model: &ModelProto,
    wanted: &BTreeSet<&str>,
    light: bool,
    store: &BlobStore,
    engine: &Engine,
) -> Result<Vec<Port>, ImportError> {
    let probe = probe(model, wanted, light).encode_to_vec();
    let options = SessionOptions {
        threads: 1,
        optimisation: Optimisation::Off,
        prepack: false,
        arena: false,
        ..SessionOptions::default()
    };
    let session = if light {
        engine.session(ModelSource::Bytes(&probe), &options)
    } else {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let file = store.write_stage(&format!("types-{}", NEXT.fetch_add(1, Ordering::Relaxed)), &probe)?;
        engine.session(ModelSource::File(file.path()), &options)
    };
    let session = session.map_err(|error| refusal(model, error))?;
    Ok(session.outputs().to_vec())
}

/// The model with the wanted values as its outputs.
fn probe(model: &ModelProto, outputs: &BTreeSet<&str>, light: bool) -> ModelProto {
    let mut probe = model.clone();
    let Some(proto) = &mut probe.graph else { return probe };
    let declared: HashMap<String, ValueInfoProto> =
        std::mem::take(&mut proto.output).into_iter().map(|info| (info.name.clone(), info)).collect();
    let output = |name: &&str| match declared.get(*name) {
        Some(info) => info.clone(),
        None => ValueInfoProto { name: (*name).to_owned(), ..ValueInfoProto::default() },
    };
    proto.output = outputs.iter().map(output).collect();
    proto.value_info.retain(|info| !outputs.contains(info.name.as_str()));
    if light {
        lighten(proto);
    }
    probe
}

/// Makes inputs of the initializers whose bytes are in blobs.
fn lighten(proto: &mut GraphProto) {
    let heavy: Vec<TensorProto> = proto.initializer.extract_if(.., |tensor| tensor.is_external()).collect();
    proto.input.extend(heavy.into_iter().map(|tensor| {
        let dim = |&extent: &i64| Dimension {
            value: Some(DimensionValue::DimValue(extent)),
            denotation: String::new(),
        };
        let shape = TensorShapeProto { dim: tensor.dims.iter().map(dim).collect() };
        let value = type_proto::Tensor { elem_type: tensor.data_type, shape: Some(shape) };
        let r#type =
            TypeProto { value: Some(type_proto::Value::TensorType(value)), denotation: String::new() };
        ValueInfoProto { name: tensor.name, r#type: Some(r#type), ..ValueInfoProto::default() }
    }));
}

/// What ONNX Runtime's refusal means for the one who deploys.
fn refusal(model: &ModelProto, error: EngineError) -> ImportError {
    match error {
        EngineError::UnsupportedOperator { operator, message } => {
            missing_operator(model, &operator, without_path(&message))
        }
        EngineError::Model { message } if is_version(&message) => {
            ImportError::Version { detail: without_path(&message) }
        }
        EngineError::Model { message } => ImportError::Refused { detail: without_path(&message) },
        other @ (EngineError::NotFound { .. }
        | EngineError::Unusable { .. }
        | EngineError::AnotherIsLoaded { .. }
        | EngineError::Provider { .. }
        | EngineError::Failed { .. }) => ImportError::Refused { detail: other.to_string() },
    }
}

/// ONNX Runtime's message without the name of our own file and the place in its source, which say nothing to anybody.
fn without_path(message: &str) -> String {
    let rest = message.strip_prefix("Load model from ").and_then(|rest| rest.split_once(" failed:"));
    let rest = rest.map_or(message, |(_, rest)| rest).trim();
    // "/onnxruntime_src/…/model.cc:256 onnxruntime::Model::Model(onnx::ModelProto&&, …) Unsupported model IR version"
    let place = rest.split_once(' ').filter(|(place, _)| place.contains(".cc:") || place.contains(".h:"));
    let said = place.and_then(|(_, rest)| rest.rsplit_once(") "));
    said.map_or(rest, |(_, said)| said).to_owned()
}

fn is_version(message: &str) -> bool {
    ["Unsupported model IR version", "No opset import for domain", "is under development", "opset version"]
        .iter()
        .any(|sign| message.contains(sign))
}

fn missing_operator(model: &ModelProto, operator: &str, detail: String) -> ImportError {
    let (domain, name) = operator.rsplit_once([':', '.']).unwrap_or(("", operator));
    let same = |node: &&NodeProto| node.op_type == name && (domain.is_empty() || node.domain == domain);
    let node = model.graph.iter().flat_map(|graph| &graph.node).find(same);
    let domain = node.map_or(domain, |node| node.domain.as_str());
    let imported = model.opset_import.iter().find(|opset| opset.domain == domain);
    ImportError::Operator {
        operator: name.to_owned(),
        domain: if domain.is_empty() { "ai.onnx".to_owned() } else { domain.to_owned() },
        version: imported.map_or(0, |opset| opset.version),
        detail,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn messages_without_paths() {
        let cases = [
            ("Load model from /a/b.onnx failed:This is an invalid model.", "This is an invalid model."),
            (
                "Load model from x failed:/src/core/model.cc:256 onnxruntime::Model::Model(onnx::ModelProto&&, \
                 const Options&) Unsupported model IR version: 14, max supported IR version: 13",
                "Unsupported model IR version: 14, max supported IR version: 13",
            ),
            ("Node (a) has input size 1 (b) not in range", "Node (a) has input size 1 (b) not in range"),
        ];
        for (message, wanted) in cases {
            assert_eq!(super::without_path(message), wanted);
        }
    }
}
