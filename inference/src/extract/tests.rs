//! Graphs of every awkward kind, cut everywhere and compared with ONNX Runtime's answer for the whole file.

use half::f16;

use super::*;
use crate::{onnx::*, tensor::DType, tensor::Tensor, testing::*};

fn cuts(scene: &Scene) -> Vec<Vec<&str>> {
    let cuts = scene.model().cuts().iter();
    cuts.map(|cut| cut.tensors.iter().map(String::as_str).collect()).collect()
}

#[test]
fn skips_and_inputs_needed_late_travel() {
    let nodes = vec![
        node("Relu", &["x"], &["a"]),
        node("Neg", &["a"], &["b"]),
        node("Add", &["b", "a"], &["c"]),
        node("Mul", &["c", "late"], &["y"]),
    ];
    let scene = check_every_cut(
        &vectors(&["x", "late"], &["y"], vec![], nodes),
        vec![("x", rows()), ("late", rows())],
    );
    let expected: Vec<Vec<&str>> =
        vec![vec!["x", "late"], vec!["late", "a"], vec!["late", "a", "b"], vec!["late", "c"], vec!["y"]];
    assert_eq!(cuts(&scene), expected);
    let stage = scene.model().stage(1, 2).unwrap();
    assert_eq!(stage.passthrough, ["late"]);
    assert_eq!((stage.inputs.len(), stage.inputs[0].name.as_str()), (1, "a"));
    assert_eq!((stage.outputs.len(), stage.outputs[0].name.as_str()), (1, "c"));
    assert_eq!(stage.outputs[0].shape, [-1, 8]);
}

#[test]
fn early_outputs_travel_to_the_end_and_may_be_used_inside() {
    let nodes =
        vec![node("Relu", &["x"], &["early"]), node("Neg", &["early"], &["b"]), node("Exp", &["b"], &["y"])];
    let scene = check_every_cut(&vectors(&["x"], &["y", "early"], vec![], nodes), vec![("x", rows())]);
    assert_eq!(cuts(&scene), vec![vec!["x"], vec!["early"], vec!["early", "b"], vec!["y", "early"]]);
    let stage = scene.model().stage(1, 2).unwrap();
    assert_eq!((stage.passthrough, stage.inputs[0].name.as_str()), (vec!["early".to_owned()], "early"));
}

#[test]
fn outputs_that_are_inputs_or_weights_arrive() {
    let nodes =
        vec![node("Relu", &["x"], &["a"]), node("Neg", &["a"], &["y"]), node("Neg", &["w"], &["minus_w"])];
    let model =
        vectors(&["x", "unused"], &["y", "x", "w", "minus_w"], vec![floats("w", &[3], &[1., 2., 3.])], nodes);
    let scene = check_every_cut(&model, vec![("x", rows()), ("unused", rows())]);
    assert_eq!(cuts(&scene), vec![vec!["x", "unused"], vec!["x", "a"], vec!["y", "x", "w", "minus_w"]]);
    assert_eq!(scene.model().outputs[2].shape, [3]);
    assert_eq!(scene.model().outputs[3].shape, [3]);
}

#[test]
fn values_made_of_weights_alone_are_weights_in_every_stage() {
    let nodes = vec![
        node("Identity", &["w"], &["shared"]),
        node("Transpose", &["shared"], &["t"]),
        node("MatMul", &["x", "t"], &["a"]),
        node("Relu", &["a"], &["b"]),
        node("MatMul", &["b", "shared"], &["c"]),
        node("Add", &["c", "x"], &["y"]),
    ];
    let model = vectors(&["x"], &["y"], vec![heavy("w", 2100)], nodes);
    let scene = check_every_cut(&model, vec![("x", rows())]);
    assert_eq!(cuts(&scene), vec![vec!["x"], vec!["x", "a"], vec!["x", "b"], vec!["x", "c"], vec!["y"]]);
    let model = scene.model();
    assert_eq!((model.node_count(), model.blobs().len()), (4, 1));
    assert_eq!(model.blob_bytes(), 2100 * 8 * 4);
    for (block, weights) in [(0, 1), (1, 0), (2, 1), (3, 0)] {
        assert_eq!(model.stage(block, block).unwrap().blobs.len(), weights, "block {block}");
    }
    assert_eq!(model.stage(0, 3).unwrap().weight_bytes, 2100 * 8 * 4);
}

