//! PNG and JPEG files as tensors for image inputs.

use std::path::Path;

use half::{bf16, f16};
use image::{DynamicImage, imageops::FilterType};
use mesh_inference::tensor::{DType, Tensor};

use super::exit::CliError;
use crate::app::TensorSpec;

/// What an image input wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    /// `None`: as the image is.
    height: Option<u32>,
    width: Option<u32>,
    channels: u32,
    channels_first: bool,
}

/// Whether a file is read as an image.
pub(super) fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    matches!(extension.as_deref(), Some("png" | "jpg" | "jpeg"))
}

/// Reads an image as the input wants it: resized, one batch, its layout, colour or grey, floats from 0 to 1.
pub(super) fn read(path: &Path, spec: &TensorSpec) -> Result<Tensor, CliError> {
    let layout = layout_of(spec).ok_or_else(|| {
        CliError::failed(format!(
            "input {:?} with shape {:?} takes no image: it needs 1 or 3 channels, first or last; use a .npy file",
            spec.name, spec.shape
        ))
    })?;
    let image = image::open(path)
        .map_err(|error| CliError::because(format!("{} is no readable image", path.display()), &error))?;
    tensor(&image, layout, spec).map_err(CliError::failed)
}

/// Reads `[N,C,H,W]`, `[N,H,W,C]`, `[C,H,W]`, `[H,W,C]`, with `C` 1 or 3.
fn layout_of(spec: &TensorSpec) -> Option<Layout> {
    let shape = match *spec.shape {
        [_, a, b, c] | [a, b, c] => [a, b, c],
        _ => return None,
    };
    let extent = |e: i64| u32::try_from(e).ok().filter(|&e| e > 0);
    let [first, middle, last] = shape;
    // Three channels are sure; one could also be an image of one row.
    let (channels, height, width, channels_first) = match (first, last) {
        (3, _) => (3, middle, last, true),
        (_, 3) => (3, first, middle, false),
        (1, _) => (1, middle, last, true),
        (_, 1) => (1, first, middle, false),
        _ => return None,
    };
    Some(Layout { height: extent(height), width: extent(width), channels, channels_first })
}

fn tensor(image: &DynamicImage, layout: Layout, spec: &TensorSpec) -> Result<Tensor, String> {
    let height = layout.height.unwrap_or(image.height());
    let width = layout.width.unwrap_or(image.width());
    let image = match (image.height(), image.width()) == (height, width) {
        true => image.clone(),
        false => image.resize_exact(width, height, FilterType::Triangle),
    };
    let pixels = if layout.channels == 1 { image.to_luma8().into_raw() } else { image.to_rgb8().into_raw() };
    let pixels = if layout.channels_first { planes(&pixels, layout.channels as usize) } else { pixels };
    let mut shape: Vec<i64> = match layout.channels_first {
        true => vec![layout.channels.into(), height.into(), width.into()],
        false => vec![height.into(), width.into(), layout.channels.into()],
    };
    if spec.shape.len() == 4 {
        shape.insert(0, 1);
    }
    let unit = |value: &u8| f32::from(*value) / 255.0;
    let made = match spec.dtype {
        DType::Uint8 => Tensor::from_slice(&shape, &pixels),
        DType::Fp32 => Tensor::from_slice(&shape, &pixels.iter().map(unit).collect::<Vec<_>>()),
        DType::Fp16 => {
            Tensor::from_slice(&shape, &pixels.iter().map(|v| f16::from_f32(unit(v))).collect::<Vec<_>>())
        }
        DType::Bf16 => {
            Tensor::from_slice(&shape, &pixels.iter().map(|v| bf16::from_f32(unit(v))).collect::<Vec<_>>())
        }
        DType::Bool
        | DType::Uint16
        | DType::Uint32
        | DType::Uint64
        | DType::Int8
        | DType::Int16
        | DType::Int32
        | DType::Int64
        | DType::Fp64 => {
            return Err(format!("input {:?} is {}, which takes no image", spec.name, spec.dtype.oip_name()));
        }
    };
    made.map_err(|error| error.to_string())
}

/// Interleaved pixels as one plane after the other.
fn planes(pixels: &[u8], channels: usize) -> Vec<u8> {
    (0..channels).flat_map(|channel| pixels.iter().skip(channel).step_by(channels).copied()).collect()
}

#[cfg(test)]
mod tests {
    use image::{DynamicImage, RgbImage};
    use mesh_inference::tensor::DType;

    use super::{Layout, layout_of, tensor};
    use crate::app::TensorSpec;

    fn spec(dtype: DType, shape: &[i64]) -> TensorSpec {
        TensorSpec { name: "x".into(), dtype, shape: shape.to_vec() }
    }

    #[test]
    fn layouts() {
        let layout =
            |channels, channels_first| Layout { height: Some(4), width: Some(5), channels, channels_first };
        let cases = [
            (&[1, 3, 4, 5][..], Some(layout(3, true))),
            (&[-1, 1, 4, 5], Some(layout(1, true))),
            (&[-1, 4, 5, 3], Some(layout(3, false))),
            (&[4, 5, 1], Some(layout(1, false))),
            (&[1, 3, -1, -1], Some(Layout { height: None, width: None, channels: 3, channels_first: true })),
            (&[1, 2, 4, 5], None),
            (&[3], None),
            (&[], None),
        ];
        for (shape, wanted) in cases {
            assert_eq!(layout_of(&spec(DType::Fp32, shape)), wanted, "{shape:?}");
        }
    }

    #[test]
    fn pixels_go_where_the_layout_wants_them() {
        let image =
            RgbImage::from_raw(2, 1, vec![255, 0, 0, 0, 51, 255]).map(DynamicImage::ImageRgb8).unwrap();
        let first = spec(DType::Fp32, &[1, 3, 1, 2]);
        let made = tensor(&image, layout_of(&first).unwrap(), &first).unwrap();
        assert_eq!(made.shape(), [1, 3, 1, 2]);
        assert_eq!(made.as_slice::<f32>().unwrap(), [1.0, 0.0, 0.0, 0.2, 0.0, 1.0]);
        let last = spec(DType::Uint8, &[1, 2, 3]);
        let made = tensor(&image, layout_of(&last).unwrap(), &last).unwrap();
        assert_eq!((made.shape(), made.bytes()), (&[1, 2, 3][..], &[255, 0, 0, 0, 51, 255][..]));
        let resized = spec(DType::Fp32, &[-1, 1, 8, 6]);
        let made = tensor(&image, layout_of(&resized).unwrap(), &resized).unwrap();
        assert_eq!(made.shape(), [1, 1, 8, 6]);
        let ints = spec(DType::Int64, &[1, 3, 1, 2]);
        assert!(tensor(&image, layout_of(&ints).unwrap(), &ints).is_err());
    }
}
