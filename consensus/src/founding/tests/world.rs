//! A world of devices that run the real protocol over a network and disks made of vectors.

mod clusters;

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// What goes wrong, in percent of the steps.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Chaos {
    pub(super) loss: u64,
    pub(super) repeat: u64,
    pub(super) crash: u64,
    pub(super) cut: u64,
    pub(super) stall: u64,
    pub(super) impolite: u64,
}

/// What is on a device's disk.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    pub(super) record: Option<Record>,
    pub(super) cluster: Option<ClusterId>,
    pub(super) storage: StorageId,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) devices_of: Vec<usize>,
    pub(super) disks: Vec<Disk>,
    pub(super) chaos: Chaos,
    /// The first device that carries out so many effects crashes then.
    pub(super) crash_after_effects: Option<u64>,
    /// Every cluster that any device ever accepted.
    pub(super) proposed: BTreeSet<ClusterId>,
    /// Every cluster that any device ever held for decided.
    pub(super) decided: BTreeSet<ClusterId>,
    pub(super) in_use: BTreeSet<ClusterId>,
    running: Vec<Option<Founding>>,
    links: BTreeSet<(usize, usize)>,
    flying: Vec<(usize, usize, Message)>,
    /// Requests for a place and their answers on the way: to whom, from whom, which place, how listed (requests only).
    asked: Vec<(usize, usize, Place, Option<Listed>)>,
    /// Replicated membership, as if consensus were instant.
    members: BTreeMap<ClusterId, BTreeMap<DeviceId, StorageId>>,
    /// What a device knows of it that was cut off or removed, instead.
    stale: BTreeMap<usize, MembershipView>,
    founded: BTreeMap<ClusterId, Genesis>,
    effects_done: u64,
    now_ms: u64,
    /// A device's clock starts with it.
    started_ms: Vec<u64>,
    random: u64,
}

impl Disk {
    fn new(device: usize) -> Self {
        let storage = StorageId([u8::try_from(device).expect("few devices"); 16]);
        Self { record: None, cluster: None, storage }
    }
}

fn id(index: usize) -> DeviceId {
    DeviceId(format!("device-{index}"))
}

fn index(device: &DeviceId) -> usize {
    device.0.rsplit('-').next().expect("has a dash").parse().expect("a number")
}

impl World {
    pub(super) fn new(count: usize, devices: usize, seed: u64) -> Self {
        Self {
            devices_of: vec![devices; count],
            disks: (0..count).map(Disk::new).collect(),
            chaos: Chaos::default(),
            crash_after_effects: None,
            proposed: BTreeSet::new(),
            decided: BTreeSet::new(),
            in_use: BTreeSet::new(),
            running: (0..count).map(|_| None).collect(),
            links: BTreeSet::new(),
            flying: Vec::new(),
            asked: Vec::new(),
            stale: BTreeMap::new(),
            members: BTreeMap::new(),
            founded: BTreeMap::new(),
            effects_done: 0,
            now_ms: 0,
            started_ms: vec![0; count],
            random: seed,
        }
    }

    fn below(&mut self, limit: u64) -> u64 {
        // Lehmer's generator over the Mersenne prime 2^61 - 1.
        let product = u128::from(self.random % ((1 << 61) - 2) + 1) * 437_799_614_237_992_725;
        self.random = u64::try_from(product % ((1 << 61) - 1)).expect("below 2^61");
        (self.random >> 16) % limit
    }

    pub(super) fn founding(&self, device: usize) -> &Founding {
        self.running[device].as_ref().expect("runs")
    }

    pub(super) fn start(&mut self, device: usize) {
        if self.running[device].is_some() {
            return;
        }
        let disk = self.disks[device].clone();
        let me = Candidate {
            device: id(device),
            storage: disk.storage,
            name: format!("name {device}"),
            address: String::new(),
        };
        let view = disk.cluster.map(|cluster| self.view_of(device, cluster));
        let devices = u32::try_from(self.devices_of[device]).expect("small");
        let seed = self.below(u64::MAX);
        self.started_ms[device] = self.now_ms;
        self.running[device] = Some(Founding::new(me, "world", devices, disk.record, view, seed));
        self.event(device, Event::Tick);
    }

    pub(super) fn start_all(&mut self) {
        for device in 0..self.running.len() {
            self.start(device);
        }
    }

    fn stop(&mut self, device: usize) {
        self.running[device] = None;
        self.links.retain(|(a, b)| *a != device && *b != device);
        self.flying.retain(|(from, to, _)| *from != device && *to != device);
        self.asked.retain(|(to, from, ..)| *from != device && *to != device);
        for other in 0..self.running.len() {
            self.event(other, Event::PeerDown(id(device)));
        }
    }

