//! The wire format of the data plane.
//!
//! A frame is `MSH1`, the header's length (u32, little-endian), the header in CBOR, and the bytes of the tensors one
//! after another, each as its codec left it. All that a header announces is checked before anything is allocated.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use libp2p::PeerId;
use mesh_inference::{
    codec::Codec,
    tensor::{DType, Tensor, byte_len},
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::limits::DataLimits;

/// Starts every frame; the digit is the version.
pub(super) const MAGIC: [u8; 4] = *b"MSH1";
/// Largest header.
pub(super) const HEADER_MAX: usize = 1 << 20;
/// Longest error text that travels.
pub(super) const MESSAGE_MAX: usize = 4096;

const DEVICES_MAX: usize = 256;
const TENSORS_MAX: usize = 4096;
const NAME_MAX: usize = 4096;
const DIMENSIONS_MAX: usize = 32;
/// CBOR nesting: header, list, tensor, shape, extent, with room.
const NESTING_MAX: usize = 16;

/// Tensors by name. Clones share the memory.
pub type Named = (String, Tensor);

/// Which request a frame is about and where it goes.
#[derive(Debug, Clone)]
pub struct Address {
    /// Unique per start of the ingress.
    pub request: u64,
    /// Counts the times that the ingress has sent the request.
    pub attempt: u32,
    /// The device that the request entered by.
    pub ingress: PeerId,
    /// Deployment name.
    pub deployment: Arc<str>,
    /// Number of the plan.
    pub epoch: u64,
    /// A device per stage.
    pub devices: Arc<[PeerId]>,
    /// Jobs that were left on each stage's device when it was done with the request, as far as the request has come.
    pub backlog: Vec<u32>,
}

/// What a frame says.
#[derive(Debug, Clone)]
pub(super) enum Body {
    /// Inputs of a stage.
    Activation {
        stage: usize,
        /// When the request must be answered, on this device's clock.
        deadline: Instant,
        tensors: Vec<Named>,
    },
    /// Outputs of the last stage, for the ingress.
    Result { tensors: Vec<Named> },
    /// The request has gone to another device of a stage than its ingress had picked; the address has it.
    Moved { stage: usize },
    /// A stage did not run, for the ingress.
    Failed(Failure),
}

/// A frame in memory.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) address: Address,
    pub(super) body: Body,
}

impl Frame {
    pub(super) fn tensors(&self) -> &[Named] {
        match &self.body {
            Body::Activation { tensors, .. } | Body::Result { tensors } => tensors,
            Body::Moved { .. } | Body::Failed(_) => &[],
        }
    }

    /// Bytes of all tensors.
    pub(super) fn bytes(&self) -> usize {
        self.tensors().iter().map(|(_, tensor)| tensor.bytes().len()).sum()
    }
}

/// Why a stage did not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What the ingress decides by.
    pub kind: FailureKind,
    /// Index of the stage.
    pub stage: usize,
    /// The device to keep away from.
    pub blame: PeerId,
    /// For people.
    pub message: String,
}

/// What the ingress decides by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// A queue is full.
    Busy,
    /// The plan has been retired on this device.
    StaleEpoch,
    /// The stage is not on this device, or not yet.
    UnknownStage,
    /// The stage was shut down.
    Closed,
    /// The next device cannot be reached.
    Unreachable,
    /// ONNX Runtime refused the inputs or failed.
    Run,
    /// The tensors of the frame do not fit the stage.
    Inputs,
}

/// How a tensor lies on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WireTensor {
    pub(super) name: String,
    pub(super) dtype: DType,
    pub(super) shape: Vec<i64>,
    pub(super) codec: Codec,
    /// Bytes on the wire.
    pub(super) length: u64,
}

/// A header that has been checked.
#[derive(Debug, Clone)]
pub(super) struct Header {
    pub(super) address: Address,
    pub(super) kind: HeaderKind,
    pub(super) tensors: Vec<WireTensor>,
}

/// What kind of frame follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HeaderKind {
    Activation {
        stage: usize,
        /// Time that was left to answer the request when the frame was sent: devices share no clock.
        remaining: Duration,
    },
    Result,
    Moved {
        stage: usize,
    },
    Failed(Failure),
}

