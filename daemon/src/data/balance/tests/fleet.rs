//! A fleet of devices that all take requests in, with a balancer each, in simulated time.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::*;

/// Microseconds.
type Time = u64;

/// Time of one job on a device of speed 1.
const JOB: f64 = 100_000.0;
/// Time of one way between two devices.
const WAY: Time = 2_000;
/// Between two heartbeats of a device.
const BEAT: Time = 500_000;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A client of this device asks.
    Ask { ingress: usize },
    /// A request is at the device that runs it.
    Arrive { ingress: usize, at: usize },
    /// A device is done with its first job.
    Done { at: usize },
    /// An answer is back, with the jobs that the device has left.
    Answer { ingress: usize, from: usize, jobs: u32 },
    /// A device tells all others of its jobs.
    Beat { from: usize },
}

struct Fleet {
    peers: Vec<PeerId>,
    speeds: Vec<f64>,
    balancers: Vec<Balancer>,
    /// Who waits at each device, the first one running.
    queues: Vec<std::collections::VecDeque<usize>>,
    events: BinaryHeap<Reverse<(Time, u64, Event)>>,
    now: Time,
    order: u64,
    start: Instant,
    done: Vec<u64>,
    local: u64,
}

impl Fleet {
    /// Devices of these speeds, with a replica of the only stage each and shares by speed; so many clients ask at
    /// each device again and again.
    fn new(speeds: &[f64], clients: &[usize]) -> Self {
        let peers: Vec<PeerId> = speeds.iter().map(|_| PeerId::random()).collect();
        let sum: f64 = speeds.iter().sum();
        let replicas: Vec<(PeerId, f64)> = peers.iter().zip(speeds).map(|(p, s)| (*p, s / sum)).collect();
        let route = route(&[replicas]);
        let mut fleet = Self {
            balancers: peers.iter().map(|_| Balancer::new(&route)).collect(),
            queues: peers.iter().map(|_| Default::default()).collect(),
            done: vec![0; peers.len()],
            speeds: speeds.to_vec(),
            peers,
            events: BinaryHeap::new(),
            now: 0,
            order: 0,
            start: Instant::now(),
            local: 0,
        };
        for (ingress, clients) in clients.iter().enumerate() {
            fleet.at(ingress as Time * 31_000, Event::Beat { from: ingress });
            for client in 0..*clients {
                fleet.at((client * 1_700 + ingress * 300) as Time, Event::Ask { ingress });
            }
        }
        fleet
    }

    fn at(&mut self, after: Time, event: Event) {
        self.order += 1;
        self.events.push(Reverse((self.now + after, self.order, event)));
    }

    fn way(a: usize, b: usize) -> Time {
        if a == b { 0 } else { WAY }
    }

    fn run_first(&mut self, at: usize) {
        if !self.queues[at].is_empty() {
            self.at((JOB / self.speeds[at]) as Time, Event::Done { at });
        }
    }

    fn step(&mut self, up: &BTreeSet<PeerId>) {
        let Some(Reverse((now, _, event))) = self.events.pop() else { return };
        self.now = now;
        let clock = self.start + Duration::from_micros(now);
        match event {
            Event::Ask { ingress } => {
                let here = Here { device: self.peers[ingress], jobs: self.queues[ingress].len() as u32 };
                let device = self.balancers[ingress].pick(clock, here, up, Avoid::default()).unwrap()[0];
                let at = self.peers.iter().position(|p| *p == device).unwrap();
                self.local += u64::from(at == ingress);
                self.at(Self::way(ingress, at), Event::Arrive { ingress, at });
            }
            Event::Arrive { ingress, at } => {
                self.queues[at].push_back(ingress);
                if self.queues[at].len() == 1 {
                    self.run_first(at);
                }
            }
            Event::Done { at } => {
                let ingress = self.queues[at].pop_front().unwrap();
                self.done[at] += 1;
                self.run_first(at);
                let jobs = self.queues[at].len() as u32;
                self.at(Self::way(ingress, at), Event::Answer { ingress, from: at, jobs });
            }
            Event::Answer { ingress, from, jobs } => {
                let device = self.peers[from];
                if from != ingress {
                    self.balancers[ingress].heard(clock, device, jobs);
                }
                self.balancers[ingress].release(1, &[device]);
                self.at(0, Event::Ask { ingress });
            }
            Event::Beat { from } => {
                let jobs = self.queues[from].len() as u32;
                for other in (0..self.peers.len()).filter(|other| *other != from) {
                    self.balancers[other].heard(clock, self.peers[from], jobs);
                }
                self.at(BEAT, Event::Beat { from });
            }
        }
    }

