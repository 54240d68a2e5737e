//! What leaving out zeros costs and saves, beside a plain copy.

use std::{
    fmt::Write as _,
    hint::black_box,
    time::{Duration, Instant},
};

use mesh_inference::{
    codec::{Codec, Scratch, decode, encode},
    tensor::{DType, Tensor},
};

/// The output of ResNet-50's first stack.
const SHAPE: [i64; 4] = [1, 256, 56, 56];
const RUNS: usize = 50;

pub(super) fn section(page: &mut String) {
    let _ = writeln!(
        page,
        "## Leaving out zeros\n\nThe codec `sparse` on a float tensor of 3.2 MB with so many zeros, scattered or in runs; \
         the fastest of {RUNS} runs, memory for the result included.\n\n\
         | zeros | in runs of | sent | pack | unpack | plain copy |\n|---|---|---|---|---|---|"
    );
    for (zeros, run) in [(80, 1), (50, 1), (50, 12), (30, 1), (10, 1)] {
        let tensor = tensor(zeros, run);
        let raw = tensor.bytes().len() as f64;
        let mut scratch = Scratch::new();
        let packed = encode(&tensor, Codec::Sparse, &mut scratch);
        let pack = fastest(|| drop(black_box(encode(&tensor, Codec::Sparse, &mut scratch))));
        let unpack = fastest(|| drop(black_box(decode(packed.codec, DType::Fp32, &SHAPE, &packed.bytes))));
        let copy = fastest(|| drop(black_box(tensor.bytes().to_vec())));
        let per_mb = |time: Duration| time.as_secs_f64() * 1e3 / (raw / 1e6);
        let _ = writeln!(
            page,
            "| {zeros} % | {run} | {:.3} | {:.3} ms/MB | {:.3} ms/MB | {:.3} ms/MB |",
            packed.bytes.len() as f64 / raw,
            per_mb(pack),
            per_mb(unpack),
            per_mb(copy)
        );
    }
    page.push('\n');
}

fn fastest(mut work: impl FnMut()) -> Duration {
    let time = |_| {
        let start = Instant::now();
        work();
        start.elapsed()
    };
    (0..RUNS).map(time).min().unwrap_or_default()
}

fn tensor(zeros: u32, run: usize) -> Tensor {
    let count = usize::try_from(SHAPE.iter().product::<i64>()).unwrap_or(0);
    let mut state = 1_u32;
    let mut data = Vec::with_capacity(count + run);
    while data.len() < count {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let value = if (state >> 8) % 100 >= zeros { 1.0_f32 } else { 0.0 };
        data.extend(std::iter::repeat_n(value, run));
    }
    data.truncate(count);
    Tensor::from_slice(&SHAPE, &data).expect("the count fits the shape")
}
