//! Names of things in a cluster.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A replica's number in the Raft group: never 0, never reused, allocated from a replicated counter and bound
/// to one device with one disk.
pub type RaftId = u64;

/// A device's identity: its libp2p PeerId as text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeviceId(pub String);

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for DeviceId {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// Text that is not 32 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is not 32 hexadecimal digits")]
pub struct ParseIdError(String);

fn parse_hex(text: &str) -> Result<[u8; 16], ParseIdError> {
    let error = || ParseIdError(text.chars().take(40).collect());
    let digits = text.as_bytes();
    if digits.len() != 32 {
        return Err(error());
    }
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        for digit in pair {
            let value = char::from(*digit).to_digit(16).ok_or_else(error)?;
            *byte = *byte << 4 | u8::try_from(value).map_err(|_| error())?;
        }
    }
    Ok(bytes)
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                parse_hex(text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseIdError;
            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }
    };
}

hex_id!(
    /// A cluster, for life. Text form: 32 hexadecimal digits.
    ClusterId
);
hex_id!(
    /// A disk: made with the data directory. A device whose disk was wiped is a new member.
    StorageId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_ids_round_trip_and_refuse_other_text() {
        let id = ClusterId(*b"0123456789abcdef");
        assert_eq!(id.to_string().parse::<ClusterId>(), Ok(id));
        for bad in ["", "00", "zz112233445566778899aabbccddeeff", "+0112233445566778899aabbccddeeff", "é"] {
            assert!(bad.parse::<ClusterId>().is_err(), "{bad}");
        }
    }
}
