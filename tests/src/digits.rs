//! The digits model: 360 test images with labels and the whole model's answers.

use std::path::PathBuf;

use npyz::npz::NpzArchive;

/// Images that the digits model was not trained on, with the reference answers of one whole-model session.
#[derive(Debug, Clone)]
pub struct Digits {
    /// 8x8 images, each pixel 0 to 1.
    pub images: Vec<Vec<f32>>,
    /// What they show.
    pub labels: Vec<u8>,
    /// Ten logits each.
    pub logits: Vec<Vec<f32>>,
}

/// Folder of the model and its data.
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/digits")
}

/// The model file.
pub fn model() -> PathBuf {
    folder().join("model.onnx")
}

impl Digits {
    /// Reads the reference data.
    pub fn load() -> Self {
        let mut archive =
            NpzArchive::open(folder().join("test.npz")).expect("the reference data is in the tree");
        let images: Vec<u8> = read(&mut archive, "images");
        let labels: Vec<u8> = read(&mut archive, "labels");
        let logits: Vec<f32> = read(&mut archive, "logits");
        Self {
            images: images.chunks(64).map(|i| i.iter().map(|p| f32::from(*p) / 16.0).collect()).collect(),
            labels,
            logits: logits.chunks(10).map(<[f32]>::to_vec).collect(),
        }
    }

    /// The request for one image, as the Open Inference Protocol writes it in JSON.
    pub fn request(&self, index: usize) -> serde_json::Value {
        serde_json::json!({"inputs": [
            {"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": self.images[index]}
        ]})
    }

    /// Whether an answer holds the whole model's logits for an image, within 1e-5 of the largest magnitude.
    pub fn is_right(&self, index: usize, answer: &serde_json::Value) -> bool {
        let Some(data) = answer["outputs"][0]["data"].as_array() else { return false };
        let reference = &self.logits[index];
        let scale = reference.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        data.len() == reference.len()
            && data.iter().zip(reference).all(|(got, want)| {
                got.as_f64().is_some_and(|got| (got - f64::from(*want)).abs() <= 1e-5 * f64::from(scale))
            })
    }
}

fn read<T: npyz::Deserialize>(
    archive: &mut NpzArchive<std::io::BufReader<std::fs::File>>,
    name: &str,
) -> Vec<T> {
    let array = archive.by_name(name).expect("a readable archive").expect("the array is there");
    array.into_vec().expect("the array's type")
}
