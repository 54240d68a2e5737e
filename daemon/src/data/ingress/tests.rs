//! The ingress against its promises, under random events.

use std::collections::HashSet;

use mesh_inference::tensor::Tensor;
use proptest::prelude::*;

use super::*;
use crate::{app::InferRequest, data::route::RouteStage};

/// Something that happens.
#[derive(Debug, Clone)]
enum Event {
    Begin {
        deployment: usize,
        timeout_ms: u64,
    },
    /// An answer to one of the sends, which may be an old one.
    Answer {
        send: usize,
    },
    /// A refusal of one of the sends by one of its devices.
    Refuse {
        send: usize,
        kind: usize,
        words: usize,
        device: usize,
    },
    /// An answer from a device that was never asked.
    Forge {
        send: usize,
        device: usize,
    },
    /// It has gone to another device of a stage than was picked.
    Move {
        send: usize,
        stage: usize,
        device: usize,
    },
    Cancel {
        request: usize,
    },
    Up(usize),
    Down(usize),
    Late {
        device: usize,
        is_late: bool,
    },
    /// A new plan: a bit mask of devices per stage. No stage: not active yet.
    Plan {
        deployment: usize,
        stages: Vec<u8>,
    },
    Undeploy {
        deployment: usize,
    },
    Wait {
        ms: u64,
    },
}

fn event() -> impl Strategy<Value = Event> {
    let any = 0usize..1000;
    prop_oneof![
        8 => (0usize..3, 1u64..3000).prop_map(|(deployment, timeout_ms)| Event::Begin { deployment, timeout_ms }),
        8 => any.clone().prop_map(|send| Event::Answer { send }),
        6 => (any.clone(), 0usize..7, 0usize..2, any.clone())
            .prop_map(|(send, kind, words, device)| Event::Refuse { send, kind, words, device }),
        1 => (any.clone(), any.clone()).prop_map(|(send, device)| Event::Forge { send, device }),
        3 => (any.clone(), 0usize..3, 0usize..4)
            .prop_map(|(send, stage, device)| Event::Move { send, stage, device }),
        1 => any.prop_map(|request| Event::Cancel { request }),
        2 => (0usize..4).prop_map(Event::Up),
        2 => (0usize..4).prop_map(Event::Down),
        2 => (0usize..4, prop::bool::ANY).prop_map(|(device, is_late)| Event::Late { device, is_late }),
        2 => (0usize..2, prop::collection::vec(1u8..16, 0..4))
            .prop_map(|(deployment, stages)| Event::Plan { deployment, stages }),
        1 => (0usize..2).prop_map(|deployment| Event::Undeploy { deployment }),
        6 => (0u64..800).prop_map(|ms| Event::Wait { ms }),
    ]
}

/// The ingress, what is around it, and what has been seen of it.
struct World {
    ingress: Ingress,
    now: Instant,
    /// `peers[0]` is this device.
    peers: Vec<PeerId>,
    up: BTreeSet<PeerId>,
    routes: BTreeMap<String, Arc<Route>>,
    epoch: u64,
    sends: Vec<Address>,
    accepted: Vec<u64>,
    open: HashMap<u64, Instant>,
    finished: HashSet<u64>,
}

fn limits() -> DataLimits {
    DataLimits {
        window_max: 6,
        line_max: 3,
        held_bytes_max: 40,
        attempt_unmeasured: Duration::from_millis(700),
        attempt_min: Duration::from_millis(50),
        copy_min: Duration::from_millis(20),
        ..DataLimits::default()
    }
}

impl World {
    fn new() -> Self {
        let peers: Vec<PeerId> = (0..4).map(|_| PeerId::random()).collect();
        Self {
            ingress: Ingress::new(peers[0], 7, limits()),
            now: Instant::now(),
            up: BTreeSet::from([peers[0]]),
            peers,
            routes: BTreeMap::new(),
            epoch: 0,
            sends: Vec::new(),
            accepted: Vec::new(),
            open: HashMap::new(),
            finished: HashSet::new(),
        }
    }

