//! The loop around raft-rs: persist, then send, then apply.
//!
//! Everything is sent after it is durable, also what a leader could send before: a sole voter that took office
//! a moment ago would otherwise announce a term that a power cut makes it forget.

use raft::eraftpb::{Entry, EntryType, Message, MessageType};
use raft::{SnapshotStatus, StateRole};

use super::guard::parse_conf_change;
use super::{Applied, FatalError, Node, Outbound, Role};
use crate::command::Request;
use crate::state::ClusterState;
use crate::store::{
    Store, StoredHardState, StoredSnapshot, Write, from_conf_state, from_entry, from_hard_state,
    from_snapshot,
};
use crate::wire::Frame;

/// Bytes of entries in the log after which a snapshot is taken, however few the entries are.
const SNAPSHOT_BYTES: usize = 4 * 1024 * 1024;

impl<S: Store> Node<S> {
    /// Like [`Node::drain`], where there is nobody to give an error to: [`Node::process`] returns it.
    pub(super) fn drain_now(&mut self) {
        if self.stopped {
            return;
        }
        if let Err(error) = self.drain() {
            self.failure = Some(error);
            self.stopped = true;
        }
    }

    pub(super) fn drain(&mut self) -> Result<(), FatalError> {
        while self.raw.has_ready() {
            self.handle_ready()?;
        }
        self.save_commit()
    }

    fn handle_ready(&mut self) -> Result<(), FatalError> {
        let mut ready = self.raw.ready();
        let install = Some(ready.snapshot()).filter(|snapshot| !snapshot.is_empty()).map(from_snapshot);
        let installed = install.clone();
        let mut write = Write {
            install,
            entries: self.to_stored(ready.entries())?,
            hard_state: ready.hs().map(from_hard_state),
            records: Vec::new(),
        };
        if ready.must_sync() {
            // Raft tells of a commit index once, and that was before these entries: they take it along.
            if self.commit_unsaved.take().is_some() {
                write.hard_state.get_or_insert(self.hard_state());
            }
            self.raw.mut_store().write(write)?;
        } else {
            // Only the commit index moved. What it covers is on the disks of a majority; forgetting how far it
            // got costs nothing but time.
            self.commit_unsaved.get_or_insert(self.ticks);
        }
        if let Some(snapshot) = installed {
            self.install(&snapshot)?;
        }
        self.send(ready.take_messages());
        self.send(ready.take_persisted_messages());
        let mut committed = ready.take_committed_entries();
        let mut light = self.raw.advance_append(ready);
        self.send(light.take_messages());
        if light.commit_index().is_some() {
            self.commit_unsaved.get_or_insert(self.ticks);
        }
        committed.append(&mut light.take_committed_entries());
        let conf_changed = self.apply(&committed)?;
        self.raw.advance_apply();
        self.compact_if_due(conf_changed)?;
        if conf_changed {
            self.follow_conf();
        }
        Ok(())
    }

    fn to_stored(&self, entries: &[Entry]) -> Result<Vec<crate::store::StoredEntry>, FatalError> {
        let stored: Option<Vec<_>> = entries.iter().map(from_entry).collect();
        stored.ok_or_else(|| FatalError::Broken("an old membership change in the log".to_owned()))
    }

    fn send(&mut self, messages: Vec<Message>) {
        for message in messages {
            let snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
            let to = message.get_to();
            let Some(frame) = Frame::from_message(self.identity.cluster_id, &message) else { continue };
            if snapshot {
                self.snapshots.insert(to, self.ticks);
            }
            self.effects.messages.push(Outbound { to, snapshot, frame: frame.encode() });
        }
    }

    fn install(&mut self, snapshot: &StoredSnapshot) -> Result<(), FatalError> {
        let state = ClusterState::decode(&snapshot.data).map_err(FatalError::Snapshot)?;
        self.conf = snapshot.conf.clone();
        self.applied = snapshot.index;
        self.replace_state(|ours| *ours = state);
        Ok(())
    }

    /// Changes the state, and notices whether this device is still a member.
    fn replace_state<T>(&mut self, change: impl FnOnce(&mut ClusterState) -> T) -> T {
        let was_member = self.is_member();
        let result = change(&mut self.state);
        self.effects.state_changed = true;
        self.effects.removed_self |= was_member && !self.is_member();
        result
    }

    /// Applies committed entries in order. True when the configuration has changed.
    fn apply(&mut self, entries: &[Entry]) -> Result<bool, FatalError> {
        let mut conf_changed = false;
        for entry in entries {
            let index = entry.get_index();
            if index != self.applied + 1 {
                return Err(FatalError::Broken(format!(
                    "entry {index} is to be applied after {}",
                    self.applied
                )));
            }
            match entry.get_entry_type() {
                EntryType::EntryNormal if entry.get_data().is_empty() => {}
                EntryType::EntryNormal => self.apply_request(index, entry.get_data())?,
                EntryType::EntryConfChangeV2 => conf_changed |= self.apply_conf_change(entry)?,
                EntryType::EntryConfChange => {
                    return Err(FatalError::Broken("an old membership change in the log".to_owned()));
                }
            }
            self.applied = index;
        }
        Ok(conf_changed)
    }

