//! A world of devices that run the real protocol over a network and disks made of vectors.

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
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    pub(super) record: Option<Record>,
    pub(super) cluster: Option<ClusterId>,
    pub(super) storage: u8,
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
    /// Replicated membership, as if consensus were instant.
    members: BTreeMap<ClusterId, BTreeSet<DeviceId>>,
    founded: BTreeMap<ClusterId, Genesis>,
    effects_done: u64,
    now_ms: u64,
    /// A device's clock starts with it.
    started_ms: Vec<u64>,
    random: u64,
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
            disks: vec![Disk::default(); count],
            chaos: Chaos::default(),
            crash_after_effects: None,
            proposed: BTreeSet::new(),
            decided: BTreeSet::new(),
            in_use: BTreeSet::new(),
            running: (0..count).map(|_| None).collect(),
            links: BTreeSet::new(),
            flying: Vec::new(),
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
            storage: StorageId([disk.storage; 16]),
            name: format!("name {device}"),
            address: String::new(),
        };
        let view = disk.cluster.map(|cluster| self.view(cluster));
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

    fn view(&self, cluster: ClusterId) -> MembershipView {
        let members = self.members.get(&cluster).cloned().unwrap_or_default();
        let leader = members.first().cloned();
        MembershipView { cluster_id: cluster, members, in_use: self.in_use.contains(&cluster), leader }
    }

    pub(super) fn publish(&mut self, cluster: ClusterId) {
        for device in 0..self.running.len() {
            if self.disks[device].cluster == Some(cluster) {
                let view = self.view(cluster);
                self.event(device, Event::MembershipChanged(view));
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
            Effect::Join { cluster_id, via } => self.join(device, cluster_id, &via),
            Effect::GiveWay { to: _, via: _, record } => self.give_way(device, record),
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

    fn found(&mut self, device: usize, genesis: Genesis, raft_id: u64) {
        assert_eq!(genesis.members[usize::try_from(raft_id).expect("small") - 1].device, id(device));
        assert!(matches!(genesis.voters.len(), 1 | 3 | 5), "never two voters");
        assert!(self.disks[device].cluster.is_none(), "the store must be empty");
        let cluster = genesis.cluster_id;
        self.disks[device].cluster = Some(cluster);
        let known = self.founded.entry(cluster).or_insert_with(|| genesis.clone());
        assert_eq!(*known, genesis, "one id, two clusters");
        let listed = genesis.members.iter().map(|member| member.device.clone());
        self.members.entry(cluster).or_default().extend(listed);
        let view = self.view(cluster);
        self.event(device, Event::MembershipChanged(view));
    }

    /// Joining works when a majority of the founding voters runs.
    fn join(&mut self, device: usize, cluster: ClusterId, via: &[DeviceId]) {
        let Some(genesis) = self.founded.get(&cluster) else { return };
        let up = |voter: &&crate::Member| {
            let voter = index(&voter.device);
            self.running[voter].is_some() && self.disks[voter].cluster == Some(cluster)
        };
        let voters = &genesis.members[..genesis.voters.len()];
        let majority = voters.iter().filter(up).count() > voters.len() / 2;
        let reached = via.iter().any(|member| self.disks[index(member)].cluster == Some(cluster));
        if majority && reached && self.disks[device].cluster.is_none() {
            self.disks[device].cluster = Some(cluster);
            self.members.entry(cluster).or_default().insert(id(device));
            self.publish(cluster);
        }
    }

    fn give_way(&mut self, device: usize, record: Record) {
        let cluster = self.disks[device].cluster.take().expect("gives a cluster up");
        assert_eq!(self.members[&cluster].len(), 1, "only a lone founder gives way");
        assert!(!self.in_use.contains(&cluster), "only an unused cluster is given up");
        self.members.remove(&cluster);
        self.founded.remove(&cluster);
        self.disks[device].record = Some(record);
        self.disks[device].storage += 1;
        let links: Vec<usize> = (0..self.running.len()).filter(|other| self.linked(device, *other)).collect();
        self.stop(device);
        self.start(device);
        for other in links {
            self.connect(device, other);
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
        let passed_ms = if self.below(100) < self.chaos.stall { self.below(4_000) } else { self.below(50) };
        self.now_ms += passed_ms;
        if self.below(100) < self.chaos.impolite {
            self.propose_out_of_turn(a);
        }
        self.event(a, Event::Tick);
        for _ in 0..self.below(2 * count + 2) {
            if self.flying.is_empty() {
                return;
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
        for device in 0..self.running.len() {
            let due_ms = self.running[device].as_ref().and_then(Founding::deadline_ms);
            if due_ms.is_some_and(|due_ms| due_ms <= self.now_ms - self.started_ms[device]) {
                self.event(device, Event::Tick);
            }
        }
    }

    /// Clusters that at least one disk belongs to.
    pub(super) fn clusters(&self) -> BTreeSet<ClusterId> {
        self.disks.iter().filter_map(|disk| disk.cluster).collect()
    }

    pub(super) fn voters(&self) -> usize {
        self.founded.values().map(|genesis| genesis.voters.len()).max().unwrap_or(0)
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

    /// Tests of meeting clusters make two on purpose: with configs that are not identical.
    fn two_are_allowed(&self) -> bool {
        self.devices_of.iter().any(|devices| *devices < self.devices_of.len())
    }
}
