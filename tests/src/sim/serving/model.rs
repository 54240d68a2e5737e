//! A model of a few blocks that each mix a number: a block left out, done twice, done by another model or out of order
//! shows in the answer.

use mesh_inference::tensor::Tensor;

/// Blocks of every model.
pub(crate) const BLOCKS: usize = 6;

/// What a block makes of a number.
fn mixed(model: &str, block: usize, value: u64) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(model.as_bytes()).update(&block.to_le_bytes()).update(&value.to_le_bytes());
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(bytes)
}

/// What blocks `first..=last` make of a number.
pub(super) fn run(model: &str, first: usize, last: usize, value: u64) -> u64 {
    (first..=last).fold(value, |value, block| mixed(model, block, value))
}

/// What the whole model answers.
pub(crate) fn answer(model: &str, input: u64) -> u64 {
    run(model, 0, BLOCKS - 1, input)
}

/// The name of the tensor that enters a block; after the last one, the output's.
pub(super) fn tensor_before(block: usize) -> String {
    match block {
        0 => "x".to_owned(),
        BLOCKS => "y".to_owned(),
        _ => format!("h{block}"),
    }
}

pub(super) fn tensor(value: u64) -> Tensor {
    Tensor::from_slice(&[8], &value.to_le_bytes()).expect("eight bytes fill a tensor of eight")
}

pub(super) fn number(tensor: &Tensor) -> Option<u64> {
    Some(u64::from_le_bytes(tensor.bytes().try_into().ok()?))
}
