//! Random graphs, evaluated whole and in stages by a naive interpreter.

use std::collections::HashMap;

use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::{
    cut::{self, MAX_BLOCKS},
    manifest::Manifest,
    model::{Model, ValueType},
    onnx::{FunctionProto, GraphProto, ModelProto, NodeProto},
    tensor::DType,
    testing::*,
};

/// What a graph computes, on single numbers.
type Numbers = HashMap<String, f32>;

fn run_graph(graph: &GraphProto, outer: &Numbers) -> Numbers {
    let mut known = outer.clone();
    for tensor in &graph.initializer {
        let bytes = tensor.raw_data.as_ref().unwrap();
        known.insert(tensor.name.clone(), f32::from_le_bytes(bytes[..4].try_into().unwrap()));
    }
    for node in &graph.node {
        run_node(node, &mut known);
    }
    known
}

fn run_node(node: &NodeProto, known: &mut Numbers) {
    let input = |i: usize| node.input.get(i).filter(|name| !name.is_empty()).map(|name| known[name]);
    let results = match node.op_type.as_str() {
        "Add" => vec![input(0).unwrap() + input(1).unwrap_or(0.5)],
        "Mul" => vec![input(0).unwrap() * input(1).unwrap_or(0.5)],
        "Neg" | "Identity" => vec![-input(0).unwrap()],
        "Split" => vec![input(0).unwrap() * 0.75, input(0).unwrap() * 0.25],
        "If" => {
            let branch = node.attribute[0].g.as_ref().unwrap();
            vec![run_graph(branch, known)[&branch.output[0].name] + input(0).unwrap()]
        }
        other => panic!("{other}"),
    };
    for (name, result) in node.output.iter().zip(results).filter(|(name, _)| !name.is_empty()) {
        assert!(known.insert(name.clone(), result).is_none(), "{name} is made twice");
    }
}

/// One node of a random graph: its operator and where it reads.
type Draw = (u8, prop::sample::Index, prop::sample::Index, bool);

#[derive(Debug, Clone)]
struct Plan {
    inputs: usize,
    weights: usize,
    nodes: Vec<Draw>,
    outputs: Vec<prop::sample::Index>,
    shuffle: Vec<prop::sample::Index>,
}

fn plans() -> impl Strategy<Value = Plan> {
    let index = any::<prop::sample::Index>;
    let draw = (0_u8..6, index(), index(), any::<bool>());
    (
        1_usize..4,
        0_usize..4,
        prop::collection::vec(draw, 1..25),
        prop::collection::vec(index(), 1..4),
        prop::collection::vec(index(), 0..6),
    )
        .prop_map(|(inputs, weights, nodes, outputs, shuffle)| Plan {
            inputs,
            weights,
            nodes,
            outputs,
            shuffle,
        })
}

fn build(plan: &Plan) -> ModelProto {
    let mut names: Vec<String> = (0..plan.inputs).map(|i| format!("x{i}")).collect();
    let inputs = names.clone();
    let weights: Vec<String> = (0..plan.weights).map(|i| format!("w{i}")).collect();
    names.extend(weights.iter().cloned());
    let mut nodes = Vec::new();
    for (i, (op, first, second, flag)) in plan.nodes.iter().enumerate() {
        let (a, b) = (names[first.index(names.len())].clone(), names[second.index(names.len())].clone());
        let out = format!("v{i}");
        let second = if *flag { b.as_str() } else { "" };
        nodes.push(match op {
            0 => node("Add", &[&a, second], &[&out]),
            1 => node("Mul", &[&a, second], &[&out]),
            2 => node("Neg", &[&a], &[&out]),
            3 => node("Identity", &[&a], &[&out]),
            4 if *flag => node("Split", &[&a], &[&out, ""]),
            4 => {
                let other = format!("{out}b");
                names.push(other.clone());
                node("Split", &[&a], &[&out, &other])
            }
            _ => {
                let inner = format!("{out}i");
                let branch = graph(
                    vec![],
                    vec![value(&inner, DType::Fp32, &[])],
                    vec![floats(&format!("{out}w"), &[1], &[0.125])],
                    vec![node("Add", &[&b, &format!("{out}w")], &[&inner])],
                );
                node("If", &[&a], &[&out]).with(subgraph("then_branch", branch))
            }
        });
        names.push(out);
    }
    for index in &plan.shuffle {
        let moved = nodes.remove(index.index(nodes.len()));
        nodes.push(moved);
    }
    let mut outputs: Vec<&str> =
        plan.outputs.iter().map(|index| names[index.index(names.len())].as_str()).collect();
    outputs.sort_unstable();
    outputs.dedup();
    let initializers: Vec<_> =
        weights.iter().enumerate().map(|(i, name)| floats(name, &[1], &[i as f32 / 2. - 0.6])).collect();
    vectors(&inputs.iter().map(String::as_str).collect::<Vec<_>>(), &outputs, initializers, nodes)
}

