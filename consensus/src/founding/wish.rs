//! Giving way: how a lone founder moves into another cluster of the same name and key.
//!
//! Nobody gives a cluster up before it has its place in the other one. A lone founder writes down which place it
//! wants (its *wish*: the cluster, and the id of the store that it will have there), asks for it as any device
//! would that joins, and empties its store only when the other cluster has committed that. From then on the other
//! cluster has a member that may come at any moment, so it is not lone, and stays. So two clusters cannot vanish into
//! each other, whatever either of them believed when it asked, and however many do so in a circle: the first of
//! the places that is committed holds its cluster.
//!
//! A wish is dropped as soon as the cluster is not lone any more (somebody was added, something deployed) or another
//! choice is better. The place that was asked for may then be there without anybody to take it. Every greeting
//! tells the receiver the store that its cluster is listed with; a device that will never have that store *declines*
//! the place in its own next greeting, and a place that is declined does not count. Store ids are not used twice,
//! so that is true for ever, in whatever order messages arrive.
//!
//! A request may be long under way and arrive when a later one has been answered. It must not take that one's place:
//! every request tells how the cluster listed the device when it was made, and is void where that has changed.
//!
//! A crash at any point: before the wish is on disk, nothing was asked. After it, the same place is asked for again.
//! Emptying the store and making it the one of the place is one transaction; after it the device is one that joins
//! and has its place already.

use super::message::{ClusterHello, Hello, Place};
use super::{
    AVOID_MS, Effect, Founding, JOIN_MS, MembershipView, Peer, Record, Stage, WISH_AGAIN_MS, WISH_MS,
};
use crate::{ClusterId, DeviceId, StorageId};

impl MembershipView {
    /// The place that the cluster has for a device.
    pub(super) fn lists(&self, device: &DeviceId) -> Option<Place> {
        let storage = *self.members.get(device)?;
        Some(Place { cluster_id: self.cluster_id, storage })
    }
}

// Who is alone.
impl Founding {
    /// Nobody else is or could come to be in the cluster, and nothing would be lost with it. A device whose first
    /// snapshot has not come yet knows no members: it is not alone. Nor is a voter that does not lead: after
    /// a restart its state is older than its log, and without a quorum a person may want to recover the cluster from
    /// it. One that does not vote is alone when all others are elsewhere: it was removed and has not heard so.
    pub(super) fn is_lone(&self, view: &MembershipView) -> bool {
        let leads = view.leader.as_ref() == Some(&self.me.device);
        let absent = |device: &DeviceId| self.declined.contains_key(device);
        !view.in_use
            && (leads || !view.votes)
            && view.members.contains_key(&self.me.device)
            && view.members.keys().all(|device| *device == self.me.device || absent(device))
            && !self.hears(view.cluster_id)
    }

    /// A connected device says that it belongs to this cluster.
    fn hears(&self, cluster: ClusterId) -> bool {
        self.peers.values().any(|peer| peer.cluster() == Some(cluster))
    }

    /// Whether a cluster may have this leader: not if the device itself says that it is elsewhere.
    pub(super) fn may_lead(&self, leader: &DeviceId, cluster: ClusterId) -> bool {
        let elsewhere =
            |peer: &Peer| peer.hello.as_ref().is_some_and(|hello| hello.cluster_id() != Some(cluster));
        if *leader == self.me.device {
            return self.own_cluster() == Some(cluster);
        }
        !self.peers.get(leader).is_some_and(elsewhere)
    }

    /// Somebody there knows a leader, which can add this device.
    pub(super) fn is_led(&self, cluster: &ClusterHello) -> bool {
        cluster.leader.as_ref().is_some_and(|leader| self.may_lead(leader, cluster.id))
    }

    /// The place that the peer's cluster has for this device, if it will never be taken.
    pub(super) fn place_declined_to(&self, peer: &DeviceId) -> Option<Place> {
        let theirs = self.peers.get(peer)?.hello.as_ref()?.cluster.as_ref()?;
        let place = Place { cluster_id: theirs.id, storage: theirs.your_storage? };
        let taken = place.storage == self.me.storage && self.own_cluster().is_none_or(|own| own == theirs.id);
        (!taken && self.record.wish != Some(place)).then_some(place)
    }

    /// A member says that it will never take its place here.
    pub(super) fn note_declined(&mut self, from: &DeviceId, hello: &Hello) {
        let Stage::Member(view) = &self.stage else { return };
        if let Some(place) = hello.declined
            && view.lists(from) == Some(place)
        {
            self.declined.insert(from.clone(), place);
        }
    }
}

