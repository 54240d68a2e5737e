//! Packing the tensors of a frame for one hop.

use std::{sync::Arc, time::Instant};

use mesh_inference::codec::{Codec, Encoded, HopPolicy, Observation, Scratch, encode};

use super::{
    busy::Busy,
    frame::{Frame, Named},
    wire::{OFF_THREAD, now},
};

/// Chooses codecs for one hop and applies them.
#[derive(Debug)]
pub(super) struct Packer {
    policy: HopPolicy,
    scratch: Scratch,
    busy: Arc<Busy>,
}

impl Packer {
    pub(super) fn new(busy: Arc<Busy>) -> Self {
        Self { policy: HopPolicy::new(), scratch: Scratch::new(), busy }
    }

    /// Packs the tensors of a frame for a link that carries `rate` bytes per second (0: not known), and names the
    /// codec of the largest, if there is one worth a choice.
    pub(super) async fn pack(&mut self, frame: &Frame, rate: f64) -> (Vec<Encoded>, Option<&'static str>) {
        let busy = self.busy.share(now());
        let tensors = frame.tensors();
        let codecs: Vec<Codec> =
            tensors.iter().map(|(_, t)| self.policy.choose(rate, busy, t.bytes().len())).collect();
        let largest = tensors.iter().zip(&codecs).max_by_key(|((_, tensor), _)| tensor.bytes().len());
        let shown =
            largest.filter(|((_, t), _)| t.bytes().len() >= OFF_THREAD).map(|(_, codec)| name(*codec));
        let work: usize = tensors
            .iter()
            .zip(&codecs)
            .filter(|(_, c)| **c != Codec::Raw)
            .map(|((_, t), _)| t.bytes().len())
            .sum();
        let mut scratch = std::mem::take(&mut self.scratch);
        let (packed, seen) = if work < OFF_THREAD {
            let result = pack_all(tensors, &codecs, &mut scratch);
            self.scratch = scratch;
            result
        } else {
            let (owned, chosen) = (tensors.to_vec(), codecs.clone());
            let packing = tokio::task::spawn_blocking(move || {
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
        let start = Instant::now();
        let encoded = encode(tensor, *codec, scratch);
        if *codec != Codec::Raw {
            seen.push(Observation {
                codec: *codec,
                raw_bytes: tensor.bytes().len(),
                sent_bytes: encoded.bytes.len(),
                encode: start.elapsed(),
                decode: None,
            });
        }
        packed.push(encoded);
    }
    (packed, seen)
}

fn name(codec: Codec) -> &'static str {
    match codec {
        Codec::Raw => "raw",
        Codec::Zstd => "zstd",
        Codec::PlanesZstd => "planes-zstd",
    }
}
