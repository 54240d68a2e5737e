//! Applying requests: deterministic, and at most once per request id.

use super::{
    ClusterState, Deployment, EpochPlan, MAX_DEPLOYMENTS, MAX_MEMBERS, MAX_MODELS, MAX_TEXT, Member,
    ModelRecord, OUTCOMES_KEPT, PROPOSERS_KEPT,
};
use crate::command::{Command, DeploySpec, Listed, Outcome, Request, RequestId};
use crate::ids::{DeviceId, StorageId};

/// Why a command is refused, for people.
struct Refusal(String);

type Verdict = Result<Outcome, Refusal>;

fn refuse<T>(reason: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal(reason.into()))
}

fn check_text(what: &str, text: &str) -> Result<(), Refusal> {
    if text.len() > MAX_TEXT {
        return refuse(format!(
            "the {what} has {} bytes, more than {MAX_TEXT}; use a shorter one",
            text.len()
        ));
    }
    Ok(())
}

fn check_name(what: &str, text: &str) -> Result<(), Refusal> {
    if text.is_empty() {
        return refuse(format!("the {what} is empty; give one"));
    }
    check_text(what, text)
}

impl ClusterState {
    /// Applies the request of log entry `index`. A request id that was applied lately is not applied again:
    /// its first outcome is returned.
    pub fn apply(&mut self, index: u64, request: Request) -> Outcome {
        let Request { id, command } = request;
        if let Some(outcome) = self.outcome(&id) {
            return outcome.clone();
        }
        let outcome = self.execute(command).unwrap_or_else(|Refusal(reason)| Outcome::Rejected { reason });
        self.remember(index, id, outcome.clone());
        outcome
    }

    fn execute(&mut self, command: Command) -> Verdict {
        match command {
            Command::Join { device, storage, listed, name, address } => {
                self.join(device, storage, listed, name, address)
            }
            Command::UpdateMember { device, name, address } => self.update_member(&device, name, address),
            Command::RemoveMember { device } => self.remove_member(device),
            Command::SetDraining { device, draining } => {
                self.member_mut(&device)?.draining = draining;
                Ok(Outcome::Done)
            }
            Command::AddModel(record) => self.add_model(record),
            Command::RemoveModel { hash } => self.remove_model(&hash),
            Command::Deploy(spec) => self.deploy(spec),
            Command::Undeploy { name } => self.undeploy(&name),
            Command::PreparePlan { deployment, epoch, plan } => {
                let deployment = self.deployment_mut(&deployment)?;
                deployment.fence(epoch)?;
                deployment.preparing = Some(EpochPlan { epoch, model: deployment.model.clone(), plan });
                deployment.next_epoch += 1;
                Ok(Outcome::Done)
            }
            Command::ActivatePlan { deployment, epoch } => {
                let deployment = self.deployment_mut(&deployment)?;
                deployment.active = Some(deployment.take_preparing(epoch)?);
                deployment.fault = None;
                Ok(Outcome::Done)
            }
            Command::AbandonPlan { deployment, epoch, reason } => {
                check_text("reason", &reason)?;
                let deployment = self.deployment_mut(&deployment)?;
                deployment.take_preparing(epoch)?;
                deployment.fault = Some(reason);
                Ok(Outcome::Done)
            }
            Command::SetFault { deployment, epoch, reason } => {
                check_text("reason", reason.as_deref().unwrap_or_default())?;
                let deployment = self.deployment_mut(&deployment)?;
                epoch.map_or(Ok(()), |epoch| deployment.fence(epoch))?;
                deployment.fault = reason;
                Ok(Outcome::Done)
            }
        }
    }

    fn remember(&mut self, index: u64, id: RequestId, outcome: Outcome) {
        let recent = self.recent.entry(id.proposer).or_default();
        recent.last_index = index;
        recent.outcomes.push_back((id.sequence, outcome));
        if recent.outcomes.len() > OUTCOMES_KEPT {
            recent.outcomes.pop_front();
        }
        if self.recent.len() > PROPOSERS_KEPT {
            let silent =
                self.recent.iter().min_by_key(|(_, recent)| recent.last_index).map(|(id, _)| id.clone());
            silent.map(|id| self.recent.remove(&id));
        }
    }

    fn member_mut(&mut self, device: &DeviceId) -> Result<&mut Member, Refusal> {
        match self.members.values_mut().find(|member| &member.device == device) {
            Some(member) => Ok(member),
            None => refuse(format!("device {device} is not a member; `mesh node list` shows the members")),
        }
    }

