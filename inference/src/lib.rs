//! ONNX models: import, cutting, profiling, stages and the activation codec. Knows nothing of the network.

pub mod blobs;
pub mod codec;
pub mod model;
pub mod onnx;
pub mod profile;
pub mod runtime;
pub mod stage;
pub mod tensor;
