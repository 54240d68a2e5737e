//! Packing the tensors of a frame for one hop.

use std::{sync::Arc, time::Duration};

use mesh_inference::{
    codec::{Codec, Encoded, Hop, HopPolicy, Observation, Scratch, encode, sparse_ratio},
    profile::cores,
};
use rustix::time::{ClockId, clock_gettime};

use super::{
    busy::Busy,
    frame::{Frame, Named},
    wire::{OFF_THREAD, now, work},
};

/// Chooses codecs for one hop and applies them.
#[derive(Debug)]
pub(super) struct Packer {
    policy: HopPolicy,
    scratch: Scratch,
    busy: Arc<Busy>,
    cores: f64,
}

impl Packer {
    pub(super) fn new(busy: Arc<Busy>) -> Self {
        Self { policy: HopPolicy::new(), scratch: Scratch::new(), busy, cores: cores() }
    }

    /// Packs the tensors of a frame for a link that carries `rate` bytes per second (0: not known), where a byte costs
    /// `moving` processor seconds on both ends together, and names the codec of the largest, if there is one worth a
    /// choice.
    pub(super) async fn pack(
        &mut self,
        frame: &Frame,
        rate: f64,
        moving: f64,
    ) -> (Vec<Encoded>, Option<&'static str>) {
        let hop = Hop { bandwidth: rate, busy: self.busy.share(now()), moving, cores: self.cores };
        let tensors = frame.tensors();
        let codecs: Vec<Codec> =
            tensors.iter().map(|(_, t)| self.policy.choose(&hop, t.bytes().len(), sparse_ratio(t))).collect();
        let largest = tensors.iter().zip(&codecs).max_by_key(|((_, tensor), _)| tensor.bytes().len());
        let shown =
            largest.filter(|((_, t), _)| t.bytes().len() >= OFF_THREAD).map(|(_, codec)| name(*codec));
        let work: usize = tensors.iter().zip(&codecs).map(|((_, t), c)| work(*c, t.bytes().len())).sum();
        let mut scratch = std::mem::take(&mut self.scratch);
        let (packed, seen) = if work < OFF_THREAD {
            let result = pack_all(tensors, &codecs, &mut scratch);
            self.scratch = scratch;
            result
        } else {
            let (owned, chosen) = (tensors.to_vec(), codecs.clone());
            let packing = crate::background::spawn(move || {
                let result = pack_all(&owned, &chosen, &mut scratch);
                (result, scratch)
            });
            match packing.await {
                Ok((result, scratch)) => {
                    self.scratch = scratch;
                    result
                }
                // The runtime is shutting down, or packing panicked: raw is always right.
                Err(_) => pack_all(tensors, &vec![Codec::Raw; tensors.len()], &mut self.scratch),
            }
        };
        for observation in &seen {
            self.policy.observe(observation);
        }
        (packed, shown)
    }
}

fn pack_all(tensors: &[Named], codecs: &[Codec], scratch: &mut Scratch) -> (Vec<Encoded>, Vec<Observation>) {
    let mut packed = Vec::with_capacity(tensors.len());
    let mut seen = Vec::new();
    for ((_, tensor), codec) in tensors.iter().zip(codecs) {
        let start = processor_time();
        let encoded = encode(tensor, *codec, scratch);
        if *codec != Codec::Raw {
            seen.push(Observation {
                codec: *codec,
                raw_bytes: tensor.bytes().len(),
                sent_bytes: encoded.bytes.len(),
                encode: processor_time().saturating_sub(start),
                decode: None,
            });
        }
        packed.push(encoded);
    }
    (packed, seen)
}

/// Processor time of this thread so far. A device that may use a part of a processor only spends much of the other time
/// waiting for its turn, which says nothing of the work.
fn processor_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap_or_default()
}

fn name(codec: Codec) -> &'static str {
    match codec {
        Codec::Raw => "raw",
        Codec::Zstd => "zstd",
        Codec::PlanesZstd => "planes-zstd",
        Codec::Sparse => "sparse",
    }
}
