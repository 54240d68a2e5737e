//! Devices that come, go, or are not heard of for a while.

use std::{borrow::Cow, collections::BTreeSet, time::Instant};

use libp2p::PeerId;

use super::{Gone, Ingress, State, words};
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
        let is_gone = self.late.contains(&picked) || !self.up.contains(&picked);
        // A request that goes out again keeps away from devices that this one may still think well of.
        if address.attempt > 0 && !is_gone {
            return None;
        }
        let well = but(&self.up, &self.late, self.doubts.list(now));
        let other = deployment.detour(now, here, &well, at, by);
        // Who is back is better than who is gone.
        if other.is_none() && is_gone {
            return deployment.detour(now, here, &but(&self.up, &self.late, &[]), at, by);
        }
        other
    }

    /// A peer is gone: what is on a route through it goes out again.
    pub fn peer_down(&mut self, now: Instant, peer: PeerId, gone: Gone) {
        if peer == self.me || !self.up.remove(&peer) {
            return;
        }
        self.late.retain(|late| *late != peer);
        self.doubts.lost(now, peer);
        let name = self.name(&peer);
        for id in self.through(peer) {
            let Some(request) = self.requests.get_mut(&id) else { continue };
            request.last_error = Some(format!("{name} went down"));
            match request.lose(peer, gone) {
                Some(stage) => {
                    let error = words::devices_lost(&request.deployment, stage, &name);
                    self.finish(now, id, Err(error));
                }
                None => self.resend(now, id),
            }
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
        self.leave(now, self.through(peer), &format!("{name} is not heard of"));
    }

    /// The requests that are on a route through a device.
    pub(super) fn through(&self, peer: PeerId) -> Vec<u64> {
        self.ids(|r| matches!(&r.state, State::Sent(sent) if sent.address.devices.contains(&peer)))
    }
}
