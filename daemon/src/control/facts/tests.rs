use std::{collections::BTreeMap, time::Duration};

use mesh_consensus::{ClusterState, DeviceId, Member, StorageId};

use super::*;
use crate::control::{consensus::Phase, report::LinkReport};

const OURS: ClusterId = ClusterId([1; 16]);
const OTHER: ClusterId = ClusterId([2; 16]);

/// The report of a device that is ready for stage 0 of plan 3 of "digits", and on the way with a request on it.
fn report(cluster: Option<ClusterId>) -> NodeReport {
    let stage = StageReport {
        deployment: "digits".into(),
        epoch: 3,
        stage: 0,
        state: StageState::Ready,
        compute_s: 0.0,
        runs: 0,
    };
    NodeReport {
        name: "camera".into(),
        version: String::new(),
        cluster,
        memory_budget_bytes: 1,
        memory_used_bytes: 0,
        calibration_s: Some(1.0),
        stages: vec![stage],
        kept: BTreeSet::new(),
        links: BTreeMap::from([("x".into(), LinkReport { bytes_per_s: 1.0, latency_s: 0.0 })]),
        card_bytes_per_s: None,
        transfer: TransferCost { receive_s_per_byte: 1e-9, ..TransferCost::default() },
        entering: BTreeMap::new(),
        arriving: BTreeMap::new(),
        under_way: BTreeMap::from([("digits".into(), BTreeSet::from([3]))]),
        crossing: Vec::new(),
        others_share: 0.0,
    }
}

/// A cluster that lists these devices.
fn view(members: &[PeerId]) -> ClusterView {
    let member = |(raft_id, device): (u64, &PeerId)| Member {
        raft_id,
        device: DeviceId(device.to_string()),
        storage: StorageId([0; 16]),
        name: format!("camera-{raft_id}"),
        address: String::new(),
        draining: false,
    };
    let members: Vec<Member> = (1..).zip(members).map(member).collect();
    ClusterView {
        phase: Phase::Member,
        state: Arc::new(ClusterState::founded(OURS, "home", &members)),
        raft_id: 1,
        term: 1,
        leader: None,
        is_leader: true,
        voters: vec![1],
        conflict: None,
        refused: None,
    }
}

/// What is made of a listed device that is connected: whether it is live, heard, ready for stages, and expected to be.
fn seen(cluster: Option<ClusterId>) -> (bool, bool, bool, bool) {
    let (me, other) = (PeerId::random(), PeerId::random());
    let peers = Peers::default();
    let own = NodeReport { under_way: BTreeMap::new(), ..report(Some(OURS)) };
    let facts = Facts::new(me, peers.clone(), own);
    peers.up(other, String::new());
    peers.report(other, report(cluster), Duration::ZERO);
    let (device, view) = (other.to_string(), view(&[me, other]));
    let (ready, unmeasured) = facts.devices(&view);
    assert!(ready.iter().any(|ready| ready.id == me.to_string()));
    // Whoever tells of a link or its costs is believed.
    assert_eq!(facts.moving_costs(), [(other, 1e-9)]);
    let is_heard = facts.report(&device).is_some();
    assert_eq!(facts.stage(&device, "digits", 3, 0).is_some(), is_heard);
    assert_eq!(facts.under_way().contains(&("digits".into(), 3)), is_heard);
    let is_ready = ready.iter().any(|ready| ready.id == device);
    (facts.is_live(&device), is_heard, is_ready, unmeasured.contains(&device))
}

#[test]
fn only_devices_of_this_cluster_are_counted_on() {
    let (here, on_its_way, away) =
        ((true, true, true, false), (true, false, false, true), (false, false, false, false));
    for (cluster, expected) in
        [(Some(OURS), here), (None, here), (Some(NO_CLUSTER), on_its_way), (Some(OTHER), away)]
    {
        assert_eq!(seen(cluster), expected, "{cluster:?}");
    }
}

#[test]
fn who_has_not_told_anything_is_live_and_not_ready() {
    let (me, other) = (PeerId::random(), PeerId::random());
    let facts = Facts::new(me, Peers::default(), report(Some(OURS)));
    facts.peers().up(other, String::new());
    let (device, view) = (other.to_string(), view(&[other]));
    assert!(facts.is_live(&device) && facts.report(&device).is_none());
    let (ready, unmeasured) = facts.devices(&view);
    assert_eq!((ready.len(), unmeasured), (0, vec![device.clone()]));
    facts.peers().down(other);
    assert!(!facts.is_live(&device));
}