    /// Runs for so many jobs of a device of speed 1, after a start that does not count.
    fn run(mut self, jobs: f64) -> Outcome {
        let up: BTreeSet<PeerId> = self.peers.iter().copied().collect();
        let warm = (20.0 * JOB) as Time;
        while self.now < warm {
            self.step(&up);
        }
        let (done, local, from) = (self.done.clone(), self.local, self.now);
        while self.now < warm + (jobs * JOB) as Time {
            self.step(&up);
        }
        let counts: Vec<u64> = self.done.iter().zip(done).map(|(now, then)| now - then).collect();
        let total: u64 = counts.iter().sum();
        let possible = self.speeds.iter().sum::<f64>() * (self.now - from) as f64 / JOB;
        Outcome {
            local: (self.local - local) as f64 / total as f64,
            parts: counts.iter().map(|count| *count as f64 / total as f64).collect(),
            used: total as f64 / possible,
        }
    }
}

#[derive(Debug)]
struct Outcome {
    /// Part of the requests that ran where they entered.
    local: f64,
    /// Part of the requests that each device ran.
    parts: Vec<f64>,
    /// Part of what all devices together can do that was done.
    used: f64,
}

fn proportional(outcome: &Outcome, speeds: &[f64], slack: f64) -> bool {
    let sum: f64 = speeds.iter().sum();
    outcome.parts.iter().zip(speeds).all(|(part, speed)| (part / (speed / sum) - 1.0).abs() < slack)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn an_even_load_stays_where_it_enters(devices in 2usize..17, clients in 2usize..7) {
        let outcome = Fleet::new(&vec![1.0; devices], &vec![clients; devices]).run(300.0);
        prop_assert!(outcome.local > 0.97 && outcome.used > 0.98, "{outcome:?}");
    }

    #[test]
    fn one_busy_ingress_uses_all_by_their_speed(weights in prop::collection::vec(1u32..6, 2..9)) {
        let speeds: Vec<f64> = weights.iter().map(|w| f64::from(*w) / 3.0).collect();
        // What the window lets through.
        let mut clients = vec![0; speeds.len()];
        let replicas = speeds.iter().map(|speed| (PeerId::random(), *speed)).collect();
        clients[0] = route(&[replicas]).window().max(4);
        let outcome = Fleet::new(&speeds, &clients).run(400.0);
        prop_assert!(outcome.used > 0.93 && proportional(&outcome, &speeds, 0.12), "{outcome:?}");
    }

    #[test]
    fn unequal_devices_get_load_by_their_speed(weights in prop::collection::vec(1u32..6, 2..9)) {
        let speeds: Vec<f64> = weights.iter().map(|w| f64::from(*w) / 3.0).collect();
        let outcome = Fleet::new(&speeds, &vec![4; speeds.len()]).run(400.0);
        prop_assert!(outcome.used > 0.95 && proportional(&outcome, &speeds, 0.10), "{outcome:?}");
        // What a device can do itself is not sent away for nothing.
        let sum: f64 = speeds.iter().sum();
        let own: f64 = speeds.iter().map(|s| (s / sum).min(1.0 / speeds.len() as f64)).sum();
        prop_assert!(outcome.local > own - 0.2, "{outcome:?}, at best {own}");
    }
}
