//! What goes wrong, and when.

use mesh_consensus::{Command, Conf, Node, RedbStore, Request, RequestId};

use super::happening::Happening;
use super::options::Story;
use super::process::{Process, device_id, device_index};
use super::workload;
use super::world::{Device, World};

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Crash,
    /// The network falls into two parts.
    Cut,
    /// One direction between two devices swallows everything.
    OneWay,
    /// A device freezes, or its clock does.
    Stall,
    /// A disk fails after some more writes; the daemon dies of it.
    DiskFailure,
    /// A device comes back with an empty disk.
    Wipe,
    /// An operator removes a device.
    Remove,
    /// A device that was not there before is started.
    Arrival,
}

/// An operator's patience, and the time between two of its questions.
const OPERATOR_MS: u64 = 30_000;
const ASK_AGAIN_MS: u64 = 500;

const FAULTS: [Fault; 8] = [
    Fault::Crash,
    Fault::Cut,
    Fault::OneWay,
    Fault::Stall,
    Fault::DiskFailure,
    Fault::Wipe,
    Fault::Remove,
    Fault::Arrival,
];

impl World {
    pub(crate) fn schedule_faults(&mut self) {
        for fault in FAULTS {
            self.schedule_fault(fault);
        }
    }

    fn schedule_fault(&mut self, fault: Fault) {
        let options = &self.options;
        let every_ms = match fault {
            Fault::Crash => options.crash_every_ms,
            Fault::Cut => options.cut_every_ms,
            Fault::OneWay => options.one_way_every_ms,
            Fault::Stall => options.stall_every_ms,
            Fault::DiskFailure => options.disk_failure_every_ms,
            Fault::Wipe => options.wipe_every_ms,
            Fault::Remove => options.remove_every_ms,
            Fault::Arrival => 2_000,
        };
        if every_ms > 0 {
            let wait_ms = self.dice.between(1, 2 * every_ms);
            self.schedule(self.now_ms + wait_ms, Happening::Fault(fault));
        }
    }

    pub(crate) fn fault(&mut self, fault: Fault) -> Result<(), String> {
        if self.healed {
            return Ok(());
        }
        self.schedule_fault(fault);
        let device = self.dice.index(self.devices.len());
        match fault {
            Fault::Crash => self.crash_running(device),
            Fault::Cut => self.cut(),
            Fault::OneWay => self.silence(device),
            Fault::Stall => self.stall(device),
            Fault::DiskFailure => {
                let disk = &self.devices[device].disk;
                disk.fail_from(disk.operations() + self.dice.below(40));
            }
            Fault::Wipe => self.wipe(device),
            Fault::Remove => return self.remove(device),
            Fault::Arrival => self.arrival(),
        }
        Ok(())
    }

    fn crash_running(&mut self, device: usize) {
        if self.devices[device].process.is_some() {
            self.note(|_| format!("fault: d{device} loses power"));
            self.crash(device);
        }
    }

    fn cut(&mut self) {
        let sides = self.dice.bits();
        let until_ms = self.now_ms + self.dice.between(200, 15_000);
        self.note(|_| format!("fault: network cut until {until_ms}, sides {sides:b}"));
        for a in 0..self.devices.len() {
            for b in 0..a {
                if (sides >> a) & 1 != (sides >> b) & 1 {
                    self.network.cut(a, b, until_ms);
                    self.disconnect(a, b);
                }
            }
        }
    }

    fn silence(&mut self, from: usize) {
        let to = self.dice.index(self.devices.len());
        let until_ms = self.now_ms + self.dice.between(200, 10_000);
        self.note(|_| format!("fault: d{from} -> d{to} silent until {until_ms}"));
        self.network.silence(from, to, until_ms);
    }

    fn stall(&mut self, device: usize) {
        let until_ms = self.now_ms + self.dice.between(100, 12_000);
        if self.dice.permille(500) {
            self.note(|_| format!("fault: d{device} frozen until {until_ms}"));
            self.devices[device].frozen_until_ms = until_ms;
        } else {
            self.note(|_| format!("fault: clock of d{device} stands still until {until_ms}"));
            self.devices[device].clock_stalled_until_ms = until_ms;
        }
    }

    /// Nothing about the membership is under way, and a voter more or less costs no quorum: an operator
    /// would wait for that, and beyond it nobody promises anything.
    fn settled(&self) -> bool {
        let Some(leader) = self.leader().and_then(|index| self.devices[index].process.as_ref()?.node())
        else {
            return false;
        };
        let conf: &Conf = leader.conf();
        let members = &leader.state().members;
        let in_place = |device: &Device| {
            let Some(process) = &device.process else { return false };
            process.node().is_some_and(|node| {
                node.cluster_id() == leader.cluster_id()
                    && members.get(&node.id()).is_some_and(|member| member.storage == process.storage())
            })
        };
        let present = |device: &Device| device.retired || !device.known || in_place(device);
        !conf.is_joint()
            && self.devices.iter().all(present)
            && members.keys().all(|id| conf.contains(*id))
            && conf.voters.union(&conf.learners).all(|id| members.contains_key(id))
            && members.values().all(|member| {
                self.devices[device_index(&member.device)].process.as_ref().is_some_and(|process| {
                    process.node().is_some_and(|node| node.id() == member.raft_id && node.is_member())
                })
            })
    }

