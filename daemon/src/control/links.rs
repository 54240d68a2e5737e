//! The links of this device: probed when a peer comes, and watched while they carry activations.
//!
//! A link changes: somebody walks away with a laptop, an access point gets crowded. Where what is really sent tells
//! another rate than what is known, the link is probed again, and the higher of both rates counts.

mod card;
mod nearby;
mod watch;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use card::{CardWatch, Round, Rounds, Shown};
use nearby::{Nearby, Rates};
pub use watch::FAR_SLOWER;
use watch::{Beside, FAR_SLOWER_BYTES, Flow, Ground, LinkWatch, NEWS, PROCESSOR_BOUND, Suspicion};

use super::{
    facts::Facts,
    moving::processor_s,
    planning::{BYTES_PER_S_UNMEASURED, LATENCY_S_UNMEASURED},
    report::LinkReport,
    rpc::{HaveCall, METHOD_HAVE, encode},
};
use crate::{
    data::{DataPlane, LinkMetrics},
    net::{Net, NetError, PeerId, Probe},
};

/// A link is measured this long after the peer came up, spread over the following second.
const PROBE_AFTER: Duration = Duration::from_millis(300);
/// A link is probed so often: of the costs that this shows, the smallest count...
const PROBES: usize = 3;
/// ...after pauses of this.
const PROBE_AGAIN: Duration = Duration::from_millis(2200);
/// Probes that failed, or that something else disturbed, are repeated so often...
const PROBES_MAX: usize = 12;
/// ...after pauses that double up to this.
const PROBE_PAUSE_MAX: Duration = Duration::from_secs(20);
/// Small calls that show what a message costs.
const COST_CALLS: u32 = 24;

/// What peers tell of links is looked at so often...
const TICK: Duration = Duration::from_secs(1);
/// ...and what links carry once in so many times: two such looks and a search for a plan fit into the 30 s in which a
/// mesh is to leave a link that has become slow.
const LOOK_TICKS: u32 = 4;
/// The card is looked at when links have been at rest for so many looks in a row...
const CARD_AT_REST: u32 = 3;
/// ...once in so many looks, until it is known.
const CARD_RARELY: u32 = 7;
/// A link that carried less between two looks answers as one at rest does.
const LATENCY_BYTES: u64 = 200 * 1024;
/// Probes that this takes.
const CARD_PROBES: u64 = 4;
/// A latency that differs by this part, and by more than this: processors that are busy make as much of it.
const LATENCY_NEWS_S: f64 = 0.003;

/// Measures the links and puts what they carry into this device's report.
#[derive(Debug, Clone)]
pub struct Links {
    /// The network.
    pub net: Net,
    /// This device's report.
    pub facts: Facts,
    /// What flows, and where the rates are used.
    pub data: DataPlane,
}

impl Links {
    /// Measures the link to a peer that came up, and what moving data costs.
    pub async fn measure(&self, peer: PeerId) {
        let spread = Duration::from_millis(rand::random::<u64>() % 1000);
        tokio::time::sleep(PROBE_AFTER + spread).await;
        let (mut shown, mut pause) = (0, PROBE_AGAIN);
        let mut best = None;
        for again in 0..PROBES_MAX {
            if again > 0 {
                // Not all devices at the same time.
                tokio::time::sleep(pause.mul_f64(1.0 + rand::random::<f64>() / 2.0)).await;
            }
            let probe = match self.net.probe(peer).await {
                Ok(probe) => probe,
                Err(NetError::NotConnected) => return,
                Err(error) => {
                    tracing::debug!(%peer, %error, "the link could not be measured");
                    pause = (pause * 2).min(PROBE_PAUSE_MAX);
                    continue;
                }
            };
            self.note(peer, probe, &mut best);
            self.measure_message(peer).await;
            if self.is_disturbed(peer, probe) {
                pause = (pause * 2).min(PROBE_PAUSE_MAX);
                continue;
            }
            shown += 1;
            // Each device has its own price of a byte, not each link: with many peers one look at each shows it, and
            // another one where that look showed processors only.
            let is_known = shown > 1 || !is_assumed(self.known(peer).bytes_per_s);
            if shown == PROBES || (is_known && self.facts.peers().live().len() > PROBES) {
                return;
            }
        }
    }

    async fn measure_message(&self, peer: PeerId) {
        let body = encode(&HaveCall { hashes: Vec::new() });
        if let Some(cost) = self.net.message_cost(peer, METHOD_HAVE, body, COST_CALLS).await {
            let cost = cost / mesh_inference::profile::cores();
            self.facts.update_own(&self.net, |own| {
                let known = own.transfer.request_s;
                own.transfer.request_s = if known > 0.0 { known.min(cost) } else { cost };
            });
        }
    }

