//! How fast a device is, and what each block of a model costs on it, both by running them.

mod build;
mod calibrate;

pub use calibrate::{Calibration, REFERENCE_SECONDS, calibrate};

#[cfg(test)]
pub(crate) use build::GraphBuilder;
