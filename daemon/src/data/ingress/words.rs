//! What the ingress tells people: what happened, to what, and what to do next.

use std::{sync::Arc, time::Instant};

use super::{Ingress, Request, State};
use crate::{app::AppError, data::frame::Failure};

pub(super) fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a Arc<str>>) -> AppError {
    let known: Vec<&str> = known.map(|name| &**name).collect();
    let next = if known.is_empty() {
        "nothing is deployed; deploy a model with `mesh deploy`".to_owned()
    } else {
        format!("deployed are: {}", known.join(", "))
    };
    AppError::NotFound(format!("there is no deployment {name:?}; {next}"))
}

pub(super) fn undeployed(name: &str) -> AppError {
    AppError::NotFound(format!("{name} was undeployed; deploy it again to use it"))
}

pub(super) fn replaced(name: &str) -> AppError {
    AppError::Unavailable {
        message: format!(
            "{name} has become another model, with other inputs or outputs, since this request came; ask again as `mesh status {name}` shows it"
        ),
        retry_after_s: 1,
    }
}

pub(super) fn not_active(name: &str) -> AppError {
    AppError::Unavailable {
        message: format!(
            "{name} is being prepared and does not serve yet; `mesh status` shows how far it is"
        ),
        retry_after_s: 2,
    }
}

pub(super) fn full(name: &str, in_flight: usize, waiting: usize) -> AppError {
    AppError::Unavailable {
        message: format!(
            "{name} is at its limit here: {in_flight} requests run and {waiting} wait; try again in a moment or ask another device"
        ),
        retry_after_s: 1,
    }
}

pub(super) fn no_room(name: &str, held: usize) -> AppError {
    AppError::Unavailable {
        message: format!(
            "this device keeps {held} bytes of inputs for requests that are not answered yet and has no room for another of {name}; try again in a moment or ask another device"
        ),
        retry_after_s: 1,
    }
}

pub(super) fn no_such(what: &str, deployment: &str, name: &str, known: &[String]) -> AppError {
    AppError::Invalid(format!("{deployment} has no {what} {name:?}; its {what}s are: {}", known.join(", ")))
}

/// `same` when two runs failed in the same words: then the request is at fault.
pub(super) fn run_failed(deployment: &str, failure: &Failure, same: bool) -> AppError {
    let Failure { kind: _, stage, blame: _, message } = failure;
    if same {
        AppError::Invalid(format!(
            "{deployment} cannot run on these inputs: {message} (stage {stage}); check their shapes and types against the model"
        ))
    } else {
        AppError::Internal(format!(
            "{deployment} failed on several devices, last in stage {stage}: {message}; see `mesh doctor` on the devices"
        ))
    }
}

/// Too many devices went down with the request in one stage.
pub(super) fn devices_lost(deployment: &str, stage: usize, last: &str) -> AppError {
    AppError::Internal(format!(
        "several devices went down one after another while {deployment} had this request in stage {stage}, last {last}; it is sent to no more of them: ask for less at a time, and see their logs"
    ))
}

impl Ingress {
    /// What was missing when the deadline came.
    pub(super) fn why_late(&self, now: Instant, request: &Request) -> String {
        let name = &request.deployment;
        let waited = now.saturating_duration_since(request.accepted).as_secs_f64();
        let last = match &request.last_error {
            Some(error) => format!("; before that: {error}"),
            None => String::new(),
        };
        match &request.state {
            // A slot that was free a moment ago came too late for it.
            State::InLine | State::Held { until: _, missing: None } if request.attempts_made == 0 => format!(
                "no answer from {name} within {waited:.1} s: the request still waited in line; send fewer at a time or give more time"
            ),
            State::Held { until: _, missing: Some(stage) } => {
                let down = self.down_devices(name, *stage);
                format!(
                    "no answer from {name} within {waited:.1} s: stage {stage} of {name} has no live device ({down}); a new plan is being prepared, try again{last}"
                )
            }
            State::InLine | State::Held { until: _, missing: None } => {
                let attempts = request.attempts_made;
                format!(
                    "no answer from {name} within {waited:.1} s: refused {attempts} times{last}; try again"
                )
            }
            State::Sent(sent) => {
                let route: Vec<String> = sent.address.devices.iter().map(|peer| self.name(peer)).collect();
                format!(
                    "no answer from {name} within {waited:.1} s: the request is still on its way through {}, sent {} times{last}; give more time",
                    route.join(" > "),
                    request.attempts_made
                )
            }
        }
    }

    fn down_devices(&self, deployment: &str, stage: usize) -> String {
        let route = self.deployments.get(deployment).and_then(|d| d.route.as_ref());
        let replicas =
            route.and_then(|r| r.stages.get(stage)).map(|s| s.replicas.as_slice()).unwrap_or_default();
        let down: Vec<String> = replicas
            .iter()
            .filter(|(peer, _)| !self.up.contains(peer))
            .map(|(peer, _)| self.name(peer))
            .collect();
        match down.as_slice() {
            [] => "its devices have just come back".to_owned(),
            [one] => format!("{one} is down"),
            several => format!("{} are down", several.join(", ")),
        }
    }
}
