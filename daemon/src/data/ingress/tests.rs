//! The ingress against its promises, under random events.

use std::collections::HashSet;

use mesh_inference::tensor::Tensor;
use proptest::prelude::*;

use super::*;
use crate::{
    app::InferRequest,
    data::route::{Route, RouteStage},
};

mod cases;

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
        stages: Vec<u16>,
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
        2 => (0usize..2, prop::collection::vec(1u16..16, 0..4))
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
    /// Of plans, as predicted.
    latency: Duration,
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
            latency: Duration::ZERO,
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
                self.ingress.peer_down(now, self.peers[device], Gone::Closed);
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

    fn plan(&mut self, deployment: usize, stages: &[u16]) {
        self.epoch += 1;
        let devices = |mask: &u16| {
            let holds = |i: &usize| mask & (1 << i) != 0;
            (0..self.peers.len()).filter(holds).map(|i| (self.peers[i], 0.25)).collect()
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
            latency: self.latency,
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
        // What a plan is predicted to take may be known.
        world.latency = Duration::from_millis(if events.len().is_multiple_of(2) { 30 } else { 0 });
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
