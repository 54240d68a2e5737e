//! Founding, joining and opening.

use std::collections::{BTreeMap, BTreeSet};

use raft::{Config, RawNode};

use super::jitter::Jitter;
use super::removal::Removal;
use super::{Effects, FoundError, Genesis, Identity, Node, OpenError, Options, Role};
use crate::ids::{ClusterId, RaftId};
use crate::state::ClusterState;
use crate::store::{Conf, Log, Store, StoreError, StoredHardState, StoredSnapshot, Write};

/// Record that holds the [`Identity`].
const IDENTITY: &str = "raft-identity";

/// Bytes of entries in one append.
const APPEND_BYTES: u64 = 64 * 1024;

/// Bytes of requests that a leader takes on before they are committed, and that are applied at once.
const PENDING_BYTES: u64 = 1024 * 1024;

impl Genesis {
    fn check(&self, me: RaftId) -> Result<(), FoundError> {
        let ids: BTreeSet<_> = self.members.iter().map(|member| member.raft_id).collect();
        let devices: BTreeSet<_> = self.members.iter().map(|member| &member.device).collect();
        let voters: BTreeSet<_> = self.voters.iter().copied().collect();
        let wrong = if ids.len() != self.members.len() || ids.contains(&0) {
            "raft ids must differ and start at 1"
        } else if devices.len() != self.members.len() {
            "a device is named twice"
        } else if voters.len() != self.voters.len() || !matches!(voters.len(), 1 | 3 | 5) {
            "there must be 1, 3 or 5 different voters"
        } else if !voters.is_subset(&ids) {
            "a voter is not a member"
        } else if !ids.contains(&me) {
            "this device is not a member"
        } else {
            return Ok(());
        };
        Err(FoundError::Genesis(wrong))
    }

    fn snapshot(&self) -> StoredSnapshot {
        let voters: BTreeSet<_> = self.voters.iter().copied().collect();
        let learners =
            self.members.iter().map(|member| member.raft_id).filter(|id| !voters.contains(id)).collect();
        let state = ClusterState::founded(self.cluster_id, &self.cluster_name, &self.members);
        let conf = Conf { voters, learners, ..Conf::default() };
        StoredSnapshot { index: 1, term: 1, conf, data: state.encode() }
    }
}

fn identity_record(identity: Identity) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    ciborium::into_writer(&identity, &mut bytes).expect("writing plain types into memory cannot fail");
    (IDENTITY.to_owned(), bytes)
}

fn refuse_used<S: Store>(store: &S) -> Result<(), FoundError> {
    match Node::identity_in(store)? {
        Some(identity) => Err(FoundError::NotEmpty(identity)),
        None => Ok(()),
    }
}

impl<S: Store> Node<S> {
    /// Which replica of which cluster a store belongs to, if to any.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn identity_in(store: &S) -> Result<Option<Identity>, StoreError> {
        let Some(bytes) = store.get_record(IDENTITY)? else { return Ok(None) };
        ciborium::from_reader(bytes.as_slice()).map(Some).map_err(|error| StoreError::Corrupt {
            path: "cluster.redb".into(),
            what: format!("replica identity: {error}"),
        })
    }

    /// Makes an empty store the one of replica `me` of a new cluster, in one transaction.
    ///
    /// # Errors
    /// When the store is in use already, the genesis makes no sense, or the disk refuses.
    pub fn found(store: &mut S, genesis: &Genesis, me: RaftId) -> Result<(), FoundError> {
        genesis.check(me)?;
        refuse_used(store)?;
        let identity = Identity { cluster_id: genesis.cluster_id, raft_id: me };
        let write = Write {
            install: Some(genesis.snapshot()),
            hard_state: Some(StoredHardState { term: 1, vote: 0, commit: 1 }),
            records: vec![identity_record(identity)],
            ..Write::default()
        };
        Ok(store.write(&write)?)
    }

    /// Makes an empty store the one of replica `me` of a cluster that is there. It gets everything else from the
    /// leader, once the leader has added it.
    ///
    /// # Errors
    /// When the store is in use already, or the disk refuses.
    pub fn join_empty(store: &mut S, cluster_id: ClusterId, me: RaftId) -> Result<(), FoundError> {
        if me == 0 {
            return Err(FoundError::Genesis("raft ids start at 1"));
        }
        refuse_used(store)?;
        let records = vec![identity_record(Identity { cluster_id, raft_id: me })];
        Ok(store.write(&Write { records, ..Write::default() })?)
    }

    /// Opens the replica that a store belongs to.
    ///
    /// # Errors
    /// When the store belongs to no cluster, cannot be read, or is of a newer build.
    pub fn open(store: S, options: Options) -> Result<Self, OpenError> {
        let identity = Self::identity_in(&store)?.ok_or(OpenError::NoCluster)?;
        let log = Log::load(store)?;
        let (applied, conf, state) = match log.snapshot() {
            Some(snapshot) => (snapshot.index, snapshot.conf.clone(), ClusterState::decode(&snapshot.data)?),
            None => (0, Conf::default(), ClusterState::empty(identity.cluster_id)),
        };
        let fixed_timeout = 2 * options.election_ticks;
        let config = Config {
            id: identity.raft_id,
            election_tick: options.election_ticks,
            heartbeat_tick: options.heartbeat_ticks,
            min_election_tick: fixed_timeout,
            max_election_tick: fixed_timeout + 1,
            applied,
            max_size_per_msg: APPEND_BYTES,
            max_inflight_msgs: 64,
            check_quorum: true,
            pre_vote: true,
            max_uncommitted_size: PENDING_BYTES,
            max_committed_size_per_ready: PENDING_BYTES,
            ..Config::default()
        };
        let raw = RawNode::new(&config, log, &super::logger::logger())
            .map_err(|error| OpenError::Options(error.to_string()))?;
        let role = if conf.voters.contains(&identity.raft_id) { Role::Follower } else { Role::Learner };
        let mut jitter = Jitter::new(options.seed, options.election_ticks);
        if conf.voters.iter().eq([&identity.raft_id]) && !conf.is_joint() {
            // Nobody else could be the leader: no reason to wait.
            jitter.timeout = 1;
        }
        Ok(Self {
            raw,
            identity,
            jitter,
            options,
            state,
            conf,
            applied,
            ticks: 0,
            heard: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            commit_unsaved: None,
            removal: Removal::default(),
            effects: Effects::default(),
            reported: (role, None, None),
            failure: None,
            stopped: false,
        })
    }
}