/// The header as CBOR has it. Short keys: it travels with every activation.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHeader {
    k: RawKind,
    r: u64,
    a: u32,
    i: ByteBuf,
    d: String,
    e: u64,
    p: Vec<ByteBuf>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    b: Vec<u32>,
    t: Vec<RawTensor>,
}

#[derive(Serialize, Deserialize)]
enum RawKind {
    A { s: u32, ms: u64 },
    R,
    M { s: u32 },
    F { k: FailureKind, s: u32, b: ByteBuf, m: String },
}

#[derive(Serialize, Deserialize)]
struct RawTensor {
    n: String,
    t: DType,
    s: Vec<i64>,
    c: Codec,
    l: u64,
}

/// Why a frame was refused; the stream that it came on is closed.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error("the stream carries something else than Mesh frames of this version")]
    Magic,
    #[error("a header of {0} bytes is over the limit of {HEADER_MAX}")]
    HeaderTooLarge(usize),
    #[error("the header cannot be read: {0}")]
    Header(String),
    #[error("{what} is {got}, over the limit of {limit}")]
    OverLimit { what: &'static str, got: u64, limit: u64 },
    #[error("a device of the route is no peer id")]
    Peer,
    #[error("stage {stage} of a route with {devices} stages")]
    Stage { stage: usize, devices: usize },
    #[error("tensor {0:?} announces a length that does not fit its type and shape")]
    Length(String),
    #[error(transparent)]
    Tensor(#[from] mesh_inference::tensor::TensorError),
    #[error(transparent)]
    Codec(#[from] mesh_inference::codec::CodecError),
    #[error("no byte came for {0:?} in the middle of a frame")]
    Stalled(Duration),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// The bytes of `MSH1`, length and header.
pub(super) fn encode_header(header: &Header) -> Result<Vec<u8>, FrameError> {
    let kind = match &header.kind {
        HeaderKind::Activation { stage, remaining } => {
            RawKind::A { s: *stage as u32, ms: millis(*remaining) }
        }
        HeaderKind::Result => RawKind::R,
        HeaderKind::Moved { stage } => RawKind::M { s: *stage as u32 },
        HeaderKind::Failed(failure) => RawKind::F {
            k: failure.kind,
            s: failure.stage as u32,
            b: ByteBuf::from(failure.blame.to_bytes()),
            m: truncated(&failure.message).to_owned(),
        },
    };
    let tensor = |t: &WireTensor| RawTensor {
        n: t.name.clone(),
        t: t.dtype,
        s: t.shape.clone(),
        c: t.codec,
        l: t.length,
    };
    let Address { request, attempt, ingress, deployment, epoch, devices, backlog } = &header.address;
    let raw = RawHeader {
        k: kind,
        r: *request,
        a: *attempt,
        i: ByteBuf::from(ingress.to_bytes()),
        d: deployment.to_string(),
        e: *epoch,
        p: devices.iter().map(|peer| ByteBuf::from(peer.to_bytes())).collect(),
        b: backlog.clone(),
        t: header.tensors.iter().map(tensor).collect(),
    };
    let mut bytes = Vec::with_capacity(512);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[0; 4]);
    ciborium::into_writer(&raw, &mut bytes).map_err(|e| FrameError::Header(e.to_string()))?;
    let length = bytes.len() - 8;
    if length > HEADER_MAX {
        return Err(FrameError::HeaderTooLarge(length));
    }
    bytes[4..8].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(bytes)
}

/// Length of the header that follows the first 8 bytes of a frame.
pub(super) fn header_length(prefix: [u8; 8]) -> Result<usize, FrameError> {
    let (magic, length) = prefix.split_at(4);
    if magic != MAGIC {
        return Err(FrameError::Magic);
    }
    let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
    if length > HEADER_MAX {
        return Err(FrameError::HeaderTooLarge(length));
    }
    Ok(length)
}

/// Reads and checks a header. Allocates no more than a small multiple of `bytes`.
pub(super) fn decode_header(bytes: &[u8], limits: &DataLimits) -> Result<Header, FrameError> {
    let raw: RawHeader = ciborium::de::from_reader_with_recursion_limit(bytes, NESTING_MAX)
        .map_err(|e| FrameError::Header(e.to_string()))?;
    check("the number of devices", raw.p.len() as u64, DEVICES_MAX as u64)?;
    check("the number of backlogs", raw.b.len() as u64, raw.p.len() as u64)?;
    check("the number of tensors", raw.t.len() as u64, TENSORS_MAX as u64)?;
    check("the length of the deployment's name", raw.d.len() as u64, NAME_MAX as u64)?;
    let devices: Arc<[PeerId]> = raw.p.iter().map(|p| peer(p)).collect::<Result<_, _>>()?;
    let stage = |s: u32| {
        let stage = s as usize;
        if stage < devices.len() {
            Ok(stage)
        } else {
            Err(FrameError::Stage { stage, devices: devices.len() })
        }
    };
    let kind = match raw.k {
        RawKind::A { s, ms } => HeaderKind::Activation {
            stage: stage(s)?,
            remaining: Duration::from_millis(ms).min(limits.timeout_max),
        },
        RawKind::R => HeaderKind::Result,
        RawKind::M { s } => HeaderKind::Moved { stage: stage(s)? },
        RawKind::F { k, s, b, m } => {
            check("the length of an error's text", m.len() as u64, MESSAGE_MAX as u64)?;
            HeaderKind::Failed(Failure { kind: k, stage: stage(s)?, blame: peer(&b)?, message: m })
        }
    };
    let mut total = 0u64;
    let mut tensors = Vec::with_capacity(raw.t.len());
    for RawTensor { n, t, s, c, l } in raw.t {
        let tensor = WireTensor { name: n, dtype: t, shape: s, codec: c, length: l };
        total = total.saturating_add(check_tensor(&tensor, limits)?.max(tensor.length));
        tensors.push(tensor);
    }
    check("the size of a frame", total, limits.frame_bytes_max)?;
    if matches!(kind, HeaderKind::Failed(_) | HeaderKind::Moved { .. }) {
        check("the number of tensors of a message", tensors.len() as u64, 0)?;
    }
    let address = Address {
        request: raw.r,
        attempt: raw.a,
        ingress: peer(&raw.i)?,
        deployment: raw.d.into(),
        epoch: raw.e,
        devices,
        backlog: raw.b,
    };
    Ok(Header { address, kind, tensors })
}

/// Bytes of the tensor in memory, once all about it is within the limits.
fn check_tensor(tensor: &WireTensor, limits: &DataLimits) -> Result<u64, FrameError> {
    check("the length of a tensor's name", tensor.name.len() as u64, NAME_MAX as u64)?;
    check("the number of dimensions", tensor.shape.len() as u64, DIMENSIONS_MAX as u64)?;
    let bytes = byte_len(tensor.dtype, &tensor.shape)? as u64;
    check("the size of a tensor", bytes, limits.tensor_bytes_max)?;
    // What packing would not make smaller is sent raw.
    if (tensor.codec == Codec::Raw && tensor.length != bytes) || tensor.length > bytes {
        return Err(FrameError::Length(tensor.name.clone()));
    }
    Ok(bytes)
}

fn check(what: &'static str, got: u64, limit: u64) -> Result<(), FrameError> {
    if got > limit { Err(FrameError::OverLimit { what, got, limit }) } else { Ok(()) }
}

fn peer(bytes: &[u8]) -> Result<PeerId, FrameError> {
    PeerId::from_bytes(bytes).map_err(|_| FrameError::Peer)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The text up to the limit, cut between characters.
pub(super) fn truncated(text: &str) -> &str {
    let mut end = text.len().min(MESSAGE_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Busy => "busy",
            Self::StaleEpoch => "stale epoch",
            Self::UnknownStage => "unknown stage",
            Self::Closed => "stage shut down",
            Self::Unreachable => "next device unreachable",
            Self::Run => "run failed",
            Self::Inputs => "inputs do not fit",
        })
    }
}

#[cfg(test)]
mod tests;
