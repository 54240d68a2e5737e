//! The one reader of network events: hands each to its owner.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_consensus::{Command, DeviceId, Outcome, Request};
use tokio::{
    sync::{Semaphore, oneshot},
    task::{AbortHandle, JoinSet},
};

use super::{
    consensus::{Consensus, Input, Phase},
    facts::Facts,
    links::Links,
    problems::Problems,
    propose::{ProposeFailure, Proposer},
    report::NodeReport,
    rpc::{
        HaveCall, JoinCall, JoinReply, METHOD_HAVE, METHOD_JOIN, METHOD_PROBLEM, METHOD_PROPOSE, ProblemCall,
        ProposeReply, decode, encode,
    },
    transfer::Transfer,
};
use crate::{
    data::{DataPlane, Gone},
    net::{Channel, Net, NetEvent, NetEvents, PeerId, Topic},
};

/// Blob streams served at a time.
const BLOB_STREAMS: usize = 16;
/// Calls answered at a time.
const CALLS: usize = 64;
/// Patience of a member that forwards a device's wish to join.
const JOIN_PATIENCE: Duration = Duration::from_secs(3);
/// Hands network events to their owners.
#[derive(Debug, Clone)]
pub struct Events {
    /// The network.
    pub net: Net,
    /// Consensus thread.
    pub consensus: Consensus,
    /// Reports.
    pub facts: Facts,
    /// Data plane.
    pub data: DataPlane,
    /// Blobs.
    pub transfer: Transfer,
    /// Commands.
    pub proposer: Proposer,
    /// What plans of this device, as a leader, were made from.
    pub problems: Problems,
    /// What was refused at the door lately, newest last.
    pub refusals: Refusals,
}

/// Devices that were refused at the door, for status.
#[derive(Debug, Clone, Default)]
pub struct Refusals(Arc<std::sync::Mutex<Vec<(String, String, Instant)>>>);

/// Refusals are told for this long.
const REFUSAL_AGE: Duration = Duration::from_secs(120);
/// Refusals that are remembered.
const REFUSALS_MAX: usize = 16;

impl Refusals {
    fn add(&self, whom: String, why: String) {
        // "PEER at ADDRESS": a device that comes in again has another port each time.
        let peer = |whom: &str| whom.split(' ').next().map(str::to_owned);
        let mut list = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        list.retain(|(w, _, at)| peer(w) != peer(&whom) && at.elapsed() < REFUSAL_AGE);
        if list.len() >= REFUSALS_MAX {
            list.remove(0);
        }
        list.push((whom, why, Instant::now()));
    }

    /// Who was refused lately, and why.
    pub fn recent(&self) -> Vec<(String, String)> {
        let list = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let young = list.iter().filter(|(_, _, at)| at.elapsed() < REFUSAL_AGE);
        young.map(|(whom, why, _)| (whom.clone(), why.clone())).collect()
    }
}

impl Events {
    /// Reads events until the network ends.
    pub async fn run(self, mut events: NetEvents) {
        let blob_streams = Arc::new(Semaphore::new(BLOB_STREAMS));
        let calls = Arc::new(Semaphore::new(CALLS));
        // Ends with this.
        let mut watching = JoinSet::new();
        let serving = blob_streams.clone();
        watching.spawn(self.links().watch(move || serving.available_permits() < BLOB_STREAMS));
        // One per peer that is up, however often it comes and goes.
        let mut measuring: BTreeMap<PeerId, AbortHandle> = BTreeMap::new();
        while let Some(event) = events.recv().await {
            match event {
                NetEvent::PeerUp { peer, address } => {
                    let before = measuring.insert(peer, self.peer_up(peer, address.to_string()));
                    before.inspect(AbortHandle::abort);
                }
                NetEvent::PeerDown { peer, silent } => {
                    tracing::info!(%peer, silent, "peer is gone");
                    measuring.remove(&peer).inspect(AbortHandle::abort);
                    self.facts.peers().down(peer);
                    self.data.peer_down(peer, if silent { Gone::Silent } else { Gone::Closed });
                    self.consensus.offer(Input::PeerDown(peer));
                }
                NetEvent::Message { peer, topic: Topic::Raft, body } => {
                    self.consensus.offer(Input::Raft(peer, body));
                }
                NetEvent::Message { peer, topic: Topic::Founding, body } => {
                    self.consensus.offer(Input::Founding(peer, body));
                }
                NetEvent::Report { peer, body, rtt } => match NodeReport::decode(&body) {
                    Some(report) => self.facts.peers().report(peer, report, rtt),
                    None if body.is_empty() => {}
                    None => {
                        tracing::warn!(%peer, "a report that cannot be read: is its version another one?")
                    }
                },
                NetEvent::Jobs { peer, jobs } => self.data.set_peer_jobs(peer, jobs),
                NetEvent::Late { peer, is_late } => self.data.set_peer_late(peer, is_late),
                NetEvent::Call { peer, method, body, reply } => {
                    let Ok(permit) = Arc::clone(&calls).try_acquire_owned() else { continue };
                    let this = self.clone();
                    tokio::spawn(async move {
                        this.answer(peer, method, &body, reply).await;
                        drop(permit);
                    });
                }
                NetEvent::Stream { peer, channel: Channel::Data, stream } => self.data.accept(peer, stream),
                NetEvent::Stream { channel: Channel::Blob, stream, .. } => {
                    let Ok(permit) = Arc::clone(&blob_streams).try_acquire_owned() else { continue };
                    let transfer = self.transfer.clone();
                    tokio::spawn(async move {
                        transfer.serve(stream).await;
                        drop(permit);
                    });
                }
                NetEvent::Refused { whom, why, removed_by } => {
                    if let Some(peer) = removed_by {
                        self.consensus.offer(Input::RemovedBy(peer));
                    }
                    self.refusals.add(whom, why);
                }
            }
        }
    }

