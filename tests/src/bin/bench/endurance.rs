//! What a mesh has to go through in months: restarts, one device after another, and links that are always full.

use std::{
    collections::BTreeSet,
    error::Error,
    fmt::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use mesh_daemon::status::Status;
use mesh_tests::lab::{
    machine::Usage,
    play::Player,
    scenario::{Condition, Event, Load, Scenario, Step},
    units::Span,
};

/// Restarts of every device.
const RESTARTS: usize = 100;
/// For a restarted device to be a member again, with everything served.
const WHOLE: Duration = Duration::from_secs(120);
/// How long links are kept full.
const FULL: Duration = Duration::from_secs(600);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// Load between two restarts of the rolling one.
const BETWEEN: Duration = Duration::from_secs(5);
/// Requests per second.
const DEPLOYMENTS: [(&str, f64); 2] = [("digits", 30.0), ("resnet50", 4.0)];

fn player(name: &str, models: &Path) -> Result<Player, Box<dyn Error>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("lab/scenarios/{name}.toml"));
    let mut player = Player::new(Scenario::load(&path)?, models.to_path_buf(), |line| eprintln!("{line}"))?;
    player.play()?;
    Ok(player)
}

fn play(player: &mut Player, step: Step) -> Result<(), Box<dyn Error>> {
    Ok(player.event(&Event { at: None, step })?)
}

fn restart(player: &mut Player, device: &str) -> Result<Duration, Box<dyn Error>> {
    let start = Instant::now();
    play(player, Step::Restart { devices: vec![device.to_owned()] })?;
    play(player, Step::Wait { until: Condition::Cluster, within: Some(Span(WHOLE)) })?;
    Ok(start.elapsed())
}

/// Every device is restarted in turn under load, then a hundred times each.
pub(super) fn restarts(models: &Path, text: &mut String) -> Result<(), Box<dyn Error>> {
    let mut player = player("faults", models)?;
    let names: Vec<String> = player.hall.devices.iter().map(|device| device.name().to_owned()).collect();
    for (name, rate) in DEPLOYMENTS {
        play(
            &mut player,
            Step::Load(Load {
                name: name.to_owned(),
                devices: None,
                clients: None,
                rate_per_s: Some(rate),
                max_in_flight: 256,
                failover: true,
            }),
        )?;
    }
    for name in &names {
        restart(&mut player, name)?;
        for (deployment, _) in DEPLOYMENTS {
            let until = Condition::Serving(deployment.to_owned());
            play(&mut player, Step::Wait { until, within: Some(Span(WHOLE)) })?;
        }
        play(&mut player, Step::Wait { until: Condition::Time(Span(BETWEEN)), within: None })?;
    }
    let _ = writeln!(
        text,
        "## Restarts\n\nSix devices with digits and ResNet-50 in three stages each. Every device is restarted in turn, as an \
         update would do it, with {} s in between, while open-loop clients ask all of them; a client turns to a second device \
         when its own gives no answer, or an error.\n\n| deployment | requests/s | right answers | of them from the second device | \
         wrong | refused | lost |\n|---|---|---|---|---|---|---|",
        BETWEEN.as_secs()
    );
    for (name, rate) in DEPLOYMENTS {
        play(&mut player, Step::StopLoad { name: Some(name.to_owned()) })?;
        let Some((_, report)) = player.report.loads.last() else { return Err("no report".into()) };
        let _ = writeln!(
            text,
            "| {name} | {rate:.0} | {} | {} | {} | {} | {} |",
            report.right,
            report.turned,
            report.wrong,
            report.refused,
            report.failed + report.dropped
        );
        for failure in &report.failures {
            eprintln!("{failure}");
        }
    }
    let mut times = Vec::new();
    for _ in 0..RESTARTS {
        for name in &names {
            times.push(restart(&mut player, name)?);
        }
    }
    times.sort();
    let (ghosts, members) = ghosts(&player, names.len());
    let _ = writeln!(
        text,
        "\nThen each {RESTARTS} times more: one cluster of all again after {:.2} s (median) and {:.2} s at most, the stop \
         included; {members} members at the end, {ghosts} of them that do not exist.",
        times[times.len() / 2].as_secs_f64(),
        times[times.len() - 1].as_secs_f64()
    );
    Ok(())
}

/// Members that are no device of the lab, as any device sees them, and members in all.
fn ghosts(player: &Player, devices: usize) -> (usize, usize) {
    let statuses = player.hall.running().filter_map(|device| device.daemon.status());
    let members: BTreeSet<String> =
        statuses.flat_map(|status| status.nodes.into_iter().map(|node| node.id)).collect();
    (members.len().saturating_sub(devices), members.len())
}

/// Links of 10 Mbit/s full of activations.
pub(super) fn saturated(models: &Path, text: &mut String) -> Result<(), Box<dyn Error>> {
    let mut player = under_load("saturated", models)?;
    let before = moved(&player);
    let first = terms(&player);
    let (start, mut deaths, mut looks, mut silent) = (Instant::now(), 0, 0, 0);
    while start.elapsed() < FULL {
        std::thread::sleep(LOOK);
        let mut told = 0;
        for status in statuses(&player) {
            told += 1;
            deaths += status.nodes.iter().filter(|node| node.state != "up").count();
        }
        looks += told;
        silent += player.hall.devices.len() - told;
    }
    let seconds = start.elapsed().as_secs_f64();
    let last = terms(&player);
    let after = moved(&player);
    let rates = |bytes: fn(&Usage) -> u64| {
        let each = after.iter().zip(&before).map(|(after, before)| {
            format!("{:.1}", (bytes(after) - bytes(before)) as f64 * 8.0 / seconds / 1e6)
        });
        each.collect::<Vec<_>>().join(", ")
    };
    let (received, sent) = (rates(|usage| usage.received), rates(|usage| usage.sent));
    let leader = player.leader().unwrap_or_else(|| "nobody".to_owned());
    play(&mut player, Step::StopLoad { name: None })?;
    let Some((_, report)) = player.report.loads.last() else { return Err("no report".into()) };
    let elections = last.iter().max().zip(first.iter().max()).map_or(0, |(last, first)| last - first);
    let _ = writeln!(
        text,
        "## Full links\n\nViT-B/16 in four stages on four devices with cards of 10 Mbit/s, 32 closed-loop clients for {:.0} \
         minutes. The devices received {received} and sent {sent} Mbit/s; the leader was {leader}. Elections: {elections}. \
         Devices seen as anything but up in {looks} looks at the status of each: {deaths}; looks that a device did not \
         answer in time: {silent}. Answers: {} right, {} wrong, {} refused, {} lost.",
        seconds / 60.0,
        report.right,
        report.wrong,
        report.refused,
        report.failed
    );
    Ok(())
}

/// A scenario played to its end, whose load goes on.
pub(super) fn under_load(name: &str, models: &Path) -> Result<Player, Box<dyn Error>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("lab/scenarios/{name}.toml"));
    let scenario = Scenario::load(&path)?;
    let events = scenario.event.clone();
    let mut player = Player::new(scenario, models.to_path_buf(), |line| eprintln!("{line}"))?;
    // Not played as a whole: that would end the load.
    for event in &events {
        player.event(event)?;
    }
    Ok(player)
}

fn statuses(player: &Player) -> impl Iterator<Item = Status> {
    player.hall.running().filter_map(|device| device.daemon.status())
}

fn terms(player: &Player) -> Vec<u64> {
    statuses(player).map(|status| status.cluster.term).collect()
}

fn moved(player: &Player) -> Vec<Usage> {
    player.hall.devices.iter().map(|device| device.usage()).collect()
}
