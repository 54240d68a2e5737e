//! What this device knows about all devices, itself included: the input of planning and of the status document.

use std::{
    collections::BTreeSet,
    sync::{Arc, RwLock},
};

use mesh_consensus::ClusterId;
use mesh_planner::TransferCost;

use super::{
    consensus::ClusterView,
    memory::{Others, taken_by_others},
    peers::Peers,
    planning::DeviceFacts,
    report::{NO_CLUSTER, NodeReport, StageReport, StageState},
};
use crate::net::{Net, PeerId};

/// No device takes longer than this for a byte, in seconds.
const COST_PER_BYTE_MAX: f64 = 1e-4;

/// A peer's word on its costs, kept to what can be.
fn checked(cost: TransferCost) -> TransferCost {
    let within = |value: f64, most: f64| if value.is_finite() { value.clamp(0.0, most) } else { 0.0 };
    TransferCost {
        send_s_per_byte: within(cost.send_s_per_byte, COST_PER_BYTE_MAX),
        receive_s_per_byte: within(cost.receive_s_per_byte, COST_PER_BYTE_MAX),
        request_s: within(cost.request_s, 1.0),
        entry_s_per_byte: within(cost.entry_s_per_byte, COST_PER_BYTE_MAX),
        rest_share: within(cost.rest_share, 0.9),
        compute_share: if cost.compute_share.is_finite() { cost.compute_share.clamp(0.01, 1.0) } else { 1.0 },
    }
}

/// Facts about this device and all others. Cheap to clone.
///
/// Devices of other clusters are in touch, too, while clusters meet, and may even be listed here. What they say of links
/// and costs is true for everybody; what they say of plans is about other plans, and is not heard.
#[derive(Debug, Clone)]
pub struct Facts {
    me: PeerId,
    peers: Peers,
    own: Arc<RwLock<NodeReport>>,
}

impl Facts {
    /// Starts with this device's first report.
    pub fn new(me: PeerId, peers: Peers, own: NodeReport) -> Self {
        Self { me, peers, own: Arc::new(RwLock::new(own)) }
    }

    /// This device.
    pub fn me(&self) -> PeerId {
        self.me
    }

