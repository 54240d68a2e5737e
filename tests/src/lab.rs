//! The device lab: one Linux host as a rack of unequal devices.

pub mod load;
pub mod plot;
pub mod relay;