    /// Whether something else kept a processor busy: the probe got less than half of what moving bytes alone allows.
    fn is_disturbed(&self, peer: PeerId, probe: Probe) -> bool {
        let costs = self.facts.moving_costs();
        let cost = costs.iter().find(|(other, _)| *other == peer).map_or(0.0, |(_, s_per_byte)| *s_per_byte);
        probe.processor_bound && probe.bytes_per_s * cost < 0.5
    }

    /// Takes the best that probes have shown in a row: what else goes on only makes them worse.
    fn note(&self, peer: PeerId, probe: Probe, best: &mut Option<LinkReport>) {
        let rtt = self.net.link(peer).and_then(|link| link.rtt);
        let latency_s = rtt.map_or(LATENCY_S_UNMEASURED, |rtt| rtt.as_secs_f64() / 2.0);
        tracing::debug!(%peer, ?probe, latency_s, "link measured");
        // Where a processor was what took the time, the link has not been seen to be slow.
        let floor = match best {
            Some(best) => best.bytes_per_s,
            None if probe.processor_bound => self.known(peer).bytes_per_s,
            None => 0.0,
        };
        let bytes_per_s = probe.bytes_per_s.max(floor);
        let latency_s = best.map_or(latency_s, |best| best.latency_s.min(latency_s));
        self.set(peer, bytes_per_s, latency_s);
        if !probe.processor_bound || best.is_some() {
            *best = Some(LinkReport { bytes_per_s, latency_s });
        }
    }

    fn set(&self, peer: PeerId, bytes_per_s: f64, latency_s: f64) {
        self.data.set_link_rate(peer, bytes_per_s);
        self.facts.update_own(&self.net, |own| {
            own.links.insert(peer.to_string(), LinkReport { bytes_per_s, latency_s });
        });
    }

    /// What this device knows, or assumes, of its way to a peer.
    fn known(&self, peer: PeerId) -> LinkReport {
        let own = self.facts.own().links.get(&peer.to_string()).copied();
        let assumed = LinkReport { bytes_per_s: BYTES_PER_S_UNMEASURED, latency_s: LATENCY_S_UNMEASURED };
        let known = own.unwrap_or(assumed);
        let back = self.way_back(peer).filter(|_| is_assumed(known.bytes_per_s));
        back.map_or(known, |bytes_per_s| LinkReport { bytes_per_s, ..known })
    }

    /// The rate of the way from a peer to this device, as the peer has measured it.
    fn way_back(&self, peer: PeerId) -> Option<f64> {
        let report = self.facts.peers().get(&peer)?.report?;
        let rate = report.links.get(&self.net.local_peer().to_string())?.bytes_per_s;
        (!is_assumed(rate) && rate.is_finite() && rate > 0.0).then_some(rate)
    }

    /// The links to live peers as they were measured.
    fn rates(&self, live: &[PeerId]) -> BTreeMap<PeerId, Rates> {
        let own = self.facts.own();
        let to = |peer: &PeerId| own.links.get(&peer.to_string()).map(|link| link.bytes_per_s);
        let measured = |rate: &f64| !is_assumed(*rate);
        let rates = |peer: &PeerId| Rates { to: to(peer).filter(measured), back: self.way_back(*peer) };
        live.iter().map(|peer| (*peer, rates(peer))).collect()
    }

    /// A link of which probes have shown processors only is as good as its way back, once that is known.
    fn learn_from_ways_back(&self, live: &[PeerId]) {
        let own = self.facts.own();
        for peer in live {
            let Some(link) = own.links.get(&peer.to_string()) else { continue };
            if is_assumed(link.bytes_per_s)
                && let Some(bytes_per_s) = self.way_back(*peer)
            {
                self.set(*peer, bytes_per_s, link.latency_s);
            }
        }
    }

    /// Takes the latencies of links that carried little as they are now: one that is full answers late.
    fn learn_latencies(&self, flows: &BTreeMap<PeerId, Flow>, before: &BTreeMap<PeerId, Flow>) {
        let own = self.facts.own();
        for (peer, flow) in flows {
            let sent = before.get(peer).map_or(u64::MAX, |before| flow.sent.saturating_sub(before.sent));
            let known = own.links.get(&peer.to_string()).filter(|_| sent < LATENCY_BYTES);
            let least = self.net.link(*peer).and_then(|link| link.least_rtt);
            if let (Some(known), Some(least)) = (known, least)
                && let Some(latency_s) = another_latency(known.latency_s, least.as_secs_f64() / 2.0)
            {
                tracing::debug!(%peer, known = known.latency_s, latency_s, "the link has another latency now");
                self.set(*peer, known.bytes_per_s, latency_s);
            }
        }
    }

