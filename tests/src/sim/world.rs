//! Virtual time, the event loop, and the devices in it.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::fmt::Write;
use std::rc::Rc;
use std::time::Instant;

use mesh_consensus::founding::Event;
use mesh_consensus::{ClusterId, MemoryDisk, RaftId, Role};
use mesh_inference::blobs::Hash;

use super::Report;
use super::checker::Checker;
use super::dice::Dice;
use super::happening::{Happening, Scheduled};
use super::network::Network;
use super::options::{Sabotage, SimOptions, Story};
use super::packet::Packet;
use super::process::{Death, Deed, Process, Setup, device_id};
use super::replication::Replication;

/// A device looks at its timers this often; every second time is a Raft tick.
const TIMER_MS: u64 = 50;
/// Unconnected devices try to connect this often.
const DIAL_MS: u64 = 200;
/// Virtual time in which strangers are kept apart.
const APART_MS: u64 = 3_000;
/// What the stages of a device may use: models take 60, a block 10 and a little for what it works on.
const MEMORIES: [u64; 4] = [25, 36, 48, 100];
/// A run with more events than this is stuck in a loop.
const EVENTS_MAX: u64 = 3_000_000;

/// How the simulated disk's own errors are told from damage.
const DISK_FAILURE: &str = "simulated disk failure";

/// Virtual time and what went wrong then.
pub(crate) type Failure = (u64, String);

/// A machine: a disk, and a daemon while it runs.
pub(crate) struct Device {
    pub(crate) disk: MemoryDisk,
    pub(crate) process: Option<Process>,
    /// Counts starts; events for an earlier one are void.
    pub(crate) incarnation: u64,
    /// The daemon's own clock.
    clock_ms: u64,
    last_timer_ms: u64,
    timers: u64,
    /// Nothing runs until then; what arrives waits.
    pub(crate) frozen_until_ms: u64,
    /// The clock stands still until then, and no timer fires, but messages are handled.
    pub(crate) clock_stalled_until_ms: u64,
    /// Was started at least once.
    pub(crate) known: bool,
    /// The store was made; until then a crash leaves nothing, because it is made aside and renamed.
    pub(crate) prepared: bool,
    /// Removed by an operator: never comes back.
    pub(crate) retired: bool,
    /// What its stages may use, in the bytes of the simulated models.
    pub(crate) memory: u64,
    /// It can load no stage any more.
    pub(crate) is_spoilt: bool,
    /// Blobs on its disk, while it does not run.
    pub(crate) blobs: BTreeSet<Hash>,
}

pub(crate) struct World {
    pub(crate) options: SimOptions,
    pub(crate) dice: Dice,
    pub(crate) devices: Vec<Device>,
    pub(crate) network: Network,
    pub(crate) checker: Checker,
    pub(crate) now_ms: u64,
    /// Faults are over.
    pub(crate) healed: bool,
    pub(crate) sequence: u64,
    pub(crate) crashes: u64,
    /// Devices that are gone for good, and the clusters that have removed them or were told to.
    pub(crate) given_notice: BTreeSet<(ClusterId, usize)>,
    pub(crate) events: u64,
    /// What was found to be wrong while connections broke; the run ends with it.
    pub(crate) broken: Option<String>,
    /// Of the models' blobs.
    pub(crate) replication: Replication,
    /// A rule that is broken on purpose.
    pub(crate) sabotage: Option<Sabotage>,
    /// What all virtual clocks begin with.
    zero: Instant,
    queue: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    log: Option<Rc<RefCell<String>>>,
}

impl World {
    pub(crate) fn new(seed: u64, sabotage: Option<Sabotage>, log: Option<Rc<RefCell<String>>>) -> Self {
        let mut dice = Dice::new(seed);
        let options = SimOptions::draw(&mut dice);
        let count = options.founders + options.late;
        let mut memory = || *dice.pick(&MEMORIES).unwrap_or(&MEMORIES[0]);
        let memories: Vec<u64> = (0..count).map(|_| memory()).collect();
        let device = |memory| Device {
            disk: Sabotage::disk(sabotage),
            process: None,
            incarnation: 0,
            clock_ms: 0,
            last_timer_ms: 0,
            timers: 0,
            frozen_until_ms: 0,
            clock_stalled_until_ms: 0,
            known: false,
            prepared: false,
            retired: false,
            memory,
            is_spoilt: false,
            blobs: BTreeSet::new(),
        };
        Self {
            options,
            dice,
            devices: memories.into_iter().map(device).collect(),
            network: Network::new(count),
            checker: Checker::default(),
            now_ms: 0,
            healed: false,
            sequence: 0,
            crashes: 0,
            given_notice: BTreeSet::new(),
            events: 0,
            broken: None,
            replication: Replication::default(),
            sabotage,
            zero: Instant::now(),
            queue: BinaryHeap::new(),
            scheduled: 0,
            log,
        }
    }

