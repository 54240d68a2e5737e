//! Devices that come, go, or are not heard of for a while.

use std::{borrow::Cow, collections::BTreeSet, time::Instant};

use libp2p::PeerId;

use super::{Ingress, Request, State};

/// What a request keeps away from where it can.
pub(super) fn avoided<'a>(late: &[PeerId], request: &'a Request) -> Cow<'a, [PeerId]> {
    match late {
        [] => Cow::Borrowed(&request.avoided),
        late => Cow::Owned(request.avoided.iter().chain(late).copied().collect()),
    }
}

/// The devices that are up and not late.
pub(super) fn heard<'a>(late: &[PeerId], up: &'a BTreeSet<PeerId>) -> Cow<'a, BTreeSet<PeerId>> {
    match late {
        [] => Cow::Borrowed(up),
        late => Cow::Owned(up.iter().filter(|peer| !late.contains(peer)).copied().collect()),
    }
}

impl Ingress {
    /// A peer is connected.
    pub fn peer_up(&mut self, now: Instant, peer: PeerId) {
        self.up.insert(peer);
        self.look_again(now);
    }

    /// A peer is gone: what is on a route through it goes out again.
    pub fn peer_down(&mut self, now: Instant, peer: PeerId) {
        if peer == self.me || !self.up.remove(&peer) {
            return;
        }
        self.late.retain(|late| *late != peer);
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
        }
        if !is_late || was_late || peer == self.me || !self.up.contains(&peer) {
            return;
        }
        self.late.push(peer);
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
