//! `mesh demo`: four daemons on this machine share a network that fits none of them, and one of them dies.

mod cluster;
mod digits;
mod load;

use std::time::{Duration, Instant};

use self::{
    cluster::{Cluster, DEVICES},
    digits::Digits,
    load::{Outcome, Victim},
};
use super::{
    args::Demo,
    exit::CliError,
    output::{self, Paint, paint},
    plan,
};
use crate::{
    app::{DeployEvent, DeployRequest, PlanDocument},
    status::Status,
};

/// What the deployment is called.
const NAME: &str = "digits";
/// Time until the devices are one cluster.
const FORM_LIMIT: Duration = Duration::from_secs(30);

pub(super) fn run(args: &Demo) -> Result<(), CliError> {
    let digits = Digits::embedded()?;
    output::note(&format!("starting {DEVICES} daemons on loopback"));
    let cluster = Cluster::start()?;
    let formed = Instant::now();
    let result = play(&cluster, &digits, formed);
    if args.keep {
        output::print(&cluster.keep())?;
    }
    result
}

fn play(cluster: &Cluster, digits: &Digits, start: Instant) -> Result<(), CliError> {
    let status = cluster.wait_until_formed(FORM_LIMIT)?;
    let took = start.elapsed().as_secs_f64();
    output::print(&format!(
        "{} One cluster after {took:.1} s\n{}\n",
        paint(Paint::Bold, "1."),
        super::status::devices(&status, 3)
    ))?;
    let document = deploy(cluster, &status)?;
    output::print(&format!(
        "{} The model needs more than a device has, so that it is cut\n{}\n",
        paint(Paint::Bold, "2."),
        indented(&plan::describe(&document.plan, &document.lifts, &status))
    ))?;
    let victim = victim(&status, &document)?;
    output::note(&format!("classifying {} images; {} dies half way", digits.len(), victim.name));
    let outcome = load::run(cluster, digits, &victim)?;
    report(&outcome, digits, &victim, &document)
}

/// Uploads the model through the first device and waits until it serves.
fn deploy(cluster: &Cluster, status: &Status) -> Result<PlanDocument, CliError> {
    let client = cluster.client(0);
    let mut model = digits::MODEL;
    client.put("/api/uploads/demo/digits.onnx", &mut model, digits::MODEL.len() as u64)?;
    let request = DeployRequest {
        name: NAME.to_owned(),
        upload: "demo".to_owned(),
        file: "digits.onnx".to_owned(),
        objective: mesh_planner::Objective::Throughput,
        shapes: Vec::new(),
        stages: None,
        pin: None,
        dry_run: false,
    };
    let mut step_now = String::new();
    let mut end = None;
    client.deploy(&request, |event| match event {
        DeployEvent::Progress { step, .. } => {
            if step != step_now {
                output::note(&step);
                step_now = step;
            }
            true
        }
        DeployEvent::Planned { .. } => true,
        DeployEvent::Serving { .. } | DeployEvent::DryRun => {
            end = Some(Ok(()));
            false
        }
        DeployEvent::Failed { error, .. } => {
            end = Some(Err(CliError::failed(format!("the model could not be deployed: {error}"))));
            false
        }
    })?;
    end.unwrap_or_else(|| Err(CliError::failed("the daemon ended the deployment's progress early")))?;
    let document: PlanDocument = client.get(&format!("/api/plan/{NAME}"))?;
    let mut devices: Vec<&str> =
        document.plan.stages.iter().flat_map(|s| &s.replicas).map(|r| r.device.as_str()).collect();
    devices.sort_unstable();
    devices.dedup();
    match document.plan.stages.len() >= 2 && devices.len() >= 2 {
        true => Ok(document),
        false => Err(CliError::failed(format!(
            "the plan has {} stages on {} devices, where several were to be forced\n{}",
            document.plan.stages.len(),
            devices.len(),
            plan::describe(&document.plan, &document.lifts, status)
        ))),
    }
}

/// A device that serves a stage; not the leader, where there is a choice.
fn victim(status: &Status, document: &PlanDocument) -> Result<Victim, CliError> {
    let serving: Vec<&str> =
        document.plan.stages.iter().flat_map(|stage| &stage.replicas).map(|r| r.device.as_str()).collect();
    let chosen = serving.iter().rev().find(|id| **id != status.cluster.leader).or(serving.last());
    let id = chosen.ok_or_else(|| CliError::failed("the plan has no device"))?;
    let node = status.nodes.iter().find(|node| node.id == **id);
    let node =
        node.ok_or_else(|| CliError::failed(format!("the plan uses {id}, which is no device here")))?;
    Ok(Victim { name: node.name.clone(), leads: node.id == status.cluster.leader })
}

fn report(
    outcome: &Outcome,
    digits: &Digits,
    victim: &Victim,
    document: &PlanDocument,
) -> Result<(), CliError> {
    let count = digits.len();
    let recovery = match outcome.recovery {
        Some(time) => format!("{:.2} s", time.as_secs_f64()),
        None => "never".to_owned(),
    };
    let verdicts = [
        (
            outcome.right == digits.reference_right(),
            format!(
                "{} of {count} digits right; the whole model gets {}",
                outcome.right,
                digits.reference_right()
            ),
        ),
        (
            outcome.equal == count,
            format!(
                "{} of {count} answers equal the whole model's (largest difference {:.1e}, allowed {:.0e})",
                outcome.equal,
                outcome.largest_difference,
                load::TOLERANCE
            ),
        ),
        (outcome.lost == 0, format!("{} requests lost", outcome.lost)),
        (
            outcome.recovery.is_some(),
            format!(
                "{}{} was killed after {} answers; the first request after that was answered {recovery} later \
                 (plan {} → {}; {} requests waited for a place, {} were sent again inside the mesh)",
                victim.name,
                if victim.leads { ", the leader," } else { "" },
                outcome.killed_at,
                document.epoch,
                outcome.last_epoch,
                outcome.turned_away,
                outcome.retries
            ),
        ),
    ];
    let mut text = format!("{} What the mesh did\n", paint(Paint::Bold, "3."));
    for (good, line) in &verdicts {
        let mark = if *good { paint(Paint::Green, "ok  ") } else { paint(Paint::Red, "FAIL") };
        text.push_str(&format!("   {mark} {line}\n"));
    }
    output::print(&text)?;
    match verdicts.iter().all(|(good, _)| *good) {
        true => Ok(()),
        false => Err(CliError::failed(match &outcome.last_error {
            Some(error) => format!("the demo did not show what it should; the last error was: {error}"),
            None => "the demo did not show what it should".to_owned(),
        })),
    }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| if line.is_empty() { "\n".to_owned() } else { format!("   {line}\n") }).collect()
}