    fn apply_request(&mut self, index: u64, data: &[u8]) -> Result<(), FatalError> {
        let request = Request::decode(data).map_err(|source| FatalError::Request { index, source })?;
        let id = request.id.clone();
        let outcome = self.replace_state(|state| state.apply(index, request));
        self.removal.applied(&id);
        self.effects.applied.push(Applied { index, request: id, outcome });
        Ok(())
    }

    fn apply_conf_change(&mut self, entry: &Entry) -> Result<bool, FatalError> {
        let index = entry.get_index();
        let change = parse_conf_change(entry.get_data()).ok_or_else(|| {
            FatalError::Broken(format!("the membership change in entry {index} cannot be read"))
        })?;
        match self.raw.apply_conf_change(&change) {
            Ok(conf) => {
                self.conf = from_conf_state(&conf);
                Ok(true)
            }
            Err(error) => {
                // The same on every replica, since it depends on the configuration only: nobody changes.
                tracing::error!(index, %error, "a membership change does not fit the configuration, skipped");
                Ok(false)
            }
        }
    }

    /// Right after a membership change, because a new learner refuses a snapshot that does not know it; and
    /// when the log has grown.
    fn compact_if_due(&mut self, conf_changed: bool) -> Result<(), FatalError> {
        let log = self.raw.store();
        let since = self.applied.saturating_sub(log.snapshot().map_or(0, |snapshot| snapshot.index));
        let bulky = log.entry_bytes() >= SNAPSHOT_BYTES;
        if since == 0 || !(conf_changed || bulky || since >= self.options.snapshot_entries) {
            return Ok(());
        }
        let term = log
            .term_of(self.applied)
            .ok_or_else(|| FatalError::Broken(format!("applied entry {} is not in the log", self.applied)))?;
        let snapshot =
            StoredSnapshot { index: self.applied, term, conf: self.conf.clone(), data: self.state.encode() };
        let kept = if bulky { 0 } else { self.options.kept_entries };
        let up_to = self.applied.saturating_sub(kept);
        self.raw.mut_store().compact(snapshot, up_to)?;
        Ok(())
    }

    /// raft-rs leaves a leader that was removed or demoted in office.
    fn follow_conf(&mut self) {
        let me = self.identity.raft_id;
        if self.raw.raft.state == StateRole::Leader
            && !self.conf.voters.contains(&me)
            && !self.conf.is_joint()
        {
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, raft::INVALID_ID);
        }
        self.heard.retain(|id, _| self.conf.contains(*id));
        let unknown: Vec<_> = self.conf.voters.union(&self.conf.learners).copied().collect();
        for id in unknown {
            self.heard.entry(id).or_insert(self.ticks);
        }
    }

    /// A commit index that nothing else carried to the disk is written after a while, so that a device that
    /// restarts without a quorum still knows the newest plan.
    fn save_commit(&mut self) -> Result<(), FatalError> {
        let Some(since) = self.commit_unsaved else { return Ok(()) };
        if self.ticks < since + self.options.election_ticks as u64 {
            return Ok(());
        }
        self.commit_unsaved = None;
        let write = Write { hard_state: Some(self.hard_state()), ..Write::default() };
        self.raw.mut_store().write(write)?;
        Ok(())
    }

    fn hard_state(&self) -> StoredHardState {
        let raft = &self.raw.raft;
        StoredHardState { term: raft.term, vote: raft.vote, commit: raft.raft_log.committed }
    }

    pub(super) fn forget_lost_snapshots(&mut self) {
        let (now, patience) = (self.ticks, self.options.snapshot_ticks);
        let raw = &mut self.raw;
        self.snapshots.retain(|id, sent| {
            let wait = now < *sent + patience;
            if !wait {
                raw.report_snapshot(*id, SnapshotStatus::Failure);
            }
            wait
        });
    }

    /// Bookkeeping after every input that may have changed the role.
    pub(super) fn after_input(&mut self) {
        let leads = self.raw.raft.state == StateRole::Leader;
        if leads && self.heard.is_empty() {
            let now = self.ticks;
            self.heard = self.conf.voters.union(&self.conf.learners).map(|id| (*id, now)).collect();
        } else if !leads && !self.heard.is_empty() {
            self.heard.clear();
            self.snapshots.clear();
        }
        self.removal.keep_in_office(leads.then_some(self.raw.raft.term));
    }

    pub(super) fn report_role(&mut self) {
        self.after_input();
        let leads_in = Some(self.term()).filter(|_| self.role() == Role::Leader);
        let now = (self.role(), self.leader(), leads_in);
        if (now.0, now.2) != (self.reported.0, self.reported.2) {
            self.effects.role_changed = Some(now.0);
        }
        if now.1 != self.reported.1 {
            self.effects.leader_changed = Some(now.1);
        }
        self.reported = now;
    }
}
