//! The end of every run: everything is healed, and agreement must come within bounded time.

use std::collections::{BTreeMap, BTreeSet};

use mesh_consensus::{
    ClusterId, ClusterState, Command, Deployment, Member, Node, RedbStore, Request, RequestId,
};
use mesh_planner::solve;

use super::Report;
use super::happening::Happening;
use super::options::Story;
use super::process::{Process, device_id, device_index};
use super::serving::problem;
use super::workload;
use super::world::{Device, Failure, World};

/// Virtual time after healing in which all devices must be in one cluster with the right voters.
const AGREE_MS: u64 = 60_000;
/// Virtual time in which a request must then be applied everywhere.
const COMMIT_MS: u64 = 10_000;
const RETRY_MS: u64 = 2_000;
/// Virtual time in which everything must then be served, and a request answered...
const SERVE_MS: u64 = 90_000;
/// ...but a first plan that is ready waits for two minutes where a device cannot keep its share of the weights.
const SPREAD_MS: u64 = 130_000;
const ANSWER_MS: u64 = 20_000;
/// Virtual time in which every device must then have its share of the blobs.
const KEEP_MS: u64 = 20_000;
/// Planner's steps to see whether a model can be held.
const PLAN_STEPS: u64 = 50_000;
const LOOK_MS: u64 = 100;

impl World {
    pub(crate) fn heal_and_agree(mut self) -> Result<Report, Failure> {
        self.heal();
        let healed_ms = self.now_ms;
        if let Some(reason) = self.wait(AGREE_MS, World::disagreement)? {
            return Err((self.now_ms, format!("no agreement {AGREE_MS} ms after healing: {reason}")));
        }
        let healing_ms = self.now_ms - healed_ms;
        if self.settled_apart() {
            return Ok(self.report(healing_ms, 0));
        }
        self.commit_one()?;
        self.serve_all()?;
        // The leader goes on deciding things: what one device has applied the others must soon have, too.
        let behind = self.wait(COMMIT_MS, World::behind)?;
        behind.map_or(Ok(()), |reason| Err((self.now_ms, reason)))?;
        let cluster = self.nodes().next().map(|node| (node.cluster_id(), node.applied()));
        let (cluster, applied) = cluster.ok_or((self.now_ms, "nobody is left".to_owned()))?;
        self.checker.finish(cluster, applied).map_err(|what| (self.now_ms, what))?;
        Ok(self.report(healing_ms, applied))
    }

    fn report(&self, healing_ms: u64, applied: u64) -> Report {
        Report {
            devices: self.nodes().count(),
            events: self.events,
            virtual_ms: self.now_ms,
            healing_ms,
            applied,
            answers: self.checker.right,
            crashes: self.crashes,
            log: String::new(),
        }
    }

    /// Strangers that met in pairs while the network was cut have two clusters with more than one member:
    /// neither gives way, and every device of both says so that the other one talks to.
    fn settled_apart(&self) -> bool {
        let mut sizes: BTreeMap<ClusterId, usize> = BTreeMap::new();
        for node in self.nodes() {
            *sizes.entry(node.cluster_id()).or_default() += 1;
        }
        let tells = |(index, device): (usize, &Device)| {
            device.process.as_ref().is_none_or(|process| {
                process
                    .node()
                    .is_some_and(|node| process.reports_two_clusters() || self.is_refused(index, node))
            })
        };
        self.options.story == Story::Strangers
            && sizes.len() > 1
            && sizes.values().all(|size| *size > 1)
            && self.devices.iter().enumerate().all(tells)
    }

    /// The other clusters have removed the device, and do not talk to it: it cannot know of them.
    fn is_refused(&self, index: usize, node: &Node<RedbStore>) -> bool {
        let mut others = self.nodes().filter(|other| other.cluster_id() != node.cluster_id());
        others.all(|other| other.state().removed.contains(&device_id(index)))
    }

    fn heal(&mut self) {
        self.note(|_| "all is healed".to_owned());
        self.healed = true;
        (self.options.loss, self.options.duplication, self.options.straggler) = (0, 0, 0);
        self.network.heal();
        for index in 0..self.devices.len() {
            let device = &mut self.devices[index];
            device.frozen_until_ms = 0;
            device.clock_stalled_until_ms = 0;
            device.disk.fail_from(u64::MAX);
            if device.known || index < self.options.founders {
                self.schedule(self.now_ms, Happening::Start(index));
            }
        }
        if self.options.ask_every_ms > 0 && self.dice.permille(300) {
            self.cut_power();
        }
    }

