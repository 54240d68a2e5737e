use libp2p::PeerId;
use serde_json::json;

use super::*;
use crate::data::SentMetrics;

fn to(epoch: u64, stage: usize) -> StageKey {
    StageKey { deployment: "a".into(), epoch, stage }
}

fn link(sent: &[(StageKey, u64, f64)]) -> LinkMetrics {
    let sent =
        sent.iter().map(|(to, frames, bytes)| SentMetrics { to: to.clone(), frames: *frames, bytes: *bytes });
    LinkMetrics {
        peer: PeerId::random(),
        frames: 0,
        bytes_sent: 0,
        bytes_raw: 0,
        busy_s: 0.0,
        bytes_per_s: 0.0,
        last_bytes_per_s: 0.0,
        codec: "raw",
        queue: 0,
        sent: sent.collect(),
    }
}

/// A plan of stages that begin at these blocks, of which there are ten.
fn plan(first_blocks: &[usize]) -> EpochPlan {
    let ends = first_blocks.iter().skip(1).copied().chain([10]);
    let stage = |(first, end): (&usize, usize)| json!({ "first_block": first, "last_block": end - 1, "replicas": [] });
    let stages: Vec<_> = first_blocks.iter().zip(ends).map(stage).collect();
    let plan = json!({
        "stages": stages, "bottleneck_s": 1.0, "bottleneck": { "kind": "compute", "stage": 0, "device": "d" },
        "throughput_rps": 1.0, "latency_s": 1.0, "lower_bound_s": 1.0, "optimal": true, "why": "", "unused": [],
        "alternatives": [],
    });
    EpochPlan { epoch: 3, model: "m".into(), plan: serde_json::from_value(plan).expect("a plan") }
}

#[test]
fn what_all_links_have_sent_is_told_for_plans_that_run() {
    let mut crossing = Crossing::default();
    let links = [
        link(&[(to(3, 1), 30, 100.0), (to(2, 1), 99, 7.0), (to(3, 2), 7, 9.0)]),
        link(&[(to(3, 1), 10, 200.0)]),
    ];
    let told = crossing.look(&links, &BTreeSet::from([("a", 3)]));
    let expected = CrossingReport { deployment: "a".into(), epoch: 3, stage: 1, frames: 40, bytes: 125.0 };
    assert_eq!(told, [expected]);
    assert_eq!(crossing.look(&links, &BTreeSet::from([("a", 4)])), []);
}

#[test]
fn a_size_is_told_again_when_it_is_another_or_far_better_known() {
    let mut crossing = Crossing::default();
    let running = BTreeSet::from([("a", 3)]);
    let mut told = |frames, bytes| {
        let told = crossing.look(&[link(&[(to(3, 0), frames, bytes)])], &running);
        told.first().map(|told| (told.frames, told.bytes))
    };
    assert_eq!(told(7, 100.0), None);
    assert_eq!(told(10, 100.0), Some((10, 100.0)));
    assert_eq!(told(12, 104.0), Some((10, 100.0)));
    assert_eq!(told(12, 106.0), Some((12, 106.0)));
    assert_eq!(told(26, 106.0), Some((26, 106.0)));
}

#[test]
fn a_plans_cuts_have_the_bytes_that_were_sent() {
    let report =
        |epoch, stage, frames, bytes| CrossingReport { deployment: "a".into(), epoch, stage, frames, bytes };
    let told = [
        report(3, 1, 10, 100.0),
        report(3, 1, 30, 20.0),
        report(3, 2, 10, 5000.0),
        report(2, 0, 10, 1.0),
        report(3, 9, 10, 1.0),
        report(3, 0, 10, f64::NAN),
    ];
    let mut cuts = vec![1000; 11];
    apply(told.iter(), "a", &plan(&[0, 4, 7]), &mut cuts);
    let mut expected = vec![1000; 11];
    expected[4] = 40;
    assert_eq!(cuts, expected);
    apply(told.iter(), "another", &plan(&[0, 4, 7]), &mut cuts);
    assert_eq!(cuts, expected);
}
