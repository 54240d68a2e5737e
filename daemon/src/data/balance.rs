//! Picks a replica per stage: the own device first, else by share and load.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use libp2p::PeerId;

use super::route::Route;

/// A replica is passed over when it holds more than this, beyond twice what the one that is best off would hold.
const LAG_MAX: f64 = 2.0;
/// With so many jobs at hand the own device is taken, whatever others have: one runs, one waits, none must travel.
const OWN_SHORT: u32 = 1;
/// What a device has told of its jobs counts for this long: a few heartbeats.
const HEARD_MAX: Duration = Duration::from_millis(1500);

/// What a detour is decided by, beside what devices have told of their jobs.
pub struct Detour<'a> {
    /// What devices have told counts for so long: no longer than a job takes, or all that have heard the same would send
    /// theirs to the same device.
    pub fresh: Duration,
    /// Whether a device can be sent the request in about the time that the picked one can.
    pub is_near: &'a dyn Fn(PeerId) -> bool,
}

impl std::fmt::Debug for Detour<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Detour").field("fresh", &self.fresh).finish_non_exhaustive()
    }
}

/// What a request keeps away from where it can.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Avoid<'a> {
    /// Devices that this request has failed on.
    pub(super) hurt: &'a [PeerId],
    /// The devices that it was sent to last, by stage: of those that it has failed on, rather others.
    pub(super) left: &'a [PeerId],
    /// Devices that nothing comes from.
    pub(super) late: &'a [PeerId],
    /// Devices that were late, or slow, a moment ago: rather these than the others.
    pub(super) doubted: &'a [PeerId],
}

impl Avoid<'_> {
    /// How bad a device is for a stage: the smaller, the better.
    fn rank(&self, stage: usize, peer: PeerId) -> u8 {
        if self.hurt.contains(&peer) {
            2 + u8::from(self.left.get(stage) == Some(&peer))
        } else if self.late.contains(&peer) {
            2
        } else {
            u8::from(self.doubted.contains(&peer))
        }
    }
}

/// The device that picks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Here {
    pub(super) device: PeerId,
    /// Jobs that wait or run in its stages, whoever sent them.
    pub(super) jobs: u32,
}

/// Which replicas take the next request of one route.
///
/// The first stage is taken by the own device while its queue is short, or no longer than that of others: what enters
/// everywhere stays where it enters, and no byte travels. What is over goes to the replica that would be done first,
/// by what it has at hand and its share. Where the own device has no part, smooth weighted round robin picks: every
/// pick adds each live replica's share to its credit, and the pick pays the whole sum, so that credits stay bounded
/// and the shares hold over any stretch of requests. A replica on the device that the request is on already is taken
/// when its credit is not in debt (no hop), and a replica that falls behind is passed over, whether this ingress or
/// others keep it busy.
#[derive(Debug)]
pub(super) struct Balancer {
    epoch: u64,
    stages: Vec<Vec<Load>>,
    /// By stage: devices for when none of its replicas is left.
    standbys: Vec<Vec<PeerId>>,
}

#[derive(Debug)]
struct Load {
    peer: PeerId,
    share: f64,
    credit: f64,
    /// Requests of this ingress that are on a route through this replica.
    outstanding: usize,
    /// Jobs that the device has told of, and when.
    heard: Option<(f64, Instant)>,
    /// Requests that this ingress has sent it since.
    since: usize,
}