    /// The power fails everywhere and comes back, and one device cannot load its stages any more. All are up again: only
    /// what that device tells of its stages shows the leader that it has to plan.
    fn cut_power(&mut self) {
        let spoilt = self.dice.index(self.devices.len());
        self.note(|_| format!("all lose power; d{spoilt} can load nothing any more"));
        self.devices[spoilt].is_spoilt = true;
        for index in 0..self.devices.len() {
            if self.devices[index].process.is_some() {
                self.crash(index);
            }
        }
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Node<RedbStore>> {
        self.devices.iter().filter_map(|device| device.process.as_ref()?.node())
    }

    /// Runs until nothing is missing; returns what still is when the time is up.
    fn wait(
        &mut self,
        limit_ms: u64,
        missing: impl Fn(&Self) -> Option<String>,
    ) -> Result<Option<String>, Failure> {
        let end_ms = self.now_ms + limit_ms;
        loop {
            self.run_until(self.now_ms + LOOK_MS)?;
            self.retire_removed();
            self.remove_retired().map_err(|what| (self.now_ms, what))?;
            let reason = missing(self);
            if reason.is_none() || self.now_ms >= end_ms {
                return Ok(reason);
            }
        }
    }

    /// A removed device that was away when it happened is refused by all others; its operator takes it away. Not
    /// so one that belongs to another cluster with others: of two clusters that listed it, the one that it is not in
    /// has removed it, and the one that it is in counts on it.
    fn retire_removed(&mut self) {
        let removed: BTreeSet<(ClusterId, usize)> = self
            .nodes()
            .flat_map(|node| node.state().removed.iter().map(|device| (node.cluster_id(), device)))
            .map(|(cluster, device)| (cluster, device_index(device)))
            .collect();
        for (cluster, index) in removed {
            if !self.devices[index].retired && !self.is_elsewhere(index, cluster) {
                self.retire(index, cluster);
            }
        }
    }

    /// A cluster has removed the device: it is gone for good.
    pub(crate) fn retire(&mut self, index: usize, cluster: ClusterId) {
        self.given_notice.insert((cluster, index));
        self.stop(index);
        self.lose_blobs(index);
        self.devices[index].retired = true;
    }

    /// A device that one of two clusters has removed and that is gone for good can be listed in the other one, which
    /// it asked for a place: its operator removes it there, too.
    fn remove_retired(&mut self) -> Result<(), String> {
        let Some(leader) = self.leader() else { return Ok(()) };
        let Some(state) = self.leader_state() else { return Ok(()) };
        let mut gone = state.members.values().filter(|member| {
            let device = device_index(&member.device);
            self.devices[device].retired && !self.given_notice.contains(&(state.cluster_id, device))
        });
        let Some(member) = gone.next() else { return Ok(()) };
        let device = device_index(&member.device);
        self.given_notice.insert((state.cluster_id, device));
        self.sequence += 1;
        let id = RequestId { proposer: device_id(leader), sequence: self.sequence };
        let command = Command::RemoveMember { device: member.device.clone() };
        self.operator(Box::new(Request { id, command }), self.now_ms + AGREE_MS)
    }

    /// The device is in another cluster with others, or on its way into one that has a place for it.
    fn is_elsewhere(&self, index: usize, cluster: ClusterId) -> bool {
        let Some(process) = &self.devices[index].process else { return false };
        let Some(node) = process.node() else {
            return self.nodes().any(|node| {
                let member = node.state().member(&device_id(index));
                node.cluster_id() != cluster && member.is_some_and(|m| m.storage == process.storage())
            });
        };
        let here = self.nodes().filter(|other| other.cluster_id() == node.cluster_id()).count();
        node.cluster_id() != cluster && here > 1
    }

    /// Why the devices are not one healthy cluster yet.
    fn disagreement(&self) -> Option<String> {
        let expected: Vec<&Device> =
            self.devices.iter().filter(|device| device.known && !device.retired).collect();
        let mut nodes = Vec::new();
        for device in &expected {
            match device.process.as_ref().and_then(Process::node) {
                Some(node) => nodes.push(node),
                None => return Some("a device is in no cluster".to_owned()),
            }
        }
        let clusters: BTreeSet<_> = nodes.iter().map(|node| node.cluster_id()).collect();
        if self.settled_apart() {
            return None;
        }
        if clusters.len() != 1 {
            return Some(format!("clusters {clusters:?}"));
        }
        let Some(leader) = self.leader() else { return Some("nobody leads".to_owned()) };
        let leader = self.devices[leader].process.as_ref().and_then(Process::node)?;
        let ids: BTreeSet<u64> = nodes.iter().map(|node| node.id()).collect();
        let members: BTreeSet<u64> = leader.state().members.keys().copied().collect();
        if ids != members {
            return Some(format!("replicas {ids:?} run, members are {members:?}"));
        }
        let conf = leader.conf();
        let seats = match members.len() {
            0..=2 => 1,
            3 | 4 => 3,
            _ => 5,
        };
        let known: BTreeSet<u64> = conf.voters.union(&conf.learners).copied().collect();
        if conf.is_joint() || conf.voters.len() != seats || known != members {
            return Some(format!("configuration {conf:?} of members {members:?}"));
        }
        let behind = nodes
            .iter()
            .find(|node| node.applied() != leader.applied() || node.leader() != Some(leader.id()));
        behind.map(|node| format!("replica {} is at {} of {}", node.id(), node.applied(), leader.applied()))
    }

    /// Everything that the devices can hold is served, and every device gets right answers.
    fn serve_all(&mut self) -> Result<(), Failure> {
        if self.options.ask_every_ms == 0 {
            return Ok(());
        }
        let in_time = |world: &Self| world.unserved(true);
        if let Some(reason) = self.wait(SERVE_MS, in_time)? {
            return Err((self.now_ms, format!("not all is served after {SERVE_MS} ms: {reason}")));
        }
        if let Some(reason) = self.wait(SPREAD_MS, |world| world.unserved(false))? {
            return Err((self.now_ms, format!("a plan waits for its weights to be spread: {reason}")));
        }
        if let Some(reason) = self.wait(RETRY_MS, World::unheard)? {
            return Err((self.now_ms, reason));
        }
        let unkept = |world: &Self| world.unkept(&world.leader_state()?);
        if let Some(reason) = self.wait(KEEP_MS, unkept)?.or_else(|| self.lost_blob()) {
            return Err((self.now_ms, reason));
        }
        loop {
            let removed = self.count_retired();
            let missing = self.ask_everybody()?;
            // Who was removed meanwhile has taken its clients' requests along: the others are asked once more.
            match missing {
                None => return Ok(()),
                Some(_) if self.count_retired() > removed => {}
                Some(reason) => return Err((self.now_ms, reason)),
            }
        }
    }

    fn count_retired(&self) -> usize {
        self.devices.iter().filter(|device| device.retired).count()
    }

    /// Devices tell what they hold as soon as they are members; who has just become one is not heard yet.
    fn unheard(&self) -> Option<String> {
        let processes = || self.devices.iter().filter_map(|device| device.process.as_ref());
        let pair = processes().find_map(|here| {
            let deaf = processes().find(|there| !here.hears(device_index(there.device())))?;
            Some((here.device(), deaf.device()))
        });
        pair.map(|(here, there)| format!("{here} has not heard {there}"))
    }

    /// Asks every device for everything that is served; returns what is missing.
    fn ask_everybody(&mut self) -> Result<Option<String>, Failure> {
        // A leader that hands over leaves a few milliseconds without one.
        let unled = |world: &Self| world.leader_state().is_none().then(|| "nobody leads".to_owned());
        if let Some(reason) = self.wait(RETRY_MS, unled)? {
            return Err((self.now_ms, reason));
        }
        let state = self.leader_state().ok_or((self.now_ms, "nobody leads".to_owned()))?;
        let devices = self.usable(&state);
        let served = state.deployments.values().filter(|deployment| is_served(deployment, &devices));
        let names: Vec<String> = served.map(|deployment| deployment.name.clone()).collect();
        let before = self.checker.right;
        let mut asked = 0;
        for index in 0..self.devices.len() {
            if self.devices[index].process.is_none() {
                continue;
            }
            for name in &names {
                if !self.is_taken(index, name)? {
                    return Err((self.now_ms, format!("d{index} takes no request for {name}")));
                }
                asked += 1;
            }
        }
        self.wait(ANSWER_MS + RETRY_MS, |world| {
            let right = world.checker.right - before;
            (right < asked).then(|| format!("{right} of {asked} requests have an answer"))
        })
    }

    /// Asks a device, a few times: it may have a look at what is new before it.
    fn is_taken(&mut self, index: usize, name: &str) -> Result<bool, Failure> {
        let (input, end_ms) = (self.dice.bits(), self.now_ms + RETRY_MS);
        loop {
            let mut is_taken = false;
            self.with(index, |process, now_ms| {
                is_taken = process.ask(now_ms, name, input, ANSWER_MS)?;
                Ok(())
            })
            .map_err(|what| (self.now_ms, what))?;
            if is_taken || self.now_ms >= end_ms {
                return Ok(is_taken);
            }
            self.run_until(self.now_ms + LOOK_MS)?;
        }
    }

    fn leader_state(&self) -> Option<ClusterState> {
        let leader = self.leader()?;
        Some(self.devices[leader].process.as_ref()?.node()?.state().clone())
    }

    /// A deployment that the devices could hold and that is not served as asked; `but_ready`: nor by a first plan that is
    /// ready.
    fn unserved(&self, but_ready: bool) -> Option<String> {
        let Some(state) = self.leader_state() else { return Some("nobody leads".to_owned()) };
        let devices = self.usable(&state);
        state.deployments.values().find_map(|deployment| {
            let could = !devices.is_empty() && solve(&problem(deployment, &devices), PLAN_STEPS).is_ok();
            let is_ready = but_ready && self.is_ready(deployment);
            let is_missing = could && !is_ready && !is_served(deployment, &devices);
            is_missing.then(|| format!("{deployment:?} on {devices:?}"))
        })
    }

    /// The first plan of a deployment is ready on all its devices, as the leader sees it.
    fn is_ready(&self, deployment: &Deployment) -> bool {
        let leader = self.leader().and_then(|leader| self.devices[leader].process.as_ref());
        deployment.active.is_none() && leader.is_some_and(|leader| leader.sees_ready(deployment))
    }

    /// Devices that plans may use, with their memory.
    fn usable(&self, state: &ClusterState) -> BTreeMap<String, u64> {
        let device = |member: &Member| &self.devices[device_index(&member.device)];
        let is_usable = |member: &&Member| !member.draining && !device(member).is_spoilt;
        let usable = state.members.values().filter(is_usable);
        usable.map(|member| (member.device.0.clone(), device(member).memory)).collect()
    }

    fn behind(&self) -> Option<String> {
        let applied: BTreeSet<_> = self.nodes().map(Node::applied).collect();
        (applied.len() > 1).then(|| format!("replicas are at {applied:?}"))
    }

    /// A request is taken and applied on every device, and then all states are equal. A client asks again
    /// when its request was lost with a leader that hands over.
    fn commit_one(&mut self) -> Result<(), Failure> {
        let request = workload::sure_request(0, 1 << 40);
        let end_ms = self.now_ms + COMMIT_MS;
        loop {
            if let Some(leader) = self.leader() {
                self.with(leader, |process, now_ms| process.submit(now_ms, &request))
                    .map_err(|what| (self.now_ms, what))?;
            }
            let missing = self.wait(RETRY_MS, |world| {
                let without = world.nodes().find(|node| node.state().outcome(&request.id).is_none());
                if let Some(node) = without {
                    return Some(format!("replica {} has not applied it", node.id()));
                }
                world.behind()
            })?;
            match missing {
                None => break,
                Some(_) if self.now_ms < end_ms => {}
                Some(reason) => {
                    return Err((
                        self.now_ms,
                        format!("a request is not applied in {COMMIT_MS} ms: {reason}"),
                    ));
                }
            }
        }
        let digests: BTreeSet<_> = self.nodes().map(|node| node.state().digest()).collect();
        if digests.len() == 1 { Ok(()) } else { Err((self.now_ms, "states differ at the end".to_owned())) }
    }
}

/// What is asked for now is served, by these devices alone.
fn is_served(deployment: &Deployment, devices: &BTreeMap<String, u64>) -> bool {
    deployment.active.as_ref().is_some_and(|active| {
        let mut replicas = active.plan.stages.iter().flat_map(|stage| &stage.replicas);
        active.epoch >= deployment.asked_epoch
            && deployment.preparing.is_none()
            && replicas.all(|replica| devices.contains_key(&replica.device))
    })
}