    /// The whole run.
    pub(crate) fn run(mut self) -> Result<Report, Failure> {
        self.note(|world| format!("{:?}", world.options));
        self.schedule_start();
        let chaos_ms = self.options.chaos_ms;
        self.run_until(chaos_ms)?;
        self.heal_and_agree()
    }

    fn schedule_start(&mut self) {
        for device in 0..self.options.founders {
            let spread_ms = if self.dice.permille(500) { 200 } else { 4_000 };
            let at_ms = self.dice.below(spread_ms);
            self.schedule(at_ms, Happening::Start(device));
        }
        let dial_ms = if self.options.story == Story::Strangers { APART_MS } else { 0 };
        self.schedule(dial_ms, Happening::Dial);
        if self.options.story == Story::Together {
            self.schedule(0, Happening::Request);
        }
        if self.options.ask_every_ms > 0 {
            self.schedule(0, Happening::Ask);
        }
        self.schedule_faults();
    }

    pub(crate) fn schedule(&mut self, at_ms: u64, happening: Happening) {
        self.scheduled += 1;
        let scheduled = Scheduled { at_ms: at_ms.max(self.now_ms), number: self.scheduled, happening };
        self.queue.push(Reverse(scheduled));
    }

    pub(crate) fn run_until(&mut self, end_ms: u64) -> Result<(), Failure> {
        while let Some(Reverse(next)) = self.queue.peek() {
            if next.at_ms > end_ms {
                break;
            }
            let Some(Reverse(next)) = self.queue.pop() else { break };
            self.now_ms = next.at_ms;
            self.events += 1;
            if self.events > EVENTS_MAX {
                return Err((self.now_ms, format!("{EVENTS_MAX} events and no end")));
            }
            let happened = self.happen(next.happening);
            happened
                .and_then(|()| self.broken.take().map_or(Ok(()), Err))
                .map_err(|what| (self.now_ms, what))?;
        }
        self.now_ms = end_ms;
        Ok(())
    }

    fn happen(&mut self, happening: Happening) -> Result<(), String> {
        match happening {
            Happening::Timer { device, incarnation } => self.timer(device, incarnation),
            Happening::Arrive { from, to, connection, packet } => self.arrive(from, to, connection, packet),
            Happening::SnapshotReport { device, incarnation, to, delivered } => {
                if self.devices[device].incarnation == incarnation {
                    return self.with(device, |process, _| process.report(to, delivered));
                }
                Ok(())
            }
            Happening::Start(device) => self.start(device),
            Happening::Dial => self.dial(),
            Happening::Request => self.request(),
            Happening::Ask => self.ask_somebody(),
            Happening::Fault(fault) => self.fault(fault),
            Happening::Operator { request, until_ms } => self.operator(request, until_ms),
        }
    }

    /// Lets a device do something, then carries out what it did and looks at it.
    pub(crate) fn with(
        &mut self,
        device: usize,
        action: impl FnOnce(&mut Process, u64) -> Result<(), Death>,
    ) -> Result<(), String> {
        let Device { process, clock_ms, .. } = &mut self.devices[device];
        let Some(process) = process else { return Ok(()) };
        let result = action(process, *clock_ms);
        let deeds = process.take_deeds();
        let alive = result.is_ok();
        if let Err(Death(why)) = result {
            self.note(|_| format!("d{device} dies: {why}"));
            self.crash(device);
        }
        for deed in deeds {
            self.deed(device, deed, alive)?;
        }
        if let Device { process: Some(process), incarnation, .. } = &self.devices[device] {
            self.checker.observe(process, *incarnation)?;
            process.node().into_iter().for_each(|node| self.replication.observe(node));
        }
        Ok(())
    }

