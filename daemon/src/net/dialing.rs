//! Whom to dial and when: targets from the config, from mDNS, from the replicated members and from earlier
//! connections, each with its own back-off. Pure: time and randomness come from outside.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use libp2p::PeerId;

/// First pause after a failed dial: a device that is just starting is there a moment later.
const BASE: Duration = Duration::from_millis(200);
/// Longest pause after ordinary failures. A device that comes back dials us itself; this is for those that cannot.
const ORDINARY_CAP: Duration = Duration::from_secs(10);
/// First and longest pause after a refusal: only a person changes that.
const REFUSED_BASE: Duration = Duration::from_secs(2);
const REFUSED_CAP: Duration = Duration::from_secs(60);
/// How long an address is remembered that only an earlier connection told of.
const REMEMBER: Duration = Duration::from_secs(600);
/// More targets than this are hostile announcements, not devices.
const MAX_TARGETS: usize = 512;
/// Addresses tried per peer.
const MAX_PER_PEER: usize = 8;

/// What a dial is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    /// A `host:port` of the config; the peer behind it is learned by connecting.
    Named(String),
    /// An address at which this peer was announced.
    Peer(PeerId, SocketAddr),
}

/// Who told of a target; it is forgotten when nobody stands by it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    /// The config.
    Config,
    /// mDNS.
    Mdns,
    /// The replicated members.
    Members,
    /// An earlier connection.
    Seen,
}

/// How a dial ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// Not reachable.
    Unreachable,
    /// It is this device itself.
    Ourselves,
    /// Another peer was there.
    OtherPeer(PeerId),
    /// The door stayed shut.
    Refused,
}

#[derive(Debug)]
struct State {
    sources: BTreeSet<Source>,
    /// The peer behind it, as far as known.
    peer: Option<PeerId>,
    failures: u32,
    next: Instant,
    in_flight: bool,
    seen_until: Instant,
}

#[derive(Debug, Clone, Copy)]
struct RefusedPeer {
    failures: u32,
    until: Instant,
}

/// Decides about dials.
#[derive(Debug)]
pub(super) struct Dialing {
    local: PeerId,
    targets: BTreeMap<Target, State>,
    refused: BTreeMap<PeerId, RefusedPeer>,
}

impl Dialing {
    pub(super) fn new(local: PeerId, named: &[String], now: Instant) -> Self {
        let mut dialing = Self { local, targets: BTreeMap::new(), refused: BTreeMap::new() };
        for host in named {
            dialing.add(Target::Named(host.clone()), Source::Config, now);
        }
        dialing
    }

    /// A peer is announced at an address. Dialled at once unless it is known already.
    pub(super) fn announced(&mut self, peer: PeerId, address: SocketAddr, source: Source, now: Instant) {
        if peer != self.local && address.port() != 0 {
            self.add(Target::Peer(peer, address), source, now);
        }
    }

    /// The announcement is over.
    pub(super) fn withdrawn(&mut self, peer: PeerId, address: SocketAddr, source: Source) {
        if let Some(state) = self.targets.get_mut(&Target::Peer(peer, address)) {
            state.sources.remove(&source);
        }
        self.forget_unsupported();
    }

    /// These, and no others, are the addresses of members.
    pub(super) fn set_members(&mut self, members: &[(PeerId, SocketAddr)], now: Instant) {
        for state in self.targets.values_mut() {
            state.sources.remove(&Source::Members);
        }
        for (peer, address) in members {
            self.announced(*peer, *address, Source::Members, now);
        }
        self.forget_unsupported();
    }

    fn add(&mut self, target: Target, source: Source, now: Instant) {
        if let Some(state) = self.targets.get_mut(&target) {
            state.sources.insert(source);
            state.seen_until = now + REMEMBER;
            return;
        }
        let peer = match &target {
            Target::Named(_) => None,
            Target::Peer(peer, _) => Some(*peer),
        };
        let of_peer = self.targets.values().filter(|s| peer.is_some() && s.peer == peer).count();
        if self.targets.len() >= MAX_TARGETS || of_peer >= MAX_PER_PEER {
            self.drop_worst(peer.filter(|_| of_peer >= MAX_PER_PEER));
        }
        let state = State {
            sources: BTreeSet::from([source]),
            peer,
            failures: 0,
            next: now,
            in_flight: false,
            seen_until: now + REMEMBER,
        };
        self.targets.insert(target, state);
    }

