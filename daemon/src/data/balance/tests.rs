use proptest::prelude::*;

use super::*;
use crate::data::{Route, RouteStage};

mod fleet;

fn route(shares: &[Vec<(PeerId, f64)>]) -> Route {
    let stage =
        |replicas: &Vec<(PeerId, f64)>| RouteStage { replicas: replicas.clone(), ..RouteStage::default() };
    Route {
        deployment: "m".into(),
        epoch: 1,
        inputs: Vec::new(),
        outputs: Vec::new(),
        stages: shares.iter().map(stage).collect(),
        latency: Duration::ZERO,
    }
}

fn here(device: PeerId) -> Here {
    Here { device, jobs: 0 }
}

#[test]
fn standbys_take_over_when_no_replica_is_left_or_all_have_failed() {
    let [a, b, spare, outside] = [(); 4].map(|()| PeerId::random());
    let mut route = route(&[vec![(a, 1.0)], vec![(b, 1.0)]]);
    let mut balancer = Balancer::new(&route);
    let now = Instant::now();
    let all: BTreeSet<PeerId> = [a, b, spare].into();
    let without: BTreeSet<PeerId> = [a, spare].into();
    let pick = |balancer: &mut Balancer, up: &BTreeSet<PeerId>, avoid: &[PeerId]| {
        let picked = balancer.pick(now, here(outside), up, avoid);
        picked.inspect(|devices| balancer.release(1, devices))
    };
    assert_eq!(pick(&mut balancer, &without, &[]), Err(1));
    route.stages[1].standbys = vec![spare];
    balancer.set_standbys(&route);
    assert_eq!(pick(&mut balancer, &all, &[]), Ok(vec![a, b]), "a standby is spared");
    assert_eq!(pick(&mut balancer, &without, &[]), Ok(vec![a, spare]));
    assert_eq!(pick(&mut balancer, &all, &[b]), Ok(vec![a, spare]), "the replica has failed this request");
    assert_eq!(pick(&mut balancer, &all, &[b, spare]), Ok(vec![a, b]));
    assert_eq!(pick(&mut balancer, &without, &[spare]), Ok(vec![a, spare]), "nothing else is left");
    assert_eq!(pick(&mut balancer, &[a].into(), &[]), Err(1));
    assert!(balancer.has_other(1, &all, &[b]) && !balancer.has_other(1, &all, &[b, spare]));
    assert!(!balancer.has_other(0, &all, &[a]) && !balancer.has_other(9, &all, &[]));
}

proptest! {
    #[test]
    fn shares_hold_over_many_requests(
        weights in prop::collection::vec(prop::collection::vec(1u32..20, 1..4), 1..4),
        depth in 1usize..8,
    ) {
        let peers: Vec<PeerId> = (0..4).map(|_| PeerId::random()).collect();
        let stages: Vec<Vec<(PeerId, f64)>> = weights
            .iter()
            .map(|w| {
                let sum: u32 = w.iter().sum();
                w.iter().zip(&peers).map(|(w, p)| (*p, f64::from(*w) / f64::from(sum))).collect()
            })
            .collect();
        let route = route(&stages);
        let mut balancer = Balancer::new(&route);
        let up: BTreeSet<PeerId> = peers.iter().copied().collect();
        let mut out = std::collections::VecDeque::new();
        let mut counts: Vec<Vec<usize>> = stages.iter().map(|s| vec![0; s.len()]).collect();
        let rounds = 2000;
        // A device that runs no stage: nothing is own.
        let (now, outside) = (Instant::now(), here(PeerId::random()));
        for _ in 0..rounds {
            let devices = balancer.pick(now, outside, &up, &[]).unwrap();
            for (stage, device) in devices.iter().enumerate() {
                counts[stage][stages[stage].iter().position(|(p, _)| p == device).unwrap()] += 1;
            }
            out.push_back(devices);
            if out.len() > depth {
                balancer.release(1, &out.pop_front().unwrap());
            }
        }
        for (stage, counts) in stages.iter().zip(&counts) {
            for ((_, share), count) in stage.iter().zip(counts) {
                let got = *count as f64 / f64::from(rounds);
                prop_assert!((got - share).abs() < 0.02, "share {share}, got {got}");
            }
        }
    }

    #[test]
    fn a_route_holds_only_live_devices_and_avoids_where_it_can(
        up_mask in 0u8..16, avoid_mask in 0u8..16, replicas in prop::collection::vec(1u8..16, 1..4),
    ) {
        let peers: Vec<PeerId> = (0..4).map(|_| PeerId::random()).collect();
        let of = |mask: u8| -> Vec<PeerId> {
            peers.iter().enumerate().filter(|(i, _)| mask & (1 << i) != 0).map(|(_, p)| *p).collect()
        };
        let stages: Vec<Vec<(PeerId, f64)>> =
            replicas.iter().map(|mask| of(*mask).into_iter().map(|p| (p, 1.0)).collect()).collect();
        let mut balancer = Balancer::new(&route(&stages));
        let up: BTreeSet<PeerId> = of(up_mask).into_iter().collect();
        let avoid = of(avoid_mask);
        let dead = replicas.iter().position(|mask| mask & up_mask == 0);
        for _ in 0..5 {
            match balancer.pick(Instant::now(), here(peers[0]), &up, &avoid) {
                Err(stage) => prop_assert_eq!(Some(stage), dead),
                Ok(devices) => {
                    prop_assert_eq!(dead, None);
                    for (device, mask) in devices.iter().zip(&replicas) {
                        prop_assert!(up.contains(device));
                        prop_assert!(!avoid.contains(device) || mask & up_mask & !avoid_mask == 0);
                    }
                }
            }
        }
    }
}

#[test]
fn a_replica_that_does_not_answer_is_passed_over() {
    let (slow, fast) = (PeerId::random(), PeerId::random());
    let mut balancer = Balancer::new(&route(&[vec![(slow, 0.5), (fast, 0.5)]]));
    let up = BTreeSet::from([slow, fast]);
    let mut to_slow = 0;
    for _ in 0..200 {
        let devices = balancer.pick(Instant::now(), here(PeerId::random()), &up, &[]).unwrap();
        if devices[0] == slow { to_slow += 1 } else { balancer.release(1, &devices) }
    }
    assert!(to_slow < 10, "{to_slow} requests went to a replica that answers none");
}
