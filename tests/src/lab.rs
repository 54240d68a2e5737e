//! The device lab: one Linux host as a rack of unequal devices.

pub mod awake;
pub mod cgroup;
pub mod chaos;
pub mod fleet;
pub mod hall;
pub mod load;
pub mod machine;
pub mod network;
pub mod play;
pub mod plot;
pub mod relay;
pub mod relay_process;
pub mod report;
pub mod scenario;
pub mod site;
pub mod units;