/// `If` on the sum of x: both branches read an activation, a weight and a heavy weight of their own.
fn conditional() -> ModelProto {
    let branch = |op: &str, own: &str, out: &str| {
        let inner = format!("{out}_inner");
        graph(
            vec![],
            vec![value(out, DType::Fp32, &[-1, 8])],
            vec![heavy(own, 2100)],
            vec![node("Gather", &[own, "index"], &[&inner]), node(op, &["skip", &inner], &[out])],
        )
    };
    let nodes = vec![
        node("Neg", &["x"], &["skip"]),
        node("ReduceSum", &["x"], &["sum"]).with(int("keepdims", 0)),
        node("Greater", &["sum", "zero"], &["yes"]),
        node("If", &["yes"], &["picked"])
            .with(subgraph("then_branch", branch("Add", "w_then", "out_then")))
            .with(subgraph("else_branch", branch("Sub", "w_else", "out_else"))),
        node("Add", &["picked", "skip"], &["y"]),
    ];
    vectors(&["x"], &["y"], vec![floats("zero", &[], &[0.]), longs("index", &[1], &[1])], nodes)
}

#[test]
fn conditions_capture_outer_names_and_keep_heavy_weights_in_blobs() {
    let scene = check_every_cut(&conditional(), vec![("x", rows())]);
    assert_eq!(cuts(&scene)[3], ["skip", "yes"]);
    assert_eq!(scene.model().stage(3, 3).unwrap().blobs.len(), 1, "both branches have the same bytes");
    assert!(scene.model().stage(0, 2).unwrap().blobs.is_empty());
    assert_eq!(scene.model().value("yes").unwrap().dtype, DType::Bool);
}

#[test]
fn loops_capture_outer_names() {
    let body = graph(
        vec![
            value("i", DType::Int64, &[]),
            value("go", DType::Bool, &[]),
            value("state", DType::Fp32, &[-1, 8]),
        ],
        vec![value("go_on", DType::Bool, &[]), value("next", DType::Fp32, &[-1, 8])],
        vec![],
        vec![node("Identity", &["go"], &["go_on"]), node("Add", &["state", "step"], &["next"])],
    );
    let nodes = vec![
        node("Abs", &["x"], &["step"]),
        node("Relu", &["x"], &["start"]),
        node("Loop", &["times", "", "start"], &["end"]).with(subgraph("body", body)),
        node("Neg", &["end"], &["y"]),
    ];
    let model = vectors(&["x"], &["y"], vec![longs("times", &[], &[3])], nodes);
    let scene = check_every_cut(&model, vec![("x", rows())]);
    assert_eq!(cuts(&scene)[2], ["step", "start"]);
}

#[test]
fn scans_capture_outer_names() {
    let body = graph(
        vec![value("sum", DType::Fp32, &[8]), value("row", DType::Fp32, &[8])],
        vec![value("sum_out", DType::Fp32, &[8]), value("scanned", DType::Fp32, &[8])],
        vec![],
        vec![
            node("Add", &["sum", "row"], &["added"]),
            node("Add", &["added", "bias"], &["sum_out"]),
            node("Identity", &["sum_out"], &["scanned"]),
        ],
    );
    let nodes = vec![
        node("ReduceMean", &["x"], &["bias"]).with(ints("axes", &[0])).with(int("keepdims", 0)),
        node("Scan", &["zeros", "x"], &["last", "all"])
            .with(subgraph("body", body))
            .with(int("num_scan_inputs", 1)),
        node("Add", &["all", "last"], &["y"]),
    ];
    let model = vectors(&["x"], &["y"], vec![floats("zeros", &[8], &[0.; 8])], nodes);
    let scene = check_every_cut(&model, vec![("x", rows())]);
    assert_eq!(cuts(&scene)[1], ["x", "bias"]);
}

#[test]
fn absent_optional_inputs_and_unused_outputs_are_kept_in_place() {
    let nodes = vec![
        node("Clip", &["x", "", "most"], &["a"]),
        node("Split", &["a"], &["left", "right"]).with(int("axis", 1)),
        node("TopK", &["left", "k"], &["best", "places"]),
        node("GatherElements", &["left", "places"], &["y"]).with(int("axis", 1)),
    ];
    let initializer = vec![floats("most", &[], &[1.]), longs("k", &[1], &[2])];
    let model = vectors(&["x"], &["y"], initializer, nodes);
    let scene = check_every_cut(&model, vec![("x", rows())]);
    assert_eq!(cuts(&scene)[2], ["left"], "what nobody reads does not travel");
    assert_eq!(cuts(&scene)[3], ["left", "places"]);
    assert_eq!(scene.model().value("places").unwrap().dtype, DType::Int64);
}

