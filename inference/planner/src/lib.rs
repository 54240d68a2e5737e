//! Planning: cut a profiled model into stages and place them on devices. Pure: no I/O, no clock.

mod plan;

pub use plan::{Alternative, Bottleneck, BottleneckKind, Objective, Plan, Replica, Stage, Unused};
