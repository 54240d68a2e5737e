//! ONNX models: import, cutting, profiling, stages and the activation codec. Knows nothing of the network.

pub mod blobs;
pub mod codec;
mod cut;
mod extract;
mod graph;
pub mod import;
mod manifest;
pub mod memory;
pub mod model;
pub mod onnx;
pub mod priority;
pub mod profile;
pub mod runtime;
pub mod stage;
pub mod tensor;
#[cfg(test)]
mod testing;

pub use graph::GraphError;