    /// The others.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// This device's own report.
    pub fn own(&self) -> NodeReport {
        self.own.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Changes this device's report and hands it to the heartbeat.
    pub fn update_own(&self, net: &Net, change: impl FnOnce(&mut NodeReport)) {
        let encoded = {
            let mut own = self.own.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            change(&mut own);
            own.encode()
        };
        net.set_report(encoded.into());
    }

    /// The cluster that this device is in, or [`NO_CLUSTER`].
    fn cluster(&self) -> ClusterId {
        let own = self.own.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        own.cluster.unwrap_or(NO_CLUSTER)
    }

    /// Keeps this device's report true about the cluster that it is in.
    pub fn set_cluster(&self, net: &Net, cluster: ClusterId) {
        if self.own().cluster != Some(cluster) {
            self.update_own(net, |own| own.cluster = Some(cluster));
        }
    }

    /// Whether a report is of a device in this device's cluster. Builds from before do not say, and are believed.
    fn is_of_ours(&self, report: &NodeReport) -> bool {
        report.cluster.is_none_or(|cluster| cluster == self.cluster())
    }

    /// Whether a report is of a device in another cluster. Who is in none may be on its way here.
    fn is_elsewhere(&self, report: &NodeReport) -> bool {
        report.cluster != Some(NO_CLUSTER) && !self.is_of_ours(report)
    }

    /// The newest report of a peer that is up and in this cluster.
    fn told_by(&self, peer: &PeerId) -> Option<Arc<NodeReport>> {
        let report = self.peers.get(peer).filter(|p| p.up)?.report?;
        self.is_of_ours(&report).then_some(report)
    }

    /// What moving a byte to each live peer costs the processors of both ends together, in seconds of the whole device:
    /// this device's and the peer's word; as long as a peer has not measured itself, it is taken to be like this one.
    pub fn moving_costs(&self) -> Vec<(PeerId, f64)> {
        let own = self.own().transfer;
        let cost = |peer: PeerId| {
            let told =
                self.peers.get(&peer)?.report.map(|report| checked(report.transfer).receive_s_per_byte);
            let receiving = told.filter(|cost| *cost > 0.0).unwrap_or(own.receive_s_per_byte);
            Some((peer, own.send_s_per_byte + receiving))
        };
        self.peers.live().into_iter().filter_map(cost).collect()
    }

    /// Numbers of the plans, by deployment, that live devices of this cluster send requests on, as they have told.
    pub fn under_way(&self) -> BTreeSet<(String, u64)> {
        let reports = self.peers.live().into_iter().filter_map(|peer| self.told_by(&peer));
        let mut found = BTreeSet::new();
        for report in reports.chain([Arc::new(self.own())]) {
            for (name, epochs) in &report.under_way {
                found.extend(epochs.iter().map(|epoch| (name.clone(), *epoch)));
            }
        }
        found
    }

    /// Whether a device is this one, or connected, not silent, and in no other cluster: a place here that its device
    /// has declined holds nobody.
    pub fn is_live(&self, device: &str) -> bool {
        let Ok(peer) = device.parse::<PeerId>() else { return false };
        let is_here = |report: Option<Arc<NodeReport>>| report.is_none_or(|r| !self.is_elsewhere(&r));
        peer == self.me || self.peers.get(&peer).is_some_and(|p| p.up && is_here(p.report))
    }

    /// A device's newest report; of devices that are down, or not in this cluster, there is none.
    pub fn report(&self, device: &str) -> Option<Arc<NodeReport>> {
        let peer: PeerId = device.parse().ok()?;
        if peer == self.me {
            return Some(Arc::new(self.own()));
        }
        self.told_by(&peer)
    }

    /// How far a device is with a stage.
    pub fn stage(&self, device: &str, deployment: &str, epoch: u64, stage: usize) -> Option<StageReport> {
        self.report(device)?.stage(deployment, epoch, stage).cloned()
    }

    /// Whether a live device has told that it can run a stage.
    pub fn is_ready(&self, device: &str, deployment: &str, epoch: u64, stage: usize) -> bool {
        let report = self.stage(device, deployment, epoch, stage);
        self.is_live(device) && report.is_some_and(|report| report.state == StageState::Ready)
    }

    /// Members that can take stages now, and those that are live but have not measured themselves yet.
    pub fn devices(&self, view: &ClusterView) -> (Vec<DeviceFacts>, Vec<String>) {
        let mut ready = Vec::new();
        let mut unmeasured = Vec::new();
        for member in view.state.members.values().filter(|m| !m.draining) {
            let id = member.device.0.clone();
            if !self.is_live(&id) {
                continue;
            }
            match self.report(&id).and_then(|r| Some((r.calibration_s?, r))) {
                Some((calibration_s, report)) => ready.push(DeviceFacts {
                    id,
                    memory_bytes: report.memory_budget_bytes,
                    calibration_s,
                    transfer: checked(report.transfer),
                    card_bytes_per_s: report.card_bytes_per_s.filter(|rate| rate.is_finite() && *rate > 0.0),
                    links: report
                        .links
                        .iter()
                        .map(|(to, link)| (to.clone(), (link.bytes_per_s, link.latency_s)))
                        .collect(),
                }),
                None => unmeasured.push(id),
            }
        }
        (ready, unmeasured)
    }

    /// The same for a plan of one deployment: with the memory that is not left to others.
    pub fn devices_for(&self, view: &ClusterView, deployment: &str, others: Others) -> Vec<DeviceFacts> {
        let taken = taken_by_others(&view.state, deployment, others);
        let (mut devices, _) = self.devices(view);
        for device in &mut devices {
            let others = taken.get(&device.id).copied().unwrap_or(0);
            device.memory_bytes = device.memory_bytes.saturating_sub(others);
        }
        devices
    }

    /// A device's name for people.
    pub fn name(&self, view: &ClusterView, device: &str) -> String {
        let member = view.state.members.values().find(|m| m.device.0 == device);
        member.map_or_else(|| device.to_owned(), |m| m.name.clone())
    }

    /// A text of the planner, which knows devices by their ids, with their names.
    pub fn named(&self, view: &ClusterView, text: &str) -> String {
        let members = view.state.members.values();
        members.fold(text.to_owned(), |text, m| text.replace(&m.device.0, &m.name))
    }
}

#[cfg(test)]
mod tests;
