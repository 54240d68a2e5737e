//! Founding: how devices with one config form exactly one cluster, and how later ones find it.
//!
//! The protocol has no I/O, no clock and no randomness of its own. The daemon feeds [`Event`]s and
//! the time in, carries out the [`Effect`]s in their order, and calls again at
//! [`Founding::deadline_ms`].
//!
//! Inside it is single-decree Paxos over the devices that see each other (Lamport, "Paxos Made
//! Simple", 2001). The value agreed on is a [`Genesis`]: a fresh cluster id and the founding members, 1, 3
//! or 5 of which vote. A majority of `devices` (of the config) must accept, so two clusters cannot come from one
//! set of devices, whatever is lost, repeated or crashes. To decide at once and with the most voters, only the
//! smallest device id among those connected proposes; others step in when nothing happens.
//!
//! What it cannot survive: a device that loses its [`Record`] (a wiped disk) while fewer than a
//! majority belong to the cluster has forgotten its promises and may help to found another one.
//!
//! Members keep a small part running: they tell newcomers about their cluster, and notice another
//! cluster of the same name and key. A lone founder moves over to it (`founding/wish.rs`).

mod conflict;
mod events;
mod greet;
mod listing;
mod message;
mod paxos;
mod record;
#[cfg(test)]
mod tests;
mod wish;

use std::collections::{BTreeMap, BTreeSet};

pub use self::conflict::Conflict;
pub use self::events::{Candidate, Effect, Event, FoundingError, MembershipView, Progress};
use self::listing::Denial;
pub use self::listing::Unlisted;
pub use self::message::{ClusterHello, Hello, MESSAGE_BYTES_MAX, Message, Place};
use self::paxos::Proposal;
pub use self::record::{Ballot, Record};
use crate::{ClusterId, DeviceId, Genesis};

/// A device without a cluster greets its peers this often: a lost greeting costs at most this much.
const HELLO_MS: u64 = 500;

/// Members greet the peers of which they know nothing this often, to notice a second cluster.
const MEMBER_HELLO_MS: u64 = 3_000;

/// All devices are there: wait this long for the last greetings, then propose.
const SETTLE_MS: u64 = 150;

/// Only a majority is there: wait this long for the others before going ahead without them.
const PATIENCE_MS: u64 = 1_000;

/// However often devices come and go, a majority waits no longer than this.
const PATIENCE_TOTAL_MS: u64 = 3_000;

/// Devices other than the smallest propose when nothing has happened for this long, plus up to as much again.
const STEP_IN_MS: u64 = 1_500;

/// How long to wait for promises beyond a majority, so that more devices become voters.
const GATHER_MS: u64 = 400;

/// Unanswered questions are asked again after this time.
const RESEND_MS: u64 = 250;

/// An attempt that gets no majority for this long is given up.
const ATTEMPT_MS: u64 = 3_000;

/// First and longest random wait after an attempt was refused.
const BACKOFF_MS: u64 = 150;
const BACKOFF_MS_MAX: u64 = 2_000;

/// A device that must join asks again this often until it is a member.
const JOIN_MS: u64 = 500;

/// A member that changed its mind about moving to another cluster asks none for this long: what it asked for
/// before has been answered or lost by then.
const WISH_AGAIN_MS: u64 = 5_000;

/// A cluster that does not answer for this long…
const WISH_MS: u64 = 15_000;

/// …is not asked again for this long.
const AVOID_MS: u64 = 60_000;

/// A device that heard of a running cluster does not found one for this long.
const CLUSTER_MEMORY_MS: u64 = 30_000;

/// A member that says for this long that its cluster does not list this device is believed.
const UNLISTED_MS: u64 = 5_000;

/// Voters of a new cluster campaign again this often until there is a leader.
const CAMPAIGN_MS: u64 = 250;

/// …and leave it to Raft's own elections after so many times.
const CAMPAIGNS_MAX: u32 = 8;

/// Connected peers beyond this many are ignored.
const PEERS_MAX: usize = 256;

/// What is known about a connected peer.
#[derive(Debug, Clone, Default)]
struct Peer {
    hello: Option<Hello>,
    /// The place that this device has told the peer it will never take.
    declined: Option<Place>,
    /// It says that the cluster of both does not list this device as it is.
    denial: Option<Denial>,
}

/// The device's own standing.
#[derive(Debug, Clone, PartialEq)]
enum Stage {
    /// Without a cluster: founding or joining.
    Seeking,
    /// In a cluster.
    Member(MembershipView),
    /// Gave this cluster up, or was removed from it: inert until the daemon starts anew.
    Over(ClusterId),
}

