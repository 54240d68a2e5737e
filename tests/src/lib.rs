//! Tools that only tests, benchmarks and demos use: the simulator of clusters, the rack of devices, checked load.

pub mod digits;
pub mod lab;
pub mod load;
pub mod loopback;
pub mod models;
pub mod policies;
pub mod rack;
pub mod radio;
pub mod sim;
