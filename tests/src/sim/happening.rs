//! What is to happen in a simulated world, by virtual time.

use mesh_consensus::{RaftId, Request};

use super::packet::Packet;

/// Something that happens at a moment of virtual time.
#[derive(Debug)]
pub(crate) enum Happening {
    Timer {
        device: usize,
        incarnation: u64,
    },
    Arrive {
        from: usize,
        to: usize,
        connection: u64,
        packet: Packet,
    },
    SnapshotReport {
        device: usize,
        incarnation: u64,
        to: RaftId,
        delivered: bool,
    },
    Start(usize),
    Dial,
    Request,
    /// A client asks for an answer.
    Ask,
    Fault(super::faults::Fault),
    /// An operator's request, again and again until it is applied or `until_ms`.
    Operator {
        request: Box<Request>,
        until_ms: u64,
    },
}

/// With its moment; of two at one moment, the one that was scheduled first comes first.
pub(crate) struct Scheduled {
    pub(crate) at_ms: u64,
    pub(crate) number: u64,
    pub(crate) happening: Happening,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_ms, self.number).cmp(&(other.at_ms, other.number))
    }
}
