//! The stages of a device that frames can reach, and what becomes of frames for others. Pure.
//!
//! Epochs fence: a frame reaches a stage only under the number of the plan that it was sent by.

use std::collections::{BTreeMap, HashMap};

use super::{frame::FailureKind, route::StageKey};

/// Stages within reach.
#[derive(Debug)]
pub struct Reachable<T> {
    stages: HashMap<StageKey, T>,
    /// Newest epoch per deployment of which a stage was taken away. Bounded by the deployments that are known.
    retired: BTreeMap<String, u64>,
}

impl<T> Default for Reachable<T> {
    fn default() -> Self {
        Self { stages: HashMap::new(), retired: BTreeMap::new() }
    }
}

impl<T> Reachable<T> {
    /// Puts a stage within reach; gives back the one that was there under this key.
    #[must_use = "dropping a stage may wait for its thread"]
    pub fn host(&mut self, key: StageKey, stage: T) -> Option<T> {
        self.stages.insert(key, stage)
    }

    /// Takes a stage out of reach: frames for it are refused as of a retired epoch.
    #[must_use = "dropping a stage may wait for its thread"]
    pub fn unhost(&mut self, key: &StageKey) -> Option<T> {
        let retired = self.retired.entry(key.deployment.clone()).or_insert(key.epoch);
        *retired = (*retired).max(key.epoch);
        self.stages.remove(key)
    }

    /// Forgets what was retired of deployments that are no longer known.
    pub fn forget(&mut self, is_known: impl Fn(&str) -> bool) {
        self.retired.retain(|deployment, _| is_known(deployment));
    }

    /// The stage that a frame is for.
    pub fn get(&self, key: &StageKey) -> Option<&T> {
        self.stages.get(key)
    }

    /// All stages.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.stages.values()
    }

    /// Why a frame for a stage that is not here is refused. `newest`: the newest epoch of the deployment that is known.
    pub fn refusal(&self, key: &StageKey, newest: Option<u64>) -> (FailureKind, String) {
        let StageKey { deployment, epoch, stage } = key;
        let retired = self.retired.get(deployment);
        let is_old =
            retired.is_some_and(|retired| epoch <= retired) || newest.is_some_and(|new| *epoch < new);
        if is_old {
            (FailureKind::StaleEpoch, format!("epoch {epoch} of {deployment} is retired here"))
        } else {
            (FailureKind::UnknownStage, format!("stage {stage} of {deployment}, epoch {epoch}, is not here"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(epoch: u64) -> StageKey {
        StageKey { deployment: "m".into(), epoch, stage: 0 }
    }

    #[test]
    fn frames_of_other_epochs_are_refused() {
        let mut stages = Reachable::default();
        assert_eq!(stages.refusal(&key(3), None).0, FailureKind::UnknownStage);
        assert_eq!(stages.refusal(&key(3), Some(4)).0, FailureKind::StaleEpoch);
        assert_eq!(stages.host(key(3), "three"), None);
        assert_eq!((stages.get(&key(3)), stages.get(&key(4))), (Some(&"three"), None));
        assert_eq!(stages.unhost(&key(3)), Some("three"));
        assert_eq!(stages.refusal(&key(3), None).0, FailureKind::StaleEpoch);
        assert_eq!(stages.refusal(&key(4), None).0, FailureKind::UnknownStage);
        stages.forget(|_| false);
        assert_eq!(stages.refusal(&key(3), None).0, FailureKind::UnknownStage);
    }
}
