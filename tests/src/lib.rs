//! Tests that see all crates: the simulator of clusters.

pub mod sim;