    /// A message that was handed over before the crash may still be on its way; other deeds are facts.
    fn deed(&mut self, device: usize, deed: Deed, alive: bool) -> Result<(), String> {
        if let Some(line) = deed.describe() {
            self.note(|_| format!("d{device} {line}"));
        }
        match deed {
            Deed::Send { to, packet } => self.send(device, to, packet, alive),
            Deed::Founded(cluster) => {
                self.checker.founded.insert(cluster);
                if self.options.story == Story::Together && self.checker.founded.len() > 1 {
                    return Err(format!("two clusters were founded: {:?}", self.checker.founded));
                }
            }
            Deed::Applied { cluster, index, request } => self.checker.applied(cluster, index, request)?,
            Deed::Acknowledged { cluster, index } => self.checker.acknowledge(cluster, index),
            Deed::Replaced(disk) => {
                self.stop(device);
                self.devices[device].disk = disk;
                self.schedule(self.now_ms, Happening::Start(device));
            }
            Deed::Removed(cluster) => self.retire(device, cluster),
            Deed::Answered { cluster, deployment, input, answer } => {
                self.checker.answered(cluster, &deployment, input, answer)?;
            }
            Deed::Broken(what) => return Err(format!("d{device}: {what}")),
            Deed::Joined(..) | Deed::Note(_) => {}
        }
        Ok(())
    }

    fn send(&mut self, from: usize, to: usize, packet: Packet, alive: bool) {
        let report = packet.snapshot_for();
        let connection = self.devices.get(to).and_then(|_| self.network.connection(from, to));
        let Some(connection) = connection.filter(|_| alive) else {
            if let (Packet::Raft { to, .. }, Some(process)) = (&packet, &mut self.devices[from].process) {
                process.unreachable(*to);
            }
            self.report_snapshot(from, report, 1, false);
            return;
        };
        let delays_ms = self.network.delays_ms(&mut self.dice, &self.options, (from, to), self.now_ms);
        self.report_snapshot(from, report, delays_ms.first().map_or(500, |ms| ms + 1), !delays_ms.is_empty());
        for delay_ms in delays_ms {
            let packet = packet.clone();
            self.schedule(self.now_ms + delay_ms, Happening::Arrive { from, to, connection, packet });
        }
    }

    /// Tells the sender what became of a snapshot; now and then the report is lost.
    fn report_snapshot(&mut self, device: usize, to: Option<RaftId>, delay_ms: u64, delivered: bool) {
        let Some(to) = to else { return };
        if self.dice.permille(950) {
            let incarnation = self.devices[device].incarnation;
            let report = Happening::SnapshotReport { device, incarnation, to, delivered };
            self.schedule(self.now_ms + delay_ms, report);
        }
    }

    fn arrive(&mut self, from: usize, to: usize, connection: u64, packet: Packet) -> Result<(), String> {
        if self.network.connection(from, to) != Some(connection) {
            return Ok(());
        }
        let frozen_until_ms = self.devices[to].frozen_until_ms;
        if self.now_ms < frozen_until_ms {
            self.schedule(frozen_until_ms, Happening::Arrive { from, to, connection, packet });
            return Ok(());
        }
        if !matches!(packet, Packet::Report(_)) {
            self.note(|_| format!("d{from} -> d{to} {}", packet.kind()));
        }
        self.with(to, |process, now_ms| process.receive(now_ms, from, packet))
    }

    fn timer(&mut self, index: usize, incarnation: u64) -> Result<(), String> {
        let now_ms = self.now_ms;
        let device = &mut self.devices[index];
        if device.incarnation != incarnation || device.process.is_none() {
            return Ok(());
        }
        let passed_ms = now_ms - device.last_timer_ms;
        device.last_timer_ms = now_ms;
        let stands_still = now_ms < device.frozen_until_ms.max(device.clock_stalled_until_ms);
        if !stands_still {
            device.clock_ms += passed_ms;
            device.timers += 1;
        }
        let tick = device.timers.is_multiple_of(2);
        self.schedule(now_ms + TIMER_MS, Happening::Timer { device: index, incarnation });
        if stands_still {
            return Ok(());
        }
        self.with(index, |process, clock_ms| {
            if process.founding_due(clock_ms) {
                process.founding_event(clock_ms, Event::Tick)?;
            }
            if tick { process.tick(clock_ms) } else { Ok(()) }
        })
    }