    pub(super) fn connect(&mut self, a: usize, b: usize) {
        let pair = (a.min(b), a.max(b));
        if a != b && self.running[a].is_some() && self.running[b].is_some() && self.links.insert(pair) {
            self.event(a, Event::PeerUp(id(b)));
            self.event(b, Event::PeerUp(id(a)));
        }
    }

    fn cut(&mut self, a: usize, b: usize) {
        if self.links.remove(&(a.min(b), a.max(b))) {
            self.flying.retain(|(from, to, _)| (*from, *to) != (a, b) && (*from, *to) != (b, a));
            self.asked.retain(|(from, to, ..)| (*from, *to) != (a, b) && (*from, *to) != (b, a));
            self.event(a, Event::PeerDown(id(b)));
            self.event(b, Event::PeerDown(id(a)));
        }
    }

    pub(super) fn connect_all(&mut self) {
        for a in 0..self.running.len() {
            for b in 0..a {
                self.connect(a, b);
            }
        }
    }

    fn event(&mut self, device: usize, event: Event) {
        let now_ms = self.now_ms - self.started_ms[device];
        let Some(founding) = &mut self.running[device] else { return };
        for effect in founding.handle(now_ms, event) {
            self.effects_done += 1;
            if self.crash_after_effects == Some(self.effects_done) {
                return self.stop(device);
            }
            if self.chaos.crash > 0 && self.below(2_000) < self.chaos.crash {
                return self.stop(device);
            }
            self.carry_out(device, effect);
            if self.running[device].is_none() {
                return;
            }
        }
    }

    fn carry_out(&mut self, device: usize, effect: Effect) {
        match effect {
            Effect::Persist(record) => {
                self.proposed.extend(record.accepted.as_ref().map(|(_, genesis)| genesis.cluster_id));
                self.decided.extend(record.decided.as_ref().map(|genesis| genesis.cluster_id));
                self.disks[device].record = Some(record);
            }
            Effect::Send { to, message } => self.post(device, index(&to), message),
            Effect::Found { genesis, raft_id, campaign: _ } => self.found(device, genesis, raft_id),
            Effect::Join { place, listed, via } => {
                for member in via.iter().take(2) {
                    if self.asked.len() < 1_000 {
                        self.asked.push((index(member), device, place, Some(listed)));
                    }
                }
            }
            Effect::GiveWay { to, record } => self.give_way(device, to, record),
            Effect::Campaign | Effect::Conflict(_) => {}
        }
    }

    /// Messages pass through their encoding.
    fn post(&mut self, from: usize, to: usize, message: Message) {
        let message = Message::from_bytes(&message.to_bytes()).expect("own messages are readable");
        if self.links.contains(&(from.min(to), from.max(to))) && self.flying.len() < 10_000 {
            self.flying.push((from, to, message));
        }
    }

    fn linked(&self, a: usize, b: usize) -> bool {
        self.links.contains(&(a.min(b), a.max(b)))
    }

    fn deliver(&mut self, slot: usize) {
        let (from, to, message) = self.flying.swap_remove(slot);
        self.event(to, Event::Message { from: id(from), message });
    }

    /// Safety must not hang on who proposes when.
    fn propose_out_of_turn(&mut self, device: usize) {
        if let Some(founding) = &mut self.running[device]
            && founding.stage == Stage::Seeking
            && founding.record.decided.is_none()
        {
            founding.start_attempt();
        }
    }

    /// One request for a place or answer arrives, is lost or is repeated.
    fn answer_one(&mut self) {
        if self.asked.is_empty() || self.below(100) < 30 {
            return;
        }
        let slot = usize::try_from(self.below(self.asked.len() as u64)).expect("small");
        let (to, from, place, listed) = self.asked[slot];
        if self.below(100) >= self.chaos.repeat {
            self.asked.swap_remove(slot);
        }
        if self.below(100) >= self.chaos.loss {
            self.answer(to, from, place, listed);
        }
    }

    /// One random step of the world.
    pub(super) fn random_step(&mut self) {
        let count = self.running.len() as u64;
        let (a, b) = (self.below(count), self.below(count));
        let (a, b) = (usize::try_from(a).expect("small"), usize::try_from(b).expect("small"));
        if self.below(1000) < self.chaos.crash {
            self.stop(a);
        }
        if self.below(100) < self.chaos.cut {
            self.cut(a, b);
        }
        self.start(a);
        for c in 0..self.running.len() {
            if self.below(100) < 40 {
                self.connect(a, c);
            }
        }
        let passed_ms = if self.below(100) < self.chaos.stall { self.below(12_000) } else { self.below(50) };
        self.now_ms += passed_ms;
        if self.below(100) < self.chaos.impolite {
            self.propose_out_of_turn(a);
        }
        self.event(a, Event::Tick);
        for _ in 0..self.below(2 * count + 2) {
            self.answer_one();
            if self.flying.is_empty() {
                continue;
            }
            let slot = usize::try_from(self.below(self.flying.len() as u64)).expect("small");
            if self.below(100) < self.chaos.repeat {
                let copy = self.flying[slot].clone();
                self.flying.push(copy);
            }
            if self.below(100) < self.chaos.loss {
                self.flying.swap_remove(slot);
            } else {
                self.deliver(slot);
            }
        }
    }

