//! Devices that ask to be added to a running cluster, through any of its members.

use mesh_consensus::founding::{Event, Place};
use mesh_consensus::{ClusterId, Command, Listed, Node, Outcome, Request, RequestId, Role, StorageId};

use super::{Body, Death, Deed, PENDING_MAX, Process, device_id, view_of};
use crate::sim::packet::Packet;

/// Name of the join of one device with one disk instead of another: asking again is the same request.
fn join_id(origin: usize, storage: StorageId, listed: Listed) -> RequestId {
    let half = |storage: StorageId| u64::from_le_bytes(storage.0[..8].try_into().expect("eight bytes"));
    let instead = if let Listed::With(other) = listed { half(other).rotate_left(1) } else { 0 };
    RequestId { proposer: device_id(origin), sequence: half(storage) ^ instead }
}

impl Process {
    pub(super) fn join_request(
        &mut self,
        from: usize,
        origin: usize,
        (storage, listed): (StorageId, Listed),
        relayed: bool,
    ) -> Result<(), Death> {
        let Body::Member(node) = &self.body else { return Ok(()) };
        let id = join_id(origin, storage, listed);
        if node.role() == Role::Leader {
            let request = Request {
                id: id.clone(),
                command: Command::Join {
                    device: device_id(origin),
                    storage,
                    listed,
                    name: format!("device {origin}"),
                    address: format!("10.0.0.{}:7400", origin + 1),
                },
            };
            if let Some(outcome) = node.state().outcome(&id).cloned() {
                let cluster = node.cluster_id();
                self.send(from, Packet::JoinReply { origin, storage, cluster, outcome });
                return Ok(());
            }
            // Registered first: a lone voter commits and applies while it proposes.
            let room = self.joins.len() < PENDING_MAX;
            if room {
                self.joins.insert(id.clone(), (from, origin, storage));
            }
            if !room || !self.propose(&request)? {
                self.joins.remove(&id);
            }
            return Ok(());
        }
        let leader = node.leader().and_then(|id| self.route(id));
        if let Some(leader) = leader.filter(|leader| !relayed && *leader != from) {
            self.send(leader, Packet::JoinRequest { origin, storage, listed, relayed: true });
            self.joins.insert(id, (from, origin, storage));
        }
        Ok(())
    }

    pub(super) fn join_reply(
        &mut self,
        now_ms: u64,
        origin: usize,
        storage: StorageId,
        cluster: ClusterId,
        outcome: Outcome,
    ) -> Result<(), Death> {
        if origin != self.setup.index {
            let asked = |(_, (_, other, with)): &(&RequestId, &(usize, usize, StorageId))| {
                (*other, *with) == (origin, storage)
            };
            let id = self.joins.iter().find(asked).map(|(id, _)| id.clone());
            if let Some((from, ..)) = id.and_then(|id| self.joins.remove(&id)) {
                self.send(from, Packet::JoinReply { origin, storage, cluster, outcome });
            }
            return Ok(());
        }
        let Outcome::Joined { raft_id } = outcome else {
            self.deeds.push(Deed::Note(format!("join refused: {outcome:?}")));
            return Ok(());
        };
        if matches!(self.body, Body::Member(_)) {
            let place = Place { cluster_id: cluster, storage };
            return self.founding_event(now_ms, Event::Admitted(place));
        }
        if storage != self.storage || !matches!(self.body, Body::Empty(_)) {
            return Ok(());
        }
        self.become_member(|store| Node::join_empty(store, cluster, raft_id))?;
        self.deeds.push(Deed::Joined(cluster, raft_id));
        if let Some(node) = self.body.node() {
            let view = view_of(node);
            self.founding_event(now_ms, Event::MembershipChanged(view))?;
        }
        self.pump_all()
    }
}