    fn start(&mut self, index: usize) -> Result<(), String> {
        let seed = self.dice.bits();
        let phase_ms = self.dice.below(TIMER_MS);
        let devices = match self.options.story {
            Story::Together => u32::try_from(self.options.founders).unwrap_or(1),
            Story::Strangers => 1,
        };
        let (snapshot_entries, kept_entries) = (self.options.snapshot_entries, self.options.kept_entries);
        let (zero, sabotage) = (self.zero, self.sabotage);
        let serves = self.options.ask_every_ms > 0;
        let device = &mut self.devices[index];
        if device.process.is_some() || device.retired {
            return Ok(());
        }
        device.known = true;
        device.incarnation += 1;
        (device.clock_ms, device.timers, device.last_timer_ms) = (0, 0, self.now_ms);
        let incarnation = device.incarnation;
        let memory = serves.then_some(device.memory);
        let held = device.blobs.clone();
        let setup =
            Setup { index, devices, seed, snapshot_entries, kept_entries, memory, zero, sabotage, held };
        match Process::start(setup, &device.disk) {
            Ok(mut process) => {
                if device.is_spoilt {
                    process.spoil();
                }
                device.process = Some(process);
                device.prepared = true;
            }
            Err(Death(why)) if why.contains(DISK_FAILURE) => {
                let prepared = device.prepared;
                self.crash(index);
                if !prepared {
                    self.devices[index].disk = self.new_disk();
                }
                return Ok(());
            }
            Err(Death(why)) => return Err(format!("d{index} cannot start again: {why}")),
        }
        self.note(|_| format!("d{index} starts"));
        self.schedule(self.now_ms + phase_ms, Happening::Timer { device: index, incarnation });
        self.with(index, |process, clock_ms| process.founding_event(clock_ms, Event::Tick))
    }

    pub(crate) fn new_disk(&self) -> MemoryDisk {
        Sabotage::disk(self.sabotage)
    }

    /// Ends a daemon without harm to its disk.
    pub(crate) fn stop(&mut self, index: usize) {
        self.devices[index].disk.crash(|| true);
        self.end(index);
    }

    /// Cuts a device's power. What was not synced is lost or torn; it comes back some time later.
    pub(crate) fn crash(&mut self, index: usize) {
        self.crashes += 1;
        let torn = self.options.torn;
        let mut dice = Dice::new(self.dice.bits());
        self.devices[index].disk.crash(|| dice.permille(torn));
        self.end(index);
        let away_ms = if self.healed { 100 } else { self.dice.between(50, 50 + self.options.away_ms) };
        self.schedule(self.now_ms + away_ms, Happening::Start(index));
    }

    fn end(&mut self, index: usize) {
        let process = self.devices[index].process.take();
        if let Some(held) = process.as_ref().and_then(Process::held) {
            self.devices[index].blobs = held.clone();
        }
        self.devices[index].incarnation += 1;
        for other in 0..self.devices.len() {
            self.disconnect(index, other);
        }
    }

    pub(crate) fn disconnect(&mut self, a: usize, b: usize) {
        if !self.network.disconnect(a, b) {
            return;
        }
        for (here, there) in [(a, b), (b, a)] {
            let broken = self.with(here, |process, now_ms| process.peer_gone(now_ms, there)).err();
            self.broken = self.broken.take().or(broken);
        }
    }

    fn dial(&mut self) -> Result<(), String> {
        self.schedule(self.now_ms + DIAL_MS, Happening::Dial);
        for a in 0..self.devices.len() {
            for b in 0..a {
                let refused = self.refuses(a, b) || self.refuses(b, a);
                if refused {
                    self.disconnect(a, b);
                }
                let both_run = self.devices[a].process.is_some() && self.devices[b].process.is_some();
                if refused || !both_run || !self.network.can_connect(a, b, self.now_ms) {
                    continue;
                }
                if self.healed || self.dice.permille(700) {
                    self.network.connect(a, b);
                    self.note(|_| format!("d{a} and d{b} connect"));
                    for (here, there) in [(a, b), (b, a)] {
                        self.with(here, |process, now_ms| {
                            process.founding_event(now_ms, Event::PeerUp(device_id(there)))
                        })?;
                    }
                }
            }
        }
        Ok(())
    }

    /// A removed device is refused by those that know.
    fn refuses(&self, here: usize, there: usize) -> bool {
        let node = self.devices[here].process.as_ref().and_then(Process::node);
        node.is_some_and(|node| node.state().removed.contains(&device_id(there)))
    }

    /// The leader of the newest term, if any.
    pub(crate) fn leader(&self) -> Option<usize> {
        let leads = |device: &Device| {
            let node = device.process.as_ref()?.node()?;
            (node.role() == Role::Leader).then(|| node.term())
        };
        let leaders =
            self.devices.iter().enumerate().filter_map(|(index, device)| Some((leads(device)?, index)));
        leaders.max().map(|(_, index)| index)
    }

    pub(crate) fn note(&self, line: impl FnOnce(&Self) -> String) {
        if let Some(log) = &self.log {
            let line = line(self);
            let _ = writeln!(log.borrow_mut(), "{:>7} {line}", self.now_ms);
        }
    }
}
