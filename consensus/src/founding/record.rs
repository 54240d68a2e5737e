//! What a device must not forget while a cluster is being founded.

use serde::{Deserialize, Serialize};

use super::{FoundingError, Place};
use crate::{ClusterId, DeviceId, Genesis};

/// First byte of an encoded [`Record`].
const RECORD_VERSION: u8 = 1;

/// No encoded record is longer; a longer one is damaged.
const RECORD_BYTES_MAX: usize = 64 * 1024;

/// Nesting of CBOR values that is accepted; the real types need fewer than ten.
const RECURSION_LIMIT: usize = 32;

/// Number of one attempt to found a cluster. Attempts are ordered; no two devices share one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ballot {
    /// Counts up with every attempt.
    pub round: u64,
    /// The device that makes the attempt.
    pub device: DeviceId,
}

/// The durable part of the protocol: what this device promised, accepted and knows to be decided.
///
/// A device that lost its record could help to found a second cluster, so the record lives in the
/// same transactional store as the Raft log and is on disk before any answer that depends on it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Attempts below this one are refused.
    pub promised: Option<Ballot>,
    /// The last cluster that this device accepted, and in which attempt.
    pub accepted: Option<(Ballot, Genesis)>,
    /// The cluster that a majority accepted, once this device knows.
    pub decided: Option<Genesis>,
    /// The cluster that this device gave its own up for. It looks for that one before it founds again.
    pub gave_way_to: Option<ClusterId>,
    /// The place in another cluster that this member asks for, with the id of the store that it will have there.
    /// On disk before it is asked for: a place that is not wished for any more is never taken. Not there in records
    /// from before it was kept.
    #[serde(default)]
    pub wish: Option<Place>,
}

impl Record {
    /// Encodes the record for the store.
    ///
    /// # Panics
    /// Never: writing CBOR of plain data to memory cannot fail.
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(RECORD_VERSION, self)
    }

    /// Decodes a record that [`Record::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`FoundingError`] when the bytes are too long, of another version, or damaged.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FoundingError> {
        decode("founding record", RECORD_VERSION, RECORD_BYTES_MAX, bytes)
    }
}

/// A version byte, then CBOR.
pub(super) fn encode<T: Serialize>(version: u8, value: &T) -> Vec<u8> {
    let mut bytes = vec![version];
    ciborium::into_writer(value, &mut bytes).expect("CBOR of plain data to memory");
    bytes
}

/// Reads what [`encode`] wrote, with limits on size and nesting.
pub(super) fn decode<T: serde::de::DeserializeOwned>(
    what: &'static str,
    version: u8,
    bytes_max: usize,
    bytes: &[u8],
) -> Result<T, FoundingError> {
    if bytes.len() > bytes_max {
        return Err(FoundingError::TooLong { what, bytes: bytes.len(), bytes_max });
    }
    let Some((&found, body)) = bytes.split_first() else {
        return Err(FoundingError::Empty { what });
    };
    if found != version {
        return Err(FoundingError::Version { what, found, expected: version });
    }
    let mut rest = body;
    let value = ciborium::de::from_reader_with_recursion_limit(&mut rest, RECURSION_LIMIT)
        .map_err(|error| FoundingError::Damaged { what, why: error.to_string() })?;
    if !rest.is_empty() {
        return Err(FoundingError::Damaged { what, why: format!("{} bytes too many", rest.len()) });
    }
    Ok(value)
}
