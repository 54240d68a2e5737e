//! Removing a member without its vote being missed.
//!
//! A removed device leaves as soon as it applies its removal, and takes its vote with it. So the leader puts the
//! removal into the log only while the configuration is at rest and the replica does not vote in it, and from then on
//! gives it no vote. It remembers one removal at a time; with its office it forgets it, and whoever wants the removal
//! asks the next leader. That one may not change the configuration before it has applied all that its predecessor
//! left in the log, a removal among it too.

use super::{Node, ProposeError};
use crate::command::RequestId;
use crate::ids::{DeviceId, RaftId};
use crate::store::Store;

/// Ticks after which a removal is given up whose seat nobody can take. Longer than a usual grace time: a device that
/// was just lost does not stand in the way of removing another one.
const PATIENCE_TICKS: u64 = 200;

const NOBODY_VOTES_INSTEAD: &str = "the device votes in the cluster, and no other one could take its seat in time: too \
     few others that could vote are in touch and up to date. Bring another device back, see `mesh status`, and remove \
     it then";
const LAST_MEMBER: &str = "the device is the last member; stop it instead of removing it";

/// The removal that a leader has under way, and the one that it gave up last.
#[derive(Debug, Default)]
pub(super) struct Removal {
    pending: Option<Pending>,
    given_up: Option<RequestId>,
    /// The term in which this replica leads and has taken them on.
    term: Option<u64>,
}

#[derive(Debug)]
struct Pending {
    id: RequestId,
    device: DeviceId,
    /// The encoded request, until it is in the log.
    request: Option<Vec<u8>>,
    due_tick: u64,
}

impl Removal {
    /// Forgets all when the office is another one: `leads_in` is the term that this replica leads in.
    pub(super) fn keep_in_office(&mut self, leads_in: Option<u64>) {
        if self.term != leads_in {
            *self = Self { term: leads_in, ..Self::default() };
        }
    }

    /// A request was applied.
    pub(super) fn applied(&mut self, id: &RequestId) {
        self.pending.take_if(|pending| pending.id == *id);
    }
}

impl<S: Store> Node<S> {
    /// Takes on the removal of a member; `request` is what goes into the log when it can.
    pub(super) fn begin_removal(
        &mut self,
        id: &RequestId,
        device: &DeviceId,
        request: Vec<u8>,
    ) -> Result<(), ProposeError> {
        self.after_input();
        if self.removal.given_up.as_ref() == Some(id) {
            return Err(ProposeError::Refused(NOBODY_VOTES_INSTEAD));
        }
        match &self.removal.pending {
            Some(pending) if pending.id == *id => return Ok(()),
            Some(_) => return Err(ProposeError::Busy),
            None => {}
        }
        if self.state.members.len() == 1 {
            return Err(ProposeError::Refused(LAST_MEMBER));
        }
        self.removal.pending = Some(Pending {
            id: id.clone(),
            device: device.clone(),
            request: Some(request),
            due_tick: self.ticks + PATIENCE_TICKS,
        });
        self.continue_removal();
        Ok(())
    }

    /// The replica that is being removed, from the request on until it is no member any more.
    pub(super) fn leaving(&self) -> Option<RaftId> {
        let pending = self.removal.pending.as_ref()?;
        self.state.member(&pending.device).map(|member| member.raft_id)
    }

    /// Puts the removal into the log when nobody counts on the replica's vote; gives it up when that takes too long.
    pub(super) fn continue_removal(&mut self) {
        let at_rest = !self.is_changing() && !self.conf.is_joint();
        let votes = self.leaving().is_some_and(|id| self.conf.voters.contains(&id));
        let Some(pending) = &mut self.removal.pending else { return };
        let Some(request) = pending.request.take() else { return };
        if at_rest && !votes && self.append(request.clone()).is_ok() {
            return;
        }
        let Some(pending) = &mut self.removal.pending else { return };
        pending.request = Some(request);
        if self.ticks >= pending.due_tick
            && let Some(pending) = self.removal.pending.take()
        {
            self.removal.given_up = Some(pending.id.clone());
            self.effects.refused.push((pending.id, ProposeError::Refused(NOBODY_VOTES_INSTEAD)));
        }
    }
}