    /// Makes room: the announced target (of `peer`, when given) that failed most often goes.
    fn drop_worst(&mut self, peer: Option<PeerId>) {
        let worst = self
            .targets
            .iter()
            .filter(|(_, s)| {
                !s.sources.contains(&Source::Config)
                    && !s.sources.contains(&Source::Members)
                    && (peer.is_none() || s.peer == peer)
            })
            .max_by_key(|(_, s)| s.failures)
            .map(|(target, _)| target.clone());
        if let Some(worst) = worst {
            self.targets.remove(&worst);
        }
    }

    fn forget_unsupported(&mut self) {
        self.targets.retain(|_, s| s.in_flight || !s.sources.is_empty());
    }

    /// The targets to dial now; each counts as in flight until its end is reported.
    pub(super) fn due(&mut self, now: Instant, settled: impl Fn(&PeerId) -> bool) -> Vec<Target> {
        self.refused.retain(|_, r| r.until + REFUSED_CAP * 2 > now);
        for state in self.targets.values_mut() {
            if state.seen_until <= now {
                state.sources.remove(&Source::Seen);
            }
        }
        self.forget_unsupported();
        let refused = &self.refused;
        self.targets
            .iter_mut()
            .filter(|(_, s)| ready_at(s, refused, &settled).is_some_and(|at| at <= now))
            .map(|(target, state)| {
                state.in_flight = true;
                target.clone()
            })
            .collect()
    }

    /// When [`Self::due`] has something next.
    pub(super) fn next_due(&self, settled: impl Fn(&PeerId) -> bool) -> Option<Instant> {
        self.targets.values().filter_map(|s| ready_at(s, &self.refused, &settled)).min()
    }

    /// A dial led to an admitted connection.
    pub(super) fn succeeded(&mut self, target: &Target, peer: PeerId) {
        if let Some(state) = self.targets.get_mut(target) {
            state.in_flight = false;
            state.failures = 0;
            state.peer = Some(peer);
        }
        self.admitted(&peer);
    }

    /// This peer was admitted on some connection: an earlier refusal is over.
    pub(super) fn admitted(&mut self, peer: &PeerId) {
        self.refused.remove(peer);
    }

    /// A dial failed. `spread` in 0..1 keeps devices from dialling in step.
    pub(super) fn failed(&mut self, target: &Target, failure: Failure, spread: f64, now: Instant) {
        let Some(state) = self.targets.get_mut(target) else {
            return;
        };
        state.in_flight = false;
        let pause = match failure {
            Failure::Unreachable => backoff(BASE, ORDINARY_CAP, state.failures, spread),
            Failure::Refused => backoff(REFUSED_BASE, REFUSED_CAP, state.failures, spread),
            Failure::Ourselves | Failure::OtherPeer(_) => backoff(REFUSED_CAP, REFUSED_CAP, 0, spread),
        };
        state.failures = state.failures.saturating_add(1);
        state.next = now + pause;
        if let (Failure::OtherPeer(other), Target::Peer(_, address)) = (failure, target) {
            self.announced(other, *address, Source::Seen, now);
        }
        self.forget_unsupported();
    }

    /// The door refused this peer, in whichever direction.
    pub(super) fn refused(&mut self, peer: PeerId, spread: f64, now: Instant) {
        if self.refused.len() >= MAX_TARGETS && !self.refused.contains_key(&peer) {
            return;
        }
        let entry = self.refused.entry(peer).or_insert(RefusedPeer { failures: 0, until: now });
        // One meeting can be refused in both directions: it counts once.
        if entry.until <= now {
            entry.until = now + backoff(REFUSED_BASE, REFUSED_CAP, entry.failures, spread);
            entry.failures = entry.failures.saturating_add(1);
        }
    }

    /// The link to a peer is lost: its addresses are tried again soon, from a fresh back-off when it had worked.
    pub(super) fn lost(&mut self, peer: PeerId, had_worked: bool, spread: f64, now: Instant) {
        for state in self.targets.values_mut().filter(|s| s.peer == Some(peer)) {
            if had_worked {
                state.failures = 0;
            }
            let pause = backoff(BASE / 2, ORDINARY_CAP, state.failures, spread);
            state.failures = state.failures.saturating_add(1);
            state.next = now + pause;
        }
    }
}

fn ready_at(
    state: &State,
    refused: &BTreeMap<PeerId, RefusedPeer>,
    settled: &impl Fn(&PeerId) -> bool,
) -> Option<Instant> {
    if state.in_flight {
        return None;
    }
    let Some(peer) = &state.peer else {
        return Some(state.next);
    };
    if settled(peer) {
        return None;
    }
    let barred = refused.get(peer).map_or(state.next, |r| r.until);
    Some(barred.max(state.next))
}

