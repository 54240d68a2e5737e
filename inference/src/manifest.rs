//! What is kept of an imported model beside its blobs: the graph with its small tensors, where it may be cut,
//! and the types of what crosses there. CBOR; the hash of its bytes names the model.

use prost::Message as _;
use serde::{Deserialize, Serialize};

use crate::{
    blobs::{BlobRef, Hash},
    model::{ModelError, ValueType},
    onnx::{
        ModelProto, StringStringEntryProto, TensorProto,
        walk::{Place, tensors_mut},
    },
};

const FORMAT: &str = "mesh-model";
const VERSION: u32 = 1;

/// Most bytes that a manifest may have.
pub const MAX_MANIFEST_BYTES: u64 = 512 << 20;

/// The manifest as it is stored.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    format: String,
    version: u32,
    /// Rules by which `positions` were chosen.
    pub(crate) cut_version: u32,
    /// Cut positions, from 0 to the number of nodes that run per request.
    pub(crate) positions: Vec<usize>,
    /// Types of the model's inputs and outputs and of all that crosses a cut.
    pub(crate) types: Vec<ValueType>,
    /// A `ModelProto` whose large tensors are external, each located at its blob.
    #[serde(with = "serde_bytes")]
    graph: Vec<u8>,
}

impl Manifest {
    pub(crate) fn new(
        cut_version: u32,
        positions: Vec<usize>,
        types: Vec<ValueType>,
        model: &ModelProto,
    ) -> Self {
        let (format, version) = (FORMAT.to_owned(), VERSION);
        Self { format, version, cut_version, positions, types, graph: model.encode_to_vec() }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        ciborium::into_writer(self, &mut bytes).expect("writing to memory cannot fail, nor can these types");
        bytes
    }

    /// Reads a manifest and checks that its graph takes external data from blobs alone.
    pub(crate) fn decode(bytes: &[u8]) -> Result<(Self, ModelProto), ModelError> {
        let bad = |detail: String| ModelError::Manifest { detail };
        let manifest: Self = ciborium::from_reader(bytes).map_err(|e| bad(e.to_string()))?;
        if manifest.format != FORMAT || manifest.version != VERSION {
            return Err(bad(format!("format {} version {}", manifest.format, manifest.version)));
        }
        let mut model = ModelProto::decode(manifest.graph.as_slice()).map_err(|e| bad(e.to_string()))?;
        tensors_mut(&mut model, &mut |place, tensor| match (tensor.is_external(), place) {
            (false, _) => Ok(()),
            (true, Place::Initializer) if blob_of(tensor).is_some() => Ok(()),
            (true, Place::Initializer | Place::Attribute | Place::Elsewhere) => {
                Err(bad(format!("tensor '{}' lies in no blob", tensor.name)))
            }
        })?;
        Ok((manifest, model))
    }
}

/// Points a tensor at its blob.
pub(crate) fn set_blob(tensor: &mut TensorProto, blob: BlobRef) {
    let entry = |key: &str, value: String| StringStringEntryProto { key: key.to_owned(), value };
    tensor.data_location = Some(1);
    tensor.external_data =
        vec![entry("location", blob.hash.to_string()), entry("length", blob.bytes.to_string())];
}

/// The blob that an external tensor of a manifest points at: location and length alone, the length that the
/// tensor's dims ask for.
pub(crate) fn blob_of(tensor: &TensorProto) -> Option<BlobRef> {
    if !tensor.is_external() || tensor.external_data.len() != 2 {
        return None;
    }
    let hash: Hash = tensor.external("location")?.parse().ok()?;
    let bytes = tensor.external("length")?.parse().ok()?;
    (tensor.data_bytes() == Some(bytes)).then_some(BlobRef { hash, bytes })
}