    fn links(&self) -> Links {
        Links { net: self.net.clone(), facts: self.facts.clone(), data: self.data.clone() }
    }

    /// Tells everybody of a peer that came up. Gives the measuring of its link, which goes on for some seconds.
    fn peer_up(&self, peer: PeerId, address: String) -> AbortHandle {
        tracing::info!(%peer, %address, "peer is up");
        self.facts.peers().up(peer, address);
        self.data.peer_up(peer);
        self.consensus.offer(Input::PeerUp(peer));
        let links = self.links();
        tokio::spawn(async move { links.measure(peer).await }).abort_handle()
    }

    async fn answer(&self, peer: PeerId, method: u16, body: &[u8], reply: oneshot::Sender<bytes::Bytes>) {
        let answer = match method {
            METHOD_PROPOSE => match decode::<Request>(body) {
                Some(request) => encode(&self.propose(peer, request).await),
                None => return,
            },
            METHOD_JOIN => match decode::<JoinCall>(body) {
                Some(call) => encode(&self.join(peer, call).await),
                None => return,
            },
            METHOD_HAVE => match decode::<HaveCall>(body) {
                Some(call) => encode(&self.transfer.have(&call)),
                None => return,
            },
            METHOD_PROBLEM => match decode::<ProblemCall>(body) {
                Some(call) => encode(&self.problems.get(&call.deployment, call.epoch).as_deref()),
                None => return,
            },
            _ => {
                tracing::debug!(%peer, method, "unknown call: is its version another one?");
                return;
            }
        };
        let _ = reply.send(answer);
    }

    /// Only members may propose, and only in their own name.
    async fn propose(&self, peer: PeerId, request: Request) -> ProposeReply {
        let member = self.consensus.view().borrow().member(&peer).is_some();
        if !member || request.id.proposer != DeviceId(peer.to_string()) {
            let reason = "only members of the cluster may change it".to_owned();
            return ProposeReply::Applied(Outcome::Rejected { reason });
        }
        self.consensus.propose_here(request).await
    }

    async fn join(&self, peer: PeerId, call: JoinCall) -> JoinReply {
        let view = self.consensus.view().borrow().clone();
        if view.phase != Phase::Member || view.leader.is_none() {
            return JoinReply::TryLater;
        }
        let seen = self.facts.peers().get(&peer).map(|p| p.address);
        let command = Command::Join {
            device: DeviceId(peer.to_string()),
            storage: call.storage,
            listed: call.listed,
            name: call.name,
            address: seen.unwrap_or(call.address),
        };
        match self.proposer.propose(command, JOIN_PATIENCE).await {
            Ok(Outcome::Joined { raft_id }) => JoinReply::Joined { cluster: view.state.cluster_id, raft_id },
            Ok(Outcome::Done | Outcome::ListedOtherwise | Outcome::Rejected { .. })
            | Err(ProposeFailure::NoQuorum { .. }) => JoinReply::TryLater,
            Err(ProposeFailure::Rejected(reason)) => JoinReply::Refused(reason),
        }
    }
}

/// Asks members one after another to let this device join.
pub async fn ask_to_join(net: Net, call: JoinCall, via: Vec<PeerId>) -> JoinReply {
    for peer in via {
        let answer = net.call(peer, METHOD_JOIN, encode(&call), JOIN_PATIENCE + Duration::from_secs(1)).await;
        match answer.ok().and_then(|bytes| decode(&bytes)) {
            Some(JoinReply::TryLater) | None => {}
            Some(reply) => return reply,
        }
    }
    JoinReply::TryLater
}
