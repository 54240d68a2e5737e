//! Meeting other devices: who has a cluster, whom to join.

use super::message::{ClusterHello, Hello, Message};
use super::{
    CAMPAIGN_MS, CLUSTER_MEMORY_MS, Conflict, Effect, Founding, HELLO_MS, MEMBER_HELLO_MS, PEERS_MAX, Peer,
    Stage,
};
use crate::{ClusterId, DeviceId, Listed};

impl Founding {
    pub(super) fn peer_up(&mut self, device: DeviceId) {
        let room = self.peers.len() < PEERS_MAX || self.peers.contains_key(&device);
        if device == self.me.device || !room {
            return;
        }
        self.peers.insert(device.clone(), Peer::default());
        self.say_hello(&device, true);
    }

    pub(super) fn receive(&mut self, from: &DeviceId, message: Message) {
        if !self.peers.contains_key(from) || message.check().is_err() || matches!(self.stage, Stage::Over(_))
        {
            return;
        }
        match message {
            Message::Hello(hello) => self.hear_hello(from, hello),
            Message::Prepare { ballot, devices } => self.hear_prepare(from, ballot, devices),
            Message::Promise { ballot, candidate, accepted, seen } => {
                self.hear_promise(from, &ballot, candidate, accepted, seen);
            }
            Message::Refuse { ballot, promised } => self.hear_refuse(&ballot, &promised),
            Message::Accept { ballot, genesis } => self.hear_accept(from, ballot, genesis),
            Message::Accepted { ballot } => self.hear_accepted(from, &ballot),
            Message::Decided { genesis } => self.hear_decided(genesis),
        }
    }

    /// Greets every peer that may have news for this device, or needs news from it.
    pub(super) fn greet_peers(&mut self) {
        let interval = match &self.stage {
            Stage::Seeking => HELLO_MS,
            Stage::Member(_) => MEMBER_HELLO_MS,
            Stage::Over(_) => return,
        };
        self.hello_due_ms = self.now_ms + interval;
        let own = self.own_cluster();
        let devices: Vec<DeviceId> = self
            .peers
            .iter()
            .filter(|(_, peer)| own.is_none() || peer.cluster() != own || peer.denial.is_some())
            .map(|(device, _)| device.clone())
            .collect();
        for device in devices {
            self.say_hello(&device, true);
        }
    }

    pub(super) fn say_hello(&mut self, to: &DeviceId, answer: bool) {
        let cluster = match &self.stage {
            Stage::Member(view) => Some(ClusterHello {
                id: view.cluster_id,
                lone: self.is_lone(view),
                leader: view.leader.clone().filter(|leader| self.may_lead(leader, view.cluster_id)),
                yours: view.members.contains_key(to),
                your_storage: view.members.get(to).copied(),
                applied: Some(view.applied),
            }),
            Stage::Seeking => None,
            Stage::Over(_) => return,
        };
        let declined = self.place_declined_to(to);
        if let Some(peer) = self.peers.get_mut(to) {
            peer.declined = declined;
        }
        self.send(to, Message::Hello(Hello { devices: self.devices, cluster, answer, declined }));
    }

    /// Greets all when the news is worth it.
    pub(super) fn tell_news(&mut self) {
        let news = match &self.stage {
            Stage::Member(view) => Some((view.cluster_id, self.is_lone(view), view.leader.clone())),
            Stage::Seeking | Stage::Over(_) => return,
        };
        if self.told != news {
            self.told = news;
            self.greet_peers();
        }
    }

    pub(super) fn own_cluster(&self) -> Option<ClusterId> {
        match &self.stage {
            Stage::Member(view) => Some(view.cluster_id),
            Stage::Seeking | Stage::Over(_) => None,
        }
    }

    fn hear_hello(&mut self, from: &DeviceId, hello: Hello) {
        let answer = hello.answer;
        if let Some(peer) = self.peers.get_mut(from) {
            peer.hello = Some(hello.clone());
        }
        match (&hello.cluster, &self.stage) {
            (Some(theirs), Stage::Seeking) => self.cluster_heard = Some((theirs.id, self.now_ms)),
            (None, _) => self.meet_candidate(from, hello.devices == self.devices),
            (Some(_), Stage::Member(_) | Stage::Over(_)) => {}
        }
        self.note_declined(from, &hello);
        self.note_denial(from, &hello);
        self.report_conflict(from, &hello);
        let unsaid = self.peers.get(from).is_some_and(|peer| peer.declined != self.place_declined_to(from));
        if answer || unsaid {
            self.say_hello(from, false);
        }
    }

    /// A peer without a cluster: count it, and tell it what is already decided.
    fn meet_candidate(&mut self, from: &DeviceId, alike: bool) {
        if self.stage == Stage::Seeking && alike {
            self.note_seen(from.clone());
        }
        self.tell_decided(from);
    }

    /// Tells a device without a cluster which one was founded, if it may still be one of the founders.
    pub(super) fn tell_decided(&mut self, to: &DeviceId) {
        let Some(genesis) = self.record.decided.clone() else { return };
        let current = match &self.stage {
            Stage::Member(view) => view.cluster_id == genesis.cluster_id && view.members.contains_key(to),
            Stage::Seeking => true,
            Stage::Over(_) => false,
        };
        if current {
            self.send(to, Message::Decided { genesis });
        }
    }

