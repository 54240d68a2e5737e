//! Getting a command committed from any device: find the leader, ask, ask again with the same id until it is applied.

use std::time::{Duration, Instant};

use mesh_consensus::{Command, DeviceId, Outcome, Request, RequestId};

use super::{
    consensus::Consensus,
    rpc::{METHOD_PROPOSE, ProposeReply, decode, encode},
};
use crate::net::{Net, PeerId};

/// One attempt at one leader.
const ATTEMPT: Duration = Duration::from_secs(3);
/// Pause before asking again.
const PAUSE: Duration = Duration::from_millis(100);

/// Why a command was not applied.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposeFailure {
    /// The replicated state does not allow it.
    #[error("{0}")]
    Rejected(String),
    /// No leader took it in time. It may still be applied later.
    #[error(
        "no leader with a quorum answered within {seconds} s; `mesh status` shows which devices are missing"
    )]
    NoQuorum {
        /// How long was waited.
        seconds: u64,
    },
}

/// Proposes commands from this device.
#[derive(Debug, Clone)]
pub struct Proposer {
    net: Net,
    consensus: Consensus,
    me: DeviceId,
}

impl Proposer {
    /// For this device.
    pub fn new(net: Net, consensus: Consensus) -> Self {
        let me = DeviceId(net.local_peer().to_string());
        Self { net, consensus, me }
    }

    /// Has `command` committed and applied, here too, or says why not within `patience`.
    pub async fn propose(&self, command: Command, patience: Duration) -> Result<Outcome, ProposeFailure> {
        let request =
            Request { id: RequestId { proposer: self.me.clone(), sequence: rand::random() }, command };
        self.submit(request, patience).await
    }

    /// The same for a request that has its id already.
    pub async fn submit(&self, request: Request, patience: Duration) -> Result<Outcome, ProposeFailure> {
        let deadline = Instant::now() + patience;
        let body = encode(&request);
        let mut hint: Option<PeerId> = None;
        loop {
            let leader = hint.take().or_else(|| self.consensus.view().borrow().leader);
            let reply = match leader {
                Some(peer) if peer == self.net.local_peer() => self.here(request.clone()).await,
                Some(peer) => match self.net.call(peer, METHOD_PROPOSE, body.clone(), ATTEMPT).await {
                    Ok(reply) => decode(&reply).unwrap_or(ProposeReply::Busy),
                    Err(_) => ProposeReply::Busy,
                },
                None => ProposeReply::Busy,
            };
            match reply {
                ProposeReply::Applied(Outcome::Rejected { reason }) => {
                    return Err(ProposeFailure::Rejected(reason));
                }
                ProposeReply::Applied(outcome) => {
                    self.seen_here(&request.id, deadline).await;
                    return Ok(outcome);
                }
                ProposeReply::NotLeader(other) => hint = other.and_then(|d| d.parse().ok()),
                ProposeReply::Busy => {}
            }
            if Instant::now() + PAUSE >= deadline {
                return Err(ProposeFailure::NoQuorum { seconds: patience.as_secs() });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Who asked for something and then looks at this device's copy must find it there: the leader answers when it has
    /// applied a command itself. What takes longer than an attempt is not waited for; the command is applied.
    async fn seen_here(&self, id: &RequestId, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now()).min(ATTEMPT);
        let mut view = self.consensus.view();
        let applied = view.wait_for(|view| view.state.outcome(id).is_some());
        drop(tokio::time::timeout(left, applied).await);
    }

    async fn here(&self, request: Request) -> ProposeReply {
        match tokio::time::timeout(ATTEMPT, self.consensus.propose_here(request)).await {
            Ok(reply) => reply,
            Err(_) => ProposeReply::Busy,
        }
    }
}
