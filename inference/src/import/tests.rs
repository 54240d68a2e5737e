//! Files that are wrong, and what is said about them.
#![allow(clippy::disallowed_methods)]

use std::fs;

use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::{
    graph::GraphError,
    onnx::{OperatorSetIdProto, StringStringEntryProto, TensorProto},
    runtime::tests::engine,
    tensor::DType,
    testing::*,
};

/// A model with an inline heavy weight, one in subgraphs' constants, and small ones.
fn sample() -> ModelProto {
    let branch = |out: &str| {
        let (constant, picked) = (format!("{out}_constant"), format!("{out}_picked"));
        graph(
            vec![],
            vec![value(out, DType::Fp32, &[-1, 8])],
            vec![],
            vec![
                node("Constant", &[], &[&constant]).with(tensor_attribute("value", heavy("", 2100))),
                node("Gather", &[&constant, "index"], &[&picked]),
                node("Add", &["a", &picked], &[out]),
            ],
        )
    };
    let nodes = vec![
        node("MatMul", &["x", "w"], &["a"]),
        node("ReduceSum", &["a"], &["sum"]).with(int("keepdims", 0)),
        node("Greater", &["sum", "zero"], &["yes"]),
        node("If", &["yes"], &["y"])
            .with(subgraph("then_branch", branch("one")))
            .with(subgraph("else_branch", branch("two"))),
    ];
    let square = TensorProto { dims: vec![8, 2100], ..heavy("w", 2100) };
    let mut model =
        vectors(&["x"], &["y"], vec![square, floats("zero", &[], &[0.]), longs("index", &[1], &[1])], nodes);
    // The constants are added to rows as wide as the product.
    let branches = &mut model.graph.as_mut().unwrap().node[3].attribute;
    for branch in branches {
        let constant = &mut branch.g.as_mut().unwrap().node[0].attribute[0];
        constant.t.as_mut().unwrap().dims = vec![8, 2100];
    }
    model
}

struct Place {
    folder: tempfile::TempDir,
    store: BlobStore,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::open(&folder.path().join("store")).unwrap();
        Self { folder, store }
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.folder.path().join(name), bytes).unwrap();
    }

    fn import(&self) -> Result<Imported, ImportError> {
        import(
            &self.folder.path().join("model.onnx"),
            self.folder.path(),
            &self.store,
            &engine(),
            &mut |_| {},
        )
    }

    /// Everything but ONNX Runtime.
    fn read(&self, bytes: &[u8]) -> Result<ModelProto, ImportError> {
        self.write("model.onnx", bytes);
        let file = self.folder.path().join("model.onnx");
        let mut model = skim::skim(&file, self.folder.path(), &self.store, &mut |_| {})?;
        prepare::prepare(&mut model, &self.store)?;
        Ok(model)
    }
}

fn import_bytes(bytes: &[u8]) -> Result<Imported, ImportError> {
    let place = Place::new();
    place.write("model.onnx", bytes);
    place.import()
}

#[test]
fn heavy_constants_of_subgraphs_become_blobs() {
    let values: Vec<f32> = (0..16).map(|i| i as f32 - 7.).collect();
    let x = crate::tensor::Tensor::from_slice(&[2, 8], &values).unwrap();
    let scene = check_every_cut(&sample(), vec![("x", x)]);
    assert_eq!(scene.model().blobs().len(), 1, "the same bytes in three places");
    let whole = scene.model().stage(0, scene.model().blocks().len() - 1).unwrap();
    assert!(whole.onnx.len() < 4096, "{}", whole.onnx.len());
    let manifest = scene.store.bytes(&scene.imported.hash).unwrap();
    assert!(manifest < 4096, "{manifest}");
}

#[test]
fn one_file_gives_one_hash_wherever_it_is_imported() {
    let bytes = sample().encode_to_vec();
    assert_eq!(import_bytes(&bytes).unwrap().hash, import_bytes(&bytes).unwrap().hash);
}

#[test]
fn other_files_are_told_apart_from_broken_models() {
    let others: [&[u8]; 6] =
        [b"", b"{\"a\": 1}", b"hello world\n", &[0; 100], b"\x89PNG\r\n\x1a\n0000", b"PK\x03\x04aaaaaaa"];
    for other in others {
        let error = import_bytes(other).unwrap_err();
        assert!(matches!(error, ImportError::NotOnnx { .. }), "{other:?}: {error}");
    }
    let place = Place::new();
    let error = place.import().unwrap_err();
    assert!(matches!(error, ImportError::Read { .. }), "{error}");
}

#[test]
fn a_file_cut_short_anywhere_is_refused() {
    let bytes = sample().encode_to_vec();
    let place = Place::new();
    let mut truncated = 0;
    for end in (0..200).chain((200..bytes.len()).step_by(211)).chain(bytes.len() - 100..bytes.len()) {
        match place.read(&bytes[..end]) {
            Err(ImportError::Truncated { .. }) => truncated += 1,
            Err(ImportError::NotOnnx { .. }) => assert!(end < 3, "{end}"),
            // Between two fields of the model itself.
            Err(ImportError::Version { .. } | ImportError::Graph(_)) => {}
            other => panic!("{end} of {}: {other:?}", bytes.len()),
        }
    }
    assert!(truncated > 500, "{truncated}");
}