/// As import does it, without ONNX Runtime: every value is a float.
fn load(proto: &ModelProto) -> Result<Model, GraphError> {
    let graph = Graph::new(proto)?;
    let spans = cut::spans(&graph);
    let types: Vec<ValueType> = graph
        .values
        .iter()
        .map(|v| ValueType {
            name: v.name.clone(),
            dtype: DType::Fp32,
            shape: vec![],
            ranked: true,
            symbols: vec![],
        })
        .collect();
    let positions = cut::positions(&graph, &spans, &vec![Some(4); graph.values.len()]);
    Ok(Model::load(&Manifest::new(cut::CUT_VERSION, positions, types, proto).encode()).unwrap())
}

fn run_stages(model: &Model, starts: &[usize], inputs: &Numbers) -> Numbers {
    let last = model.blocks().len() - 1;
    let mut alive = inputs.clone();
    for (i, &first) in starts.iter().enumerate() {
        let end = starts.get(i + 1).map_or(last, |next| next - 1);
        let stage = model.stage(first, end).unwrap();
        let onnx = ModelProto::decode(stage.onnx.as_slice()).unwrap();
        let taken = stage.inputs.iter().map(|v| (v.name.clone(), alive[&v.name])).collect();
        let known = run_graph(onnx.graph.as_ref().unwrap(), &taken);
        let mut next: Numbers = stage.passthrough.iter().map(|name| (name.clone(), alive[name])).collect();
        next.extend(stage.outputs.iter().map(|v| (v.name.clone(), known[&v.name])));
        assert_eq!(next.len(), stage.passthrough.len() + stage.outputs.len());
        alive = next;
    }
    alive
}

/// Evaluates on demand, so that the order in the file does not matter.
fn run_whole(proto: &ModelProto, inputs: &Numbers) -> Numbers {
    let graph = proto.graph.as_ref().unwrap();
    let sorted = GraphProto {
        node: {
            let mut waiting: Vec<NodeProto> = graph.node.clone();
            let mut known: HashSet<String> = inputs.keys().cloned().collect();
            known.extend(graph.initializer.iter().map(|t| t.name.clone()));
            let mut sorted = Vec::new();
            while !waiting.is_empty() {
                let ready =
                    waiting.iter().position(|n| read_names(n).iter().all(|name| known.contains(*name)));
                let node = waiting.remove(ready.unwrap());
                known.extend(node.output.iter().cloned());
                sorted.push(node);
            }
            sorted
        },
        ..graph.clone()
    };
    let known = run_graph(&sorted, inputs);
    graph.output.iter().map(|output| (output.name.clone(), known[&output.name])).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn stages_of_random_graphs_give_the_whole_answer(plan in plans(), third in any::<prop::sample::Index>()) {
        let proto = build(&plan);
        let model = match load(&proto) {
            Ok(model) => model,
            Err(error) => {
                prop_assert_eq!(error, GraphError::NothingToRun);
                return Ok(());
            }
        };
        let inputs: Numbers = (0..plan.inputs).map(|i| (format!("x{i}"), i as f32 + 0.3)).collect();
        let whole = run_whole(&proto, &inputs);
        let blocks = model.blocks().len();
        prop_assert_eq!(run_stages(&model, &[0], &inputs), whole.clone());
        for cut in 1..blocks {
            prop_assert_eq!(run_stages(&model, &[0, cut], &inputs), whole.clone());
            let later = cut + third.index(blocks - cut);
            if later > cut {
                prop_assert_eq!(run_stages(&model, &[0, cut, later], &inputs), whole.clone());
            }
        }
        prop_assert_eq!(run_stages(&model, &(0..blocks).collect::<Vec<_>>(), &inputs), whole);
    }
}

