use super::*;

const MIB: usize = 1 << 20;

/// How a codec behaves: ratio, and seconds for 1 MiB on both ends.
type Behaviour = (f64, f64);

/// Processors of a whole device, moving costs nothing.
fn hop(bandwidth: f64, busy: f64) -> Hop {
    Hop { bandwidth, busy, moving: 0.0, cores: 1.0 }
}

/// Sends tensors of 1 MiB and counts them: raw, zstd, planes, sparse.
fn send_all(
    policy: &mut HopPolicy,
    count: usize,
    hop: &Hop,
    zstd: Behaviour,
    planes: Behaviour,
    sparse: Option<Behaviour>,
) -> [usize; 4] {
    let mut used = [0; 4];
    for _ in 0..count {
        let codec = policy.choose(hop, MIB, sparse.map(|(ratio, _)| ratio));
        let (slot, (ratio, seconds)) = match codec {
            Codec::Raw => (0, (1.0, 0.0)),
            Codec::Zstd => (1, zstd),
            Codec::PlanesZstd => (2, planes),
            Codec::Sparse => (3, sparse.expect("only chosen for what has zeros")),
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

/// The same where moving costs nothing and there are no zeros.
fn send(
    policy: &mut HopPolicy,
    count: usize,
    bandwidth: f64,
    busy: f64,
    zstd: Behaviour,
    planes: Behaviour,
) -> [usize; 3] {
    let [raw, zstd, planes, _] = send_all(policy, count, &hop(bandwidth, busy), zstd, planes, None);
    [raw, zstd, planes]
}

/// Like activations after a ReLU, and others: zstd, planes, sparse.
const RELU: (Behaviour, Behaviour, Option<Behaviour>) = ((0.5, 0.003), (0.42, 0.006), Some((0.55, 0.0003)));
const DENSE: (Behaviour, Behaviour, Option<Behaviour>) = ((0.93, 0.003), (0.85, 0.006), None);
/// Processor seconds per byte on both ends, as measured on a device of the lab.
const MOVING: f64 = 2.2e-9;

#[test]
fn zeros_are_left_out_where_the_processor_is_short() {
    for (busy, cores) in [(0.0, 4.0), (0.5, 1.0), (0.9, 0.15), (1.0, 4.0)] {
        for bandwidth in [0.0, 125e6, 1.25e9] {
            let hop = Hop { bandwidth, busy, moving: MOVING, cores };
            let (zstd, planes, sparse) = RELU;
            let used = send_all(&mut HopPolicy::new(), 1000, &hop, zstd, planes, sparse);
            assert!(used[3] > 980, "{hop:?} {used:?}");
        }
        let hop = Hop { bandwidth: 125e6, busy, moving: MOVING, cores };
        let (zstd, planes, sparse) = DENSE;
        let used = send_all(&mut HopPolicy::new(), 1000, &hop, zstd, planes, sparse);
        assert!(used[0] > 980, "{hop:?} {used:?}");
    }
}

#[test]
fn a_slow_link_gets_the_smallest_even_where_moving_costs() {
    let hop = Hop { bandwidth: 1.2e6, busy: 0.5, moving: MOVING, cores: 1.0 };
    let (zstd, planes, sparse) = RELU;
    let used = send_all(&mut HopPolicy::new(), 1000, &hop, zstd, planes, sparse);
    assert!(used[2] > 980, "{used:?}");
}

#[test]
fn leaving_zeros_out_is_dropped_where_it_is_slow_and_tried_again() {
    // Half a second for 1 MiB: something is wrong with that processor.
    let hop = Hop { bandwidth: 125e6, busy: 0.5, moving: MOVING, cores: 1.0 };
    let mut policy = HopPolicy::new();
    let used = send_all(&mut policy, 1000, &hop, (1.0, 0.1), (1.0, 0.1), Some((0.5, 0.5)));
    assert!((1..20).contains(&used[3]) && used[0] > 970, "{used:?}");
    // Another look shows that it is fast again; that weighs more with every look.
    let used = send_all(&mut policy, 20_000, &hop, (1.0, 0.1), (1.0, 0.1), Some((0.5, 0.0003)));
    assert!(used[3] > 5_000, "{used:?}");
}

#[test]
fn tensors_of_one_hop_are_told_apart() {
    let hop = Hop { bandwidth: 125e6, busy: 0.5, moving: MOVING, cores: 1.0 };
    let mut policy = HopPolicy::new();
    let mut sparse = 0;
    for _ in 0..500 {
        let [_, _, _, used] = send_all(&mut policy, 1, &hop, DENSE.0, DENSE.1, Some((0.55, 0.0003)));
        sparse += used;
        let [.., of_dense] = send_all(&mut policy, 1, &hop, DENSE.0, DENSE.1, None);
        assert_eq!(of_dense, 0);
    }
    assert!(sparse > 490, "{sparse}");
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
    assert_eq!(HopPolicy::new().choose(&hop(1e3, 0.0), 4000, Some(0.1)), Codec::Raw);
    assert_eq!(HopPolicy::new().choose(&hop(f64::NAN, 0.0), MIB, Some(0.1)), Codec::Raw);
    assert_eq!(HopPolicy::new().choose(&hop(0.0, 0.0), MIB, Some(0.1)), Codec::Raw);
}
