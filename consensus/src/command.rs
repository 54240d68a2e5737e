//! Requests that change the replicated state, and their encoding in the log.

use mesh_planner::{Objective, Plan};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::{DeviceId, RaftId, StorageId};
use crate::state::ModelRecord;

/// Version byte in front of every request in the log.
const REQUEST_VERSION: u8 = 1;

/// The most bytes that an encoded request may have.
pub const MAX_REQUEST_BYTES: usize = 256 * 1024;

/// Names one request for good, so that a retry is not applied twice.
///
/// `sequence` must be unique for its proposer, also across restarts (a start counter in the upper half and a
/// running number in the lower one will do). It need not be ordered.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId {
    /// The device that made the request.
    pub proposer: DeviceId,
    /// The proposer's number for it.
    pub sequence: u64,
}

/// A command with its name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The same id is never applied twice within the last [`crate::state::OUTCOMES_KEPT`] of its proposer.
    pub id: RequestId,
    /// What to do.
    pub command: Command,
}

/// What somebody wants served: everything about a deployment that people choose.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeploySpec {
    /// The name that clients use.
    pub name: String,
    /// Manifest hash (hex) of a model in the state.
    pub model: String,
    /// What to plan for.
    pub objective: Objective,
    /// Exactly so many stages, if given.
    pub stages: Option<usize>,
    /// Exactly this plan, if given.
    pub pin: Option<Plan>,
    /// Shapes given for inputs: name and dimensions.
    pub shapes: Vec<(String, Vec<i64>)>,
}

/// With which disk a cluster lists a device: a [`Command::Join`] says what its device was told, and counts only
/// where that is still so. A request that was long under way thus never replaces a later one, whatever delayed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Listed {
    /// Any or none: in requests from before this was said.
    #[default]
    Unsaid,
    /// It is no member.
    Not,
    /// It is a member with this one.
    With(StorageId),
}

impl From<Option<StorageId>> for Listed {
    fn from(storage: Option<StorageId>) -> Self {
        storage.map_or(Self::Not, Self::With)
    }
}

/// A change of the replicated state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// A device asks to be a member; it becomes a learner of the Raft group.
    Join {
        /// Who.
        device: DeviceId,
        /// Its disk. A known device with another disk gets a new raft id.
        storage: StorageId,
        /// How it is listed so far, as it was told.
        #[serde(default)]
        listed: Listed,
        /// Its name, for people.
        name: String,
        /// Where it listens, `ip:port`.
        address: String,
    },
    /// A member has another name or address now.
    UpdateMember {
        /// Who.
        device: DeviceId,
        /// Its name, for people.
        name: String,
        /// Where it listens, `ip:port`.
        address: String,
    },
    /// Takes a member out and revokes it: its identity is refused from then on.
    RemoveMember {
        /// Who.
        device: DeviceId,
    },
    /// Plans avoid a draining device.
    SetDraining {
        /// Who.
        device: DeviceId,
        /// Draining or not.
        draining: bool,
    },
    /// Adds a model or replaces its record.
    AddModel(ModelRecord),
    /// Forgets a model that no deployment uses.
    RemoveModel {
        /// Manifest hash (hex).
        hash: String,
    },
    /// Starts serving a model, or replaces what a deployment should be. The old plan serves until a new one
    /// is activated.
    Deploy(DeploySpec),
    /// Stops serving.
    Undeploy {
        /// The deployment.
        name: String,
    },
    /// The leader wants this plan next: devices fetch blobs and load stages.
    PreparePlan {
        /// The deployment.
        deployment: String,
        /// Must be the deployment's `next_epoch`, which fences leaders that act on old state.
        epoch: u64,
        /// The plan.
        plan: Plan,
    },
    /// Every device of the prepared plan is ready: requests go by it from now on.
    ActivatePlan {
        /// The deployment.
        deployment: String,
        /// Must be the epoch that is being prepared.
        epoch: u64,
    },
    /// The plan that is being prepared cannot be had.
    AbandonPlan {
        /// The deployment.
        deployment: String,
        /// Must be the epoch that is being prepared.
        epoch: u64,
        /// Why, for people; becomes the deployment's fault.
        reason: String,
    },
    /// Says why a deployment cannot be served as asked, or that it can.
    SetFault {
        /// The deployment.
        deployment: String,
        /// Must be the deployment's `next_epoch`: what cannot be served may have been asked for before. `None` in logs
        /// from before this was told.
        #[serde(default)]
        epoch: Option<u64>,
        /// Why, for people.
        reason: Option<String>,
    },
}

/// What became of an applied request. The same on every device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Done.
    Done,
    /// The device is a member under this raft id.
    Joined {
        /// Its replica's number.
        raft_id: RaftId,
    },
    /// The device that asks to join is listed otherwise than it was told. Nothing was changed; it asks again when it
    /// knows better.
    ListedOtherwise,
    /// The state does not allow it; nothing was changed.
    Rejected {
        /// What is wrong and what to do, for people.
        reason: String,
    },
}

/// A request in the log that this build cannot read.
#[derive(Debug, Error)]
pub enum DecodeError {
    /// Written by a newer build.
    #[error(
        "request has format version {0}, this build reads {REQUEST_VERSION}; update this device to the version that the others run"
    )]
    UnknownVersion(u8),
    /// No bytes at all.
    #[error("request is empty")]
    Empty,
    /// More than [`MAX_REQUEST_BYTES`].
    #[error("request has {0} bytes, more than {MAX_REQUEST_BYTES}")]
    TooLarge(usize),
    /// Not a request, or a command of a newer build.
    #[error("request cannot be read; update this device to the version that the others run")]
    Malformed(#[source] ciborium::de::Error<std::io::Error>),
}

impl Request {
    /// The bytes that go into the log: a version byte and CBOR.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![REQUEST_VERSION];
        ciborium::into_writer(self, &mut bytes).expect("writing plain types into memory cannot fail");
        bytes
    }

    /// Reads what [`Request::encode`] wrote.
    ///
    /// # Errors
    /// When the bytes are not a request that this build knows.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (version, body) = bytes.split_first().ok_or(DecodeError::Empty)?;
        if *version != REQUEST_VERSION {
            return Err(DecodeError::UnknownVersion(*version));
        }
        if bytes.len() > MAX_REQUEST_BYTES {
            return Err(DecodeError::TooLarge(bytes.len()));
        }
        ciborium::from_reader(body).map_err(DecodeError::Malformed)
    }
}
