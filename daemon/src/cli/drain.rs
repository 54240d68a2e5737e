//! `mesh node drain`: follows until no deployment runs on the device any more.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use super::{
    client::{self, Client},
    exit::CliError,
    output,
    progress::{Progress, Unit},
};
use crate::{
    control::select,
    status::{DeploymentStatus, NodeStatus, Status},
};

/// Moving a stage fetches its weights and prepares it elsewhere first.
const LIMIT: Duration = Duration::from_secs(600);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Looks that must find nothing: a plan that was decided on just before may still come, and requests on their way end.
const CLEAR_LOOKS: u32 = 2;
/// What a deployment says of why it stays is believed after this long: the leader plans again every five seconds, and a
/// plan takes some seconds to make.
const STUCK_AFTER: Duration = Duration::from_secs(20);

/// Takes a device out of work, and waits until what it ran runs elsewhere.
pub(super) fn run(client: &Client, node: &str, no_wait: bool) -> Result<(), CliError> {
    client.post(&format!("/api/nodes/{}/drain", client::segment(node)), super::node::CHANGE_LIMIT)?;
    if no_wait {
        output::note(&format!("{node} is draining: what it runs is being moved. Next: mesh status"));
        return Ok(());
    }
    let status: Status = client.get("/api/status")?;
    let Some(id) = find(&status, node).map(|found| found.id.clone()) else {
        return Err(CliError::failed(format!(
            "{node} is told to drain, but the daemon at {} does not list it: see mesh node list",
            client.base()
        )));
    };
    let mut following = Following::new(id);
    let mut progress = Progress::default();
    let begun = Instant::now();
    loop {
        let status: Status = client.get("/api/status")?;
        let now = begun.elapsed();
        match following.look(now, &status) {
            Look::Clear => break,
            Look::Left(left) if now < LIMIT => {
                let (ran, left) = (following.ran as u64, left.len() as u64);
                if ran > 0 {
                    progress.show(&format!("moving work off {node}"), ran - left, ran, Unit::Items);
                }
            }
            Look::Left(left) => return Err(late(node, &left)),
            Look::Stuck(left) => return Err(stuck(node, &left)),
            Look::TakenBack => {
                return Err(CliError::failed(format!(
                    "{node} takes work again: somebody has undone its draining (mesh node undrain)"
                )));
            }
        }
        thread::sleep(LOOK_EVERY);
    }
    progress.finish();
    output::note(&match following.ran {
        0 => format!("{node} gets no work any more; it ran nothing"),
        _ => format!("{node} gets no work any more; what it ran has been moved"),
    });
    Ok(())
}

/// The device that a name, an id, or the start or end of an id means, as the daemon reads it.
fn find<'s>(status: &'s Status, text: &str) -> Option<&'s NodeStatus> {
    let exact = |node: &&NodeStatus| node.id == text || node.name == text;
    let nodes = &status.nodes;
    nodes.iter().find(exact).or_else(|| nodes.iter().find(|node| select::is_part_of(&node.id, text)))
}

/// A deployment that still runs on the device.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Left {
    name: String,
    /// What it says of why.
    reason: String,
}

/// What one look at the status shows.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    /// Nothing runs on the device.
    Clear,
    /// This still does.
    Left(Vec<Left>),
    /// This still does, and nothing is under way that would change it.
    Stuck(Vec<Left>),
    /// The device is not draining any more.
    TakenBack,
}

/// What has been seen of a device since it was told to drain.
#[derive(Debug)]
struct Following {
    id: String,
    /// This daemon knows that the device drains.
    is_known: bool,
    /// Looks in a row that found nothing.
    clear: u32,
    /// The most deployments that were seen on it.
    ran: usize,
    /// Deployments that say why they stay, since when.
    staying: BTreeMap<String, Duration>,
}

impl Following {
    fn new(id: String) -> Self {
        Self { id, is_known: false, clear: 0, ran: 0, staying: BTreeMap::new() }
    }

