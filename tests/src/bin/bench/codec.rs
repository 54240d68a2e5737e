//! What codecs cost and save: leaving out zeros beside a plain copy, and what crosses DEFER's cuts of ResNet-50.

use std::{
    error::Error,
    fmt::Write as _,
    fs::File,
    hint::black_box,
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use mesh_inference::{
    blobs::BlobStore,
    codec::{Codec, Scratch, decode, encode},
    import::import,
    runtime::{ModelSource, SessionOptions},
    tensor::{DType, Tensor},
};
use mesh_tests::{
    models::{Named, Whole, engine},
    policies::defer_cuts,
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

/// Devices of DEFER's chain.
const PARTS: usize = 8;
/// Extent of dynamic axes; ResNet-50 has none.
const LENGTH: i64 = 1;
/// Runs of each codec on real activations.
const REAL_RUNS: usize = 10;

/// What goes over the cuts that DEFER makes for eight devices, by our codecs and by one like its own. ZFP without loss
/// and LZ4 is what DEFER has; in its place stands LZ4 on bytes put together by significance, as floats' exponents are
/// what they share.
pub(super) fn deferred(page: &mut String, models: &Path) -> Result<(), Box<dyn Error>> {
    let tensors = activations(&models.join("resnet50/model.onnx"))?;
    let _ = writeln!(
        page,
        "## What crosses DEFER's cuts\n\nResNet-50's activations at the {} cuts of DEFER's chain of {PARTS}, for one input: \
         bytes sent per byte of tensor, and time to pack and unpack; the fastest of {REAL_RUNS} runs. DEFER packs by ZFP \
         without loss and LZ4; `planes + LZ4` stands in for that: bytes of one significance together, then LZ4.\n\n\
         | codec | sent | MB per request | pack | unpack |\n|---|---|---|---|---|",
        PARTS - 1
    );
    let raw: usize = tensors.iter().map(|tensor| tensor.bytes().len()).sum();
    let mut row = |name: &str, sent: usize, pack: Duration, unpack: Duration| {
        let per_mb = |time: Duration| time.as_secs_f64() * 1e3 / (raw as f64 / 1e6);
        let _ = writeln!(
            page,
            "| {name} | {:.3} | {:.2} | {:.3} ms/MB | {:.3} ms/MB |",
            sent as f64 / raw as f64,
            sent as f64 / 1e6,
            per_mb(pack),
            per_mb(unpack)
        );
    };
    row("none", raw, Duration::ZERO, Duration::ZERO);
    let mut scratch = Scratch::new();
    for (name, codec) in
        [("sparse", Codec::Sparse), ("zstd", Codec::Zstd), ("planes + zstd", Codec::PlanesZstd)]
    {
        let (mut sent, mut pack, mut unpack) = (0, Duration::ZERO, Duration::ZERO);
        for tensor in &tensors {
            let packed = encode(tensor, codec, &mut scratch);
            sent += packed.bytes.len();
            pack += fastest_of(REAL_RUNS, || drop(black_box(encode(tensor, codec, &mut scratch))));
            let decoded = || decode(packed.codec, tensor.dtype(), tensor.shape(), &packed.bytes);
            unpack += fastest_of(REAL_RUNS, || drop(black_box(decoded())));
        }
        row(name, sent, pack, unpack);
    }
    for (name, is_planes) in [("LZ4", false), ("planes + LZ4", true)] {
        let (mut sent, mut pack, mut unpack) = (0, Duration::ZERO, Duration::ZERO);
        for tensor in &tensors {
            let packing = || match is_planes {
                true => lz4_flex::compress(&planes(tensor.bytes())),
                false => lz4_flex::compress(tensor.bytes()),
            };
            let packed = packing();
            let unpacking = || {
                let bytes = lz4_flex::decompress(&packed, tensor.bytes().len()).unwrap_or_default();
                if is_planes { joined(&bytes) } else { bytes }
            };
            if unpacking() != tensor.bytes() {
                return Err(format!("{name} does not give back what it took").into());
            }
            sent += packed.len();
            pack += fastest_of(REAL_RUNS, || drop(black_box(packing())));
            unpack += fastest_of(REAL_RUNS, || drop(black_box(unpacking())));
        }
        row(name, sent, pack, unpack);
    }
    page.push('\n');
    Ok(())
}

/// The tensors at DEFER's cuts, by running its parts one after another.
fn activations(file: &Path) -> Result<Vec<Tensor>, Box<dyn Error>> {
    let engine = engine()?;
    let folder = tempfile::tempdir()?;
    let store = BlobStore::open(folder.path())?;
    let model = import(file, file.parent().unwrap_or(Path::new(".")), &store, &engine, &mut |_| {})?.model;
    let mut starts = vec![0];
    starts.extend(defer_cuts(&model, PARTS)?);
    let inputs = Whole::load(file).inputs(1, LENGTH, 1).ok_or("the model has no inputs of a batch of one")?;
    let mut known: Named = inputs;
    let mut crossing = Vec::new();
    for pair in starts.windows(2) {
        let stage = model.stage(pair[0], pair[1] - 1)?;
        let path = store.stage_path("bench");
        File::create(&path)?.write_all(&stage.onnx)?;
        let mut session = engine.session(ModelSource::File(&path), &SessionOptions::default())?;
        let tensor = |name: &str| known.iter().find(|(n, _)| n == name).map(|(_, tensor)| tensor.clone());
        let inputs = stage.inputs.iter().map(|input| Some((input.name.as_str(), tensor(&input.name)?)));
        let inputs: Vec<(&str, Tensor)> = inputs.collect::<Option<_>>().ok_or("a part lacks an input")?;
        let outputs = session.run(&inputs)?;
        let names: Vec<String> = session.outputs().iter().map(|port| port.name.clone()).collect();
        let given: Named = names.into_iter().zip(outputs).collect();
        crossing.extend(given.iter().map(|(_, tensor)| tensor.clone()));
        known.extend(given);
    }
    Ok(crossing)
}

/// Bytes of one significance together.
fn planes(bytes: &[u8]) -> Vec<u8> {
    (0..4).flat_map(|plane| bytes.iter().skip(plane).step_by(4)).copied().collect()
}

fn joined(planes: &[u8]) -> Vec<u8> {
    let count = planes.len() / 4;
    (0..count).flat_map(|at| (0..4).map(move |plane| planes[plane * count + at])).collect()
}

fn fastest(work: impl FnMut()) -> Duration {
    fastest_of(RUNS, work)
}

fn fastest_of(runs: usize, mut work: impl FnMut()) -> Duration {
    let time = |_| {
        let start = Instant::now();
        work();
        start.elapsed()
    };
    (0..runs).map(time).min().unwrap_or_default()
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
