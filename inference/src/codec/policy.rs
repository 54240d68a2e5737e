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

/// What was seen when a tensor was sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observation {
    /// The codec that was asked for; not what it fell back to.
    pub codec: Codec,
    /// Bytes of the tensor.
    pub raw_bytes: usize,
    /// Bytes that were sent.
    pub sent_bytes: usize,
    /// Time to pack it.
    pub encode: Duration,
    /// Time to unpack it at the other end, if that is known; else it is taken to be half of packing.
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

/// Chooses the codec of one hop, tensor by tensor.
///
/// Packing pays where the time that it saves on the link is more than the processor time that it takes. Processor
/// time counts for more the busier the processor is with the stage itself, up to ten times.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HopPolicy {
    zstd: Candidate,
    planes: Candidate,
}

impl HopPolicy {
    /// A policy that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The codec for a tensor of `bytes` over a link of `bandwidth` bytes per second, while the busier of the two
    /// devices computes for the share `busy` (0 to 1) of the time.
    pub fn choose(&mut self, bandwidth: f64, busy: f64, bytes: usize) -> Codec {
        if bytes < SMALLEST || bandwidth.is_nan() || bandwidth <= 0.0 {
            return Codec::Raw;
        }
        let weight = 1.0 / (1.0 - busy.clamp(0.0, 0.9));
        let seconds = |candidate: &Candidate| {
            let again = candidate.idle >= LOOK_AGAIN;
            let believed = candidate.seen.filter(|_| !again).unwrap_or(HOPE);
            believed.ratio / bandwidth + believed.cost * weight
        };
        let options = [
            (Codec::Raw, 1.0 / bandwidth),
            (Codec::PlanesZstd, seconds(&self.planes)),
            (Codec::Zstd, seconds(&self.zstd)),
        ];
        let mut best = options[0];
        for option in &options[1..] {
            if option.1 < best.1 {
                best = *option;
            }
        }
        for (codec, candidate) in [(Codec::Zstd, &mut self.zstd), (Codec::PlanesZstd, &mut self.planes)] {
            candidate.idle = if codec == best.0 { 0 } else { candidate.idle.saturating_add(1) };
        }
        best.0
    }

    /// Learns from a tensor that was sent.
    pub fn observe(&mut self, seen: &Observation) {
        let candidate = match seen.codec {
            Codec::Raw => return,
            Codec::Zstd => &mut self.zstd,
            Codec::PlanesZstd => &mut self.planes,
        };
        if seen.raw_bytes == 0 {
            return;
        }
        let raw = seen.raw_bytes as f64;
        let decode = seen.decode.unwrap_or(seen.encode / 2);
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
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// Sends tensors of 1 MiB, with codecs that behave as given (ratio, seconds for both ends), and counts them.
    fn send(
        policy: &mut HopPolicy,
        count: usize,
        bandwidth: f64,
        busy: f64,
        zstd: (f64, f64),
        planes: (f64, f64),
    ) -> [usize; 3] {
        let mut used = [0; 3];
        for _ in 0..count {
            let codec = policy.choose(bandwidth, busy, MIB);
            let (slot, (ratio, seconds)) = match codec {
                Codec::Raw => (0, (1.0, 0.0)),
                Codec::Zstd => (1, zstd),
                Codec::PlanesZstd => (2, planes),
            };
            used[slot] += 1;
            policy.observe(&Observation {
                codec,
                raw_bytes: MIB,
                sent_bytes: (MIB as f64 * ratio) as usize,
                encode: Duration::from_secs_f64(seconds / 2.0),
                decode: Some(Duration::from_secs_f64(seconds / 2.0)),
            });
        }
        used
    }

    #[test]
    fn a_slow_link_gets_the_codec_that_saves_most() {
        // 1.2 MB/s: 1 MiB takes 0.87 s raw, 0.5 s at a ratio of 0.55.
        let used = send(&mut HopPolicy::new(), 1000, 1.2e6, 0.5, (0.9, 0.01), (0.55, 0.02));
        assert!(used[2] > 980 && used[0] == 0, "{used:?}");
    }

    #[test]
    fn a_fast_link_is_left_raw() {
        assert_eq!(send(&mut HopPolicy::new(), 1000, 2e9, 0.0, (0.1, 0.001), (0.1, 0.001)), [1000, 0, 0]);
        // 110 MB/s with slow processors: each is tried now and then, and loses.
        let used = send(&mut HopPolicy::new(), 1000, 110e6, 0.0, (0.9, 0.008), (0.7, 0.012));
        assert!(used[0] > 980, "{used:?}");
    }

    #[test]
    fn data_that_does_not_shrink_is_left_raw() {
        let used = send(&mut HopPolicy::new(), 1000, 1.2e6, 0.0, (1.0, 0.003), (1.0, 0.003));
        assert!(used[0] > 980, "{used:?}");
    }

    #[test]
    fn a_busy_processor_is_left_alone() {
        // Saves 3.3 ms of 11 on the link and costs 2 ms: pays on an idle processor only.
        let mut policy = HopPolicy::new();
        let idle = send(&mut policy, 1000, 95e6, 0.0, (1.0, 0.002), (0.7, 0.002));
        let busy = send(&mut policy, 1000, 95e6, 0.9, (1.0, 0.002), (0.7, 0.002));
        assert!(idle[2] > 980 && busy[0] > 980, "{idle:?} {busy:?}");
    }

    #[test]
    fn a_change_of_the_data_is_noticed() {
        let mut policy = HopPolicy::new();
        send(&mut policy, 300, 5e6, 0.0, (1.0, 0.002), (1.0, 0.002));
        let used = send(&mut policy, 1000, 5e6, 0.0, (0.2, 0.002), (1.0, 0.002));
        assert!(used[1] > 600, "{used:?}");
    }

    #[test]
    fn small_tensors_and_unknown_links_are_raw() {
        assert_eq!(HopPolicy::new().choose(1e3, 0.0, 4000), Codec::Raw);
        assert_eq!(HopPolicy::new().choose(f64::NAN, 0.0, MIB), Codec::Raw);
        assert_eq!(HopPolicy::new().choose(0.0, 0.0, MIB), Codec::Raw);
    }
}