    /// Takes in a status that came `now` after the beginning.
    fn look(&mut self, now: Duration, status: &Status) -> Look {
        let Some(node) = status.nodes.iter().find(|node| node.id == self.id) else {
            // Somebody has removed it.
            return Look::Clear;
        };
        match node.state.as_str() {
            "draining" | "down" => self.is_known = true,
            _ if self.is_known => return Look::TakenBack,
            _ => {}
        }
        let here: Vec<_> = status.deployments.iter().filter(|d| runs_on(d, &self.id)).collect();
        self.ran = self.ran.max(here.len());
        self.clear = if here.is_empty() && self.is_known { self.clear + 1 } else { 0 };
        if self.clear >= CLEAR_LOOKS {
            return Look::Clear;
        }
        let left: Vec<Left> = here.iter().map(|deployment| left(deployment, status)).collect();
        self.staying.retain(|name, _| left.iter().any(|l| l.name == *name && !l.reason.is_empty()));
        for deployment in left.iter().filter(|l| !l.reason.is_empty()) {
            self.staying.entry(deployment.name.clone()).or_insert(now);
        }
        let is_stuck = |l: &Left| {
            self.staying.get(&l.name).is_some_and(|since| now.saturating_sub(*since) >= STUCK_AFTER)
        };
        match !left.is_empty() && left.iter().all(is_stuck) {
            true => Look::Stuck(left),
            false => Look::Left(left),
        }
    }
}

fn runs_on(deployment: &DeploymentStatus, id: &str) -> bool {
    deployment.stages.iter().flat_map(|stage| &stage.replicas).any(|replica| replica.node == id)
}

fn left(deployment: &DeploymentStatus, status: &Status) -> Left {
    let reason = match deployment.preparing_epoch {
        // Another plan is on its way: what is said now is of before.
        1.. => String::new(),
        0 if !status.cluster.quorum => "there is no quorum, so that plans cannot change".to_owned(),
        0 => deployment.reason.clone(),
    };
    Left { name: deployment.name.clone(), reason }
}

fn stuck(node: &str, left: &[Left]) -> CliError {
    CliError::failed(format!(
        "{node} is draining, but this cannot do without it: {}. Bring back or add a device, or undeploy something; then \
         `mesh node drain {node}` again. Or let it be: `mesh node undrain {node}`",
        list(left)
    ))
}

fn late(node: &str, left: &[Left]) -> CliError {
    let minutes = LIMIT.as_secs() / 60;
    CliError::failed(match left {
        [] => {
            format!("after {minutes} minutes this daemon has not heard that {node} drains: see mesh status")
        }
        _ => format!(
            "{node} is draining, but after {minutes} minutes still runs {}: see mesh status; `mesh node drain {node}` \
             waits again",
            list(left)
        ),
    })
}

