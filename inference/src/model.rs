//! An imported model: what it takes and gives, its blocks and cuts, and the blobs that it needs.

use std::collections::{BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use crate::{
    blobs::Hash,
    cut::{self, Span},
    graph::{Graph, GraphError, ValueId},
    manifest::Manifest,
    onnx::{DimensionValue, ModelProto, ValueInfoProto, type_proto},
    tensor::DType,
};

pub use crate::{blobs::BlobRef, manifest::MAX_MANIFEST_BYTES};

/// Extents taken for unknown ones where bytes are compared: 1 for the outermost, which is the batch as a rule, and
/// this for the others.
const TYPICAL_EXTENT: u64 = 128;

/// Name, element type and shape of a tensor that enters or leaves a model or a stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValueType {
    /// The value's name in the graph.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Extents, outermost first; -1 where an extent is only known at run time. Empty for a scalar, and where
    /// the number of dimensions is only known at run time (see `ranked`).
    pub shape: Vec<i64>,
    /// Whether the number of dimensions is known.
    pub ranked: bool,
    /// For each extent that is -1 the symbol that the graph gives it, else "" (as long as `shape`).
    #[serde(default)]
    pub symbols: Vec<String>,
}

impl ValueType {
    /// Bytes of one such tensor, with 1 for an unknown outermost extent and 128 for other unknown ones.
    pub fn typical_bytes(&self) -> u64 {
        let extent = |(axis, &extent): (usize, &i64)| match u64::try_from(extent) {
            Ok(known) => known,
            Err(_) if axis == 0 => 1,
            Err(_) => TYPICAL_EXTENT,
        };
        self.shape.iter().enumerate().map(extent).fold(self.dtype.size() as u64, u64::saturating_mul)
    }

    fn is_damaged(&self) -> bool {
        self.symbols.len() != self.shape.len() || (!self.ranked && !self.shape.is_empty())
    }

    /// From a graph's own declaration; `None` when it is no tensor of an element type that travels.
    pub(crate) fn from_info(info: &ValueInfoProto) -> Option<Self> {
        let Some(type_proto::Value::TensorType(tensor)) = info.r#type.as_ref()?.value.as_ref() else {
            return None;
        };
        let mut value = Self {
            name: info.name.clone(),
            dtype: DType::from_onnx(tensor.elem_type)?,
            shape: Vec::new(),
            ranked: tensor.shape.is_some(),
            symbols: Vec::new(),
        };
        for dim in tensor.shape.iter().flat_map(|shape| &shape.dim) {
            let (extent, symbol) = match &dim.value {
                Some(DimensionValue::DimValue(extent)) if *extent >= 0 => (*extent, String::new()),
                Some(DimensionValue::DimParam(symbol)) => (-1, symbol.clone()),
                Some(DimensionValue::DimValue(_)) | None => (-1, String::new()),
            };
            value.shape.push(extent);
            value.symbols.push(symbol);
        }
        Some(value)
    }
}

/// A stage as a model of its own, ready for one ONNX Runtime session.
#[derive(Debug, Clone)]
pub struct StageModel {
    /// The ONNX file. Its external data are blobs beside it: write it to [`crate::blobs::BlobStore::stage_path`].
    pub onnx: Vec<u8>,
    /// Inputs of the ONNX graph, a part of the tensors of the stage's first cut.
    pub inputs: Vec<ValueType>,
    /// Outputs of the ONNX graph, a part of the tensors of the stage's last cut.
    pub outputs: Vec<ValueType>,
    /// Tensors of the first cut that belong to the last cut as well: forward them untouched.
    /// One that the stage also reads is listed in `inputs` too. `outputs` and `passthrough` never share
    /// a name; together they are the last cut.
    pub passthrough: Vec<String>,
    /// Blobs that must be in the store before the session is made, each once.
    pub blobs: Vec<BlobRef>,
    /// Bytes of all weights that the stage reads, blobs and inline ones.
    pub weight_bytes: u64,
}

/// A run of nodes between two neighbouring cuts: block `i` lies between cuts `i` and `i + 1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Nodes that run for every request.
    pub nodes: usize,
    /// Bytes of the weights that the block reads. A weight that several blocks read counts in each.
    pub weight_bytes: u64,
}

/// The tensors that cross between two blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Names, in one order on all devices. The first cut is the model's inputs, the last its outputs.
    pub tensors: Vec<String>,
}

impl Cut {
    /// Bytes that cross, given the bytes of each tensor by name.
    pub fn bytes(&self, bytes_of: impl Fn(&str) -> u64) -> u64 {
        self.tensors.iter().map(|name| bytes_of(name)).fold(0, u64::saturating_add)
    }
}

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// What wrote the ONNX file, with its version.
    pub producer: String,
    /// The graph's name.
    pub graph: String,
    /// ONNX file format version.
    pub ir_version: i64,
    /// Operator sets by domain ("" for ONNX's own) with their versions.
    pub opsets: Vec<(String, i64)>,
}

/// Why a manifest cannot be used, or a stage not be made.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Not a manifest of this version of Mesh.
    #[error("this is no model manifest that this version of Mesh reads ({detail}): deploy the model again")]
    Manifest {
        /// What is wrong.
        detail: String,
    },
    /// The graph cannot be used.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// There are no such blocks.
    #[error("the model has blocks 0 to {last}, not {first_asked} to {last_asked}: plan it again")]
    Blocks {
        /// First block asked for.
        first_asked: usize,
        /// Last block asked for.
        last_asked: usize,
        /// Last block that there is.
        last: usize,
    },
}

