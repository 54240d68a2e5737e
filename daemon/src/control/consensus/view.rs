//! What the consensus thread shows of itself.

use std::sync::Arc;

use mesh_consensus::{
    ClusterState, Node, RedbStore, Role,
    founding::{MembershipView, Progress},
};

use super::{
    ClusterView, Phase,
    thread::{REMOVED, Stage, Thread},
};

impl Thread {
    /// Whether this device leads, or is connected to the one that does.
    fn is_led(&self, node: &Node<RedbStore>) -> bool {
        let leader = node.leader().and_then(|id| node.state().members.get(&id));
        let leader = leader.and_then(|member| member.device.0.parse().ok());
        node.role() == Role::Leader || leader.is_some_and(|peer| self.net.peers().borrow().contains(&peer))
    }

    /// What the founding protocol goes by; `None` outside a cluster.
    pub(super) fn membership(&self) -> Option<MembershipView> {
        let Some(Stage::Member(node)) = &self.stage else { return None };
        let state = node.state();
        let leader = node.leader().and_then(|id| state.members.get(&id)).map(|m| m.device.clone());
        Some(MembershipView {
            cluster_id: state.cluster_id,
            members: state.members.values().map(|m| (m.device.clone(), m.storage)).collect(),
            in_use: !state.models.is_empty() || !state.deployments.is_empty(),
            leader,
            votes: node.conf().voters.contains(&node.id()),
            applied: node.applied(),
        })
    }

    /// Sees whether members say that this device is out of its own cluster. Who is in touch with its leader is not.
    pub(super) fn note_unlisted(&mut self) {
        let is_alone = || matches!(&self.stage, Some(Stage::Member(node)) if !self.is_led(node));
        let unlisted = self.founding.unlisted().filter(|_| is_alone());
        if let Some(unlisted) = unlisted.filter(|_| unlisted != self.unlisted) {
            let reason = unlisted.reason(&self.data_dir);
            tracing::warn!(%reason, "members say that this device is not one of them");
        }
        self.unlisted = unlisted;
    }

    /// Shows the newest view to those who wait for one.
    pub(super) fn publish_view(&self) {
        let conflict = self.founding.conflicts().first().map(|c| (c.what(), c.remedy(&self.data_dir)));
        let fresh = match &self.stage {
            Some(Stage::Member(node)) => {
                // Who is in touch with its leader is a member, whatever a device of a cluster that was split by force
                // says. Who does not vote remembers a leader for good.
                let removed = self.told_removed && !self.is_led(node);
                let refused = self.refused.clone().or_else(|| removed.then(|| REMOVED.to_owned()));
                let unlisted = self.unlisted.map(|unlisted| unlisted.reason(&self.data_dir));
                let view = member_view(node, &self.shared, conflict);
                ClusterView { refused: refused.or(unlisted), ..view }
            }
            Some(Stage::Outside(_)) | None => ClusterView {
                phase: match self.founding.progress() {
                    Progress::Joining(_) => Phase::Joining,
                    Progress::Seeking { present, needed } => Phase::Founding { present, needed },
                    Progress::Member(_) => Phase::Member,
                },
                state: Arc::clone(&self.shared),
                raft_id: 0,
                term: 0,
                leader: None,
                is_leader: false,
                voters: Vec::new(),
                conflict,
                refused: self.refused.clone(),
            },
        };
        self.publish.send_if_modified(|view| {
            let changed = !view.same(&fresh);
            if changed {
                *view = fresh;
            }
            changed
        });
    }
}

fn member_view(
    node: &Node<RedbStore>,
    shared: &Arc<ClusterState>,
    conflict: Option<(String, String)>,
) -> ClusterView {
    let state = node.state();
    let leader = node.leader().and_then(|id| state.members.get(&id)).and_then(|m| m.device.0.parse().ok());
    ClusterView {
        phase: Phase::Member,
        state: Arc::clone(shared),
        raft_id: node.id(),
        term: node.term(),
        leader,
        is_leader: node.role() == Role::Leader,
        voters: node.conf().voters.iter().copied().collect(),
        conflict,
        refused: None,
    }
}
