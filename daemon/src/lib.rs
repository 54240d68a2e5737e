//! The Mesh daemon: joins configuration, consensus, inference and the network.

pub mod api;
pub mod app;
pub mod background;
pub mod cli;
pub mod control;
pub mod data;
pub mod files;
pub mod net;
pub mod status;
