//! From a plan to the route that requests take. Pure.

use std::time::Duration;

use mesh_consensus::EpochPlan;

use crate::{
    data::{Route, RouteStage},
    net::PeerId,
};

/// The names of a model's tensors.
#[derive(Debug)]
pub struct Names<'a, F> {
    /// Inputs in graph order.
    pub inputs: Vec<&'a str>,
    /// Outputs in graph order.
    pub outputs: Vec<&'a str>,
    /// What enters the stage that begins with a block; `None` when there is no such cut.
    pub entering: F,
}

/// The route of an active plan; `None` when the model has no such cuts. `peer_of` knows devices by their ids;
/// `is_ready` tells whether a device that stands by for a stage has said that it is ready.
pub fn route<F: Fn(usize) -> Option<Vec<String>>>(
    name: &str,
    active: &EpochPlan,
    names: &Names<'_, F>,
    peer_of: impl Fn(&str) -> Option<PeerId>,
    is_ready: impl Fn(&str, usize) -> bool,
) -> Option<Route> {
    let mut stages = Vec::with_capacity(active.plan.stages.len());
    for (index, stage) in active.plan.stages.iter().enumerate() {
        let replica = |r: &mesh_planner::Replica| Some((peer_of(&r.device)?, r.share));
        let standbys = stage.standbys.iter().filter(|id| is_ready(id, index));
        stages.push(RouteStage {
            replicas: stage.replicas.iter().filter_map(replica).collect(),
            standbys: standbys.filter_map(|id| peer_of(id)).collect(),
            inputs: (names.entering)(stage.first_block)?,
        });
    }
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Some(Route {
        deployment: name.to_owned(),
        epoch: active.epoch,
        inputs: owned(&names.inputs),
        outputs: owned(&names.outputs),
        latency: Duration::try_from_secs_f64(active.plan.latency_s).unwrap_or_default(),
        stages,
    })
}
