//! Devices that come, go, or are not heard of for a while.

use std::{borrow::Cow, collections::BTreeSet, time::Instant};

use libp2p::PeerId;

use super::{Ingress, State, request::Sent};
use crate::data::{
    balance::{Detour, Here},
    frame::Address,
};

/// The devices that are up and none of these.
fn but<'a>(up: &'a BTreeSet<PeerId>, late: &[PeerId], doubted: &[PeerId]) -> Cow<'a, BTreeSet<PeerId>> {
    if late.is_empty() && doubted.is_empty() {
        return Cow::Borrowed(up);
    }
    let is_well = |peer: &&PeerId| !late.contains(peer) && !doubted.contains(peer);
    Cow::Owned(up.iter().filter(is_well).copied().collect())
}

impl Ingress {
    /// A peer is connected.
    pub fn peer_up(&mut self, now: Instant, peer: PeerId) {
        self.up.insert(peer);
        self.doubts.found(now, peer);
        self.look_again(now);
    }

    /// Where a request that has come to a stage should go instead of the device that was picked for it, whoever its
    /// ingress is: see `Balancer::detour`.
    pub fn detour(
        &mut self,
        now: Instant,
        address: &Address,
        stage: usize,
        by: &Detour<'_>,
    ) -> Option<PeerId> {
        let picked = address.devices.get(stage).copied()?;
        let here = Here { device: self.me, jobs: self.own_jobs };
        let deployment = self.deployments.get_mut(&address.deployment)?;
        let at = (address.epoch, stage, picked);
        let well = but(&self.up, &self.late, self.doubts.list(now));
        let other = deployment.detour(now, here, &well, at, by);
        // Who is back is better than who is gone.
        let is_gone = self.late.contains(&picked) || !self.up.contains(&picked);
        if other.is_none() && is_gone {
            return deployment.detour(now, here, &but(&self.up, &self.late, &[]), at, by);
        }
        other
    }

    /// An attempt was answered. Earlier ones that have waited for at least twice as long are on a bad way: where it
    /// differs from this one, others are asked first for a while.
    pub(super) fn suspect(&mut self, now: Instant, id: u64, attempt: u32) {
        let Some(request) = self.requests.get(&id).filter(|request| request.timeouts > 0) else { return };
        let is_it = |sent: &&Sent| sent.address.attempt == attempt;
        let Some(answered) = request.attempts.iter().find(is_it) else { return };
        let took = now.saturating_duration_since(answered.at);
        let earlier = request.attempts.iter().filter(|sent| {
            sent.address.attempt < attempt && now.saturating_duration_since(sent.at) >= took * 2
        });
        for device in earlier.flat_map(|sent| sent.address.devices.iter()) {
            if *device != self.me && !answered.address.devices.contains(device) {
                self.doubts.suspected(now, *device);
            }
        }
    }

    /// A peer is gone: what is on a route through it goes out again.
    pub fn peer_down(&mut self, now: Instant, peer: PeerId) {
        if peer == self.me || !self.up.remove(&peer) {
            return;
        }
        self.late.retain(|late| *late != peer);
        self.doubts.lost(now, peer);
        let name = self.name(&peer);
        for id in self.through(peer) {
            if let Some(request) = self.requests.get_mut(&id) {
                request.last_error = Some(format!("{name} went down"));
            }
            self.resend(now, id);
        }
    }

    /// Nothing has come from a peer for a while, or something has again. It may well live: what is on a route through it
    /// goes out again only where other devices can take its place, and requests keep away from it as far as they can.
    pub fn peer_late(&mut self, now: Instant, peer: PeerId, is_late: bool) {
        let was_late = self.late.contains(&peer);
        if !is_late {
            self.late.retain(|late| *late != peer);
            self.doubts.found(now, peer);
        }
        if !is_late || was_late || peer == self.me || !self.up.contains(&peer) {
            return;
        }
        self.late.push(peer);
        self.doubts.lost(now, peer);
        let name = self.name(&peer);
        for id in self.through(peer) {
            let Some((_, picked)) = self.would_pick(now, id) else { continue };
            let late_of = |devices: &[PeerId]| devices.iter().filter(|peer| self.late.contains(peer)).count();
            let Some(request) = self.requests.get_mut(&id) else { continue };
            if let State::Sent(sent) = &request.state
                && late_of(&picked) < late_of(&sent.address.devices)
            {
                request.last_error = Some(format!("{name} is not heard of"));
                self.resend(now, id);
            }
        }
    }

    /// The requests that are on a route through a device.
    fn through(&self, peer: PeerId) -> Vec<u64> {
        self.ids(|r| matches!(&r.state, State::Sent(sent) if sent.address.devices.contains(&peer)))
    }
}
