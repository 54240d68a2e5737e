//! Plans that come, change and go.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use super::{Deployment, Effect, Ingress, State, words};
use crate::data::route::Route;

impl Ingress {
    /// Replaces all routes. Requests on the way finish on the route that they are on; those that wait for a route
    /// look again.
    pub fn set_routes(&mut self, now: Instant, routes: BTreeMap<String, Arc<Route>>) {
        for (name, deployment) in &mut self.deployments {
            if !routes.contains_key(&**name) {
                deployment.set_route(None, &self.limits);
            }
        }
        for (name, route) in routes {
            let deployment =
                self.deployments.entry(name.into()).or_insert_with(|| Deployment::new(now, &self.limits));
            deployment.set_route(Some(route), &self.limits);
        }
        self.end_waiting();
        let is_gone = |(name, d): (&Arc<str>, &Deployment)| d.route.is_none().then(|| name.clone());
        let gone: Vec<Arc<str>> = self.deployments.iter().filter_map(is_gone).collect();
        for name in gone {
            self.forget_when_idle(&name);
        }
        self.look_again(now);
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