#[test]
fn random_values_are_made_once_per_request_not_in_every_stage() {
    let mut model = vectors(
        &["x"],
        &["y"],
        vec![floats("w", &[1], &[1.])],
        vec![
            node("RandomNormalLike", &["w"], &["noise"]),
            NodeProto { domain: "mine".to_owned(), ..node("Noisy", &["w"], &["more"]) },
            node("Neg", &["w"], &["fixed"]),
            node("Sum", &["noise", "x", "more", "fixed"], &["y"]),
        ],
    );
    let inner = NodeProto { domain: "mine".to_owned(), ..node("Inner", &["a"], &["b"]) };
    let function = |name: &str, body: NodeProto| FunctionProto {
        name: name.to_owned(),
        domain: "mine".to_owned(),
        node: vec![body],
        ..FunctionProto::default()
    };
    model.functions =
        vec![function("Noisy", inner), function("Inner", node("RandomUniformLike", &["a"], &["b"]))];
    let graph = Graph::new(&model).unwrap();
    let weight = |name: &str| graph.values[graph.value(name).unwrap()].weight;
    assert_eq!([weight("noise"), weight("more"), weight("fixed")], [false, false, true]);
    assert_eq!(graph.order.len(), 3);
}

#[test]
fn a_function_that_calls_itself_ends() {
    let mut model = vectors(&["x"], &["y"], vec![], vec![node("Neg", &["x"], &["y"])]);
    let body = NodeProto { domain: "mine".to_owned(), ..node("Round", &["a"], &["b"]) };
    model.graph.as_mut().unwrap().node[0] =
        NodeProto { input: vec!["x".to_owned()], output: vec!["y".to_owned()], ..body.clone() };
    model.functions = vec![FunctionProto {
        name: "Round".to_owned(),
        domain: "mine".to_owned(),
        node: vec![body],
        ..FunctionProto::default()
    }];
    assert_eq!(Graph::new(&model).unwrap().order.len(), 1);
}

#[test]
fn long_graphs_are_cut_where_little_crosses() {
    // Every tenth node gives back a narrow tensor; in between, wide ones and a skip.
    let length = 3000;
    let mut nodes = Vec::new();
    for i in 0..length {
        let (from, to) = (format!("v{i}"), format!("v{}", i + 1));
        let skip = format!("v{}", i / 10 * 10);
        nodes.push(node("Add", &[&from, &skip], &[&to]));
    }
    let end = format!("v{length}");
    let proto = vectors(&["v0"], &[&end], vec![], nodes);
    let graph = Graph::new(&proto).unwrap();
    let spans = cut::spans(&graph);
    let sizes: Vec<Option<u64>> = graph
        .values
        .iter()
        .map(|v| if v.name[1..].parse::<usize>().unwrap().is_multiple_of(10) { Some(10) } else { Some(1000) })
        .collect();
    let positions = cut::positions(&graph, &spans, &sizes);
    assert_eq!(positions.len(), MAX_BLOCKS + 1);
    assert!(positions.is_sorted_by(|a, b| a < b));
    assert!(positions[1..MAX_BLOCKS].iter().all(|p| p.is_multiple_of(10)), "{positions:?}");
}

#[test]
fn no_cut_is_offered_where_a_value_cannot_travel() {
    let nodes = vec![
        node("Neg", &["x"], &["a"]),
        node("SequenceConstruct", &["a"], &["s"]),
        node("Neg", &["a"], &["b"]),
        node("Concat", &["s", "b"], &["y"]),
    ];
    let graph = Graph::new(&vectors(&["x"], &["y"], vec![], nodes)).unwrap();
    let spans = cut::spans(&graph);
    let sizes: Vec<Option<u64>> = graph.values.iter().map(|v| (v.name != "s").then_some(u64::MAX)).collect();
    assert_eq!(cut::positions(&graph, &spans, &sizes), [0, 1, 4]);
}
