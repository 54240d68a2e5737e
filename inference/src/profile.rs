//! How fast a device is, and what each block of a model costs on it, both by running them.

mod build;
mod calibrate;
mod measure;

pub use calibrate::{Calibration, CalibrationError, REFERENCE_SECONDS, calibrate};

#[cfg(test)]
pub(crate) use build::GraphBuilder;