#[test]
fn nodes_of_one_name_are_taken() {
    let nodes = vec![node("Relu", &["x"], &["a"]).named("same"), node("Neg", &["a"], &["y"]).named("same")];
    let scene = import_model(&vectors(&["x"], &["y"], vec![], nodes)).unwrap();
    assert_eq!(scene.model().blocks().len(), 2);
}

#[test]
fn sequences_never_cross_a_cut() {
    let nodes = vec![
        node("Relu", &["x"], &["a"]),
        node("SplitToSequence", &["a"], &["parts"]).with(int("axis", 1)),
        node("Neg", &["a"], &["b"]),
        node("SequenceAt", &["parts", "first"], &["part"]),
        node("Add", &["part", "b"], &["y"]),
    ];
    let model = vectors(&["x"], &["y"], vec![longs("first", &[], &[0])], nodes);
    let scene = check_every_cut(&model, vec![("x", rows())]);
    assert_eq!(cuts(&scene), vec![vec!["x"], vec!["a"], vec!["b", "part"], vec!["y"]]);
    assert_eq!(scene.model().blocks()[1].nodes, 3);
}

#[test]
fn functions_of_the_model_are_kept() {
    let mut model = vectors(
        &["x"],
        &["y"],
        vec![],
        vec![
            NodeProto { domain: "mine".to_owned(), ..node("Twice", &["x"], &["a"]) },
            NodeProto { domain: "mine".to_owned(), ..node("Twice", &["a"], &["y"]) },
        ],
    );
    model.opset_import.push(OperatorSetIdProto { domain: "mine".to_owned(), version: 1 });
    model.functions.push(FunctionProto {
        name: "Twice".to_owned(),
        domain: "mine".to_owned(),
        input: vec!["v".to_owned()],
        output: vec!["w".to_owned()],
        node: vec![node("Add", &["v", "v"], &["w"])],
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 17 }],
        ..FunctionProto::default()
    });
    let scene = check_every_cut(&model, vec![("x", rows())]);
    assert_eq!(scene.model().blocks().len(), 2);
}

#[test]
fn extents_that_are_known_at_run_time_only_cross() {
    let nodes = vec![
        node("Relu", &["x"], &["a"]),
        node("NonZero", &["a"], &["where"]),
        node("Transpose", &["where"], &["indices"]),
        node("GatherND", &["x", "indices"], &["found"]),
        node("Shape", &["found"], &["count"]),
        node("Cast", &["count"], &["n"]).with(int("to", 1)),
        node("Mul", &["found", "n"], &["y"]),
    ];
    let scene = check_every_cut(&vectors(&["x"], &["y"], vec![], nodes), vec![("x", rows())]);
    assert_eq!(scene.model().value("where").unwrap().shape, [2, -1]);
    assert_eq!(scene.model().blocks().len(), 7);
}

#[test]
fn values_of_unknown_rank_and_scalars_cross() {
    let nodes = vec![
        node("Reshape", &["x", "shape"], &["shaped"]),
        node("ReduceSum", &["x"], &["sum"]).with(int("keepdims", 0)),
        node("Relu", &["shaped"], &["a"]),
        node("Size", &["a"], &["size"]),
        node("Mul", &["a", "sum"], &["b"]),
        node("Cast", &["size"], &["count"]).with(int("to", 1)),
        node("Div", &["b", "count"], &["y"]),
    ];
    let mut model = vectors(&["x", "shape"], &["y"], vec![], nodes);
    let graph = model.graph.as_mut().unwrap();
    graph.input[1] = value("shape", DType::Int64, &[-1]);
    let shape = Tensor::from_slice(&[3], &[4_i64, 2, 2]).unwrap();
    let scene = check_every_cut(&model, vec![("x", rows()), ("shape", shape)]);
    let ranked = |name: &str| scene.model().value(name).unwrap().ranked;
    assert_eq!(
        [ranked("a"), ranked("sum"), ranked("size"), ranked("x"), ranked("y")],
        [false, true, true, true, false]
    );
}

