//! Raft driver and replicated cluster state, sans-IO.
//!
//! Ticks and frames go in, [`Effects`] come out: frames to send, applied requests, role changes. There is no
//! socket, no clock, no thread and no async runtime in here, so that thousands of clusters run in a seeded
//! simulator. What is durable goes through [`Store`], one transaction per step of the protocol.
//!
//! - [`Node`] drives raft-rs; [`ClusterState`] is what all devices agree on; [`Request`] changes it.
//! - [`RedbStore`] keeps log, snapshot and small records in one file.
//! - [`membership`] decides who votes.

pub mod command;
pub mod founding;
pub mod ids;
pub mod membership;
pub mod node;
pub mod recovery;
pub mod state;
pub mod store;
pub mod wire;

#[cfg(test)]
extern crate self as mesh_consensus;

pub use command::{Command, DeploySpec, Listed, Outcome, Request, RequestId};
pub use ids::{ClusterId, DeviceId, RaftId, StorageId};
pub use membership::{MembershipChange, MembershipStep};
pub use node::{
    Applied, Effects, FatalError, FoundError, Genesis, Identity, Node, OpenError, Options, Outbound,
    ProposeError, Role, StepError,
};
pub use recovery::{Recovery, RecoveryError};
pub use state::{ClusterState, Deployment, EpochPlan, Member, ModelRecord};
pub use store::{Conf, DiskLie, MemoryDisk, RedbStore, Store, StoreError};
