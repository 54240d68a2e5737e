//! `mesh infer`: one request.

use std::{fmt::Write, time::Instant};

use half::{bf16, f16};
use mesh_inference::tensor::{DType, Tensor};

use super::{
    args::{Global, Infer},
    arrays,
    client::Client,
    exit::CliError,
    inputs, output,
};

/// Elements that are printed of an output which is no vector of scores.
const SHOWN: usize = 8;

pub(super) fn run(global: &Global, args: &Infer) -> Result<(), CliError> {
    let client = Client::new(global)?;
    let model = client.metadata(&args.name)?;
    let inputs = inputs::read(&args.inputs, &model)?;
    let start = Instant::now();
    let answer = client.infer(&args.name, &inputs, args.timeout)?;
    let took = start.elapsed();
    let mut text = String::new();
    for (name, tensor) in &answer.outputs {
        text.push_str(&summary(name, tensor));
    }
    // Looked at before: a file that stdout goes to is replaced.
    let fills_stdout = args.output.as_deref().is_some_and(arrays::is_stdout);
    if let Some(path) = &args.output {
        arrays::write_npz(path, &answer.outputs)?;
        output::note(&format!("wrote {}", path.display()));
    }
    output::note(&format!(
        "{}, plan {}{}",
        output::millis(took.as_secs_f64() * 1e3),
        answer.epoch,
        match answer.retries {
            0 => String::new(),
            n => format!(", sent again {n} times"),
        }
    ));
    if fills_stdout {
        output::note(text.trim_end());
        return Ok(());
    }
    output::print(&text)
}

/// An output in a few lines: type, shape, and the best five of a vector or the first elements.
fn summary(name: &str, tensor: &Tensor) -> String {
    let mut text = format!("{name}  {} {:?}\n", tensor.dtype().oip_name(), tensor.shape());
    let values = as_f64(tensor);
    let width = tensor.shape().last().map_or(1, |&extent| usize::try_from(extent).unwrap_or(0));
    let is_float = matches!(tensor.dtype(), DType::Fp16 | DType::Bf16 | DType::Fp32 | DType::Fp64);
    if is_float && width > 1 && values.len() == width {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
        for (rank, &index) in order.iter().take(5).enumerate() {
            let _ = writeln!(text, "  {}. [{index}] {}", rank + 1, values[index]);
        }
        return text;
    }
    let shown: Vec<String> = values.iter().take(SHOWN).map(f64::to_string).collect();
    let more = if values.len() > SHOWN { ", …" } else { "" };
    let _ = writeln!(text, "  {}{more}", shown.join(", "));
    if let (true, Some(min), Some(max)) = (
        values.len() > SHOWN,
        values.iter().copied().min_by(f64::total_cmp),
        values.iter().copied().max_by(f64::total_cmp),
    ) {
        let _ = writeln!(text, "  min {min}, max {max}");
    }
    text
}

/// All elements as floats, for printing and comparing; large 64-bit integers lose their last digits.
pub(super) fn as_f64(tensor: &Tensor) -> Vec<f64> {
    macro_rules! read {
        ($t:ty, $convert:expr) => {{
            let (elements, _) = tensor.bytes().as_chunks::<{ size_of::<$t>() }>();
            elements.iter().map(|raw| $convert(<$t>::from_le_bytes(*raw))).collect()
        }};
    }
    match tensor.dtype() {
        DType::Bool | DType::Uint8 => read!(u8, f64::from),
        DType::Uint16 => read!(u16, f64::from),
        DType::Uint32 => read!(u32, f64::from),
        DType::Uint64 => read!(u64, |v| v as f64),
        DType::Int8 => read!(i8, f64::from),
        DType::Int16 => read!(i16, f64::from),
        DType::Int32 => read!(i32, f64::from),
        DType::Int64 => read!(i64, |v| v as f64),
        DType::Fp16 => read!(f16, f16::to_f64),
        DType::Bf16 => read!(bf16, bf16::to_f64),
        // Through text, so that 0.1 prints as 0.1.
        DType::Fp32 => read!(f32, |v: f32| v.to_string().parse().unwrap_or(f64::from(v))),
        DType::Fp64 => read!(f64, std::convert::identity),
    }
}

#[cfg(test)]
mod tests {
    use mesh_inference::tensor::Tensor;

    use super::summary;

    #[test]
    fn vectors_show_their_best_five() {
        let scores: Vec<f32> = (0..10u8).map(|i| f32::from((i * 7) % 10) / 10.0).collect();
        let text = summary("logits", &Tensor::from_slice(&[1, 10], &scores).unwrap());
        assert_eq!(
            text,
            "logits  FP32 [1, 10]\n  1. [7] 0.9\n  2. [4] 0.8\n  3. [1] 0.7\n  4. [8] 0.6\n  5. [5] 0.5\n"
        );
    }

    #[test]
    fn other_outputs_show_their_start() {
        let text = summary("ids", &Tensor::from_slice(&[2, 6], &[1i64; 12]).unwrap());
        assert_eq!(text, "ids  INT64 [2, 6]\n  1, 1, 1, 1, 1, 1, 1, 1, …\n  min 1, max 1\n");
        assert_eq!(summary("s", &Tensor::from_slice(&[], &[2.5f64]).unwrap()), "s  FP64 []\n  2.5\n");
        let empty: [f32; 0] = [];
        assert_eq!(summary("e", &Tensor::from_slice(&[0, 4], &empty).unwrap()), "e  FP32 [0, 4]\n  \n");
    }
}
