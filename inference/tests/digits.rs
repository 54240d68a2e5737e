//! The digits model in one stage: the reference's logits for all 360 test images.

mod common;

use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use mesh_inference::stage::StageRunner;
use mesh_inference::tensor::Tensor;
use npyz::npz::NpzArchive;

/// Images per request.
const BATCH: usize = 40;

fn array<T: npyz::Deserialize>(
    archive: &mut NpzArchive<std::io::BufReader<std::fs::File>>,
    name: &str,
) -> Vec<T> {
    let array = archive.by_name(name).expect("the archive is sound").expect("the array is in it");
    array.into_vec().expect("its elements are of that type")
}

#[test]
fn a_stage_gives_the_reference_logits() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/digits");
    let mut archive = NpzArchive::open(folder.join("test.npz")).unwrap();
    let images: Vec<u8> = array(&mut archive, "images");
    let labels: Vec<u8> = array(&mut archive, "labels");
    let reference: Vec<f32> = array(&mut archive, "logits");
    let session = common::session(&folder.join("model.onnx"));
    let stage =
        StageRunner::spawn("digits", session, vec!["image".to_owned()], vec!["logits".to_owned()], 16)
            .unwrap();
    let (sender, answers) = sync_channel(16);
    for (index, batch) in images.chunks(BATCH * 64).enumerate() {
        let pixels: Vec<f32> = batch.iter().map(|pixel| f32::from(*pixel) / 16.0).collect();
        let input = Tensor::from_slice(&[BATCH as i64, 1, 8, 8], &pixels).unwrap();
        let sender = sender.clone();
        let done = Box::new(move |result| sender.send((index, result)).unwrap());
        stage.submit(vec![input], done).unwrap();
    }
    let mut right = 0;
    for _ in 0..images.len() / (BATCH * 64) {
        let (index, result) = answers.recv_timeout(Duration::from_secs(60)).unwrap();
        let output = result.unwrap();
        let logits = output.tensors[0].as_slice::<f32>().unwrap();
        let expected = &reference[index * BATCH * 10..][..BATCH * 10];
        let largest = expected.iter().fold(0_f32, |largest, value| largest.max(value.abs()));
        let difference = logits.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0_f32, f32::max);
        assert!(difference <= 1e-5 * largest, "{difference} of {largest}");
        for (scores, label) in logits.chunks(10).zip(&labels[index * BATCH..]) {
            let best = (0..10).max_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap();
            right += usize::from(best == usize::from(*label));
        }
    }
    assert_eq!(right, 356, "of {}", labels.len());
    assert_eq!(stage.stats().runs, 9);
}