    /// Watches what the links carry. While `is_serving_blobs` says so, weights are on their way too, and what is left
    /// of a link to activations says little.
    pub async fn watch(self, is_serving_blobs: impl Fn() -> bool) {
        let mut looks = Looks::default();
        let mut nearby = Nearby::default();
        for tick in 1u32.. {
            tokio::time::sleep(TICK).await;
            let live = self.facts.peers().live();
            self.look_nearby(&mut nearby, &mut looks, &live).await;
            if tick.is_multiple_of(LOOK_TICKS) {
                self.look(&mut looks, &live, is_serving_blobs()).await;
            }
        }
    }

    /// Looks at what links have carried since the last time.
    async fn look(&self, looks: &mut Looks, live: &[PeerId], weights: bool) {
        let now = (Instant::now(), processor_s());
        let seconds = now.0.saturating_duration_since(looks.at.0).as_secs_f64();
        let busy = (now.1 - looks.at.1) / mesh_inference::profile::cores() / seconds.max(1e-3);
        looks.at = now;
        self.learn_from_ways_back(live);
        let flows = flows(&self.data.metrics().links, live);
        let beside = Beside { processors: busy >= PROCESSOR_BOUND, weights };
        let known = |peer| self.known(peer).bytes_per_s;
        for suspicion in looks.watch.look(now.0, beside, &flows, known) {
            let change = self.clear_up(&suspicion).await.flatten();
            looks.watch.cleared_up(&suspicion, change, Instant::now());
        }
        self.learn_latencies(&flows, &looks.flows);
        let is_quiet = flows == looks.flows && self.net.chores().under_way == 0;
        looks.quiet = if is_quiet { looks.quiet + 1 } else { 0 };
        looks.before = std::mem::replace(&mut looks.flows, flows);
        // Not all devices at the same time: they would measure each other.
        if looks.quiet >= CARD_AT_REST && rand::random_ratio(1, CARD_RARELY) {
            self.look_at_card(&mut looks.card, live).await;
        }
    }

    /// Looks at links that may have become slow with others.
    async fn look_nearby(&self, nearby: &mut Nearby, looks: &mut Looks, live: &[PeerId]) {
        let found = nearby.look(self.rates(live), |peer| looks.carried(peer) < FAR_SLOWER_BYTES);
        for (peer, bytes_per_s) in found.assumed {
            tracing::debug!(%peer, bytes_per_s, "the way back has become slow; so may have the way there");
            self.set(peer, bytes_per_s, self.known(peer).latency_s);
        }
        for suspicion in found.suspicions {
            tracing::debug!(peer = %suspicion.peer, ground = ?suspicion.ground, "a link that may have become slow with others");
            let probed = self.clear_up(&suspicion).await;
            let is_given_up = nearby.probed(suspicion.peer, probed.is_some());
            let change = match (probed, suspicion.ground) {
                (None, Ground::Nearby { slow, before }) if is_given_up => {
                    self.set(suspicion.peer, slow, self.known(suspicion.peer).latency_s);
                    Some((before, slow))
                }
                (probed, _) => probed.flatten(),
            };
            looks.watch.cleared_up(&suspicion, change, Instant::now());
        }
    }

    /// Finds out whether the links share a card that one of them alone can fill.
    async fn look_at_card(&self, card: &mut CardWatch, live: &[PeerId]) {
        let own = self.facts.own();
        let rate = |peer: &PeerId| Some((*peer, own.links.get(&peer.to_string())?.bytes_per_s));
        let links: Vec<(PeerId, f64)> = live.iter().filter_map(rate).collect();
        let dice = |limit| rand::random_range(0..limit);
        let Some(asked) = card.look(&links, dice) else { return };
        let before = (self.net.chores().begun, flows(&self.data.metrics().links, live));
        let rounds = self.rounds(asked).await;
        let after = (self.net.chores().begun, flows(&self.data.metrics().links, live));
        // Nothing but these probes went on.
        let is_undisturbed = after.0 == before.0 + CARD_PROBES && after.1 == before.1;
        let shown = card.note(&links, rounds.filter(|_| is_undisturbed));
        tracing::debug!(?asked, ?rounds, is_undisturbed, ?shown, "two links at once");
        let fastest = asked.map(|peer| own.links.get(&peer.to_string()).map_or(0.0, |link| link.bytes_per_s));
        let card_bytes_per_s = match shown {
            Shown::Shared(times) => Some(times * fastest[0].max(fastest[1])),
            Shown::Apart => None,
            Shown::Nothing => return,
        };
        self.facts.update_own(&self.net, |own| own.card_bytes_per_s = card_bytes_per_s);
    }

