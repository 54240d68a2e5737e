//! Which codec a hop uses: pure logic over what was measured on it.

use std::time::Duration;

use super::Codec;

/// Below this, the frame's header and the system calls are what a hop costs.
const SMALLEST: usize = 4 << 10;

/// Weight of the newest observation of a codec.
const NEWEST: f64 = 0.2;

/// A codec that lost is looked at again after this many tensors: data and load change.
const LOOK_AGAIN: u32 = 256;

/// What is believed of a codec before it was tried: more than it will hold, so that it is tried where it could pay.
const HOPE: Estimate = Estimate { ratio: 0.3, cost: 1.0 / 600e6 };

/// The same for [`Codec::Sparse`], processor seconds per raw byte; its ratio is known from a look at the tensor.
const HOPE_SPARSE: f64 = 0.25e-9;

/// What a hop is like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hop {
    /// Bytes per second that the link carries; 0 where that is not known.
    pub bandwidth: f64,
    /// Share of the time (0 to 1) that the busier of the two devices computes.
    pub busy: f64,
    /// Processor seconds that a byte costs on its way, on both ends together: encryption, the network stack, copies.
    pub moving: f64,
    /// Processors that a device has. With less than one a processor second takes longer than a second.
    pub cores: f64,
}

impl Hop {
    /// Seconds that the link takes for a byte.
    fn link(&self) -> f64 {
        if self.bandwidth > 0.0 { 1.0 / self.bandwidth } else { 0.0 }
    }

    /// What a processor second counts against a second on the link.
    fn weight(&self) -> f64 {
        1.0 / (1.0 - self.busy.clamp(0.0, 0.9)) / self.cores.clamp(0.01, 1.0)
    }
}

/// What was seen when a tensor was sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observation {
    /// The codec that was asked for; not what it fell back to.
    pub codec: Codec,
    /// Bytes of the tensor.
    pub raw_bytes: usize,
    /// Bytes that were sent.
    pub sent_bytes: usize,
    /// Processor time to pack it.
    pub encode: Duration,
    /// Processor time to unpack it at the other end, if that is known; else it is taken to be half of packing, and as
    /// much as packing with [`Codec::Sparse`].
    pub decode: Option<Duration>,
}

/// Ratio of sent to raw bytes, and processor seconds per raw byte on both ends together.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Estimate {
    ratio: f64,
    cost: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Candidate {
    seen: Option<Estimate>,
    /// Tensors since it was last used.
    idle: u32,
}

impl Candidate {
    fn used(&mut self, now: bool) {
        self.idle = if now { 0 } else { self.idle.saturating_add(1) };
    }
}

/// Chooses the codec of one hop, tensor by tensor.
///
/// A codec takes processor time for packing and unpacking. It saves time on the link, and the processor time of moving
/// the bytes that are not sent. Processor time counts for more the busier the processor is with the stage itself, up
/// to ten times, and where the device has only a part of a processor.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HopPolicy {
    zstd: Candidate,
    planes: Candidate,
    sparse: Candidate,
}

impl HopPolicy {
    /// A policy that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The codec for a tensor of `bytes`, of which [`Codec::Sparse`] would leave the part `sparse`
    /// ([`super::sparse_ratio`]).
    pub fn choose(&mut self, hop: &Hop, bytes: usize, sparse: Option<f64>) -> Codec {
        if bytes < SMALLEST || hop.bandwidth.is_nan() || hop.moving.is_nan() {
            return Codec::Raw;
        }
        let weight = hop.weight();
        // What a byte costs that is sent.
        let sent = hop.link() + weight * hop.moving.max(0.0);
        let believed = |candidate: &Candidate| {
            let again = candidate.idle >= LOOK_AGAIN;
            candidate.seen.filter(|_| !again)
        };
        let seconds = |candidate: &Candidate| {
            let Estimate { ratio, cost } = believed(candidate).unwrap_or(HOPE);
            ratio * sent + cost * weight
        };
        let mut best = (Codec::Raw, sent);
        let mut offer = |codec, seconds: f64| {
            if seconds < best.1 {
                best = (codec, seconds);
            }
        };
        if let Some(ratio) = sparse {
            let cost = believed(&self.sparse).map_or(HOPE_SPARSE, |seen| seen.cost);
            offer(Codec::Sparse, ratio * sent + cost * weight);
        }
        offer(Codec::PlanesZstd, seconds(&self.planes));
        offer(Codec::Zstd, seconds(&self.zstd));
        self.zstd.used(best.0 == Codec::Zstd);
        self.planes.used(best.0 == Codec::PlanesZstd);
        if sparse.is_some() {
            self.sparse.used(best.0 == Codec::Sparse);
        }
        best.0
    }

    /// Learns from a tensor that was sent.
    pub fn observe(&mut self, seen: &Observation) {
        let candidate = match seen.codec {
            Codec::Raw => return,
            Codec::Zstd => &mut self.zstd,
            Codec::PlanesZstd => &mut self.planes,
            Codec::Sparse => &mut self.sparse,
        };
        if seen.raw_bytes == 0 {
            return;
        }
        let raw = seen.raw_bytes as f64;
        let usual = if seen.codec == Codec::Sparse { seen.encode } else { seen.encode / 2 };
        let decode = seen.decode.unwrap_or(usual);
        let now = Estimate {
            ratio: seen.sent_bytes as f64 / raw,
            cost: (seen.encode + decode).as_secs_f64() / raw,
        };
        candidate.seen = Some(candidate.seen.map_or(now, |before| Estimate {
            ratio: before.ratio + NEWEST * (now.ratio - before.ratio),
            cost: before.cost + NEWEST * (now.cost - before.cost),
        }));
    }
}

#[cfg(test)]
mod tests;
