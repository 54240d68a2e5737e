//! Plans that come, change and go.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Deployment, Effect, Ingress, State, request::Request, words};
use crate::data::route::Route;

/// What has waited for so many times as long as a new plan takes, when as much is under way as it allows, goes out on it...
const OVERTAKEN: u32 = 2;
/// ...if it has waited for so many times as long as what went well on the plan before: others may have more under way.
const SLOWER: u32 = 3;

impl Ingress {
    /// Replaces all routes. Requests on the way finish on the route that they are on, unless another plan would overtake
    /// them; those that wait for a route look again.
    pub fn set_routes(&mut self, now: Instant, routes: BTreeMap<String, Arc<Route>>) {
        for (name, deployment) in &mut self.deployments {
            if !routes.contains_key(&**name) {
                deployment.set_route(None, &self.limits);
            }
        }
        let mut replanned = Vec::new();
        for (name, route) in routes {
            let name: Arc<str> = name.into();
            let known = self.deployments.entry(Arc::clone(&name));
            let deployment = known.or_insert_with(|| Deployment::new(now, &self.limits));
            let before = deployment.route.as_ref().map(|route| route.epoch);
            if before.is_some_and(|before| before < route.epoch) {
                replanned.push((name, deployment.patience.quick().unwrap_or_default()));
            }
            deployment.set_route(Some(route), &self.limits);
        }
        self.end_waiting();
        let is_gone = |(name, d): (&Arc<str>, &Deployment)| d.route.is_none().then(|| name.clone());
        let gone: Vec<Arc<str>> = self.deployments.iter().filter_map(is_gone).collect();
        for name in gone {
            self.forget_when_idle(&name);
        }
        self.look_again(now);
        for (name, quick) in replanned {
            self.overtake(now, &name, quick);
        }
    }

    /// Requests that have waited on an earlier plan for so long that the new one would have answered them, as they do on
    /// a link that has become slow, go out again on it: once, and no more than may be under way.
    fn overtake(&mut self, now: Instant, name: &Arc<str>, quick: Duration) {
        let Some(route) = self.deployments.get(name).and_then(|d| d.route.clone()) else { return };
        let predicted = route.latency_when_full() * OVERTAKEN;
        if route.stages.is_empty() || predicted.is_zero() {
            return;
        }
        let patience = predicted.max(quick * SLOWER);
        let is_overtaken = |request: &Request| {
            let State::Sent(sent) = &request.state else { return false };
            request.deployment == *name
                && sent.address.epoch < route.epoch
                && now.saturating_duration_since(sent.at) > patience
        };
        for id in self.ids(is_overtaken) {
            let Some(request) = self.requests.get_mut(&id).filter(|request| request.deadline > now) else {
                continue;
            };
            // What the model does not take any more is finished as it was begun.
            if request.fits(&route) {
                request.last_error = Some("another plan is faster".into());
                self.resend(now, id);
            }
        }
    }

    /// Ends requests that wait and whose deployment is gone, or has become a model that they do not fit. All of them
    /// before others are sent: one that ends lets the next in, which would end as well, one inside the other.
    fn end_waiting(&mut self) {
        let mut ended = Vec::new();
        for (id, request) in self.requests.iter_mut().filter(|(_, r)| !matches!(r.state, State::Sent(_))) {
            let Some(deployment) = self.deployments.get(&request.deployment) else { continue };
            match &deployment.route {
                None => ended.push((*id, words::undeployed(&request.deployment))),
                Some(route) if !request.fits(route) => {
                    ended.push((*id, words::replaced(&request.deployment)));
                }
                Some(_) => {}
            }
        }
        ended.sort_unstable_by_key(|(id, _)| *id);
        for (id, error) in ended {
            let Some(request) = self.remove(id) else { continue };
            if let Some(deployment) = self.deployments.get_mut(&request.deployment) {
                deployment.errors += 1;
            }
            self.effects.push(Effect::Finish { id, result: Err(error) });
        }
    }

    /// Requests that wait for a route or a pause try again, and the window may have grown.
    pub(super) fn look_again(&mut self, now: Instant) {
        for id in self.ids(|r| matches!(r.state, State::Held { .. })) {
            self.resend(now, id);
        }
        let names: Vec<Arc<str>> = self.deployments.keys().cloned().collect();
        for name in names {
            self.admit_waiting(now, &name);
        }
    }
}