    /// Probes two links, each alone and then both at once.
    async fn rounds(&self, [first, second]: [PeerId; 2]) -> Option<Rounds> {
        let start = Instant::now();
        let alone = Round::new([Some(self.net.probe(first).await.ok()?), None], start.elapsed());
        let start = Instant::now();
        let other = Round::new([None, Some(self.net.probe(second).await.ok()?)], start.elapsed());
        tokio::time::sleep(PROBE_AGAIN).await;
        let start = Instant::now();
        let both = self.net.probe_both([first, second]).await.ok()?;
        Some([alone, other, Round::new(both.map(Some), start.elapsed())])
    }

    /// Probes the link of a suspicion, and sets its rate: the rate before, and now, where that is another one. `None` where
    /// it could not be probed.
    async fn clear_up(&self, suspicion: &Suspicion) -> Option<Option<(f64, f64)>> {
        let LinkReport { bytes_per_s: reported, latency_s } = self.known(suspicion.peer);
        // What is reported now may only be assumed.
        let known = match suspicion.ground {
            Ground::Nearby { before, .. } => before,
            Ground::Carried(_) | Ground::AtRest => reported,
        };
        let probe = self.net.probe(suspicion.peer).await;
        let probe =
            probe.inspect_err(|error| tracing::debug!(peer = %suspicion.peer, %error, "no probe")).ok()?;
        let another = suspicion.rate(known, probe);
        let bytes_per_s = another.unwrap_or(known);
        if bytes_per_s.to_bits() != reported.to_bits() {
            // A link full of activations answers late: the latency of an idle one stays.
            self.set(suspicion.peer, bytes_per_s, latency_s);
        }
        if another.is_some() {
            let (peer, ground) = (suspicion.peer, suspicion.ground);
            tracing::info!(%peer, known, ?ground, ?probe, "the link has another rate now");
        }
        Some(another.map(|now| (known, now)))
    }
}

/// What links have carried, and what it says of them.
#[derive(Debug)]
struct Looks {
    watch: LinkWatch,
    card: CardWatch,
    /// When, and the processor seconds of this process then.
    at: (Instant, f64),
    /// At the last look, and at the one before.
    flows: BTreeMap<PeerId, Flow>,
    before: BTreeMap<PeerId, Flow>,
    /// Looks in a row with nothing to see.
    quiet: u32,
}

impl Default for Looks {
    fn default() -> Self {
        Self {
            watch: LinkWatch::default(),
            card: CardWatch::default(),
            at: (Instant::now(), processor_s()),
            flows: BTreeMap::new(),
            before: BTreeMap::new(),
            quiet: 0,
        }
    }
}

impl Looks {
    /// Bytes between the last two looks.
    fn carried(&self, peer: PeerId) -> u64 {
        let sent = |flows: &BTreeMap<PeerId, Flow>| flows.get(&peer).map_or(0, |flow| flow.sent);
        sent(&self.flows).saturating_sub(sent(&self.before))
    }
}

/// A latency in seconds that is not the one known.
fn another_latency(known: f64, seen: f64) -> Option<f64> {
    let change = (seen - known).abs();
    (change > LATENCY_NEWS_S && change > NEWS * known).then_some(seen)
}

/// A peer may have several streams: their bytes add up, the busiest one tells whether the link was full.
fn flows(links: &[LinkMetrics], live: &[PeerId]) -> BTreeMap<PeerId, Flow> {
    let mut flows: BTreeMap<PeerId, Flow> = live.iter().map(|peer| (*peer, Flow::default())).collect();
    for link in links {
        if let Some(flow) = flows.get_mut(&link.peer) {
            flow.sent += link.bytes_sent;
            flow.busy_s = flow.busy_s.max(link.busy_s);
            flow.last += link.last_bytes_per_s;
        }
    }
    flows
}

/// Not measured: no probe gives this very number.
fn is_assumed(bytes_per_s: f64) -> bool {
    bytes_per_s.to_bits() == BYTES_PER_S_UNMEASURED.to_bits()
}

#[cfg(test)]
mod tests;