/// The founding protocol of one device. See the module's documentation.
#[derive(Debug)]
pub struct Founding {
    me: Candidate,
    cluster_name: String,
    devices: u32,
    record: Record,
    stage: Stage,
    peers: BTreeMap<DeviceId, Peer>,
    /// Devices without a cluster that were ever met, this one included: the quorum counts them.
    seen: BTreeSet<DeviceId>,
    /// Conflicts that were reported by an effect.
    reported: BTreeSet<Conflict>,
    proposal: Option<Proposal>,
    /// Highest round met anywhere.
    round_max: u64,
    /// Attempts of this device that were refused in a row.
    refusals: u32,
    /// The candidates present when last looked, and since when.
    present: BTreeSet<DeviceId>,
    present_since_ms: u64,
    majority_since_ms: Option<u64>,
    /// When another device was last seen proposing.
    activity_ms: u64,
    /// Random part of the wait before this device steps in.
    step_in_extra_ms: u64,
    backoff_until_ms: u64,
    hello_due_ms: u64,
    join_due_ms: u64,
    campaign_due_ms: u64,
    campaigns: u32,
    /// Members of this cluster that will never take their place in it, because their store is another one or
    /// belongs to another cluster. That stays true whatever happens to them.
    declined: BTreeMap<DeviceId, Place>,
    /// What peers were greeted with last: the cluster, whether it is lone, its leader.
    told: Option<(ClusterId, bool, Option<DeviceId>)>,
    /// No new wish to move before this time.
    wish_at_ms: u64,
    /// Since when a member asks for its place in another cluster.
    asking_since_ms: Option<u64>,
    /// A cluster that did not answer, and until when it is not asked again.
    avoided: Option<(ClusterId, u64)>,
    /// A running cluster that was heard of, and when.
    cluster_heard: Option<(ClusterId, u64)>,
    now_ms: u64,
    random: u64,
    effects: Vec<Effect>,
}

impl Founding {
    /// Starts the protocol. `cluster_name` and `devices` are the config's; `record` and `membership` are what the store
    /// holds; `seed` must be random. Call [`Founding::handle`] with [`Event::Tick`] at once.
    pub fn new(
        me: Candidate,
        cluster_name: &str,
        devices: u32,
        record: Option<Record>,
        membership: Option<MembershipView>,
        seed: u64,
    ) -> Self {
        let record = record.unwrap_or_default();
        let round_max = record.promised.as_ref().map_or(0, |ballot| ballot.round);
        // The wish before a crash may still be on its way.
        let wish_at_ms = if membership.is_some() { WISH_AGAIN_MS } else { 0 };
        let mut founding = Self {
            seen: BTreeSet::from([me.device.clone()]),
            me,
            cluster_name: cluster_name.to_owned(),
            devices: devices.max(1),
            stage: membership.map_or(Stage::Seeking, Stage::Member),
            peers: BTreeMap::new(),
            reported: BTreeSet::new(),
            proposal: None,
            round_max,
            refusals: 0,
            present: BTreeSet::new(),
            present_since_ms: 0,
            majority_since_ms: None,
            activity_ms: 0,
            step_in_extra_ms: 0,
            backoff_until_ms: 0,
            hello_due_ms: 0,
            join_due_ms: 0,
            campaign_due_ms: 0,
            campaigns: CAMPAIGNS_MAX,
            declined: BTreeMap::new(),
            told: None,
            wish_at_ms,
            asking_since_ms: None,
            avoided: None,
            cluster_heard: record.gave_way_to.map(|cluster| (cluster, 0)),
            record,
            now_ms: 0,
            random: seed,
            effects: Vec::new(),
        };
        founding.step_in_extra_ms = founding.random_below(STEP_IN_MS);
        founding
    }

    /// Takes one event in; `now_ms` counts from any fixed moment of this run. Returns what to do, in order.
    pub fn handle(&mut self, now_ms: u64, event: Event) -> Vec<Effect> {
        self.now_ms = self.now_ms.max(now_ms);
        match event {
            Event::PeerUp(device) => self.peer_up(device),
            Event::PeerDown(device) => {
                self.peers.remove(&device);
                self.reported.retain(|conflict| *conflict.device() != device);
            }
            Event::Message { from, message } => self.receive(&from, message),
            Event::Tick => {}
            Event::MembershipChanged(view) => self.membership_changed(view),
            Event::Admitted(place) => self.admitted(place),
            Event::Removed => self.removed(),
        }
        self.advance();
        self.tell_news();
        std::mem::take(&mut self.effects)
    }