    /// Another device leads, and voters are left. One that was frozen may lead in an old term: the voters have changed
    /// since, and this device may be all of them.
    fn survives_without(&self, device: usize) -> bool {
        let Some(leader) = self.leader().filter(|leader| *leader != device) else { return false };
        let Some(leader) = self.devices[leader].process.as_ref().and_then(Process::node) else {
            return false;
        };
        let agrees = |node: &Node<RedbStore>| node.term() == leader.term() && node.conf() == leader.conf();
        leader.conf().voters.len() >= 3
            && self.nodes().filter(|node| node.cluster_id() == leader.cluster_id()).all(agrees)
    }

    /// The disk is lost and replaced; the identity is the same.
    fn wipe(&mut self, device: usize) {
        let running = self.devices[device].process.is_some();
        if !running || !self.settled() || !self.survives_without(device) {
            return;
        }
        self.note(|_| format!("fault: d{device} loses its disk"));
        self.crash(device);
        self.devices[device].disk = self.new_disk();
        self.devices[device].prepared = false;
        self.lose_blobs(device);
    }

    /// At any time: whatever is under way, and whoever leads or votes, what is left must stay a cluster.
    fn remove(&mut self, device: usize) -> Result<(), String> {
        let Some(leader) = self.leader() else { return Ok(()) };
        let members = self.devices[leader]
            .process
            .as_ref()
            .and_then(Process::node)
            .map(|node| node.state().members.len());
        if members.is_none_or(|members| members < 2)
            || self.devices[device].retired
            || !self.devices[device].known
        {
            return Ok(());
        }
        self.note(|_| format!("fault: the operator removes d{device}"));
        self.sequence += 1;
        let id = RequestId { proposer: device_id(leader), sequence: self.sequence };
        let request = Request { id, command: Command::RemoveMember { device: device_id(device) } };
        self.operator(Box::new(request), self.now_ms + OPERATOR_MS)
    }

    /// Asks whoever leads, and asks again later, as the daemon does for a person who waits.
    pub(crate) fn operator(&mut self, request: Box<Request>, until_ms: u64) -> Result<(), String> {
        let Some(leader) = self.leader() else { return self.ask_later(request, until_ms) };
        let node = self.devices[leader].process.as_ref().and_then(Process::node);
        if node.is_some_and(|node| node.state().outcome(&request.id).is_some()) {
            return Ok(());
        }
        if self.now_ms >= self.devices[leader].frozen_until_ms {
            self.with(leader, |process, now_ms| process.submit(now_ms, &request))?;
        }
        self.ask_later(request, until_ms)
    }

    fn ask_later(&mut self, request: Box<Request>, until_ms: u64) -> Result<(), String> {
        if self.now_ms + ASK_AGAIN_MS < until_ms {
            self.schedule(self.now_ms + ASK_AGAIN_MS, Happening::Operator { request, until_ms });
        }
        Ok(())
    }

    /// Late devices come one by one, when there is a cluster to come to.
    fn arrival(&mut self) {
        let next = self.devices.iter().position(|device| !device.known);
        let founded = self.options.story == Story::Together && self.settled();
        if let Some(device) = next.filter(|device| founded && *device >= self.options.founders) {
            self.schedule(self.now_ms, Happening::Start(device));
        }
    }

    /// A client asks some device for something.
    pub(crate) fn request(&mut self) -> Result<(), String> {
        if self.healed {
            return Ok(());
        }
        let wait_ms = self.dice.between(1, 2 * self.options.request_every_ms);
        self.schedule(self.now_ms + wait_ms, Happening::Request);
        let device = self.dice.index(self.devices.len());
        let Some(node) = self.devices[device].process.as_ref().and_then(Process::node) else { return Ok(()) };
        if self.now_ms < self.devices[device].frozen_until_ms {
            return Ok(());
        }
        self.sequence += 1;
        let serves = self.options.ask_every_ms > 0;
        let request = workload::random_request(&mut self.dice, device, self.sequence, node.state(), serves);
        self.with(device, |process, now_ms| process.submit(now_ms, &request))
    }

    /// A client asks some device for an answer.
    pub(crate) fn ask_somebody(&mut self) -> Result<(), String> {
        if self.healed {
            return Ok(());
        }
        self.note_copies();
        let wait_ms = self.dice.between(1, 2 * self.options.ask_every_ms);
        self.schedule(self.now_ms + wait_ms, Happening::Ask);
        let device = self.dice.index(self.devices.len());
        if self.now_ms < self.devices[device].frozen_until_ms {
            return Ok(());
        }
        let node = self.devices[device].process.as_ref().and_then(Process::node);
        let names: Vec<String> =
            node.map(|node| node.state().deployments.keys().cloned().collect()).unwrap_or_default();
        let Some(name) = self.dice.pick(&names).cloned() else { return Ok(()) };
        let (input, timeout_ms) = (self.dice.bits(), self.dice.between(200, 20_000));
        self.with(device, |process, now_ms| process.ask(now_ms, &name, input, timeout_ms).map(|_| ()))
    }
}