    fn join(
        &mut self,
        device: DeviceId,
        storage: StorageId,
        listed: Listed,
        name: String,
        address: String,
    ) -> Verdict {
        if self.removed.contains(&device) {
            return refuse(format!(
                "device {device} was removed from this cluster; to bring it back as a new device, stop it, move its \
                 data directory away and start it again"
            ));
        }
        check_name("device id", &device.0)?;
        check_text("name", &name)?;
        check_text("address", &address)?;
        let known = self.member(&device).map(|member| (member.raft_id, member.storage));
        if let Some((raft_id, old_storage)) = known
            && old_storage == storage
        {
            self.update_member(&device, name, address)?;
            return Ok(Outcome::Joined { raft_id });
        }
        if listed != Listed::Unsaid && listed != Listed::from(known.map(|(_, storage)| storage)) {
            return Ok(Outcome::ListedOtherwise);
        }
        if let Some((raft_id, _)) = known {
            self.members.remove(&raft_id);
        } else if self.members.len() >= MAX_MEMBERS {
            return refuse(format!(
                "the cluster has {MAX_MEMBERS} members, the most it can; remove one first"
            ));
        }
        let raft_id = self.next_raft_id;
        self.next_raft_id += 1;
        self.members.insert(raft_id, Member { raft_id, device, storage, name, address, draining: false });
        Ok(Outcome::Joined { raft_id })
    }

    fn update_member(&mut self, device: &DeviceId, name: String, address: String) -> Verdict {
        check_text("name", &name)?;
        check_text("address", &address)?;
        let member = self.member_mut(device)?;
        member.name = name;
        member.address = address;
        Ok(Outcome::Done)
    }

    fn remove_member(&mut self, device: DeviceId) -> Verdict {
        if self.removed.contains(&device) {
            return Ok(Outcome::Done);
        }
        let raft_id = self.member_mut(&device)?.raft_id;
        if self.members.len() == 1 {
            return refuse(format!("device {device} is the last member; stop it instead of removing it"));
        }
        self.members.remove(&raft_id);
        self.recent.remove(&device);
        self.removed.insert(device);
        Ok(Outcome::Done)
    }

    fn add_model(&mut self, record: ModelRecord) -> Verdict {
        check_name("model hash", &record.hash)?;
        check_text("model source", &record.source)?;
        check_text("profile hash", record.profile_blob.as_deref().unwrap_or_default())?;
        check_text("device id", &record.added_by.0)?;
        if self.models.len() >= MAX_MODELS && !self.models.contains_key(&record.hash) {
            return refuse(format!("{MAX_MODELS} models are known, the most that can be; remove one first"));
        }
        self.models.insert(record.hash.clone(), record);
        Ok(Outcome::Done)
    }

    fn remove_model(&mut self, hash: &str) -> Verdict {
        if let Some(user) = self.deployments.values().find(|deployment| deployment.uses(hash)) {
            let name = &user.name;
            return refuse(format!(
                "model {hash} is used by deployment {name}; `mesh undeploy {name}` first"
            ));
        }
        match self.models.remove(hash) {
            Some(_) => Ok(Outcome::Done),
            None => refuse(format!("model {hash} is not known; `mesh models` shows what is")),
        }
    }

    fn deploy(&mut self, spec: DeploySpec) -> Verdict {
        let DeploySpec { name, model, objective, stages, pin, shapes } = spec;
        check_name("deployment's name", &name)?;
        if !self.models.contains_key(&model) {
            return refuse(format!(
                "model {model} is not known; import it first with `mesh deploy FILE.onnx`"
            ));
        }
        if self.deployments.len() >= MAX_DEPLOYMENTS && !self.deployments.contains_key(&name) {
            return refuse(format!(
                "there are {MAX_DEPLOYMENTS} deployments, the most that can be; undeploy one first"
            ));
        }
        let old = self.deployments.remove(&name);
        // An epoch is spent on every change of the spec: a plan made for the old one cannot be prepared.
        let next_epoch = old.as_ref().map_or(self.epoch_floor, |old| old.next_epoch + 1);
        let active = old.and_then(|old| old.active);
        let deployment = Deployment {
            name: name.clone(),
            model,
            objective,
            stages,
            pin,
            shapes,
            active,
            preparing: None,
            next_epoch,
            asked_epoch: next_epoch,
            fault: None,
        };
        self.deployments.insert(name, deployment);
        Ok(Outcome::Done)
    }

    fn undeploy(&mut self, name: &str) -> Verdict {
        match self.deployments.remove(name) {
            Some(old) => {
                self.epoch_floor = self.epoch_floor.max(old.next_epoch);
                Ok(Outcome::Done)
            }
            None => refuse(format!("there is no deployment {name}; `mesh status` shows what there is")),
        }
    }

    fn deployment_mut(&mut self, name: &str) -> Result<&mut Deployment, Refusal> {
        match self.deployments.get_mut(name) {
            Some(deployment) => Ok(deployment),
            None => refuse(format!("there is no deployment {name}; `mesh status` shows what there is")),
        }
    }
}

impl Deployment {
    fn uses(&self, hash: &str) -> bool {
        self.model == hash || self.active.iter().chain(&self.preparing).any(|plan| plan.model == hash)
    }

    fn fence(&self, epoch: u64) -> Result<(), Refusal> {
        if epoch == self.next_epoch {
            return Ok(());
        }
        refuse(format!(
            "deployment {} takes epoch {} next, not {epoch}; plan again",
            self.name, self.next_epoch
        ))
    }

    fn take_preparing(&mut self, epoch: u64) -> Result<EpochPlan, Refusal> {
        match self.preparing.take_if(|plan| plan.epoch == epoch) {
            Some(plan) => Ok(plan),
            None => refuse(format!("deployment {} is not preparing epoch {epoch}", self.name)),
        }
    }
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