#[test]
fn lengths_that_lie_take_no_memory() {
    // A graph with an initializer that claims 2^60 bytes, and one with 2^40 elements.
    let mut lie = vec![0x08, 8, 0x3a, 14, 0x2a];
    wire::put_varint(1 << 60, &mut lie);
    let error = import_bytes(&lie).unwrap_err();
    assert!(matches!(error, ImportError::Truncated { .. } | ImportError::Damaged { .. }), "{error}");
    for dims in [vec![1 << 40], vec![1 << 40, 1 << 40], vec![-3]] {
        let mut model = sample();
        model.graph.as_mut().unwrap().initializer[0].dims = dims;
        let error = import_bytes(&model.encode_to_vec()).unwrap_err();
        assert!(matches!(&error, ImportError::Tensor { tensor, .. } if tensor == "w"), "{error}");
    }
}

fn external(location: &str, more: &[(&str, &str)]) -> ModelProto {
    let entry =
        |(key, value): (&str, &str)| StringStringEntryProto { key: key.to_owned(), value: value.to_owned() };
    let mut weight = heavy("w", 2100);
    weight.raw_data = None;
    weight.data_location = Some(1);
    weight.external_data =
        [("location", location)].into_iter().chain(more.iter().copied()).map(entry).collect();
    let nodes = vec![node("Gather", &["w", "index"], &["row"]), node("Add", &["x", "row"], &["y"])];
    vectors(&["x"], &["y"], vec![weight, longs("index", &[1], &[1])], nodes)
}

#[test]
fn external_files_are_read_from_the_folder_alone() {
    let bytes = heavy("w", 2100).raw_data.unwrap();
    let place = Place::new();
    place.write("model.onnx", &external("sub/../weights.bin", &[]).encode_to_vec());
    assert!(matches!(place.import().unwrap_err(), ImportError::ExternalEscapes { .. }));
    for outside in ["../weights.bin", "/etc/passwd", ""] {
        place.write("model.onnx", &external(outside, &[]).encode_to_vec());
        assert!(matches!(place.import().unwrap_err(), ImportError::ExternalEscapes { .. }), "{outside}");
    }
    std::os::unix::fs::symlink("/etc/hostname", place.folder.path().join("link")).unwrap();
    place.write("model.onnx", &external("link", &[]).encode_to_vec());
    assert!(matches!(place.import().unwrap_err(), ImportError::ExternalEscapes { .. }));

    place.write("model.onnx", &external("weights.bin", &[]).encode_to_vec());
    let error = place.import().unwrap_err();
    assert!(matches!(&error, ImportError::MissingExternal { file, .. } if file == "weights.bin"), "{error}");
    place.write("weights.bin", &bytes[1..]);
    let error = place.import().unwrap_err();
    assert!(matches!(error, ImportError::ExternalRange { end: 67_200, size: 67_199, .. }), "{error}");
    place.write("weights.bin", &[&[0; 100], bytes.as_slice()].concat());
    place.write(
        "model.onnx",
        &external("./weights.bin", &[("offset", "100"), ("length", "67200")]).encode_to_vec(),
    );
    let imported = place.import().unwrap();
    assert_eq!(imported.model.blobs()[0].hash, Hash::of(&bytes));
    let inline = {
        let mut model = external("", &[]);
        model.graph.as_mut().unwrap().initializer[0] = heavy("w", 2100);
        model
    };
    assert_eq!(
        import_bytes(&inline.encode_to_vec()).unwrap().hash,
        imported.hash,
        "inline or not, one model"
    );
    for wrong in [("length", "67204"), ("length", "many"), ("offset", "-1")] {
        place.write("model.onnx", &external("weights.bin", &[wrong]).encode_to_vec());
        let error = place.import().unwrap_err();
        assert!(matches!(error, ImportError::Tensor { .. }), "{wrong:?}: {error}");
    }
    place
        .write("model.onnx", &external("weights.bin", &[("offset", "18446744073709551615")]).encode_to_vec());
    assert!(matches!(place.import().unwrap_err(), ImportError::ExternalRange { .. }));
}

#[test]
fn what_onnx_runtime_lacks_is_named() {
    let mut model = vectors(&["x"], &["y"], vec![], vec![node("Frobnicate", &["x"], &["y"])]);
    let error = import_bytes(&model.encode_to_vec()).unwrap_err();
    let named = matches!(&error, ImportError::Operator { operator, domain, version: 17, .. }
        if operator == "Frobnicate" && domain == "ai.onnx");
    assert!(named, "{error}");

    let custom = model.graph.as_mut().unwrap();
    custom.node[0].domain = "shop.floor".to_owned();
    model.opset_import.push(OperatorSetIdProto { domain: "shop.floor".to_owned(), version: 3 });
    let error = import_bytes(&model.encode_to_vec()).unwrap_err();
    let named = matches!(&error, ImportError::Operator { operator, domain, version: 3, .. }
        if operator == "Frobnicate" && domain == "shop.floor");
    assert!(named, "{error}");
}