    fn apply(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Begin { deployment, timeout_ms } => self.begin(deployment, timeout_ms),
            Event::Answer { send } => {
                if let Some(address) = self.pick_send(send) {
                    let last = *address.devices.last().unwrap();
                    self.ingress.on_result(now, last, &address, vec![("y".into(), tensor())]);
                }
            }
            Event::Refuse { send, kind, words, device } => {
                if let Some(address) = self.pick_send(send) {
                    let blame = address.devices[device % address.devices.len()];
                    let failure = Failure {
                        kind: KINDS[kind],
                        stage: 0,
                        blame,
                        message: ["bad shape", "no memory"][words].into(),
                    };
                    self.ingress.on_failure(now, blame, &address, failure);
                }
            }
            Event::Forge { send, device } => {
                if let Some(mut address) = self.pick_send(send) {
                    address.attempt += 100;
                    let from = self.peers[device % 4];
                    self.ingress.on_result(now, from, &address, vec![("y".into(), tensor())]);
                    address.request ^= 1 << 63;
                    self.ingress.on_result(now, from, &address, Vec::new());
                }
            }
            Event::Move { send, stage, device } => {
                if let Some(mut address) = self.pick_send(send) {
                    let mut devices = address.devices.to_vec();
                    let stage = stage % devices.len();
                    devices[stage] = self.peers[device];
                    address.devices = devices.into();
                    let from = address.devices[stage.saturating_sub(1)];
                    self.ingress.on_moved(now, from, &address, stage);
                }
            }
            Event::Cancel { request } => {
                if !self.accepted.is_empty() {
                    let id = self.accepted[request % self.accepted.len()];
                    self.ingress.cancel(now, id);
                    if self.open.remove(&id).is_some() {
                        self.finished.insert(id);
                    }
                }
            }
            Event::Up(device) => {
                self.up.insert(self.peers[device]);
                self.ingress.peer_up(now, self.peers[device]);
            }
            Event::Down(device) => {
                if device != 0 {
                    self.up.remove(&self.peers[device]);
                }
                self.ingress.peer_down(now, self.peers[device]);
            }
            Event::Late { device, is_late } => self.ingress.peer_late(now, self.peers[device], is_late),
            Event::Plan { deployment, stages } => self.plan(deployment, &stages),
            Event::Undeploy { deployment } => {
                self.routes.remove(NAMES[deployment]);
                self.ingress.set_routes(now, self.routes.clone());
            }
            Event::Wait { ms } => {
                self.now += Duration::from_millis(ms);
                self.ingress.tick(self.now);
            }
        }
    }

    /// All peers are up.
    fn with_peers() -> Self {
        let mut world = Self::new();
        for peer in &world.peers[1..] {
            world.ingress.peer_up(world.now, *peer);
            world.up.insert(*peer);
        }
        world
    }

    fn begin(&mut self, deployment: usize, timeout_ms: u64) {
        let request = InferRequest {
            model: NAMES[deployment].into(),
            inputs: vec![("x".into(), tensor())],
            outputs: Vec::new(),
            timeout: Duration::from_millis(timeout_ms),
            from_elsewhere: false,
        };
        match self.ingress.begin(self.now, request) {
            Ok(id) => {
                assert!(self.routes.contains_key(NAMES[deployment]));
                assert!(self.open.insert(id, self.now + Duration::from_millis(timeout_ms)).is_none());
                self.accepted.push(id);
            }
            Err(AppError::NotFound(_)) => assert!(!self.routes.contains_key(NAMES[deployment])),
            Err(AppError::Unavailable { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }

    fn plan(&mut self, deployment: usize, stages: &[u8]) {
        self.epoch += 1;
        let devices = |mask: &u8| {
            let holds = |i: &usize| mask & (1 << i) != 0;
            (0..4).filter(holds).map(|i| (self.peers[i], 0.25)).collect()
        };
        let route = Route {
            deployment: NAMES[deployment].into(),
            epoch: self.epoch,
            inputs: vec!["x".into()],
            outputs: vec!["y".into()],
            stages: stages
                .iter()
                .map(|mask| RouteStage {
                    replicas: devices(mask),
                    inputs: vec!["x".into()],
                    ..RouteStage::default()
                })
                .collect(),
            latency: Duration::ZERO,
            in_flight: 0,
        };
        self.routes.insert(NAMES[deployment].into(), Arc::new(route));
        self.ingress.set_routes(self.now, self.routes.clone());
    }

    fn pick_send(&self, index: usize) -> Option<Address> {
        // The newest are the likeliest, the oldest are possible.
        let recent = self.sends.len().min(40);
        (recent > 0).then(|| self.sends[self.sends.len() - 1 - index % recent].clone())
    }

    /// Takes the effects and checks every promise.
    fn check(&mut self) {
        for effect in self.ingress.take_effects() {
            match effect {
                Effect::Send(Dispatch { address, inputs, deadline }) => {
                    assert!(self.open.contains_key(&address.request), "sent after its end");
                    assert!(
                        address.devices.iter().all(|d| self.up.contains(d)),
                        "a route through a down peer"
                    );
                    assert_eq!(self.open[&address.request], deadline);
                    assert_eq!(inputs.len(), 1);
                    let known = self.routes.get(&*address.deployment).unwrap();
                    assert_eq!(known.epoch, address.epoch, "sent on an old plan");
                    self.sends.push(address);
                }
                Effect::Finish { id, result } => {
                    assert!(self.open.remove(&id).is_some(), "answered twice: {result:?}");
                    assert!(self.finished.insert(id));
                    if let Ok(response) = result {
                        assert_eq!(response.outputs.len(), 1);
                    }
                }
            }
        }
        // Ticks come when they are due, so nothing may be open past its deadline after one.
        if self.ingress.next_timer().is_none_or(|at| at > self.now) {
            assert!(self.open.values().all(|deadline| *deadline > self.now), "open past its deadline");
        }
        self.check_books();
    }

    /// The ingress's books agree with each other.
    fn check_books(&self) {
        let Ingress { deployments, requests, timers, .. } = &self.ingress;
        assert_eq!(requests.keys().collect::<HashSet<_>>(), self.open.keys().collect());
        assert_eq!(timers.len(), requests.len());
        assert_eq!(self.ingress.held_bytes, 4 * requests.len());
        assert!(self.ingress.held_bytes <= limits().held_bytes_max);
        for (name, deployment) in deployments {
            let of = |held: bool| {
                let is = |r: &&Request| r.deployment == *name && !matches!(r.state, State::InLine) == held;
                requests.values().filter(is).count()
            };
            assert_eq!((deployment.in_flight, deployment.line.len()), (of(true), of(false)), "{name}");
            assert!(deployment.in_flight <= limits().window_max);
            assert!(deployment.line.len() <= limits().line_max);
            let stuck = deployment.in_flight < deployment.window && !deployment.line.is_empty();
            assert!(!stuck, "a free slot and somebody in line");
        }
    }
}

const NAMES: [&str; 3] = ["a", "b", "never-deployed"];

const KINDS: [FailureKind; 7] = [
    FailureKind::Busy,
    FailureKind::StaleEpoch,
    FailureKind::UnknownStage,
    FailureKind::Closed,
    FailureKind::Unreachable,
    FailureKind::Run,
    FailureKind::Inputs,
];

fn tensor() -> Tensor {
    Tensor::from_slice(&[1], &[1.0f32]).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn every_accepted_request_ends_once_and_in_time(events in prop::collection::vec(event(), 1..150)) {
        let mut world = World::new();
        world.plan(0, &[0b0001, 0b0110]);
        for event in events {
            world.apply(event);
            world.check();
        }
        world.apply(Event::Wait { ms: 10_000 });
        world.check();
        prop_assert!(world.open.is_empty());
        prop_assert!(world.ingress.timers.is_empty());
        prop_assert!(world.ingress.deployments.values().all(|d| d.in_flight == 0 && d.balanced()));
    }
}

#[test]
fn a_late_answer_of_an_older_attempt_is_taken() {
    let mut world = World::new();
    let other = world.peers[1];
    world.up.insert(other);
    world.ingress.peer_up(world.now, other);
    world.plan(0, &[0b0011]);
    world.begin(0, 3000);
    world.check();
    let first = world.sends[0].clone();
    world.apply(Event::Wait { ms: 800 });
    world.check();
    assert_eq!(world.sends.len(), 2, "sent again");
    assert_ne!(world.sends[0].devices, world.sends[1].devices);
    let last = first.devices[0];
    world.ingress.on_result(world.now, last, &first, vec![("y".into(), tensor())]);
    let effects = world.ingress.take_effects();
    assert!(matches!(&effects[..], [Effect::Finish { result: Ok(r), .. }] if r.retries == 1), "{effects:?}");
}

/// The device before it knows that it stands by and is ready; this one has not heard so yet.
#[test]
fn what_a_standby_answers_that_is_not_known_to_be_ready_is_taken() {
    let mut world = World::new();
    let (other, third) = (world.peers[1], world.peers[2]);
    for peer in [other, third] {
        world.up.insert(peer);
        world.ingress.peer_up(world.now, peer);
    }
    world.plan(0, &[0b0010, 0b0100]);
    let mut route = (*world.routes[NAMES[0]]).clone();
    route.epoch += 1;
    world.epoch += 1;
    route.stages[1].unready = vec![other];
    world.routes.insert(NAMES[0].into(), Arc::new(route));
    world.ingress.set_routes(world.now, world.routes.clone());
    world.begin(0, 20_000);
    world.check();
    let mut address = world.sends[0].clone();
    address.devices = vec![other, other].into();
    world.ingress.on_moved(world.now, other, &address, 1);
    world.ingress.on_result(world.now, other, &address, vec![("y".into(), tensor())]);
    let effects = world.ingress.take_effects();
    assert!(matches!(&effects[..], [Effect::Finish { result: Ok(r), .. }] if r.retries == 0), "{effects:?}");
}

#[test]
fn a_request_that_went_another_way_is_followed() {
    let mut world = World::with_peers();
    let peers = world.peers.clone();
    // The first stage here, the second on two others.
    world.plan(0, &[0b0001, 0b0110]);
    world.begin(0, 20_000);
    world.check();
    let mut moved = world.sends[0].clone();
    let (picked, other) = (moved.devices[1], if moved.devices[1] == peers[1] { peers[2] } else { peers[1] });
    moved.devices = [moved.devices[0], other].into();
    let stranger: Arc<[PeerId]> = [moved.devices[0], peers[3]].into();
    world.ingress.on_moved(world.now, moved.devices[0], &moved, 1);
    world.ingress.on_moved(world.now, moved.devices[0], &Address { devices: stranger, ..moved.clone() }, 1);
    // Nor does one that had no part in it tell where it went.
    world.ingress.on_moved(world.now, peers[3], &world.sends[0].clone(), 1);
    // The loss of the one that was picked does not matter any more, that of the other does.
    world.up.remove(&picked);
    world.ingress.peer_down(world.now, picked);
    world.check();
    assert_eq!(world.sends.len(), 1);
    world.ingress.peer_up(world.now, picked);
    world.up = peers.iter().copied().collect();
    world.up.remove(&other);
    world.ingress.peer_down(world.now, other);
    world.check();
    assert_eq!(world.sends.len(), 2, "sent again");
    // Its answer may still come.
    world.ingress.on_result(world.now, other, &moved, vec![("y".into(), tensor())]);
    let effects = world.ingress.take_effects();
    assert!(matches!(&effects[..], [Effect::Finish { result: Ok(r), .. }] if r.retries == 1), "{effects:?}");
}

/// A device that was lost is asked after others for a while, and so is one that a request waited for in vain.
#[test]
fn who_is_back_is_asked_after_others_for_a_while() {
    let mut world = World::with_peers();
    let peers = world.peers.clone();
    world.plan(0, &[0b0110]);
    let ask = |world: &mut World| {
        world.begin(0, 60_000);
        world.check();
        world.sends.last().expect("was sent").devices[0]
    };
    let ask_and_answer = |world: &mut World| {
        let device = ask(world);
        world.apply(Event::Answer { send: 0 });
        world.check();
        assert!(world.open.is_empty());
        device
    };
    world.ingress.peer_late(world.now, peers[1], true);
    world.ingress.peer_late(world.now, peers[1], false);
    for _ in 0..8 {
        assert_eq!(ask_and_answer(&mut world), peers[2]);
    }
    world.ingress.peer_late(world.now, peers[2], true);
    assert_eq!(ask_and_answer(&mut world), peers[1], "better than one that is not heard of");
    world.ingress.peer_late(world.now, peers[2], false);
    world.apply(Event::Wait { ms: 5_000 });
    let asked: BTreeSet<PeerId> = (0..8).map(|_| ask_and_answer(&mut world)).collect();
    assert_eq!(asked, BTreeSet::from([peers[1], peers[2]]));
    // One of them answers nothing any more. What was sent to it is sent to the other one too, which answers at once.
    let stuck = ask(&mut world);
    world.now += limits().attempt_unmeasured;
    world.ingress.tick(world.now);
    world.check();
    let other = world.sends.last().expect("was sent").devices[0];
    assert_ne!(other, stuck);
    world.apply(Event::Answer { send: 0 });
    world.check();
    for _ in 0..8 {
        assert_eq!(ask_and_answer(&mut world), other);
    }
}

#[test]
fn a_late_device_is_left_where_another_can_take_its_place() {
    let mut world = World::with_peers();
    let peers = world.peers.clone();
    world.plan(0, &[0b0110]);
    world.begin(0, 20_000);
    world.check();
    let first = world.sends[0].clone();
    let (picked, other) =
        if first.devices[0] == peers[1] { (peers[1], peers[2]) } else { (peers[2], peers[1]) };
    let sent_to = |world: &World| world.sends.iter().map(|address| address.devices[0]).collect::<Vec<_>>();
    for _ in 0..2 {
        world.ingress.peer_late(world.now, picked, true);
        world.check();
        assert_eq!(sent_to(&world), [picked, other], "once");
    }
    world.begin(0, 20_000);
    world.check();
    assert_eq!(sent_to(&world), [picked, other, other]);
    world.ingress.peer_late(world.now, other, true);
    world.check();
    assert_eq!(world.sends.len(), 3, "there is nobody better");
    world.ingress.peer_late(world.now, picked, false);
    world.begin(0, 20_000);
    world.check();
    assert_eq!(sent_to(&world)[3], picked);
    // The first one's answer may still come.
    world.ingress.on_result(world.now, picked, &first, vec![("y".into(), tensor())]);
    let effects = world.ingress.take_effects();
    assert!(matches!(&effects[..], [Effect::Finish { result: Ok(r), .. }] if r.retries == 1), "{effects:?}");
}

#[test]
fn a_slow_attempt_is_left_alone_where_there_is_no_other_device() {
    let mut world = World::new();
    world.plan(0, &[0b0001]);
    world.begin(0, 20_000);
    world.check();
    let first = world.sends[0].clone();
    for _ in 0..10 {
        world.apply(Event::Wait { ms: 800 });
        world.check();
    }
    assert_eq!(world.sends.len(), 1, "it stands in the queue already");
    world.ingress.on_result(world.now, world.peers[0], &first, vec![("y".into(), tensor())]);
    let effects = world.ingress.take_effects();
    assert!(matches!(&effects[..], [Effect::Finish { result: Ok(r), .. }] if r.retries == 0), "{effects:?}");
}

#[test]
fn full_queues_narrow_the_window_and_answers_widen_it() {
    let limits = DataLimits { window_max: 64, ..limits() };
    let mut now = Instant::now();
    let mut deployment = Deployment::new(now, &limits);
    let replicas = (0..16).map(|_| (PeerId::random(), 1.0)).collect();
    let stage = RouteStage { replicas, ..RouteStage::default() };
    let route = Route { stages: vec![stage], latency: Duration::from_secs(4), ..Route::default() };
    deployment.set_route(Some(Arc::new(route)), &limits);
    let full = deployment.window;
    assert!(full >= 16);
    assert_eq!(deployment.busy(now), Duration::from_secs(1), "a part of the predicted time");
    deployment.busy(now);
    assert_eq!(deployment.window, full / 2, "once for a flock of refusals");
    for _ in 0..10 {
        now += Duration::from_secs(1);
        deployment.busy(now);
    }
    assert_eq!(deployment.window, 1);
    for _ in 0..full * full {
        deployment.record_answer(now, Duration::from_millis(20));
    }
    assert_eq!(deployment.window, full);
}

#[test]
fn the_window_follows_what_is_on_its_way() {
    let limits = DataLimits { window_max: 64, ..limits() };
    let mut deployment = Deployment::new(Instant::now(), &limits);
    let replicas = vec![(PeerId::random(), 1.0)];
    let mut window = |in_flight| {
        let stage = RouteStage { replicas: replicas.clone(), ..RouteStage::default() };
        let route = Route { epoch: 1, stages: vec![stage; 3], in_flight, ..Route::default() };
        deployment.set_route(Some(Arc::new(route)), &limits);
        deployment.window
    };
    assert_eq!(window(0), 6, "each of three has one, and one at hand");
    assert_eq!(window(3), 6);
    assert_eq!(window(30), 33, "the ways between them have become longer");
    assert_eq!(window(1000), 64);
    assert_eq!(window(10), 13);
    deployment.busy(Instant::now());
    let narrowed = deployment.window;
    let stage = RouteStage { replicas, ..RouteStage::default() };
    let route = Route { epoch: 1, stages: vec![stage; 3], in_flight: 30, ..Route::default() };
    deployment.set_route(Some(Arc::new(route)), &limits);
    assert_eq!(deployment.window, narrowed, "full queues count for more");
}

/// A device that answered lets nothing through any more. One copy shows that another does; then all that is on its way
/// through the first goes there, and so does what comes.
#[test]
fn what_waits_for_longer_than_usual_is_sent_to_others_too() {
    let mut world = World::with_peers();
    world.plan(0, &[0b0110]);
    for _ in 0..32 {
        world.begin(0, 60_000);
        world.check();
        world.now += Duration::from_millis(100);
        world.apply(Event::Answer { send: 0 });
        world.check();
    }
    for _ in 0..3 {
        world.begin(0, 60_000);
    }
    world.check();
    let sent: Vec<Address> = world.sends[world.sends.len() - 3..].to_vec();
    let of = |device: PeerId| sent.iter().filter(move |address| address.devices[0] == device).count();
    let stuck = *world.peers[1..=2].iter().max_by_key(|device| of(**device)).expect("there are two");
    let well = if stuck == world.peers[1] { world.peers[2] } else { world.peers[1] };
    assert_eq!((of(stuck), of(well)), (2, 1), "by share");
    let answer = |world: &mut World, address: &Address| {
        let outputs = vec![("y".into(), tensor())];
        world.ingress.on_result(world.now, address.devices[0], address, outputs);
        world.check();
    };
    world.now += Duration::from_millis(100);
    let answered = sent.iter().find(|address| address.devices[0] == well).expect("one went there");
    answer(&mut world, answered);
    // Three times the median.
    world.now += Duration::from_millis(200);
    let before = world.sends.len();
    world.ingress.tick(world.now);
    world.check();
    let copies = world.sends[before..].to_vec();
    assert_eq!(copies.iter().map(|copy| copy.devices[0]).collect::<Vec<_>>(), [well, well]);
    world.begin(0, 60_000);
    world.begin(0, 60_000);
    world.check();
    assert!(
        world.sends[before + 2..].iter().any(|address| address.devices[0] == stuck),
        "nothing is known yet"
    );
    let before = world.sends.len();
    world.now += Duration::from_millis(100);
    answer(&mut world, &copies[0]);
    let left: Vec<PeerId> = world.sends[before..].iter().map(|address| address.devices[0]).collect();
    assert!(
        !left.is_empty() && left.iter().all(|device| *device == well),
        "what was on its way is sent again"
    );
    world.begin(0, 60_000);
    world.check();
    assert_eq!(world.sends.last().expect("was sent").devices[0], well);
}