/// Doubles from `base` to `cap`, then 75 % to 125 % of that.
fn backoff(base: Duration, cap: Duration, failures: u32, spread: f64) -> Duration {
    let doubled = base.saturating_mul(1 << failures.min(16)).min(cap);
    doubled.mul_f64(0.75 + 0.5 * spread.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    /// Dials for `span` seconds in steps of 10 ms, every dial ending in `failure`; counts them.
    fn dials(dialing: &mut Dialing, start: Instant, span: u64, failure: Failure) -> usize {
        let mut count = 0;
        for step in 0..span * 100 {
            let now = start + Duration::from_millis(step * 10);
            for target in dialing.due(now, |_| false) {
                count += 1;
                if let (Failure::Refused, Target::Peer(peer, _)) = (failure, &target) {
                    dialing.refused(*peer, 0.5, now);
                }
                dialing.failed(&target, failure, 0.5, now);
            }
        }
        count
    }

    #[test]
    fn refusals_back_off_to_a_minute() {
        let now = Instant::now();
        let mut dialing = Dialing::new(PeerId::random(), &[], now);
        let peer = PeerId::random();
        dialing.announced(peer, address(1), Source::Mdns, now);
        let count = dials(&mut dialing, now, 600, Failure::Refused);
        assert!((10..=16).contains(&count), "{count}");
        // A new announcement, even at another address, changes nothing.
        let later = now + Duration::from_secs(600);
        dialing.announced(peer, address(2), Source::Mdns, later);
        let count = dials(&mut dialing, later, 55, Failure::Refused);
        assert!(count <= 2, "{count}");
    }

    #[test]
    fn a_stale_address_does_not_hold_back_a_new_one() {
        let now = Instant::now();
        let mut dialing = Dialing::new(PeerId::random(), &[], now);
        let peer = PeerId::random();
        dialing.announced(peer, address(1), Source::Mdns, now);
        dials(&mut dialing, now, 60, Failure::Unreachable);
        let later = now + Duration::from_secs(60);
        dialing.announced(peer, address(2), Source::Mdns, later);
        assert!(dialing.due(later, |_| false).contains(&Target::Peer(peer, address(2))));
    }

    #[test]
    fn settled_peers_are_left_alone_and_lost_ones_dialled_soon() {
        let now = Instant::now();
        let mut dialing = Dialing::new(PeerId::random(), &["a:1".to_owned()], now);
        let peer = PeerId::random();
        let target = dialing.due(now, |_| false).remove(0);
        dialing.succeeded(&target, peer);
        assert_eq!(dialing.next_due(|p| *p == peer), None);
        dialing.lost(peer, true, 0.5, now);
        let next = dialing.next_due(|_| false).unwrap();
        assert!(next <= now + Duration::from_millis(200));
    }

    #[test]
    fn ourselves_is_not_dialled_again_soon() {
        let now = Instant::now();
        let mut dialing = Dialing::new(PeerId::random(), &["me:1".to_owned()], now);
        assert_eq!(dials(&mut dialing, now, 30, Failure::Ourselves), 1);
    }

    #[test]
    fn floods_of_announcements_are_bounded_and_keep_members() {
        let now = Instant::now();
        let mut dialing = Dialing::new(PeerId::random(), &["a:1".to_owned()], now);
        let member = PeerId::random();
        dialing.set_members(&[(member, address(9))], now);
        for port in 1..5000 {
            dialing.announced(PeerId::random(), address(port), Source::Mdns, now);
            dialing.announced(member, address(port), Source::Mdns, now);
        }
        let due = dialing.due(now, |_| false);
        assert!(due.len() <= MAX_TARGETS);
        assert!(due.contains(&Target::Named("a:1".to_owned())));
        assert!(due.contains(&Target::Peer(member, address(9))));
        assert!(
            due.iter().filter(|t| matches!(t, Target::Peer(p, _) if *p == member)).count() <= MAX_PER_PEER
        );
    }

    #[test]
    fn withdrawn_targets_are_forgotten() {
        let now = Instant::now();
        let mut dialing = Dialing::new(PeerId::random(), &[], now);
        let peer = PeerId::random();
        dialing.announced(peer, address(1), Source::Mdns, now);
        dialing.announced(peer, address(1), Source::Members, now);
        dialing.withdrawn(peer, address(1), Source::Mdns);
        assert!(dialing.next_due(|_| false).is_some());
        dialing.set_members(&[], now);
        assert_eq!(dialing.next_due(|_| false), None);
    }
}