// The wish.
impl Founding {
    /// The cluster to move to: one that is not lone, else the one with the smallest id. Of two lone ones the
    /// one with the larger id gives way; both sides see the same, so one stays.
    fn better_cluster(&self) -> Option<ClusterHello> {
        let Stage::Member(view) = &self.stage else { return None };
        if !self.is_lone(view) {
            return None;
        }
        let clusters = || self.peers.values().filter_map(|peer| peer.hello.as_ref()?.cluster.as_ref());
        // A device that was removed and does not know it takes the cluster for larger than it is.
        let is_lone = |id: ClusterId| clusters().any(|cluster| cluster.id == id && cluster.lone);
        let best = clusters()
            .filter(|cluster| cluster.id != view.cluster_id && self.is_led(cluster))
            .filter(|cluster| !self.is_avoided(cluster.id))
            .min_by_key(|cluster| (is_lone(cluster.id), cluster.id))?;
        let is_dead = view.leader.as_ref() != Some(&self.me.device);
        (!is_lone(best.id) || is_dead || view.cluster_id > best.id).then(|| best.clone())
    }

    fn is_avoided(&self, cluster: ClusterId) -> bool {
        self.avoided.is_some_and(|(avoided, until_ms)| avoided == cluster && self.now_ms < until_ms)
    }

    /// When there is something to do about a wish.
    pub(super) fn wish_due_ms(&self) -> Option<u64> {
        let asks = self.record.wish.is_some() && self.asking_since_ms.is_some();
        if asks {
            return Some(self.join_due_ms);
        }
        (self.record.wish.is_none() && self.now_ms < self.wish_at_ms).then_some(self.wish_at_ms)
    }

    /// Wishes, asks, or drops a wish, whatever is right now.
    pub(super) fn advance_wish(&mut self) {
        let better = self.better_cluster();
        match (self.record.wish, better) {
            (Some(wish), Some(better)) if wish.cluster_id == better.id => self.ask_for(wish, &better),
            // Nobody of it is here, and nobody else either; or it is not known yet what this cluster is.
            (Some(wish), None) if self.may_still_want(wish) => self.asking_since_ms = None,
            (Some(_), _) => self.drop_wish(),
            (None, Some(better)) if self.now_ms >= self.wish_at_ms => {
                let wish = Place { cluster_id: better.id, storage: self.fresh_storage_id() };
                self.record.wish = Some(wish);
                self.persist();
                self.join_due_ms = self.now_ms;
                self.ask_for(wish, &better);
            }
            (None, _) => {}
        }
    }

    fn may_still_want(&self, wish: Place) -> bool {
        let Stage::Member(view) = &self.stage else { return false };
        let starts = view.votes && view.leader.is_none();
        starts || self.is_lone(view) && !self.hears(wish.cluster_id)
    }

    fn ask_for(&mut self, wish: Place, cluster: &ClusterHello) {
        let since_ms = *self.asking_since_ms.get_or_insert(self.now_ms);
        if self.now_ms >= since_ms + WISH_MS {
            self.avoided = Some((wish.cluster_id, self.now_ms + AVOID_MS));
            return self.drop_wish();
        }
        if self.now_ms >= self.join_due_ms {
            self.join_due_ms = self.now_ms + JOIN_MS;
            let via = self.members_to_ask(cluster);
            let listed = self.listed_by(&via);
            self.effects.push(Effect::Join { place: wish, listed, via });
        }
    }

    /// The place is never taken, even if it is given; greetings say so from now on.
    fn drop_wish(&mut self) {
        self.record.wish = None;
        self.persist();
        self.asking_since_ms = None;
        self.wish_at_ms = self.now_ms + WISH_AGAIN_MS;
        self.greet_peers();
    }

    /// The place is committed in the other cluster: this one can go, if it still may.
    pub(super) fn admitted(&mut self, place: Place) {
        let Stage::Member(view) = &self.stage else { return };
        if self.record.wish != Some(place) || !self.is_lone(view) {
            return;
        }
        self.stage = Stage::Over(view.cluster_id);
        // Promises stay; the cluster that was given up is never proposed again by this device.
        let promised = self.record.promised.clone();
        let gave_way_to = Some(place.cluster_id);
        let record = Record { promised, accepted: None, decided: None, gave_way_to, wish: None };
        self.effects.push(Effect::GiveWay { to: place, record });
    }

    /// 128 bits that no other store has.
    fn fresh_storage_id(&mut self) -> StorageId {
        let mut id = [0; 16];
        self.fresh_bits("mesh founding 1: storage id").fill(&mut id);
        StorageId(id)
    }
}
