//! A link's flow over time, and what the watch makes of it.

use super::{watch::*, *};

/// A link of `rate` bytes per second that somebody wants to send `wanted` bytes per second over.
struct World {
    watch: LinkWatch,
    peer: PeerId,
    now: Instant,
    flow: Flow,
    rate: f64,
    wanted: f64,
    known: f64,
    beside: Beside,
}

impl World {
    fn new(known: f64, rate: f64, wanted: f64) -> Self {
        let (watch, peer, flow) = (LinkWatch::default(), PeerId::random(), Flow::default());
        let mut world =
            Self { watch, peer, now: Instant::now(), flow, rate, wanted, known, beside: Beside::default() };
        assert_eq!(world.look(), None, "the first look shows nothing");
        world
    }

    fn look(&mut self) -> Option<Suspicion> {
        let flows = BTreeMap::from([(self.peer, self.flow)]);
        let found = self.watch.look(self.now, self.beside, &flows, |_| self.known);
        found.first().copied()
    }

    fn later(&mut self) -> Option<Suspicion> {
        let look = TICK * LOOK_TICKS;
        let seconds = look.as_secs_f64();
        let carried = self.rate.min(self.wanted) * seconds;
        self.flow.sent += carried as u64;
        self.flow.busy_s += carried / self.rate;
        self.flow.last = self.rate;
        self.now += look;
        self.look()
    }

    /// The suspicion is looked into with a probe that gets `share` of the link.
    fn probe(&mut self, suspicion: Suspicion, share: f64, processor_bound: bool) {
        let probe = Probe { bytes_per_s: self.rate * share, processor_bound, sent: 0 };
        let change = suspicion.rate(self.known, probe).map(|rate| (self.known, rate));
        self.known = change.map_or(self.known, |(_, rate)| rate);
        self.watch.cleared_up(&suspicion, change, self.now);
    }

    /// Suspicions in this many seconds, each with a probe that shares the link.
    fn suspicions(&mut self, seconds: u64, processor_bound: bool) -> u32 {
        let (mut count, end) = (0, self.now + Duration::from_secs(seconds));
        while self.now < end {
            if let Some(suspicion) = self.later() {
                count += 1;
                self.probe(suspicion, 0.4, processor_bound);
            }
        }
        count
    }
}

#[test]
fn a_full_link_that_carries_less_is_found_once() {
    let mut world = World::new(12.5e6, 3e6, 5e6);
    assert_eq!(world.later(), None, "one look is not enough");
    assert_eq!(world.suspicions(100, false), 1);
    assert!((world.known / 3e6 - 1.0).abs() < 1e-3, "{}", world.known);
    let mut world = World::new(12.5e6, 1.2e6, 5e6);
    assert_eq!(world.suspicions(4, false), 1, "unless it carries far less");
}

#[test]
fn a_full_link_that_became_slow_is_found_in_ten_seconds() {
    let mut world = World::new(12.5e6, 12.5e6, 2e6);
    assert_eq!(world.suspicions(60, false), 0);
    world.rate = 0.6e6;
    assert_eq!(world.suspicions(10, false), 1);
}

#[test]
fn what_a_link_carried_before_it_became_slow_does_not_make_it_faster() {
    let mut world = World::new(125e6, 125e6, 6e6);
    assert_eq!(world.suspicions(20, false), 0);
    // In the middle of the next look: until then it carries what is wanted.
    world.flow.sent += 12_000_000;
    world.flow.busy_s += 12e6 / 125e6;
    world.rate = 0.6e6;
    let suspicion = world.later().expect("it is far slower");
    world.probe(suspicion, 0.1, false);
    assert!((world.known / 0.6e6 - 1.0).abs() < 1e-3, "{}", world.known);
}

#[test]
fn a_link_that_carries_what_is_wanted_of_it_is_not_suspected() {
    for (known, rate, wanted) in
        [(12.5e6, 12.5e6, 1e6), (12.5e6, 10e6, 50e6), (1e6, 12e6, 1.1e6), (1e8, 1e7, 1e3)]
    {
        assert_eq!(World::new(known, rate, wanted).suspicions(200, false), 0, "{known} {rate} {wanted}");
    }
}

#[test]
fn a_link_that_got_faster_is_found() {
    let mut world = World::new(0.6e6, 12e6, 4e6);
    assert_eq!(world.suspicions(100, false), 1);
    // A probe beside the activations shows more than they need.
    assert!((world.known / 4.8e6 - 1.0).abs() < 1e-3, "{}", world.known);
}

/// As where the peer's processor is what takes long, until the link is worse than that.
#[test]
fn a_false_alarm_hides_no_worse_one() {
    let mut world = World::new(125e6, 5e6, 50e6);
    assert!(world.suspicions(600, true) >= 2);
    world.rate = 0.5e6;
    assert_eq!(world.suspicions(8, false), 1);
    assert!((world.known / 0.5e6 - 1.0).abs() < 1e-3, "{}", world.known);
}

