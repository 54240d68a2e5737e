//! The digits model and its 360 test images, inside the executable.

use std::io::Cursor;

use mesh_inference::tensor::Tensor;
use npyz::npz::NpzArchive;

use crate::cli::{arrays, exit::CliError};

/// A small residual network of 0.7 MB; see `tests/data/digits/README.md`.
pub(super) const MODEL: &[u8] = include_bytes!("../../../../tests/data/digits/model.onnx");
const TEST: &[u8] = include_bytes!("../../../../tests/data/digits/test.npz");

/// Classes: 0 to 9.
const CLASSES: usize = 10;
/// Pixels of an image of 8 by 8.
const PIXELS: usize = 64;
/// Brightest pixel.
const WHITE: f32 = 16.0;

/// Images that the model was not trained on, with what one session of the whole model says of them.
#[derive(Debug)]
pub(super) struct Digits {
    images: Vec<Tensor>,
    labels: Vec<usize>,
    /// One `[1, 10]` per image.
    reference: Vec<Tensor>,
}

impl Digits {
    /// Reads the embedded archive.
    pub(super) fn embedded() -> Result<Self, CliError> {
        Self::read()
            .map_err(|what| CliError::failed(format!("the embedded test images cannot be read: {what}")))
    }

    fn read() -> Result<Self, String> {
        let mut archive = NpzArchive::new(Cursor::new(TEST)).map_err(|error| error.to_string())?;
        let mut array = |name: &str| {
            let file = archive.by_name(name).map_err(|error| error.to_string())?;
            arrays::read(file.ok_or_else(|| format!("no {name}"))?)
        };
        let (images, labels, logits) = (array("images")?, array("labels")?, array("logits")?);
        let image = |pixels: &[u8]| {
            let scaled: Vec<f32> = pixels.iter().map(|&p| f32::from(p) / WHITE).collect();
            Tensor::from_slice(&[1, 1, 8, 8], &scaled).map_err(|error| error.to_string())
        };
        let row = |logits: &[f32]| Tensor::from_slice(&[1, 10], logits).map_err(|error| error.to_string());
        let logits = logits.as_slice::<f32>().ok_or("the logits are no float32")?;
        let digits = Self {
            images: images.bytes().chunks_exact(PIXELS).map(image).collect::<Result<_, _>>()?,
            labels: labels.bytes().iter().map(|&label| usize::from(label)).collect(),
            reference: logits.chunks_exact(CLASSES).map(row).collect::<Result<_, _>>()?,
        };
        let count = digits.images.len();
        match count > 0 && digits.labels.len() == count && digits.reference.len() == count {
            true => Ok(digits),
            false => Err("its arrays differ in length".into()),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.images.len()
    }

    pub(super) fn image(&self, index: usize) -> Tensor {
        self.images[index].clone()
    }

    pub(super) fn label(&self, index: usize) -> usize {
        self.labels[index]
    }

    pub(super) fn reference(&self, index: usize) -> &Tensor {
        &self.reference[index]
    }

    /// How many digits the whole model gets right.
    pub(super) fn reference_right(&self) -> usize {
        (0..self.len()).filter(|&i| best(&self.reference[i]) == Some(self.labels[i])).count()
    }
}

/// The class with the highest score.
pub(super) fn best(logits: &Tensor) -> Option<usize> {
    let scores = logits.as_slice::<f32>()?;
    (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b]))
}

#[cfg(test)]
mod tests {
    use super::Digits;

    #[test]
    fn the_whole_model_gets_356_of_360_right() {
        let digits = Digits::embedded().unwrap();
        assert_eq!((digits.len(), digits.reference_right()), (360, 356));
    }
}