#[test]
fn every_element_type_that_travels_crosses() {
    let types = DType::ALL.into_iter().filter(|dtype| *dtype != DType::Bf16);
    let mut nodes = Vec::new();
    let mut last = "x".to_owned();
    for dtype in types {
        let cast = format!("as_{dtype}");
        nodes.push(node("Cast", &[&last], &[&cast]).with(int("to", i64::from(dtype.to_onnx()))));
        last = cast;
    }
    nodes.push(node("Cast", &[&last], &["y"]).with(int("to", 1)));
    let scene = check_every_cut(&vectors(&["x"], &["y"], vec![], nodes), vec![("x", rows())]);
    assert_eq!(scene.model().blocks().len(), 13);
}

#[test]
fn heavy_constants_become_blobs() {
    let constant = TensorProto { name: String::new(), ..heavy("", 2100) };
    let nodes = vec![
        node("Constant", &[], &["w"]).with(tensor_attribute("value", constant)),
        node("Gather", &["w", "x"], &["a"]),
        node("Relu", &["a"], &["y"]),
    ];
    let proto = model(graph(
        vec![value("x", DType::Int64, &[-1])],
        vec![value("y", DType::Fp32, &[-1, 8])],
        vec![],
        nodes,
    ));
    let scene = check_every_cut(&proto, vec![("x", Tensor::from_slice(&[2], &[3_i64, 2000]).unwrap())]);
    assert_eq!((scene.model().node_count(), scene.model().blobs().len()), (2, 1));
}

#[test]
fn elements_in_typed_fields_become_raw_bytes() {
    let rows = 20_000_usize;
    let shell = |name: &str, data_type| TensorProto {
        name: name.to_owned(),
        dims: vec![rows as i64, 8],
        data_type,
        ..TensorProto::default()
    };
    let small = |i: usize| (i % 100) as i32 - 50;
    let range = 0..rows * 8;
    let tensors = vec![
        TensorProto { float_data: range.clone().map(|i| small(i) as f32).collect(), ..shell("f32", 1) },
        TensorProto { double_data: range.clone().map(|i| f64::from(small(i))).collect(), ..shell("f64", 11) },
        TensorProto { int32_data: range.clone().map(small).collect(), ..shell("i8", 3) },
        TensorProto {
            int32_data: range.clone().map(|i| i32::from(i % 3 == 0)).collect(),
            ..shell("bool", 9)
        },
        TensorProto { int32_data: range.clone().map(small).collect(), ..shell("i16", 5) },
        TensorProto { int32_data: range.clone().map(small).collect(), ..shell("i32", 6) },
        TensorProto { int64_data: range.clone().map(|i| i64::from(small(i))).collect(), ..shell("i64", 7) },
        TensorProto { uint64_data: range.clone().map(|i| i as u64).collect(), ..shell("u32", 12) },
        TensorProto { uint64_data: range.clone().map(|i| i as u64).collect(), ..shell("u64", 13) },
        TensorProto {
            int32_data: range.map(|i| i32::from(f16::from_f32(small(i) as f32).to_bits())).collect(),
            ..shell("f16", 10)
        },
    ];
    let mut nodes = Vec::new();
    let mut sum = "zero".to_owned();
    for tensor in &tensors {
        let name = &tensor.name;
        let (row, float, next) = (format!("{name}_row"), format!("{name}_float"), format!("{name}_sum"));
        nodes.push(node("Gather", &[name, "x"], &[&row]));
        nodes.push(node("Cast", &[&row], &[&float]).with(int("to", 1)));
        nodes.push(node("Add", &[&sum, &float], &[&next]));
        sum = next;
    }
    nodes.push(node("Neg", &[&sum], &["y"]));
    let mut tensors = tensors;
    tensors.push(floats("zero", &[], &[0.]));
    let inputs = vec![value("x", DType::Int64, &[-1])];
    let proto = model(graph(inputs, vec![value("y", DType::Fp32, &[-1, 8])], tensors, nodes));
    let scene = check_every_cut(&proto, vec![("x", Tensor::from_slice(&[2], &[7_i64, 19_999]).unwrap())]);
    let mut bytes: Vec<u64> = scene.model().blobs().iter().map(|blob| blob.bytes / 160_000).collect();
    bytes.sort_unstable();
    assert_eq!(bytes, [1, 1, 2, 2, 4, 4, 4, 8, 8, 8]);
}