fn list(left: &[Left]) -> String {
    let named: Vec<String> = left
        .iter()
        .map(|Left { name, reason }| match reason.is_empty() {
            true => name.clone(),
            false => format!("{name} ({reason})"),
        })
        .collect();
    named.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{ClusterStatus, ReplicaStatus, StageStatus};

    const ID: &str = "12D3KooWabcdef";

    /// Device `ID` in a state, beside another one, and what each deployment says: name, device, reason, plan that is
    /// being prepared.
    fn status(state: &str, deployments: &[(&str, &str, &str, u64)]) -> Status {
        let node = |id: &str, name: &str, state: &str| NodeStatus {
            id: id.into(),
            name: name.into(),
            state: state.into(),
            ..NodeStatus::default()
        };
        let stage = |node: &str| StageStatus {
            replicas: vec![ReplicaStatus { node: node.into(), share: 1.0 }],
            ..StageStatus::default()
        };
        Status {
            cluster: ClusterStatus { quorum: true, ..ClusterStatus::default() },
            nodes: vec![node("12D3KooWother", "attic", "up"), node(ID, "camera-1", state)],
            deployments: deployments
                .iter()
                .map(|&(name, on, reason, preparing_epoch)| DeploymentStatus {
                    name: name.into(),
                    reason: reason.into(),
                    preparing_epoch,
                    stages: vec![stage("12D3KooWother"), stage(on)],
                    ..DeploymentStatus::default()
                })
                .collect(),
            ..Status::default()
        }
    }

    fn left(names: &[(&str, &str)]) -> Vec<Left> {
        names.iter().map(|&(name, reason)| Left { name: name.into(), reason: reason.into() }).collect()
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn it_ends_when_nothing_runs_there() {
        let mut following = Following::new(ID.into());
        // Not heard of yet, then moving, then away; a plan of before comes late.
        for (state, on, wanted) in [
            ("up", "12D3KooWother", Look::Left(left(&[]))),
            ("up", ID, Look::Left(left(&[("digits", "")]))),
            ("draining", ID, Look::Left(left(&[("digits", "")]))),
            ("draining", "12D3KooWother", Look::Left(left(&[]))),
            ("draining", ID, Look::Left(left(&[("digits", "")]))),
            ("draining", "12D3KooWother", Look::Left(left(&[]))),
            ("draining", "12D3KooWother", Look::Clear),
        ] {
            assert_eq!(following.look(at(1), &status(state, &[("digits", on, "", 0)])), wanted);
        }
        assert_eq!(following.ran, 1);
    }

    #[test]
    fn what_cannot_be_moved_is_told() {
        let mut following = Following::new(ID.into());
        let full = "no device has room";
        let two = |second: &'static str, preparing| {
            status(
                "draining",
                &[("a", ID, full, preparing), ("b", ID, second, 0), ("c", "12D3KooWother", "", 0)],
            )
        };
        let both = |first, second| left(&[("a", first), ("b", second)]);
        // The reason is of before while another plan is prepared; and all must have one for long.
        for (seconds, second, preparing, wanted) in [
            (0, "", 4, Look::Left(both("", ""))),
            (30, "", 4, Look::Left(both("", ""))),
            (31, "", 0, Look::Left(both(full, ""))),
            (60, "", 0, Look::Left(both(full, ""))),
            (61, full, 0, Look::Left(both(full, full))),
            (80, full, 0, Look::Left(both(full, full))),
            (81, full, 0, Look::Stuck(both(full, full))),
        ] {
            assert_eq!(following.look(at(seconds), &two(second, preparing)), wanted, "{seconds} s");
        }
        let error = stuck("camera-1", &both(full, ""));
        assert_eq!(error.code(), 1);
        for says in ["a (no device has room), b.", "mesh node undrain camera-1"] {
            assert!(error.message().contains(says), "{}", error.message());
        }
        assert!(late("camera-1", &both("", full)).message().contains("still runs a, b (no device has room)"));
        assert!(late("camera-1", &[]).message().contains("has not heard"));
    }

    #[test]
    fn without_a_quorum_nothing_moves() {
        let mut following = Following::new(ID.into());
        let mut status = status("draining", &[("a", ID, "", 0)]);
        status.cluster.quorum = false;
        assert!(matches!(following.look(at(0), &status), Look::Left(_)));
        let Look::Stuck(left) = following.look(at(20), &status) else { panic!("it waits") };
        assert!(left[0].reason.contains("no quorum"), "{left:?}");
    }

    #[test]
    fn what_others_do_ends_it() {
        let mut following = Following::new(ID.into());
        let mut removed = status("draining", &[("a", ID, "", 0)]);
        removed.nodes.pop();
        assert_eq!(following.look(at(0), &removed), Look::Clear);
        assert!(matches!(following.look(at(1), &status("draining", &[("a", ID, "", 0)])), Look::Left(_)));
        assert_eq!(following.look(at(2), &status("up", &[("a", ID, "", 0)])), Look::TakenBack);
    }

    #[test]
    fn devices_are_named_as_the_daemon_takes_it() {
        let status = status("up", &[]);
        for (text, wanted) in [
            ("camera-1", Some(ID)),
            (ID, Some(ID)),
            ("12D3KooWab", Some(ID)),
            ("abcdef", Some(ID)),
            ("…abcdef", Some(ID)),
            ("attic", Some("12D3KooWother")),
            ("nope", None),
        ] {
            assert_eq!(find(&status, text).map(|node| node.id.as_str()), wanted, "{text}");
        }
    }
}
