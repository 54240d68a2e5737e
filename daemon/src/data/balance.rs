//! Picks a replica per stage by share and load.

use std::collections::BTreeSet;

use libp2p::PeerId;

use super::route::Route;

/// A replica is passed over when it holds more than this, beyond twice what the one that is best off would hold.
const LAG_MAX: f64 = 2.0;

/// Which replicas take the next request of one route.
///
/// Smooth weighted round robin: every pick adds each live replica's share to its credit, and the pick pays the whole
/// sum, so that credits stay bounded and the shares hold over any stretch of requests. Two things bend it within those
/// bounds: a replica on the device that the request is on already is taken when its credit is not in debt (no hop),
/// and a replica that falls behind with what it was given is passed over.
#[derive(Debug)]
pub(super) struct Balancer {
    epoch: u64,
    stages: Vec<Vec<Load>>,
}

#[derive(Debug)]
struct Load {
    peer: PeerId,
    share: f64,
    credit: f64,
    /// Requests of this ingress that are on a route through this replica.
    outstanding: usize,
}

impl Balancer {
    pub(super) fn new(route: &Route) -> Self {
        let loads = |replicas: &[(PeerId, f64)]| {
            let load = |(peer, share): &(PeerId, f64)| Load {
                peer: *peer,
                // A share that is no positive number must not stop or steal everything.
                share: if share.is_finite() { share.clamp(1e-6, 1e6) } else { 1.0 },
                credit: 0.0,
                outstanding: 0,
            };
            replicas.iter().map(load).collect()
        };
        Self { epoch: route.epoch, stages: route.stages.iter().map(|stage| loads(&stage.replicas)).collect() }
    }

    /// A device per stage, all in `up`, counted as outstanding until [`Balancer::release`]. Devices in `avoid` are
    /// taken only where nothing else is left. `Err` is the first stage without a live device.
    pub(super) fn pick(
        &mut self,
        me: PeerId,
        up: &BTreeSet<PeerId>,
        avoid: &[PeerId],
    ) -> Result<Vec<PeerId>, usize> {
        let alive = |load: &Load| up.contains(&load.peer);
        if let Some(stage) = self.stages.iter().position(|loads| !loads.iter().any(alive)) {
            return Err(stage);
        }
        let mut devices = Vec::with_capacity(self.stages.len());
        let mut at = me;
        for loads in &mut self.stages {
            at = pick_one(loads, at, up, avoid);
            devices.push(at);
        }
        Ok(devices)
    }

    /// The request is off the route: `epoch` and `devices` are those of the pick.
    pub(super) fn release(&mut self, epoch: u64, devices: &[PeerId]) {
        if epoch != self.epoch {
            return;
        }
        for (loads, device) in self.stages.iter_mut().zip(devices) {
            if let Some(load) = loads.iter_mut().find(|load| load.peer == *device) {
                load.outstanding = load.outstanding.saturating_sub(1);
            }
        }
    }

    /// Requests that are on a route, over all replicas of the busiest stage.
    #[cfg(test)]
    pub(super) fn outstanding(&self) -> usize {
        self.stages.iter().map(|loads| loads.iter().map(|l| l.outstanding).sum()).max().unwrap_or(0)
    }
}

/// `loads` must hold a live replica.
fn pick_one(loads: &mut [Load], at: PeerId, up: &BTreeSet<PeerId>, avoid: &[PeerId]) -> PeerId {
    let usable = |load: &Load| up.contains(&load.peer);
    let wanted = |load: &Load| usable(load) && !avoid.contains(&load.peer);
    let any_wanted = loads.iter().any(wanted);
    let candidate = |load: &Load| if any_wanted { wanted(load) } else { usable(load) };

    let share_sum: f64 = loads.iter().filter(|l| candidate(l)).map(|l| l.share).sum();
    // Load of the replica that is best off with one more, per unit of share.
    let lightest = loads
        .iter()
        .filter(|l| candidate(l))
        .map(|l| (l.outstanding + 1) as f64 / l.share)
        .fold(f64::INFINITY, f64::min);
    // A load that waits its turn for long after others came up must not get a burst: credits are capped by the sum.
    for load in loads.iter_mut().filter(|l| candidate(l)) {
        load.credit = (load.credit + load.share).min(share_sum);
    }
    let behind = |load: &Load| load.outstanding as f64 > LAG_MAX + 2.0 * load.share * lightest;
    let best = |keep: &dyn Fn(&Load) -> bool| {
        let mut best: Option<usize> = None;
        for (index, load) in loads.iter().enumerate().filter(|(_, load)| candidate(load) && keep(load)) {
            if best.is_none_or(|b| loads[b].credit < load.credit) {
                best = Some(index);
            }
        }
        best
    };
    let here = best(&|load: &Load| load.peer == at && load.credit >= 0.0 && !behind(load));
    let index = here.or_else(|| best(&|load: &Load| !behind(load))).or_else(|| best(&|_| true));
    let load = &mut loads[index.expect("the caller has checked that a replica is alive")];
    load.credit -= share_sum;
    load.outstanding += 1;
    load.peer
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::data::{Route, RouteStage};

    fn route(shares: &[Vec<(PeerId, f64)>]) -> Route {
        let stage =
            |replicas: &Vec<(PeerId, f64)>| RouteStage { replicas: replicas.clone(), inputs: Vec::new() };
        Route {
            deployment: "m".into(),
            epoch: 1,
            inputs: Vec::new(),
            outputs: Vec::new(),
            stages: shares.iter().map(stage).collect(),
        }
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
            for _ in 0..rounds {
                let devices = balancer.pick(peers[0], &up, &[]).unwrap();
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
                match balancer.pick(peers[0], &up, &avoid) {
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
            let devices = balancer.pick(PeerId::random(), &up, &[]).unwrap();
            if devices[0] == slow { to_slow += 1 } else { balancer.release(1, &devices) }
        }
        assert!(to_slow < 10, "{to_slow} requests went to a replica that answers none");
    }
}