#[test]
fn busy_processors_are_not_slow_links() {
    let mut world = World::new(125e6, 20e6, 50e6);
    world.beside.processors = true;
    assert_eq!(world.suspicions(200, false), 0, "this device is busy");
    (world.beside.processors, world.rate) = (false, 5e6);
    let asked = world.suspicions(3600, true);
    assert!((2..=12).contains(&asked), "the peer is busy: {asked} probes in an hour");
    assert!((world.known - 125e6).abs() < 1.0);
}

#[test]
fn busy_processors_do_not_hide_a_link_that_is_far_slower() {
    let mut world = World::new(125e6, 0.6e6, 50e6);
    world.beside.processors = true;
    assert_eq!(world.suspicions(20, false), 1);
    assert!((world.known / 0.6e6 - 1.0).abs() < 1e-3, "{}", world.known);
}

/// As on a link that has become slow while standbys get their weights over it.
#[test]
fn weights_beside_hide_only_a_link_that_is_a_little_slower() {
    let mut world = World::new(12.5e6, 3e6, 5e6);
    world.beside.weights = true;
    assert_eq!(world.suspicions(200, false), 0, "the weights may be all of it");
    let mut world = World::new(12.5e6, 0.6e6, 0.3e6);
    world.beside.weights = true;
    assert_eq!(world.suspicions(200, false), 1, "and with one frame in a while");
    assert!((world.known / 0.6e6 - 1.0).abs() < 1e-3, "{}", world.known);
}

/// As between two stages of a plan that another link limits.
#[test]
fn a_far_slower_link_is_found_though_it_waits_for_others() {
    let mut world = World::new(120e6, 1.2e6, 0.1e6);
    assert_eq!(world.suspicions(20, false), 1);
    assert!((world.known / 1.2e6 - 1.0).abs() < 1e-3, "{}", world.known);
}

#[test]
fn a_slowed_link_at_rest_is_tried_until_it_has_recovered() {
    let mut world = World::new(12.5e6, 1e6, 50e6);
    assert_eq!(world.suspicions(30, false), 1);
    world.wanted = 0.0;
    assert_eq!(world.suspicions(600, false), 10, "one a minute");
    assert!((world.known / 1e6 - 1.0).abs() < 1e-3, "{}", world.known);
    world.rate = 12.5e6 / 0.4;
    assert_eq!(world.suspicions(600, false), 1);
    assert!((world.known / 12.5e6 - 1.0).abs() < 1e-3, "{}", world.known);
}

/// As to a replica that gets few requests since.
#[test]
fn a_slowed_link_that_carries_little_is_tried_too() {
    let mut world = World::new(12.5e6, 1e6, 50e6);
    assert_eq!(world.suspicions(30, false), 1);
    world.wanted = 0.2e6;
    assert!((9..=10).contains(&world.suspicions(600, false)), "one a minute");
    world.rate = 12.5e6 / 0.4;
    assert_eq!(world.suspicions(600, false), 1);
    assert!((world.known / 12.5e6 - 1.0).abs() < 1e-3, "{}", world.known);
}

#[test]
fn peers_that_are_gone_are_forgotten() {
    let mut world = World::new(12.5e6, 1e6, 50e6);
    assert_eq!(world.suspicions(30, false), 1);
    assert!(world.watch.look(world.now, Beside::default(), &BTreeMap::new(), |_| 0.0).is_empty());
    assert!(world.watch.links.is_empty() && world.watch.slowed.is_empty());
}

#[test]
fn streams_of_a_peer_add_up_and_may_begin_anew() {
    let link = |peer, bytes_sent, busy_s, last_bytes_per_s| LinkMetrics {
        peer,
        frames: 1,
        bytes_sent,
        bytes_raw: bytes_sent,
        busy_s,
        bytes_per_s: 0.0,
        last_bytes_per_s,
        codec: "raw",
        queue: 0,
        sent: Vec::new(),
    };
    let (a, b, gone) = (PeerId::random(), PeerId::random(), PeerId::random());
    let links = [link(a, 10, 1.0, 10.0), link(a, 20, 3.0, 7.0), link(gone, 5, 1.0, 5.0)];
    let flows = flows(&links, &[a, b]);
    let of_a = Flow { sent: 30, busy_s: 3.0, last: 17.0 };
    assert_eq!(flows, BTreeMap::from([(a, of_a), (b, Flow::default())]));

    let mut world = World::new(6e6, 1e6, 50e6);
    assert_eq!(world.later(), None);
    world.flow = Flow::default();
    assert_eq!(world.later(), None, "the stream began anew");
}

#[test]
fn a_latency_is_news_when_it_is_another_one() {
    for (known, seen, news) in [
        (0.0005, 0.25, true),
        (0.25, 0.0005, true),
        (0.0005, 0.003, false),
        (0.020, 0.024, false),
        (0.020, 0.026, true),
        (0.200, 0.240, false),
    ] {
        assert_eq!(another_latency(known, seen), news.then_some(seen), "{known} s, then {seen} s");
    }
}

#[test]
fn a_link_at_rest_is_probed_again_after_a_while() {
    let mut world = World::new(1e6, 12e6, 0.0);
    assert_eq!(world.suspicions(STALE.as_secs() - 10, false), 0);
    assert_eq!(world.suspicions(30, false), 1);
    assert!(world.known > 4e6, "{}", world.known);
}
