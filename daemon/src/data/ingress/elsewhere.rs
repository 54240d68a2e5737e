//! Requests that wait for long: to other devices, while those that let nothing through are left.

use std::{sync::Arc, time::Instant};

use libp2p::PeerId;

use super::{Ingress, State, request::Sent};
use crate::data::balance::Here;

impl Ingress {
    /// An attempt takes long: sends the request on another route, if there is one. On the same devices, which live, a
    /// second copy would only stand in the queue that the first one stands in.
    pub(super) fn try_elsewhere(&mut self, now: Instant, id: u64) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        let Some(deployment) = self.deployments.get(&request.deployment) else { return };
        let State::Sent(sent) = &mut request.state else { return };
        let is_over = sent.gives_up <= now;
        let waited = now.saturating_duration_since(sent.at);
        if !deployment.patience.may_copy(now, sent) {
            // A queue may come to a stop, and other copies be answered. Where all that waited for too long went out again,
            // they would wait for longer still.
            if is_over {
                request.timeouts += 1;
                let route = deployment.route.as_deref();
                sent.gives_up = now + deployment.patience.timeout(route, request.timeouts, &self.limits);
            }
            sent.until = sent.gives_up.min(now + (waited / 2).max(self.limits.copy_min));
            self.set_timer(id);
            return;
        }
        let (epoch, devices) = (sent.address.epoch, Arc::clone(&sent.address.devices));
        let picked = self.pick_elsewhere(now, id, &devices);
        let is_same = picked.as_ref().is_some_and(|picked| picked.0 == epoch && picked.1[..] == devices[..]);
        let Some(request) = self.requests.get_mut(&id) else { return };
        let Some(deployment) = self.deployments.get_mut(&request.deployment) else { return };
        let State::Sent(sent) = &mut request.state else { return };
        if !is_over && (is_same || picked.is_none()) {
            sent.until = sent.gives_up;
            self.set_timer(id);
            return;
        }
        request.timeouts += 1;
        request.last_error = Some(format!("no answer within {:.1} s", waited.as_secs_f64()));
        if is_same {
            let route = deployment.route.as_deref();
            sent.gives_up = now + deployment.patience.timeout(route, request.timeouts, &self.limits);
            sent.until = sent.gives_up;
            self.set_timer(id);
            return;
        }
        deployment.patience.copied(now);
        self.resend(now, id);
    }

    /// What the request would be sent to instead of `devices`, which it keeps away from from now on. Where others in the
    /// place of all of them are not to be had, it leaves one of them only, each request another: nobody knows which is bad,
    /// and two that stand by for each other would only change places.
    fn pick_elsewhere(&mut self, now: Instant, id: u64, devices: &[PeerId]) -> Option<(u64, Vec<PeerId>)> {
        let request = self.requests.get_mut(&id)?;
        let before = request.avoided.clone();
        devices.iter().for_each(|device| request.avoid(*device));
        let all_avoided = request.avoided.clone();
        let picked = self.would_pick(now, id);
        let mut suspects: Vec<PeerId> = devices.iter().copied().filter(|device| *device != self.me).collect();
        suspects.dedup();
        let leads_back =
            picked.as_ref().is_some_and(|picked| picked.1.iter().any(|at| suspects.contains(at)));
        if !leads_back || suspects.len() < 2 {
            return picked;
        }
        let first = usize::try_from(id % suspects.len() as u64).unwrap_or(0);
        suspects.rotate_left(first);
        for suspect in suspects {
            let request = self.requests.get_mut(&id)?;
            request.avoided.clone_from(&before);
            request.avoid(suspect);
            let without = self.would_pick(now, id);
            if without.as_ref().is_some_and(|picked| !picked.1.contains(&suspect)) {
                return without;
            }
        }
        self.requests.get_mut(&id)?.avoided = all_avoided;
        picked
    }

    /// The plan and the devices that the request would be sent to now.
    pub(super) fn would_pick(&mut self, now: Instant, id: u64) -> Option<(u64, Vec<PeerId>)> {
        let request = self.requests.get(&id)?;
        let deployment = self.deployments.get_mut(&request.deployment)?;
        let here = Here { device: self.me, jobs: self.own_jobs };
        let epoch = deployment.route.as_ref()?.epoch;
        let (late, doubted) = (&self.late[..], self.doubts.list(now));
        let devices = deployment.pick(now, here, &self.up, request.avoid_also(late, doubted)).ok()?;
        deployment.release(epoch, &devices);
        Some((epoch, devices))
    }

    /// An attempt was answered. Earlier ones, which have waited for longer than usual, are on a bad way: devices of them
    /// that have let nothing through since, or little where this one took half the time, are asked after others for a
    /// while, and what is on its way through them goes out again.
    pub(super) fn suspect(&mut self, now: Instant, id: u64, attempt: u32) {
        let Some(request) = self.requests.get(&id).filter(|request| request.timeouts > 0) else { return };
        let Some(deployment) = self.deployments.get(&request.deployment) else { return };
        let is_it = |sent: &&Sent| sent.address.attempt == attempt;
        let Some(answered) = request.attempts.iter().find(is_it) else { return };
        let took = now.saturating_duration_since(answered.at);
        let mut suspects = Vec::new();
        // In this list the time at which others were first to be asked stays as it was.
        let is_earlier = |sent: &&Sent| sent.address.attempt < attempt && sent.until <= now;
        for sent in request.attempts.iter().filter(is_earlier) {
            let is_slow = now.saturating_duration_since(sent.at) >= took * 2;
            let is_bad = |device: &&PeerId| {
                let patience = &deployment.patience;
                **device != self.me
                    && !answered.address.devices.contains(device)
                    && (is_slow || patience.is_silent(**device, sent.at))
                    && patience.is_stuck(now, **device, sent.at)
            };
            suspects.extend(sent.address.devices.iter().filter(is_bad).copied());
        }
        let name = Arc::clone(&request.deployment);
        suspects.retain(|device| self.doubts.suspected(now, *device));
        for device in suspects {
            let stuck = self.through(device).into_iter();
            let stuck =
                stuck.filter(|other| *other != id && self.requests[other].deployment == name).collect();
            let why = format!("no answer came through {}", self.name(&device));
            self.leave(now, stuck, &why);
        }
    }

    /// Of these requests, those go out again for which other devices can take the place of bad ones.
    pub(super) fn leave(&mut self, now: Instant, ids: Vec<u64>, why: &str) {
        for id in ids {
            let Some((_, picked)) = self.would_pick(now, id) else { continue };
            let (late, doubted) = (&self.late, self.doubts.list(now));
            // Any that are back are better than one that nothing comes from.
            let bad_of = |devices: &[PeerId]| {
                let among = |bad: &[PeerId]| devices.iter().filter(|device| bad.contains(device)).count();
                (among(late), among(doubted))
            };
            let Some(request) = self.requests.get_mut(&id) else { continue };
            if let State::Sent(sent) = &request.state
                && bad_of(&picked) < bad_of(&sent.address.devices)
            {
                request.last_error = Some(why.to_owned());
                self.resend(now, id);
            }
        }
    }
}