#[test]
fn quantised_weights_and_annotations_are_kept() {
    let mut packed = heavy("w", 70_000);
    packed.data_type = data_type::INT8;
    packed.raw_data = Some((0..560_000_u32).map(|i| (i % 251) as u8).collect());
    let nodes = vec![
        node("DequantizeLinear", &["w", "scale", "zero"], &["real"]),
        node("MatMul", &["x", "turned"], &["a"]),
        node("Transpose", &["real"], &["turned"]),
        node("ReduceMax", &["a"], &["y"]),
    ];
    let mut zero = floats("zero", &[], &[]);
    zero.data_type = data_type::INT8;
    zero.raw_data = Some(vec![3]);
    let mut model = vectors(
        &["x"],
        &["y"],
        vec![packed, floats("scale", &[], &[0.25]), zero, floats("s2", &[], &[1.])],
        nodes,
    );
    let entry =
        |key: &str, value: &str| StringStringEntryProto { key: key.to_owned(), value: value.to_owned() };
    model.graph.as_mut().unwrap().quantization_annotation.push(TensorAnnotation {
        tensor_name: "a".to_owned(),
        quant_parameter_tensor_names: vec![entry("SCALE_TENSOR", "s2")],
    });
    let scene = check_every_cut(&model, vec![("x", rows())]);
    let stage =
        ModelProto::decode(scene.model().stage(0, 0).unwrap().onnx.as_slice()).unwrap().graph.unwrap();
    assert_eq!(stage.quantization_annotation.len(), 1);
    assert!(stage.initializer.iter().any(|tensor| tensor.name == "s2"));
}

#[test]
fn packed_weights_become_blobs() {
    let packed = TensorProto {
        data_type: data_type::INT4,
        raw_data: Some((0..280_000_u32).map(|i| (i % 251) as u8).collect()),
        ..heavy("w", 70_000)
    };
    let nodes = vec![
        node("DequantizeLinear", &["w", "scale"], &["real"]),
        node("Gather", &["real", "index"], &["row"]),
        node("Add", &["x", "row"], &["a"]),
        node("Neg", &["a"], &["y"]),
    ];
    let initializers = vec![packed, floats("scale", &[], &[0.25]), longs("index", &[1], &[69_999])];
    let mut model = vectors(&["x"], &["y"], initializers, nodes);
    model.opset_import[0].version = 21;
    model.ir_version = 10;
    let scene = check_every_cut(&model, vec![("x", rows())]);
    assert_eq!(scene.model().blob_bytes(), 280_000);
}

#[test]
fn sparse_initializers_are_kept() {
    let sparse = SparseTensorProto {
        values: Some(floats("w", &[2], &[3., 4.])),
        indices: Some(longs("", &[2], &[1, 6])),
        dims: vec![1, 8],
    };
    let nodes = vec![node("Neg", &["x"], &["a"]), node("Add", &["a", "w"], &["y"])];
    let mut model = vectors(&["x"], &["y"], vec![], nodes);
    model.graph.as_mut().unwrap().sparse_initializer.push(sparse);
    let scene = check_every_cut(&model, vec![("x", rows())]);
    let stage = |block| {
        let stage = scene.model().stage(block, block).unwrap();
        ModelProto::decode(stage.onnx.as_slice()).unwrap().graph.unwrap().sparse_initializer.len()
    };
    assert_eq!((stage(0), stage(1)), (0, 1));
}

#[test]
fn old_files_that_list_initializers_as_inputs_are_taken() {
    let nodes = vec![node("Add", &["x", "w"], &["a"]), node("Relu", &["a"], &["y"])];
    let mut model = vectors(&["x", "w"], &["y"], vec![floats("w", &[1, 8], &[1.; 8])], nodes);
    model.ir_version = 3;
    model.opset_import[0].version = 9;
    let scene = import_model(&model).unwrap();
    assert_eq!(scene.model().inputs.len(), 1);
    assert_eq!(scene.model().cuts()[0].tensors, ["x"]);
}

#[test]
fn blocks_that_do_not_exist_are_refused() {
    let scene = import_model(&vectors(&["x"], &["y"], vec![], vec![node("Neg", &["x"], &["y"])])).unwrap();
    for (first, last) in [(0, 1), (1, 0), (7, 9)] {
        assert!(matches!(scene.model().stage(first, last), Err(ModelError::Blocks { last: 0, .. })));
    }
}
