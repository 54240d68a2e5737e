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
        in_flight: 0,
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
        let picked = balancer.pick(now, here(outside), up, Avoid { hurt: avoid, ..Avoid::default() });
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
            let devices = balancer.pick(now, outside, &up, Avoid::default()).unwrap();
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
        up_mask in 0u8..16,
        [hurt_mask, late_mask, doubted_mask] in [0u8..16, 0u8..16, 0u8..16],
        replicas in prop::collection::vec((1u8..16, 0u8..16), 1..4),
        left in [0usize..4, 0..4, 0..4],
    ) {
        let peers: Vec<PeerId> = (0..4).map(|_| PeerId::random()).collect();
        let of = |mask: u8| -> Vec<PeerId> {
            peers.iter().enumerate().filter(|(i, _)| mask & (1 << i) != 0).map(|(_, p)| *p).collect()
        };
        let stages: Vec<Vec<(PeerId, f64)>> =
            replicas.iter().map(|(mask, _)| of(*mask).into_iter().map(|p| (p, 1.0)).collect()).collect();
        let mut route = route(&stages);
        for (stage, (mask, standbys)) in route.stages.iter_mut().zip(&replicas) {
            stage.standbys = of(standbys & !mask);
        }
        let mut balancer = Balancer::new(&route);
        let up: BTreeSet<PeerId> = of(up_mask).into_iter().collect();
        let (hurt, late, doubted) = (of(hurt_mask), of(late_mask), of(doubted_mask));
        let left_peers = left.map(|at| peers[at]);
        let avoid = Avoid { hurt: &hurt, left: &left_peers, late: &late, doubted: &doubted };
        let well = up_mask & !hurt_mask & !late_mask;
        let dead = replicas.iter().position(|(mask, standbys)| (mask | standbys) & up_mask == 0);
        for _ in 0..5 {
            match balancer.pick(Instant::now(), here(peers[0]), &up, avoid) {
                Err(stage) => prop_assert_eq!(Some(stage), dead),
                Ok(devices) => {
                    prop_assert_eq!(dead, None);
                    for ((device, (mask, standbys)), left) in devices.iter().zip(&replicas).zip(left) {
                        let is_in = |mask: u8| of(mask).contains(device);
                        prop_assert!(is_in(up_mask & (mask | standbys)));
                        // The first of these that holds anybody; replicas before standbys where they are as good.
                        let classes = [well & !doubted_mask, well, up_mask & !(hurt_mask & 1 << left), up_mask];
                        let mut best = classes.into_iter().flat_map(|class| [mask & class, (mask | standbys) & class]);
                        let best = best.find(|mask| *mask != 0);
                        prop_assert!(best.is_some_and(is_in), "{:?} of {:?}", device, best.map(of));
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
        let devices = balancer.pick(Instant::now(), here(PeerId::random()), &up, Avoid::default()).unwrap();
        if devices[0] == slow { to_slow += 1 } else { balancer.release(1, &devices) }
    }
    assert!(to_slow < 10, "{to_slow} requests went to a replica that answers none");
}

#[test]
fn a_request_goes_to_another_replica_when_that_is_done_sooner() {
    let [a, b, c, outside] = [(); 4].map(|()| PeerId::random());
    let route = route(&[vec![(a, 0.5), (b, 0.25), (c, 0.25)]]);
    let mut balancer = Balancer::new(&route);
    let (now, fresh) = (Instant::now(), Duration::from_secs(1));
    let by = Detour { fresh, is_near: &|_| true };
    let all: BTreeSet<PeerId> = [a, b, c].into();
    let detour = |balancer: &mut Balancer, later: Duration, picked| {
        balancer.detour(now + later, here(outside), &all, (0, picked), &by)
    };
    assert_eq!(detour(&mut balancer, Duration::ZERO, b), None, "nobody has told anything");
    for (device, jobs) in [(a, 4), (b, 3), (c, 1)] {
        balancer.heard(now, device, jobs);
    }
    assert_eq!(detour(&mut balancer, Duration::ZERO, b), Some(c), "two come before it there, three here");
    assert_eq!(detour(&mut balancer, Duration::ZERO, b), Some(a), "the next best");
    assert_eq!(detour(&mut balancer, Duration::ZERO, b), None, "what was sent there counts");
    assert_eq!(detour(&mut balancer, Duration::ZERO, a), None, "it is twice as fast");
    assert_eq!(detour(&mut balancer, 2 * fresh, b), None, "all of that is long ago");
    assert_eq!(balancer.detour(now, here(outside), &[a, c].into(), (0, b), &by), Some(a), "it is gone");
    assert_eq!(balancer.detour(now, here(outside), &[].into(), (0, b), &by), None, "all are gone");
    assert_eq!(balancer.detour(now, here(b), &all, (0, c), &by), Some(b), "this device has nothing to do");
    assert_eq!(balancer.detour(now, here(b), &all, (7, c), &by), None);
    let far = Detour { fresh, is_near: &|device| device != b };
    assert_eq!(balancer.detour(now, here(b), &all, (0, c), &far), None, "the way there is long");
    assert_eq!(balancer.detour(now, here(b), &[b].into(), (0, c), &far), Some(b), "it is the only one");
}
