//! Keeps the network in step with replicated state: who is a member and where, who is revoked; and, on the leader,
//! keeps members' addresses and names in replicated state in step with what is seen.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use mesh_consensus::{ClusterState, Command};

use super::{
    consensus::{ClusterView, Consensus},
    facts::Facts,
    propose::Proposer,
};
use crate::net::{Net, PeerId};

/// Addresses are compared this often.
const LOOK: Duration = Duration::from_secs(2);
/// Time for one correction to be applied.
const PATIENCE: Duration = Duration::from_secs(2);

/// Runs until the consensus thread ends.
pub async fn run(net: Net, consensus: Consensus, facts: Facts, proposer: Proposer) {
    let mut changes = consensus.view();
    let mut told: Option<Arc<ClusterState>> = None;
    loop {
        let view = changes.borrow_and_update().clone();
        if told.as_ref().is_none_or(|state| !Arc::ptr_eq(state, &view.state)) {
            tell_network(&net, &view.state);
            told = Some(Arc::clone(&view.state));
        }
        // A removed device is cut off only when its vote is no longer needed: two removals in a row must not cost
        // the quorum.
        if view.voters.iter().all(|voter| view.state.members.contains_key(voter)) {
            net.set_removed(
                view.state.removed.iter().filter_map(|d| d.0.parse().ok()).collect::<BTreeSet<_>>(),
            );
        }
        if view.is_leader {
            correct(&view, &facts, &proposer).await;
        }
        if let Ok(Err(_)) = tokio::time::timeout(LOOK, changes.changed()).await {
            return;
        }
    }
}

fn tell_network(net: &Net, state: &ClusterState) {
    let me = net.local_peer();
    let known: Vec<(PeerId, SocketAddr)> = state
        .members
        .values()
        .filter_map(|m| Some((m.device.0.parse().ok()?, m.address.parse().ok()?)))
        .filter(|(peer, address): &(PeerId, SocketAddr)| *peer != me && !address.ip().is_unspecified())
        .collect();
    net.set_known(known);
}

/// Has the name and address of live members that have changed replicated, one at a time.
async fn correct(view: &ClusterView, facts: &Facts, proposer: &Proposer) {
    for member in view.state.members.values() {
        let Some(peer) = member.device.0.parse().ok().and_then(|p| facts.peers().get(&p)) else { continue };
        if !peer.up || peer.address.is_empty() {
            continue;
        }
        let name = peer.report.as_ref().map_or_else(|| member.name.clone(), |r| r.name.clone());
        if peer.address != member.address || name != member.name {
            let command =
                Command::UpdateMember { device: member.device.clone(), name, address: peer.address };
            if let Err(error) = proposer.propose(command, PATIENCE).await {
                tracing::debug!(%error, "a member's address was not corrected");
            }
            return;
        }
    }
}
