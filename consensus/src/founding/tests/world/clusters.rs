//! The clusters of the world: their members, as if consensus were instant, and how places in them are given.

use std::collections::BTreeSet;

use super::*;

impl World {
    fn view(&self, cluster: ClusterId) -> MembershipView {
        let members = self.members.get(&cluster).cloned().unwrap_or_default();
        // The founder leads, if it is still there: the others do not vote in these worlds unless they founded it too.
        let founders =
            self.founded.get(&cluster).map(|genesis| genesis.members.as_slice()).unwrap_or_default();
        let there = |member: &&crate::Member| members.get(&member.device) == Some(&member.storage);
        let leader = founders.iter().find(there).map(|member| member.device.clone());
        MembershipView {
            cluster_id: cluster,
            members,
            in_use: self.in_use.contains(&cluster),
            leader,
            votes: true,
            applied: 1,
        }
    }

    pub(super) fn view_of(&self, device: usize, cluster: ClusterId) -> MembershipView {
        let votes = self
            .founded
            .get(&cluster)
            .is_some_and(|genesis| genesis.members.iter().any(|member| member.device == id(device)));
        let stale = self.stale.get(&device).filter(|view| view.cluster_id == cluster);
        stale.cloned().unwrap_or_else(|| MembershipView { votes, ..self.view(cluster) })
    }

    pub(in super::super) fn publish(&mut self, cluster: ClusterId) {
        for device in 0..self.running.len() {
            if self.disks[device].cluster == Some(cluster) {
                let view = self.view_of(device, cluster);
                self.event(device, Event::MembershipChanged(view));
            }
        }
    }

    /// The device is removed from its cluster and does not hear of it.
    pub(in super::super) fn remove_unheard(&mut self, device: usize) {
        let cluster = self.disks[device].cluster.expect("a member");
        self.stale.insert(device, self.view_of(device, cluster));
        self.members.entry(cluster).or_default().remove(&id(device));
        for other in 0..self.running.len() {
            if self.disks[other].cluster == Some(cluster) {
                self.cut(device, other);
            }
        }
        self.publish(cluster);
    }

    pub(super) fn found(&mut self, device: usize, genesis: Genesis, raft_id: u64) {
        assert_eq!(genesis.members[usize::try_from(raft_id).expect("small") - 1].device, id(device));
        assert!(matches!(genesis.voters.len(), 1 | 3 | 5), "never two voters");
        assert!(self.disks[device].cluster.is_none(), "the store must be empty");
        let cluster = genesis.cluster_id;
        self.disks[device].cluster = Some(cluster);
        let known = self.founded.entry(cluster).or_insert_with(|| genesis.clone());
        assert_eq!(*known, genesis, "one id, two clusters");
        let listed = genesis.members.iter().map(|member| (member.device.clone(), member.storage));
        self.members.entry(cluster).or_insert_with(|| listed.collect());
        let view = self.view_of(device, cluster);
        self.event(device, Event::MembershipChanged(view));
    }

    /// A request for a place arrives, or its answer. A place is given when a majority of the founding voters runs.
    pub(super) fn answer(&mut self, to: usize, from: usize, place: Place, listed: Option<Listed>) {
        let Some(listed) = listed else { return self.admitted(to, place) };
        let cluster = place.cluster_id;
        let Some(genesis) = self.founded.get(&cluster) else { return };
        let up = |voter: &&crate::Member| {
            let voter = index(&voter.device);
            self.running[voter].is_some() && self.disks[voter].cluster == Some(cluster)
        };
        let voters = &genesis.members[..genesis.voters.len()];
        let majority = voters.iter().filter(up).count() > voters.len() / 2;
        if majority && self.running[to].is_some() && self.disks[to].cluster == Some(cluster) {
            let members = self.members.entry(cluster).or_default();
            let known = members.get(&id(from)).copied();
            if known != Some(place.storage) {
                if listed != Listed::from(known) {
                    return;
                }
                members.insert(id(from), place.storage);
            }
            self.publish(cluster);
            self.asked.push((from, to, place, None));
        }
    }

    fn admitted(&mut self, device: usize, place: Place) {
        if self.disks[device].cluster.is_some() {
            return self.event(device, Event::Admitted(place));
        }
        if self.disks[device].storage == place.storage && self.running[device].is_some() {
            self.disks[device].cluster = Some(place.cluster_id);
            self.publish(place.cluster_id);
        }
    }

    /// Somebody else could still come to be in the cluster, or is.
    fn holds_others(&self, device: usize, cluster: ClusterId) -> bool {
        self.members[&cluster].iter().any(|(member, storage)| {
            let disk = &self.disks[index(member)];
            let here = disk.cluster == Some(cluster) || disk.cluster.is_none();
            let wish = disk.record.as_ref().and_then(|record| record.wish);
            let wished = wish == Some(Place { cluster_id: cluster, storage: *storage });
            index(member) != device && (here && disk.storage == *storage || wished)
        })
    }

    pub(super) fn give_way(&mut self, device: usize, to: Place, record: Record) {
        let cluster = self.disks[device].cluster.take().expect("gives a cluster up");
        assert!(!self.in_use.contains(&cluster), "only an unused cluster is given up");
        assert!(!self.holds_others(device, cluster), "a cluster that holds others is given up");
        assert_eq!(self.members[&to.cluster_id].get(&id(device)), Some(&to.storage), "it has its place");
        self.stale.remove(&device);
        self.disks[device].record = Some(record);
        self.disks[device].storage = to.storage;
        let links: Vec<usize> = (0..self.running.len()).filter(|other| self.linked(device, *other)).collect();
        self.stop(device);
        self.start(device);
        for other in links {
            self.connect(device, other);
        }
    }

    /// Clusters that at least one disk belongs to.
    pub(in super::super) fn clusters(&self) -> BTreeSet<ClusterId> {
        self.disks.iter().filter_map(|disk| disk.cluster).collect()
    }

    pub(in super::super) fn voters(&self) -> usize {
        self.founded.values().map(|genesis| genesis.voters.len()).max().unwrap_or(0)
    }

    /// The device that founded the cluster of a device.
    pub(in super::super) fn founder_of(&self, device: usize) -> usize {
        let cluster = self.disks[device].cluster.expect("a member");
        index(&self.founded[&cluster].members[0].device)
    }
}