    /// What stands between this device and a connected one, if a person must decide.
    pub(super) fn conflict_with(&self, device: &DeviceId, hello: &Hello) -> Option<Conflict> {
        match (&self.stage, &hello.cluster) {
            (Stage::Seeking, None) if hello.devices != self.devices => Some(Conflict::DevicesDiffer {
                device: device.clone(),
                theirs: hello.devices,
                ours: self.devices,
            }),
            (Stage::Member(view), Some(theirs))
                if theirs.id != view.cluster_id && !theirs.lone && !self.is_lone(view) =>
            {
                Some(Conflict::TwoClusters { device: device.clone(), other: theirs.id })
            }
            (Stage::Seeking | Stage::Member(_) | Stage::Over(_), _) => None,
        }
    }

    /// Reports a conflict once for as long as the peer is connected.
    fn report_conflict(&mut self, device: &DeviceId, hello: &Hello) {
        if let Some(conflict) = self.conflict_with(device, hello)
            && self.reported.len() < 2 * PEERS_MAX
            && self.reported.insert(conflict.clone())
        {
            self.effects.push(Effect::Conflict(conflict));
        }
    }

    /// The cluster to join and the connected members to ask: first of all a running one, preferably
    /// one that has a leader and will not give way; else the one that was decided without this device.
    pub(super) fn join_target(&self) -> Option<(ClusterId, Vec<DeviceId>)> {
        let clusters = self.peers.values().filter_map(|peer| peer.hello.as_ref()?.cluster.as_ref());
        let place = self.record.gave_way_to;
        let waits = place.is_some() && self.now_ms < CLUSTER_MEMORY_MS;
        let running = clusters
            .filter(|cluster| !waits || Some(cluster.id) == place)
            .min_by_key(|cluster| {
                (Some(cluster.id) != place, !self.is_led(cluster), cluster.lone, cluster.id)
            })
            .cloned();
        if let Some(cluster) = running {
            return Some((cluster.id, self.members_to_ask(&cluster)));
        }
        if let Some(genesis) = &self.record.decided {
            let via = genesis.members.iter().map(|member| member.device.clone());
            return Some((
                genesis.cluster_id,
                via.filter(|device| self.peers.contains_key(device)).collect(),
            ));
        }
        // A cluster was here a moment ago: it will come back sooner than it is right to found another.
        if waits && let Some(place) = place {
            return Some((place, Vec::new()));
        }
        let (cluster, heard_ms) = self.cluster_heard?;
        (self.now_ms < heard_ms + CLUSTER_MEMORY_MS).then(|| (cluster, Vec::new()))
    }

    pub(super) fn members_to_ask(&self, cluster: &ClusterHello) -> Vec<DeviceId> {
        let is_member = |device: &&DeviceId| {
            self.peers.get(*device).and_then(Peer::cluster).is_some_and(|id| id == cluster.id)
        };
        let mut via: Vec<DeviceId> = self.peers.keys().filter(is_member).cloned().collect();
        via.sort_by_key(|device| Some(device) != cluster.leader.as_ref());
        via
    }

    /// How the first of these members, the likely leader, says that its cluster lists this device.
    pub(super) fn listed_by(&self, via: &[DeviceId]) -> Listed {
        let hello = via.first().and_then(|device| self.peers.get(device)?.hello.as_ref());
        hello.and_then(|hello| hello.cluster.as_ref()?.your_storage).into()
    }

    /// A member of that cluster said that this device is not one of its members (any more).
    pub(super) fn told_not_a_member(&self, cluster: ClusterId) -> bool {
        self.peers
            .values()
            .filter_map(|peer| peer.hello.as_ref()?.cluster.as_ref())
            .any(|hello| hello.id == cluster && !hello.yours)
    }

    /// A running cluster is known: found nothing, promise nothing.
    pub(super) fn knows_running_cluster(&self) -> bool {
        self.cluster_heard.is_some_and(|(_, heard_ms)| self.now_ms < heard_ms + CLUSTER_MEMORY_MS)
    }

    /// Starts the first election as soon as a majority of the founding voters has installed the cluster.
    pub(super) fn campaign_if_voters_are_here(&mut self) {
        let (Stage::Member(view), Some(genesis)) = (&self.stage, &self.record.decided) else { return };
        self.campaign_due_ms = self.now_ms + CAMPAIGN_MS;
        let here = |device: &DeviceId| {
            *device == self.me.device
                || self.peers.get(device).and_then(Peer::cluster) == Some(genesis.cluster_id)
        };
        let votes = |member: &&crate::Member| genesis.voters.contains(&member.raft_id);
        let voters: Vec<&DeviceId> =
            genesis.members.iter().filter(votes).map(|member| &member.device).collect();
        let first_here = voters.iter().find(|device| here(device));
        let majority = voters.iter().filter(|device| here(device)).count() > voters.len() / 2;
        let mine = first_here.is_some_and(|device| **device == self.me.device);
        if majority && mine && view.cluster_id == genesis.cluster_id {
            self.campaigns += 1;
            self.effects.push(Effect::Campaign);
        }
    }
}

impl Peer {
    pub(super) fn cluster(&self) -> Option<ClusterId> {
        Some(self.hello.as_ref()?.cluster.as_ref()?.id)
    }
}