    /// When to call again with [`Event::Tick`], in the same time as [`Founding::handle`].
    pub fn deadline_ms(&self) -> Option<u64> {
        match &self.stage {
            Stage::Over(_) => None,
            Stage::Member(view) => {
                let campaign =
                    (view.leader.is_none() && self.campaigns < CAMPAIGNS_MAX).then_some(self.campaign_due_ms);
                [Some(self.hello_due_ms), campaign, self.wish_due_ms()].into_iter().flatten().min()
            }
            Stage::Seeking => {
                let next = match (self.join_target(), &self.proposal) {
                    (Some(_), _) => Some(self.join_due_ms),
                    (None, Some(proposal)) => Some(proposal.due_ms()),
                    (None, None) => self.propose_at_ms(),
                };
                [Some(self.hello_due_ms), next].into_iter().flatten().min()
            }
        }
    }

    /// Where the device stands.
    pub fn progress(&self) -> Progress {
        match &self.stage {
            Stage::Member(view) => Progress::Member(view.cluster_id),
            Stage::Over(cluster_id) => Progress::Member(*cluster_id),
            Stage::Seeking => match self.join_target() {
                Some((cluster, _)) => Progress::Joining(cluster),
                None => Progress::Seeking { present: self.candidates().len(), needed: self.quorum() },
            },
        }
    }

    /// Everything that needs a person, as far as the devices that are connected now tell.
    pub fn conflicts(&self) -> Vec<Conflict> {
        self.peers
            .iter()
            .filter_map(|(device, peer)| self.conflict_with(device, peer.hello.as_ref()?))
            .collect()
    }

    /// Whether nothing is lost with a cluster whose replicated state is this: no deployment, no model, no
    /// member but this device (and devices that will never take the place that they have in it).
    pub fn may_give_way(&self, view: &MembershipView) -> bool {
        self.is_lone(view)
    }

    /// The durable record as it stands.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Does what is due.
    fn advance(&mut self) {
        if self.now_ms >= self.hello_due_ms {
            self.greet_peers();
        }
        match &self.stage {
            Stage::Seeking => self.advance_seeking(),
            Stage::Member(view) => {
                if view.leader.is_none()
                    && self.campaigns < CAMPAIGNS_MAX
                    && self.now_ms >= self.campaign_due_ms
                {
                    self.campaign_if_voters_are_here();
                }
                self.advance_wish();
            }
            Stage::Over(_) => {}
        }
    }

    fn advance_seeking(&mut self) {
        self.notice_candidates();
        if self.found_if_listed() {
            return;
        }
        if let Some((cluster_id, via)) = self.join_target() {
            self.proposal = None;
            if self.now_ms >= self.join_due_ms && !via.is_empty() {
                self.join_due_ms = self.now_ms + JOIN_MS;
                let place = Place { cluster_id, storage: self.me.storage };
                let listed = self.listed_by(&via);
                self.effects.push(Effect::Join { place, listed, via });
            } else if via.is_empty() {
                self.join_due_ms = self.now_ms + JOIN_MS;
            }
            return;
        }
        self.advance_proposal();
    }

    /// Installs the decided cluster if this device, with this store, is one of its founding members.
    fn found_if_listed(&mut self) -> bool {
        let Some(genesis) = self.record.decided.clone() else { return false };
        let Some(raft_id) = self.listed_in(&genesis) else { return false };
        if self.told_not_a_member(genesis.cluster_id) {
            return false;
        }
        let campaign = genesis.voters == [raft_id];
        self.stage = Stage::Member(MembershipView {
            cluster_id: genesis.cluster_id,
            members: genesis.members.iter().map(|member| (member.device.clone(), member.storage)).collect(),
            in_use: false,
            leader: None,
            votes: genesis.voters.contains(&raft_id),
            applied: 1,
        });
        self.proposal = None;
        self.campaigns = if campaign { CAMPAIGNS_MAX } else { 0 };
        self.campaign_due_ms = self.now_ms;
        self.effects.push(Effect::Found { genesis, raft_id, campaign });
        true
    }

    /// The Raft id that the genesis gives to this device and this store.
    fn listed_in(&self, genesis: &Genesis) -> Option<u64> {
        genesis
            .members
            .iter()
            .find(|member| member.device == self.me.device && member.storage == self.me.storage)
            .map(|member| member.raft_id)
    }

    fn membership_changed(&mut self, view: MembershipView) {
        if view.leader.is_some() {
            self.campaigns = CAMPAIGNS_MAX;
        }
        self.declined.retain(|device, place| view.lists(device) == Some(*place));
        self.stage = Stage::Member(view);
        self.proposal = None;
        self.review_denials();
    }

    fn removed(&mut self) {
        if let Stage::Member(view) = &self.stage {
            self.stage = Stage::Over(view.cluster_id);
        }
    }

    fn send(&mut self, to: &DeviceId, message: Message) {
        self.effects.push(Effect::Send { to: to.clone(), message });
    }

    fn persist(&mut self) {
        self.effects.push(Effect::Persist(self.record.clone()));
    }

    /// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn random_below(&mut self, limit: u64) -> u64 {
        self.random() % limit.max(1)
    }
}
