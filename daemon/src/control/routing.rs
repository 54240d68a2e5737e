//! From a plan to the route that requests take. Pure.

use std::time::Duration;

use mesh_consensus::EpochPlan;

use crate::{
    data::{Route, RouteStage},
    net::PeerId,
};

/// No plan has more requests under way at once; forecasts of peers may say anything.
const IN_FLIGHT_MAX: f64 = 4096.0;

/// What a plan is predicted to do.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// Requests per second.
    pub rps: f64,
    /// Seconds of one through the idle pipeline.
    pub latency_s: f64,
}

impl Expected {
    /// Requests in the pipeline at once (Little's law).
    fn in_flight(self) -> usize {
        let requests = (self.rps * self.latency_s).ceil();
        if requests.is_nan() { 0 } else { requests.clamp(0.0, IN_FLIGHT_MAX) as usize }
    }
}

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

/// The route of an active plan; `None` when the model has no such cuts. `expected` is what the plan is believed to do
/// now, where that is known better than when it was made. `peer_of` knows devices by their ids;
/// `is_ready` tells whether a device that stands by for a stage has said that it is ready.
pub fn route<F: Fn(usize) -> Option<Vec<String>>>(
    name: &str,
    active: &EpochPlan,
    expected: Option<Expected>,
    names: &Names<'_, F>,
    peer_of: impl Fn(&str) -> Option<PeerId>,
    is_ready: impl Fn(&str, usize) -> bool,
) -> Option<Route> {
    let mut stages = Vec::with_capacity(active.plan.stages.len());
    for (index, stage) in active.plan.stages.iter().enumerate() {
        let replica = |r: &mesh_planner::Replica| Some((peer_of(&r.device)?, r.share));
        let (ready, unready): (Vec<&String>, Vec<&String>) =
            stage.standbys.iter().partition(|id| is_ready(id, index));
        let peers = |ids: Vec<&String>| ids.into_iter().filter_map(|id| peer_of(id)).collect();
        stages.push(RouteStage {
            replicas: stage.replicas.iter().filter_map(replica).collect(),
            standbys: peers(ready),
            unready: peers(unready),
            inputs: (names.entering)(stage.first_block)?,
        });
    }
    let planned = Expected { rps: active.plan.throughput_rps, latency_s: active.plan.latency_s };
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Some(Route {
        deployment: name.to_owned(),
        epoch: active.epoch,
        inputs: owned(&names.inputs),
        outputs: owned(&names.outputs),
        latency: Duration::try_from_secs_f64(active.plan.latency_s).unwrap_or_default(),
        in_flight: expected.unwrap_or(planned).in_flight(),
        stages,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_under_way_are_rate_times_latency() {
        for (rps, latency_s, requests) in [
            (500.0, 0.065, 33),
            (0.2, 4.0, 1),
            (8.0, 0.25, 2),
            (0.0, 1.0, 0),
            (-3.0, 1.0, 0),
            (f64::NAN, 1.0, 0),
            (f64::INFINITY, 0.0, 0),
            (1e12, 1e12, 4096),
        ] {
            assert_eq!(Expected { rps, latency_s }.in_flight(), requests, "{rps}/s, {latency_s} s");
        }
    }
}
