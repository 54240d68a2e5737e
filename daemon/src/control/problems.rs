//! What the planner was asked for the plans of today, so that a plan can be studied apart from the mesh.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh_planner::Problem;

use super::{
    consensus::ClusterView,
    facts::Facts,
    leader::wishes,
    memory::Others,
    models::Models,
    planning,
    rpc::{METHOD_PROBLEM, ProblemCall, decode, encode},
};
use crate::net::{Net, PeerId};

/// Plans remembered per deployment: the active one, the one being prepared, and one that was given up.
const KEPT: usize = 3;
/// One device is asked for this long.
const PATIENCE: Duration = Duration::from_secs(2);
/// So many devices are asked.
const ASKED_MAX: usize = 8;

/// The problems of one deployment's plans, by epoch.
type Epochs = BTreeMap<u64, Arc<Problem>>;

/// The problems of the plans that this device has made as leader. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Problems(Arc<Mutex<BTreeMap<String, Epochs>>>);

impl Problems {
    /// A plan was made from this.
    pub fn remember(&self, deployment: &str, epoch: u64, problem: Problem) {
        let mut all = self.lock();
        let epochs = all.entry(deployment.to_owned()).or_default();
        epochs.insert(epoch, Arc::new(problem));
        while epochs.len() > KEPT {
            epochs.pop_first();
        }
    }

    /// Drops deployments that are not in `keep`.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.lock().retain(|deployment, _| keep(deployment));
    }

    /// What this device made a plan from.
    pub fn get(&self, deployment: &str, epoch: u64) -> Option<Arc<Problem>> {
        self.lock().get(deployment)?.get(&epoch).cloned()
    }

    /// What a plan was made from, asked of the leader and then of others, who may have led when it was made.
    pub async fn find(
        &self,
        net: &Net,
        facts: &Facts,
        view: &ClusterView,
        deployment: &str,
        epoch: u64,
    ) -> Option<Problem> {
        if let Some(problem) = self.get(deployment, epoch) {
            return Some((*problem).clone());
        }
        let body = encode(&ProblemCall { deployment: deployment.to_owned(), epoch });
        let others = facts.peers().live().into_iter().filter(|p| Some(*p) != view.leader);
        let asked: Vec<PeerId> = view.leader.into_iter().chain(others).take(ASKED_MAX).collect();
        for peer in asked.into_iter().filter(|p| *p != facts.me()) {
            let answer = net.call(peer, METHOD_PROBLEM, body.clone(), PATIENCE).await;
            if let Some(problem) = answer.ok().and_then(|bytes| decode::<Option<Problem>>(&bytes)).flatten() {
                return Some(problem);
            }
        }
        None
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Epochs>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a plan for a deployment would be made from now.
pub async fn rebuild(
    facts: &Facts,
    models: &Models,
    view: &ClusterView,
    deployment: &str,
) -> Result<Problem, String> {
    let deployment = view.state.deployments.get(deployment).ok_or("it is no longer deployed")?;
    let record = view.state.models.get(&deployment.model).ok_or("its model has been removed")?;
    let profile = record.profile_blob.as_ref().ok_or("its model has not been profiled")?;
    let profile = models.profile(profile).await.map_err(|e| super::chain(&e))?;
    let devices = facts.devices_for(view, &deployment.name, Others::Stay);
    if devices.is_empty() {
        return Err("no device has measured itself yet".into());
    }
    Ok(planning::problem(&profile, &devices, &wishes(deployment)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(cut: u64) -> Problem {
        let text = format!(
            r#"{{"blocks": [], "cuts": [{cut}], "devices": [],
                "links": {{"default": {{"bytes_per_s": 1.0, "latency_s": 0.0}}}}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn the_newest_plans_of_each_deployment_are_remembered() {
        let problems = Problems::default();
        for epoch in 1..=5 {
            problems.remember("a", epoch, problem(epoch));
        }
        problems.remember("b", 1, problem(9));
        assert!(problems.get("a", 2).is_none());
        for epoch in 3..=5 {
            assert_eq!(problems.get("a", epoch).unwrap().cuts, [epoch]);
        }
        problems.retain(|name| name == "b");
        assert!(problems.get("a", 5).is_none());
        assert_eq!(problems.get("b", 1).unwrap().cuts, [9]);
    }

    #[test]
    fn problems_travel() {
        let problems = Problems::default();
        problems.remember("a", 1, problem(7));
        let sent = encode(&problems.get("a", 1).as_deref());
        assert_eq!(decode::<Option<Problem>>(&sent).unwrap().unwrap(), problem(7));
    }
}
