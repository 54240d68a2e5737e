//! Taking requests in: checks, the window and the line behind it.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use super::{Ingress, Request, State, words};
use crate::{
    app::{AppError, InferRequest},
    data::route::Route,
};

impl Ingress {
    /// Whether requests for a deployment are taken.
    pub fn serves(&self, name: &str) -> bool {
        let route = self.deployments.get(name).and_then(|deployment| deployment.route.as_ref());
        route.is_some_and(|route| !route.stages.is_empty())
    }

    /// Accepts a request or says why not. An accepted one is finished by its deadline.
    pub fn begin(&mut self, now: Instant, request: InferRequest) -> Result<u64, AppError> {
        let Some((name, deployment)) = self.deployments.get_key_value(request.model.as_str()) else {
            return Err(words::unknown(&request.model, self.deployments.keys()));
        };
        let Some(route) = &deployment.route else { return Err(words::undeployed(name)) };
        if route.stages.is_empty() {
            return Err(words::not_active(name));
        }
        check_names(route, &request)?;
        let (name, epoch) = (name.clone(), route.epoch);
        let deadline = now + request.timeout.min(self.limits.timeout_max);
        let free = deployment.in_flight < deployment.window && deployment.line.is_empty();
        if !free && deployment.line.len() >= self.limits.line_max {
            return Err(words::full(&name, deployment.in_flight, deployment.line.len()));
        }
        let bytes: usize = request.inputs.iter().map(|(_, tensor)| tensor.bytes().len()).sum();
        if self.held_bytes > 0 && self.held_bytes + bytes > self.limits.held_bytes_max {
            return Err(words::no_room(&name, self.held_bytes));
        }
        self.held_bytes += bytes;
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        let deployment = self.deployments.get_mut(&name).expect("was found above");
        deployment.requests += 1;
        deployment.arrived += u64::from(request.from_elsewhere);
        if free {
            deployment.in_flight += 1;
        } else {
            deployment.line.push_back(id);
        }
        let InferRequest { model: _, inputs, outputs, timeout: _, from_elsewhere: _ } = request;
        self.requests.insert(id, Request::new(name, inputs, outputs, epoch, now, deadline));
        if free {
            self.resend_admitted(now, id)
        } else {
            self.set_timer(id)
        }
        Ok(id)
    }

    /// Gives free slots to those who wait.
    pub(super) fn admit_waiting(&mut self, now: Instant, name: &Arc<str>) {
        loop {
            let Some(deployment) = self.deployments.get_mut(name) else { return };
            if deployment.in_flight >= deployment.window {
                return;
            }
            let Some(id) = deployment.line.pop_front() else { break };
            deployment.in_flight += 1;
            self.resend_admitted(now, id);
        }
        self.forget_when_idle(name);
    }

    /// First send of a request that has just got its slot.
    fn resend_admitted(&mut self, now: Instant, id: u64) {
        if let Some(request) = self.requests.get_mut(&id) {
            request.state = State::Held { until: None, missing: None };
        }
        self.resend(now, id);
    }

    /// Takes a request out of every book but the effects.
    pub(super) fn remove(&mut self, id: u64) -> Option<Request> {
        self.release_route(id);
        let request = self.requests.remove(&id)?;
        self.timers.remove(&(request.timer, id));
        self.held_bytes -= request.input_bytes();
        if let Some(deployment) = self.deployments.get_mut(&request.deployment) {
            match request.state {
                State::InLine => deployment.line.retain(|waiting| *waiting != id),
                State::Held { .. } | State::Sent(_) => deployment.in_flight -= 1,
            }
        }
        Some(request)
    }

    /// An undeployed name is forgotten with its last request.
    pub(super) fn forget_when_idle(&mut self, name: &Arc<str>) {
        let idle = |d: &super::Deployment| d.route.is_none() && d.in_flight == 0 && d.line.is_empty();
        if self.deployments.get(name).is_some_and(idle) {
            self.deployments.remove(name);
        }
    }
}

/// Every input once, by its name; outputs that exist.
fn check_names(route: &Route, request: &InferRequest) -> Result<(), AppError> {
    let mut seen = BTreeSet::new();
    for (name, _) in &request.inputs {
        if !route.inputs.contains(name) {
            return Err(words::no_such("input", &route.deployment, name, &route.inputs));
        }
        if !seen.insert(name) {
            return Err(AppError::Invalid(format!("input {name:?} is given twice; give every input once")));
        }
    }
    if let Some(missing) = route.inputs.iter().find(|name| !seen.contains(name)) {
        return Err(AppError::Invalid(format!(
            "input {missing:?} of {} is missing; give all of: {}",
            route.deployment,
            route.inputs.join(", ")
        )));
    }
    match request.outputs.iter().find(|name| !route.outputs.contains(name)) {
        Some(name) => Err(words::no_such("output", &route.deployment, name, &route.outputs)),
        None => Ok(()),
    }
}