#[test]
fn versions_and_graphs_that_cannot_run_are_told() {
    let good = || vectors(&["x"], &["y"], vec![], vec![node("Neg", &["x"], &["y"])]);
    let version = |change: fn(&mut ModelProto)| {
        let mut model = good();
        change(&mut model);
        let error = import_bytes(&model.encode_to_vec()).unwrap_err();
        assert!(matches!(error, ImportError::Version { .. }), "{error}");
    };
    version(|model| model.ir_version = 99);
    version(|model| model.opset_import[0].version = 99);
    version(|model| model.opset_import.clear());

    let graph = |change: fn(&mut ModelProto)| {
        let mut model = good();
        change(&mut model);
        let error = import_bytes(&model.encode_to_vec()).unwrap_err();
        let ImportError::Graph(error) = error else { panic!("{error}") };
        error
    };
    assert_eq!(graph(|m| m.graph = None), GraphError::NoGraph);
    assert_eq!(graph(|m| m.graph.as_mut().unwrap().output.clear()), GraphError::NoOutputs);
    let no_inputs = |m: &mut ModelProto| {
        m.graph.as_mut().unwrap().input.clear();
        m.graph.as_mut().unwrap().initializer.push(floats("x", &[1], &[1.]));
    };
    assert_eq!(graph(no_inputs), GraphError::NoInputs);
    assert_eq!(
        graph(|m| m.graph.as_mut().unwrap().output[0].name = "x".to_owned()),
        GraphError::NothingToRun
    );
    let undefined = graph(|m| m.graph.as_mut().unwrap().node[0].input[0] = "z".to_owned());
    assert!(matches!(undefined, GraphError::Undefined { value, .. } if value == "z"));
    let cycle = graph(|m| m.graph.as_mut().unwrap().node[0].input[0] = "y".to_owned());
    assert!(matches!(cycle, GraphError::Cycle(_)), "{cycle}");
    let twice = graph(|m| m.graph.as_mut().unwrap().node.push(node("Neg", &["x"], &["y"])));
    assert_eq!(twice, GraphError::Duplicate("y".to_owned()));

    let mut text = good();
    text.graph.as_mut().unwrap().input[0] = value("x", DType::Fp32, &[]);
    let proto = text.graph.as_mut().unwrap().input[0].r#type.as_mut().unwrap();
    if let Some(crate::onnx::type_proto::Value::TensorType(tensor)) = proto.value.as_mut() {
        tensor.elem_type = crate::onnx::data_type::STRING;
    }
    text.graph.as_mut().unwrap().node[0].op_type = "Identity".to_owned();
    let error = import_bytes(&text.encode_to_vec()).unwrap_err();
    assert!(matches!(error, ImportError::NoTensor { what: "input", .. }), "{error}");
}

#[test]
fn a_full_store_is_told_with_what_is_needed() {
    let place = Place::new();
    place.store.set_limit(1000);
    place.write("model.onnx", &sample().encode_to_vec());
    let error = place.import().unwrap_err();
    assert!(matches!(error, ImportError::Blob(crate::blobs::BlobError::OverLimit { .. })), "{error}");
    assert_eq!(place.store.used_bytes(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_never_bring_the_reader_down(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0_u8..4), 1..6),
    ) {
        // Small tensors, so that most changes hit the structure.
        let mut model = sample();
        model.graph.as_mut().unwrap().initializer[0].raw_data.as_mut().unwrap().truncate(40);
        model.graph.as_mut().unwrap().node[3].attribute.iter_mut().for_each(|attribute| {
            let tensor = attribute.g.as_mut().unwrap().node[0].attribute[0].t.as_mut().unwrap();
            tensor.raw_data.as_mut().unwrap().truncate(8);
        });
        let mut bytes = model.encode_to_vec();
        for (place, byte, kind) in changes {
            let at = place.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                2 => drop(bytes.remove(at)),
                _ => bytes[at] ^= 1 << (byte % 8),
            }
        }
        if let Ok(model) = Place::new().read(&bytes) {
            let graph = Graph::new(&model);
            prop_assert!(graph.is_ok());
        }
    }

    #[test]
    fn damaged_manifests_never_bring_a_device_down(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = manifest_bytes();
        for (place, byte) in changes {
            let at = place.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(model) = Model::load(&bytes) {
            let last = model.blocks().len() - 1;
            for first in 0..=last {
                prop_assert!(model.stage(first, last).is_ok());
            }
        }
    }
}

fn manifest_bytes() -> Vec<u8> {
    static BYTES: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    let make = || {
        let scene = import_model(&sample()).unwrap();
        scene.store.read_all(&scene.imported.hash, MAX_MANIFEST_BYTES).unwrap()
    };
    BYTES.get_or_init(make).clone()
}