impl Load {
    /// Jobs that this replica has at hand, as far as is known.
    fn jobs(&self, now: Instant, single: bool) -> f64 {
        let sent = self.outstanding as f64;
        match self.heard {
            Some((jobs, at)) if now.saturating_duration_since(at) <= HEARD_MAX => {
                let told = jobs + self.since as f64;
                // With a single stage, what is on the route is with the replica or on its way there.
                if single { told.max(sent) } else { told }
            }
            Some(_) | None => sent,
        }
    }
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
                heard: None,
                since: 0,
            };
            replicas.iter().map(load).collect()
        };
        let stages = route.stages.iter().map(|stage| loads(&stage.replicas)).collect();
        Self { epoch: route.epoch, stages, standbys: standbys(route) }
    }

    /// Others stand by now.
    pub(super) fn set_standbys(&mut self, route: &Route) {
        self.standbys = standbys(route);
    }

    /// A device per stage, all in `up`, counted as outstanding until [`Balancer::release`]. Devices in `avoid` are
    /// taken only where nothing else is left, standbys only where all replicas are gone. `Err` is the first stage
    /// without a live device.
    pub(super) fn pick(
        &mut self,
        now: Instant,
        here: Here,
        up: &BTreeSet<PeerId>,
        avoid: Avoid<'_>,
    ) -> Result<Vec<PeerId>, usize> {
        let mut stages = self.stages.iter().zip(&self.standbys);
        let is_lost = |(loads, standbys): (&Vec<Load>, &Vec<PeerId>)| {
            !loads.iter().map(|load| load.peer).chain(standbys.iter().copied()).any(|peer| up.contains(&peer))
        };
        if let Some(stage) = stages.position(is_lost) {
            return Err(stage);
        }
        let mut devices = Vec::with_capacity(self.stages.len());
        let mut at = here.device;
        let single = self.stages.len() == 1;
        for (stage, (loads, standbys)) in self.stages.iter_mut().zip(&self.standbys).enumerate() {
            if let Some(peer) = stand_in(loads, standbys, up, |peer| avoid.rank(stage, peer)) {
                at = peer;
                devices.push(at);
                continue;
            }
            let field = Field::new(loads, now, here, up, |peer| avoid.rank(stage, peer), single);
            let own = if stage == 0 { field.own_or_soonest(loads) } else { None };
            let index = own.unwrap_or_else(|| field.by_share(loads, at));
            let load = &mut loads[index];
            load.outstanding += 1;
            load.since += 1;
            at = load.peer;
            devices.push(at);
        }
        Ok(devices)
    }

    /// Whether a stage has a device that is up and not in `avoid`.
    pub(super) fn has_other(&self, stage: usize, up: &BTreeSet<PeerId>, avoid: &[PeerId]) -> bool {
        let Some((loads, standbys)) = self.stages.get(stage).zip(self.standbys.get(stage)) else {
            return false;
        };
        let mut peers = loads.iter().map(|load| load.peer).chain(standbys.iter().copied());
        peers.any(|peer| up.contains(&peer) && !avoid.contains(&peer))
    }

    /// Another device for a stage that a request has come to, when the one that was picked for it is gone, or has so
    /// much more to do that the request would be done sooner elsewhere.
    pub(super) fn detour(
        &mut self,
        now: Instant,
        here: Here,
        up: &BTreeSet<PeerId>,
        (stage, picked): (usize, PeerId),
        by: &Detour<'_>,
    ) -> Option<PeerId> {
        let (loads, standbys) = (self.stages.get_mut(stage)?, self.standbys.get(stage)?);
        let told = |load: &Load| -> Option<f64> {
            if load.peer == here.device {
                return Some(f64::from(here.jobs));
            }
            let (jobs, at) = load.heard?;
            let is_fresh = now.saturating_duration_since(at) <= by.fresh.min(HEARD_MAX);
            is_fresh.then_some(jobs + load.since as f64)
        };
        let is_up = up.contains(&picked);
        let mut best: Option<(usize, f64)> = None;
        for (index, load) in loads.iter().enumerate().filter(|(_, load)| up.contains(&load.peer)) {
            // Of a device that must be left any other is better.
            let Some(jobs) = told(load).or((!is_up).then_some(0.0)) else { continue };
            if is_up && !(by.is_near)(load.peer) {
                continue;
            }
            let done = (jobs + 1.0) / load.share;
            if load.peer != picked && best.is_none_or(|(_, old)| done < old) {
                best = Some((index, done));
            }
        }
        if !is_up && best.is_none() {
            return standbys.iter().copied().find(|standby| up.contains(standby));
        }
        let (index, done) = best?;
        if is_up {
            let load = loads.iter().find(|load| load.peer == picked)?;
            // Its turn comes there before it would be done elsewhere.
            if told(load)? / load.share <= done {
                return None;
            }
        }
        loads[index].since += 1;
        Some(loads[index].peer)
    }

    /// A request of this ingress has gone to another device than was picked: `epoch` is that of the pick.
    pub(super) fn moved(&mut self, epoch: u64, stage: usize, from: PeerId, to: PeerId) {
        let loads = self.stages.get_mut(stage).filter(|_| epoch == self.epoch);
        for load in loads.into_iter().flatten() {
            if load.peer == from {
                load.outstanding = load.outstanding.saturating_sub(1);
            } else if load.peer == to {
                load.outstanding += 1;
            }
        }
    }

    /// A device has told how many jobs it has at hand.
    pub(super) fn heard(&mut self, now: Instant, device: PeerId, jobs: u32) {
        for load in self.stages.iter_mut().flatten().filter(|load| load.peer == device) {
            load.heard = Some((f64::from(jobs), now));
            load.since = 0;
        }
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

/// The standby that takes a stage: when no replica is up, or a standby is better by `rank` than all that are.
fn stand_in(
    loads: &[Load],
    standbys: &[PeerId],
    up: &BTreeSet<PeerId>,
    rank: impl Fn(PeerId) -> u8,
) -> Option<PeerId> {
    let replicas = loads.iter().map(|load| load.peer).filter(|peer| up.contains(peer));
    let replica = replicas.map(&rank).min();
    if replica == Some(0) {
        return None;
    }
    let standby = standbys.iter().copied().filter(|peer| up.contains(peer)).min_by_key(|peer| rank(*peer));
    standby.filter(|peer| replica.is_none_or(|replica| rank(*peer) < replica))
}

fn standbys(route: &Route) -> Vec<Vec<PeerId>> {
    route.stages.iter().map(|stage| stage.standbys.clone()).collect()
}

/// The replicas of one stage that may be picked, with the jobs that each has at hand.
struct Field {
    /// By index of the replica; `None` for one that may not be picked.
    jobs: Vec<Option<f64>>,
    /// The replica on the device that picks.
    own: Option<usize>,
}

impl Field {
    /// `loads` must hold a live replica.
    fn new(
        loads: &[Load],
        now: Instant,
        here: Here,
        up: &BTreeSet<PeerId>,
        rank: impl Fn(PeerId) -> u8,
        single: bool,
    ) -> Self {
        let rank = |load: &Load| up.contains(&load.peer).then(|| rank(load.peer));
        let best = loads.iter().filter_map(rank).min();
        let candidate = |load: &Load| best.is_some() && rank(load) == best;
        let jobs = |load: &Load| match load.peer == here.device {
            // Several picks may be made before the first of them is in the queue.
            true if single => f64::from(here.jobs).max(load.outstanding as f64),
            true => f64::from(here.jobs),
            false => load.jobs(now, single),
        };
        let jobs = loads.iter().map(|load| candidate(load).then(|| jobs(load))).collect();
        Self { jobs, own: loads.iter().position(|load| load.peer == here.device) }
    }

    /// The candidates, from the one after the own device on, so that not all devices prefer the same one.
    fn candidates<'a>(&'a self, loads: &'a [Load]) -> impl Iterator<Item = (usize, &'a Load, f64)> {
        let start = self.own.map_or(0, |own| own + 1);
        let order = (start..loads.len()).chain(0..start);
        order.filter_map(move |index| self.jobs[index].map(|jobs| (index, &loads[index], jobs)))
    }

    /// The own replica, when its queue is short or nobody else would be done before its turn comes here; else the one
    /// that would be done first. `None` when the own device is no replica that may be picked.
    fn own_or_soonest(&self, loads: &[Load]) -> Option<usize> {
        let own = self.own?;
        let jobs = self.jobs[own]?;
        if jobs <= f64::from(OWN_SHORT) {
            return Some(own);
        }
        // Times per unit of share.
        let mut best = (own, jobs / loads[own].share);
        for (index, load, jobs) in self.candidates(loads).filter(|(index, _, _)| *index != own) {
            let done = (jobs + 1.0) / load.share;
            if done < best.1 {
                best = (index, done);
            }
        }
        Some(best.0)
    }

    /// By share, among those that are not behind.
    fn by_share(&self, loads: &mut [Load], at: PeerId) -> usize {
        let share_sum: f64 = self.candidates(loads).map(|(_, load, _)| load.share).sum();
        // Load of the replica that is best off with one more, per unit of share.
        let lightest = self
            .candidates(loads)
            .map(|(_, load, jobs)| (jobs + 1.0) / load.share)
            .fold(f64::INFINITY, f64::min);
        // A load that waits its turn for long after others came up must not get a burst: credits are capped by the sum.
        for (load, _) in loads.iter_mut().zip(&self.jobs).filter(|(_, jobs)| jobs.is_some()) {
            load.credit = (load.credit + load.share).min(share_sum);
        }
        let behind = |load: &Load, jobs: f64| jobs > LAG_MAX + 2.0 * load.share * lightest;
        let best = |keep: &dyn Fn(&Load, f64) -> bool| {
            let mut best: Option<usize> = None;
            for (index, load, _) in self.candidates(loads).filter(|(_, load, jobs)| keep(load, *jobs)) {
                if best.is_none_or(|b| loads[b].credit < load.credit) {
                    best = Some(index);
                }
            }
            best
        };
        let here = best(&|load, jobs| load.peer == at && load.credit >= 0.0 && !behind(load, jobs));
        let index = here.or_else(|| best(&|load, jobs| !behind(load, jobs))).or_else(|| best(&|_, _| true));
        let index = index.expect("the caller has checked that a replica is alive");
        loads[index].credit -= share_sum;
        index
    }
}

#[cfg(test)]
mod tests;