    /// One step of a world in which attempts collide: hardly any time passes, everybody proposes at will,
    /// messages are lost and overtake each other, devices crash and are back at once.
    pub(super) fn duel_step(&mut self) {
        let device = self.below(self.running.len() as u64);
        let device = usize::try_from(device).expect("small");
        match self.below(100) {
            0..12 => {
                self.propose_out_of_turn(device);
                self.event(device, Event::Tick);
            }
            12..16 => {
                self.stop(device);
                self.start(device);
                self.connect_all();
            }
            16..22 => {
                self.now_ms += GATHER_MS;
                self.event(device, Event::Tick);
            }
            _ if self.flying.is_empty() => {}
            choice => {
                let slot = self.below(self.flying.len() as u64);
                let slot = usize::try_from(slot).expect("small");
                if choice < 45 {
                    self.flying.swap_remove(slot);
                } else {
                    self.deliver(slot);
                }
            }
        }
    }

    /// Runs without faults: messages take 10 ms, timers fire when they are due.
    pub(super) fn run_ms(&mut self, duration_ms: u64) {
        let end_ms = self.now_ms + duration_ms;
        while self.now_ms < end_ms {
            self.run_step();
        }
    }

    fn run_step(&mut self) {
        self.now_ms += 10;
        for _ in 0..self.flying.len() {
            if !self.flying.is_empty() {
                let slot = self.below(self.flying.len() as u64);
                self.deliver(usize::try_from(slot).expect("small"));
            }
        }
        for (to, from, place, listed) in std::mem::take(&mut self.asked) {
            self.answer(to, from, place, listed);
        }
        for device in 0..self.running.len() {
            let due_ms = self.running[device].as_ref().and_then(Founding::deadline_ms);
            if due_ms.is_some_and(|due_ms| due_ms <= self.now_ms - self.started_ms[device]) {
                self.event(device, Event::Tick);
            }
        }
    }

    /// Runs until every device that runs is in one and the same cluster; returns how long that took.
    pub(super) fn run_until_one_cluster(&mut self, limit_ms: u64) -> u64 {
        let start_ms = self.now_ms;
        loop {
            let running = (0..self.running.len()).filter(|device| self.running[*device].is_some());
            let clusters: BTreeSet<_> = running.map(|device| self.disks[device].cluster).collect();
            assert!(
                self.clusters().len() <= 1 || !self.in_use.is_empty() || self.two_are_allowed(),
                "two clusters"
            );
            if clusters.len() == 1 && clusters.first().is_some_and(Option::is_some) {
                return self.now_ms - start_ms;
            }
            assert!(self.now_ms - start_ms < limit_ms, "no single cluster after {limit_ms} ms: {clusters:?}");
            self.run_step();
        }
    }

    /// Runs until every device is in a cluster, and nobody is alone in one unless it is the only one.
    pub(super) fn run_until_settled(&mut self, limit_ms: u64) {
        let start_ms = self.now_ms;
        loop {
            let mut sizes: BTreeMap<ClusterId, usize> = BTreeMap::new();
            for cluster in self.disks.iter().filter_map(|disk| disk.cluster) {
                *sizes.entry(cluster).or_default() += 1;
            }
            let all = sizes.values().sum::<usize>() == self.disks.len();
            if all && (sizes.len() == 1 || sizes.values().all(|size| *size > 1)) {
                return;
            }
            assert!(self.now_ms - start_ms < limit_ms, "not settled after {limit_ms} ms: {sizes:?}");
            self.run_step();
        }
    }

    /// Runs until these devices are in one cluster.
    pub(super) fn run_until_one_of(&mut self, devices: &[usize], limit_ms: u64) {
        let end_ms = self.now_ms + limit_ms;
        let clusters = |world: &Self| -> BTreeSet<_> {
            devices.iter().map(|device| world.disks[*device].cluster).collect()
        };
        while clusters(self).len() > 1 || clusters(self).contains(&None) {
            assert!(self.now_ms < end_ms, "{:?}", clusters(self));
            self.run_step();
        }
    }

    pub(super) fn all_run(&self) -> bool {
        self.running.iter().all(Option::is_some)
    }

    /// The device that carries out the effect after so many more crashes then.
    pub(super) fn crash_after(&mut self, effects: u64) {
        self.crash_after_effects = Some(self.effects_done + effects + 1);
    }

    /// Tests of meeting clusters make two on purpose: with configs that are not identical.
    fn two_are_allowed(&self) -> bool {
        self.devices_of.iter().any(|devices| *devices < self.devices_of.len())
    }
}
