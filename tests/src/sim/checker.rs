//! Watches every device after every step. What it says no to must never happen, faults or not.

use std::collections::{BTreeMap, BTreeSet};

use mesh_consensus::{ClusterId, DeviceId, Node, RaftId, RedbStore, RequestId, Role, StorageId};

use mesh_daemon::app::AppError;

use super::process::Process;
use super::serving;

/// What was seen of one device when it was looked at last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Seen {
    incarnation: u64,
    applied: u64,
    epochs: BTreeMap<String, u64>,
}

/// Everything that was ever observed, by cluster.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    pub(crate) founded: BTreeSet<ClusterId>,
    leaders: BTreeMap<(ClusterId, u64), RaftId>,
    digests: BTreeMap<(ClusterId, u64), [u8; 32]>,
    requests: BTreeMap<(ClusterId, u64), RequestId>,
    ids: BTreeMap<(ClusterId, RaftId), (DeviceId, StorageId)>,
    plans: BTreeMap<(ClusterId, String, u64), String>,
    /// The model of each plan that was ever active.
    models: BTreeMap<(ClusterId, String, u64), String>,
    /// Right answers.
    pub(crate) right: u64,
    terms: BTreeMap<StorageId, u64>,
    pub(crate) acknowledged: BTreeMap<ClusterId, u64>,
    seen: BTreeMap<DeviceId, Seen>,
}

/// What does not hold.
pub(crate) type Check = Result<(), String>;

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(otherwise()) }
}

impl Checker {
    pub(crate) fn applied(&mut self, cluster: ClusterId, index: u64, request: RequestId) -> Check {
        let known = self.requests.entry((cluster, index)).or_insert_with(|| request.clone());
        ensure(*known == request, || {
            format!("entry {index} is {known:?} on one device and {request:?} on another")
        })
    }

    pub(crate) fn acknowledge(&mut self, cluster: ClusterId, index: u64) {
        let highest = self.acknowledged.entry(cluster).or_default();
        *highest = index.max(*highest);
    }

    /// An accepted request has ended: with what the model of the plan that answered makes of its input, or with an error
    /// that a client can do something about.
    pub(crate) fn answered(
        &mut self,
        cluster: ClusterId,
        deployment: &str,
        input: u64,
        answer: Result<(u64, u64), AppError>,
    ) -> Check {
        match answer {
            Ok((output, epoch)) => {
                let model = self.models.get(&(cluster, deployment.to_owned(), epoch));
                let Some(model) = model else {
                    return Err(format!("{deployment} answered by epoch {epoch}, which was never active"));
                };
                self.right += 1;
                ensure(output == serving::answer(model, input), || {
                    format!("{deployment}, epoch {epoch}, gives a wrong answer for {input}")
                })
            }
            Err(AppError::NotFound(_) | AppError::Unavailable { .. } | AppError::DeadlineExceeded(_)) => {
                Ok(())
            }
            Err(error) => Err(format!("a request to {deployment} ends with: {error}")),
        }
    }

    /// Looks at one device.
    pub(crate) fn observe(&mut self, process: &Process, incarnation: u64) -> Check {
        let Some(node) = process.node() else { return Ok(()) };
        self.check_term(process, node)?;
        check_voters(process, node)?;
        let device = process.device();
        let before = self.seen.get(device).cloned().unwrap_or_default();
        let same_run = before.incarnation == incarnation;
        if same_run && before.applied == node.applied() {
            return Ok(());
        }
        ensure(!same_run || before.applied < node.applied(), || format!("{device} applies backwards"))?;
        let epochs = self.check_state(device, node)?;
        for (name, epoch) in &epochs {
            let earlier = before.epochs.get(name).filter(|_| same_run);
            ensure(earlier.is_none_or(|earlier| earlier <= epoch), || {
                format!("{device} went back from epoch {earlier:?} of {name} to {epoch}")
            })?;
        }
        self.seen.insert(device.clone(), Seen { incarnation, applied: node.applied(), epochs });
        Ok(())
    }

    fn check_term(&mut self, process: &Process, node: &Node<RedbStore>) -> Check {
        let (device, term, id, cluster) = (process.device(), node.term(), node.id(), node.cluster_id());
        let last = self.terms.entry(process.storage()).or_default();
        ensure(*last <= term, || format!("{device} forgot term {last}, has {term}"))?;
        *last = term;
        if node.role() == Role::Leader {
            let leader = *self.leaders.entry((cluster, term)).or_insert(id);
            ensure(leader == id, || format!("term {term} has two leaders: {leader} and {id}"))?;
        }
        Ok(())
    }

    /// State, members and plans; returns the active epochs.
    fn check_state(
        &mut self,
        device: &DeviceId,
        node: &Node<RedbStore>,
    ) -> Result<BTreeMap<String, u64>, String> {
        let (cluster, applied, state) = (node.cluster_id(), node.applied(), node.state());
        if applied == 0 {
            return Ok(BTreeMap::new());
        }
        let digest = state.digest();
        let known = *self.digests.entry((cluster, applied)).or_insert(digest);
        ensure(known == digest, || format!("{device} has another state after entry {applied}"))?;
        for member in state.members.values() {
            let holder = (member.device.clone(), member.storage);
            let known = self.ids.entry((cluster, member.raft_id)).or_insert_with(|| holder.clone());
            ensure(*known == holder, || {
                format!("replica id {} was {known:?}, is {holder:?}", member.raft_id)
            })?;
        }
        self.check_removed(device, node)?;
        let mut epochs = BTreeMap::new();
        for (name, deployment) in &state.deployments {
            let Some(active) = &deployment.active else { continue };
            let plan = format!("{:?}", active.plan);
            let key = (cluster, name.clone(), active.epoch);
            self.models.entry(key.clone()).or_insert_with(|| active.model.clone());
            let known = self.plans.entry(key).or_insert_with(|| plan.clone());
            ensure(*known == plan, || format!("epoch {} of {name} has two plans", active.epoch))?;
            epochs.insert(name.clone(), active.epoch);
        }
        Ok(epochs)
    }

    /// A removed device leaves at once: nothing may hang on its vote.
    fn check_removed(&self, device: &DeviceId, node: &Node<RedbStore>) -> Check {
        let (cluster, conf) = (node.cluster_id(), node.conf());
        for removed in &node.state().removed {
            let replicas = self.ids.range((cluster, 0)..=(cluster, RaftId::MAX));
            let newest = replicas.rev().find(|(_, (holder, _))| holder == removed).map(|((_, id), _)| id);
            ensure(newest.is_none_or(|id| !conf.voters.contains(id) && !conf.outgoing.contains(id)), || {
                format!("{device} has removed {removed}, which votes in {conf:?}")
            })?;
        }
        Ok(())
    }

    /// At the end, on the cluster that stays.
    pub(crate) fn finish(&self, cluster: ClusterId, applied: u64) -> Check {
        let acknowledged = self.acknowledged.get(&cluster).copied().unwrap_or(0);
        ensure(acknowledged <= applied, || {
            format!("entry {acknowledged} was acknowledged, the cluster ends at {applied}")
        })
    }
}

fn check_voters(process: &Process, node: &Node<RedbStore>) -> Check {
    let conf = node.conf();
    let right = |count: usize| matches!(count, 0 | 1 | 3 | 5);
    ensure(right(conf.voters.len()) && right(conf.outgoing.len()), || {
        format!("{} has voters {:?} and {:?}", process.device(), conf.voters, conf.outgoing)
    })
}
