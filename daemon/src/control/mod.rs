//! The control plane: consensus, the reconcile loop of every device, the leader's duties, and what joins them.

pub mod app;
pub mod better;
pub mod budget;
pub mod consensus;
pub mod correction;
pub mod crossing;
pub mod deploy;
pub mod document;
pub mod duties;
pub mod entering;
pub mod events;
pub mod explain;
pub mod facts;
pub mod forecast;
pub mod health;
pub mod holdings;
pub mod leader;
pub mod links;
pub mod memory;
pub mod metrics;
pub mod models;
pub mod moves;
pub mod moving;
pub mod others;
pub mod peers;
pub mod planning;
pub mod prepare;
pub mod problems;
pub mod propose;
pub mod reconcile;
pub mod report;
pub mod routing;
pub mod rpc;
pub mod run;
pub mod select;
pub mod sessions;
pub mod speed;
pub mod spread;
pub mod transfer;
pub mod upkeep;
pub mod vitals;

pub use run::{RunError, Running, start};

/// An error with all its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let next = source.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = source.source();
    }
    text
}