/// An imported model. Large; share it by `Arc`.
#[derive(Debug)]
pub struct Model {
    /// Hash of the manifest, which names the model.
    pub hash: Hash,
    /// What a request gives.
    pub inputs: Vec<ValueType>,
    /// What a request gets.
    pub outputs: Vec<ValueType>,
    /// Where the model comes from.
    pub source: Source,
    pub(crate) proto: ModelProto,
    pub(crate) graph: Graph,
    pub(crate) positions: Vec<usize>,
    pub(crate) types: HashMap<String, ValueType>,
    blocks: Vec<Block>,
    cuts: Vec<Cut>,
    blobs: Vec<BlobRef>,
}

impl Model {
    /// Reads a manifest. Its bytes may come from anywhere: everything that later code relies on is checked.
    pub fn load(manifest: &[u8]) -> Result<Self, ModelError> {
        let hash = Hash::of(manifest);
        let (manifest, proto) = Manifest::decode(manifest)?;
        let graph = Graph::new(&proto)?;
        let spans = cut::spans(&graph);
        check_positions(&manifest, graph.order.len())?;
        let types: HashMap<String, ValueType> =
            manifest.types.into_iter().map(|value| (value.name.clone(), value)).collect();
        if let Some(value) = types.values().find(|value| value.is_damaged()) {
            return Err(ModelError::Manifest { detail: format!("the type of '{}' is damaged", value.name) });
        }
        let cuts = cuts(&graph, &spans, &manifest.positions, &types)?;
        let typed = |ids: &[ValueId]| ids.iter().map(|&id| types[&graph.values[id].name].clone()).collect();
        let mut model = Self {
            hash,
            inputs: typed(&graph.inputs),
            outputs: typed(&graph.outputs),
            source: source(&proto),
            proto,
            graph,
            positions: manifest.positions,
            types,
            blocks: Vec::new(),
            cuts,
            blobs: Vec::new(),
        };
        model.measure_blocks();
        Ok(model)
    }

    /// The blocks in order.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// The cuts, one more than there are blocks.
    pub fn cuts(&self) -> &[Cut] {
        &self.cuts
    }

    /// All blobs that the model needs beside its manifest, each once.
    pub fn blobs(&self) -> &[BlobRef] {
        &self.blobs
    }

    /// Bytes of all blobs.
    pub fn blob_bytes(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.bytes).sum()
    }

    /// Nodes that run for every request.
    pub fn node_count(&self) -> usize {
        self.graph.order.len()
    }

    /// Type of a tensor of some cut.
    pub fn value(&self, name: &str) -> Option<&ValueType> {
        self.types.get(name)
    }

    /// Bytes that cross the cut at typical extents (see [`ValueType::typical_bytes`]).
    pub fn typical_cut_bytes(&self, cut: &Cut) -> u64 {
        cut.bytes(|name| self.types.get(name).map_or(0, ValueType::typical_bytes))
    }

    fn measure_blocks(&mut self) {
        let mut blobs = BTreeSet::new();
        for block in 0..self.positions.len() - 1 {
            let parts = self.parts(block, block);
            blobs.extend(parts.blobs.iter().copied());
            self.blocks.push(Block {
                nodes: self.positions[block + 1] - self.positions[block],
                weight_bytes: parts.weight_bytes,
            });
        }
        self.blobs = blobs.into_iter().collect();
    }
}

fn check_positions(manifest: &Manifest, end: usize) -> Result<(), ModelError> {
    let positions = &manifest.positions;
    let good = manifest.cut_version == cut::CUT_VERSION
        && positions.first() == Some(&0)
        && positions.last() == Some(&end)
        && positions.is_sorted_by(|a, b| a < b)
        && positions.len() <= cut::MAX_BLOCKS + 1;
    let detail = || format!("cut positions of version {} do not fit the graph", manifest.cut_version);
    if good { Ok(()) } else { Err(ModelError::Manifest { detail: detail() }) }
}

fn cuts(
    graph: &Graph,
    spans: &[Option<Span>],
    positions: &[usize],
    types: &HashMap<String, ValueType>,
) -> Result<Vec<Cut>, ModelError> {
    let mut cuts = Vec::with_capacity(positions.len());
    for &position in positions {
        let ids = cut::crossing(graph, spans, position);
        let tensors: Vec<String> = ids.into_iter().map(|id| graph.values[id].name.clone()).collect();
        if let Some(name) = tensors.iter().find(|name| !types.contains_key(*name)) {
            return Err(ModelError::Manifest { detail: format!("the type of '{name}' is missing") });
        }
        cuts.push(Cut { tensors });
    }
    Ok(cuts)
}

fn source(proto: &ModelProto) -> Source {
    Source {
        producer: format!("{} {}", proto.producer_name, proto.producer_version).trim().to_owned(),
        graph: proto.graph.as_ref().map_or_else(String::new, |graph| graph.name.clone()),
        ir_version: proto.ir_version,
        opsets: proto.opset_import.iter().map(|opset| (opset.domain.clone(), opset.version)).collect(),
    }
}
