//! Random faults over the real binaries, under checked load: round after round from a seed.
//!
//! In a round one or two things go wrong at devices other than the one that clients ask, then all is healed. Nothing
//! may be lost or wrong, and after each round there is one cluster of all devices that serves everything.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, SystemTime},
};

use clap::ValueEnum;
use rand::{RngExt as _, SeedableRng as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::{
    play::{PlayError, Player},
    scenario::{Condition, Event, Load, Step},
    units::{Rate, Span},
};

/// For a healed cluster to be whole again.
const WHOLE: Duration = Duration::from_secs(180);
/// Seconds that a fault lasts.
const LASTS: (u64, u64) = (1, 15);
/// Seconds of load before a fault, and after all is whole again.
const CALM: u64 = 2;
/// Times that a cable goes out and in.
const FLAPS: usize = 3;
/// An address that no device of a lab has by itself. Two devices never move at once.
const ELSEWHERE: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 77, 250, 1);

/// What goes wrong at a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Trouble {
    /// `kill -9`, and a start later.
    Kill,
    /// A stop as systemd asks for it, and a start.
    Restart,
    /// Nothing on it runs.
    Freeze,
    /// Its cable is out.
    Cut,
    /// It loses its disk and comes back as a new device; the old one is removed by the operator.
    Wipe,
    /// Its card is slow.
    SlowLink,
    /// Its processor is slow.
    SlowCpu,
    /// Another program takes its processor.
    Burn,
    /// Its disk is full.
    FullDisk,
    /// Its cable is out and in again, several times a second apart.
    Flap,
    /// It gets another address, and its old one back.
    Moves,
    /// Three in ten of the frames that it sends are lost.
    Lossy,
    /// What it sends takes half a second.
    Far,
}

impl Trouble {
    const ALL: [Self; 13] = [
        Self::Kill,
        Self::Restart,
        Self::Freeze,
        Self::Cut,
        Self::Wipe,
        Self::SlowLink,
        Self::SlowCpu,
        Self::Burn,
        Self::FullDisk,
        Self::Flap,
        Self::Moves,
        Self::Lossy,
        Self::Far,
    ];

    /// Whether a lab without netem has to have made the device's card to bring it about.
    fn needs_delays(self) -> bool {
        matches!(self, Self::Lossy | Self::Far)
    }

    /// What can happen in a lab: losses and delays where its cards know them.
    pub fn possible(player: &Player) -> Vec<Self> {
        let hall = &player.hall;
        let delays = hall.network.has_netem() || hall.devices.iter().all(|d| d.is_relayed(&hall.network));
        Self::ALL.into_iter().filter(|trouble| delays || !trouble.needs_delays()).collect()
    }
}

/// What happens in a round.
#[derive(Debug, Clone, Serialize)]
pub struct Plot {
    /// From 0.
    pub round: u64,
    /// Where the clients are.
    pub home: String,
    /// Device, trouble, seconds.
    pub troubles: Vec<(String, Trouble, u64)>,
}

/// Draws round `round` of what is possible; equal seeds and rounds give equal plots.
pub fn plot(seed: u64, round: u64, devices: &[String], possible: &[Trouble]) -> Plot {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(round);
    let mut devices = devices.to_vec();
    devices.shuffle(&mut random);
    let home = devices.swap_remove(0);
    // Two of six at once leave a quorum of the five that vote.
    let count = if devices.len() >= 5 && random.random_range(0..3) == 0 { 2 } else { 1 };
    let trouble = |device: String| {
        let what = possible[random.random_range(0..possible.len())];
        (device, what, random.random_range(LASTS.0..=LASTS.1))
    };
    let mut troubles: Vec<_> = devices.into_iter().take(count).map(trouble).collect();
    // One address is kept for those that move.
    let moves = |(_, what, _): &(String, Trouble, u64)| *what == Trouble::Moves;
    if troubles.iter().filter(|trouble| moves(trouble)).count() > 1 {
        troubles.truncate(1);
    }
    Plot { round, home, troubles }
}

/// How a round went.
#[derive(Debug, Clone, Serialize)]
pub struct Round {
    /// What happened.
    pub plot: Plot,
    /// Right answers.
    pub answers: u64,
    /// Wrong answers.
    pub wrong: u64,
    /// Requests without an answer.
    pub lost: u64,
    /// Requests that were told to come back later.
    pub refused: u64,
    /// The first texts of those.
    pub failures: Vec<String>,
    /// Longest time without an answer, by deployment.
    pub longest_gap_s: BTreeMap<String, f64>,
    /// When that began, as the seconds of Unix: where to look in the logs.
    pub longest_gap_began_unix_s: BTreeMap<String, f64>,
    /// Largest resident memory of a daemon at the end, MiB.
    pub memory_mib: u64,
    /// Most open files of a daemon at the end.
    pub files: usize,
}

/// A load of the chaos: deployment and requests per second.
pub type Asked = (String, f64);

/// Plays a round in a lab where the deployments serve.
///
/// # Errors
/// When the lab cannot be brought back to one whole cluster.
pub fn play(player: &mut Player, plot: &Plot, loads: &[Asked]) -> Result<Round, PlayError> {
    let mut began = BTreeMap::new();
    for (name, rate_per_s) in loads {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        began.insert(name.clone(), since_epoch.as_secs_f64());
        step(player, Step::Load(load(name, *rate_per_s, &plot.home)))?;
    }
    calm(player, CALM)?;
    for (device, trouble, _) in &plot.troubles {
        begin(player, device, *trouble)?;
    }
    // In the order in which they end.
    let mut ends: Vec<_> = plot.troubles.iter().collect();
    ends.sort_by_key(|(_, _, seconds)| *seconds);
    let mut passed = 0;
    for (device, trouble, seconds) in ends {
        calm(player, seconds - passed)?;
        passed = *seconds;
        end(player, device, *trouble, &plot.home)?;
    }
    whole(player, loads)?;
    calm(player, CALM)?;
    let before = player.report.loads.len();
    for (name, _) in loads {
        step(player, Step::StopLoad { name: Some(name.clone()) })?;
    }
    let reports = &player.report.loads[before..];
    let sum = |value: fn(&super::load::LoadReport) -> u64| reports.iter().map(|(_, r)| value(r)).sum();
    let round = Round {
        plot: plot.clone(),
        answers: sum(|r| r.right),
        wrong: sum(|r| r.wrong),
        lost: sum(|r| r.failed + r.dropped),
        refused: sum(|r| r.refused),
        failures: reports.iter().flat_map(|(_, r)| r.failures.iter().take(3).cloned()).collect(),
        longest_gap_s: reports.iter().map(|(name, r)| (name.clone(), r.longest_gap_s)).collect(),
        longest_gap_began_unix_s: reports
            .iter()
            .filter_map(|(name, r)| Some((name.clone(), began.get(name)? + r.longest_gap_from_s)))
            .collect(),
        memory_mib: resources(player).map(|(bytes, _)| bytes >> 20).max().unwrap_or(0),
        files: resources(player).map(|(_, files)| files).max().unwrap_or(0),
    };
    player.report.loads.truncate(before);
    player.report.events.clear();
    Ok(round)
}

fn load(name: &str, rate_per_s: f64, home: &str) -> Load {
    Load {
        name: name.to_owned(),
        devices: Some(vec![home.to_owned()]),
        clients: None,
        rate_per_s: Some(rate_per_s),
        max_in_flight: 512,
        failover: false,
    }
}

fn step(player: &mut Player, step: Step) -> Result<(), PlayError> {
    player.event(&Event { at: None, step })
}

fn calm(player: &mut Player, seconds: u64) -> Result<(), PlayError> {
    let span = Span(Duration::from_secs(seconds));
    step(player, Step::Wait { until: Condition::Time(span), within: None })
}

fn begin(player: &mut Player, device: &str, trouble: Trouble) -> Result<(), PlayError> {
    let devices = vec![device.to_owned()];
    let happening = match trouble {
        Trouble::Kill | Trouble::Wipe => Step::Kill { devices },
        Trouble::Restart => Step::Stop { devices },
        Trouble::Freeze => Step::Freeze { devices },
        Trouble::Cut => Step::Cut { devices },
        Trouble::Flap => {
            for _ in 0..FLAPS {
                step(player, Step::Cut { devices: devices.clone() })?;
                calm(player, 1)?;
                step(player, Step::Heal { devices: devices.clone() })?;
                calm(player, 1)?;
            }
            return Ok(());
        }
        Trouble::Moves => Step::Address { device: device.to_owned(), address: Some(ELSEWHERE) },
        Trouble::SlowLink => slow(devices, Some(Rate(10_000_000)), None, None),
        Trouble::Lossy => slow(devices, None, None, Some(0.3)),
        Trouble::Far => slow(devices, None, Some(Span(Duration::from_millis(500))), None),
        Trouble::SlowCpu => Step::Cpu { devices, cpu: 0.05 },
        Trouble::Burn => Step::Burn { devices },
        Trouble::FullDisk => Step::FillDisk { devices, leave: None },
    };
    step(player, happening)
}

fn slow(devices: Vec<String>, rate: Option<Rate>, delay: Option<Span>, loss: Option<f64>) -> Step {
    Step::Link { devices, rate, delay, jitter: None, loss, restore: false }
}

fn end(player: &mut Player, device: &str, trouble: Trouble, home: &str) -> Result<(), PlayError> {
    let devices = vec![device.to_owned()];
    match trouble {
        Trouble::Kill | Trouble::Restart => step(player, Step::Start { devices }),
        Trouble::Freeze => step(player, Step::Thaw { devices }),
        Trouble::Flap => Ok(()),
        Trouble::Moves => step(player, Step::Address { device: device.to_owned(), address: None }),
        Trouble::Cut => step(player, Step::Heal { devices }),
        Trouble::Wipe => {
            let old = player.hall.device(home).and_then(|home| home.daemon.status());
            let old = old.and_then(|s| s.nodes.into_iter().find(|node| node.name == device));
            step(player, Step::WipeDisk { devices: devices.clone() })?;
            step(player, Step::Start { devices })?;
            let Some(old) = old else { return Ok(()) };
            let args = ["node", "remove", old.id.as_str()].map(str::to_owned).to_vec();
            step(player, Step::Mesh { device: home.to_owned(), args })
        }
        Trouble::SlowLink | Trouble::Lossy | Trouble::Far => {
            let (rate, restore) = (None, true);
            step(player, Step::Link { devices, rate, delay: None, jitter: None, loss: None, restore })
        }
        Trouble::SlowCpu => {
            let cpu = player.hall.device(device).and_then(|device| device.machine.hardware.cpu);
            step(player, Step::Cpu { devices, cpu: cpu.unwrap_or(1.0) })
        }
        Trouble::Burn => step(player, Step::Cool { devices }),
        Trouble::FullDisk => {
            step(player, Step::FreeDisk { devices: devices.clone() })?;
            // A daemon that cannot write its log ends; systemd starts it again.
            let ended = player.hall.devices.iter_mut().find(|d| d.name() == device);
            if let Some(ended) = ended.filter(|d| d.is_running())
                && ended.daemon.ended().is_some()
            {
                ended.daemon.kill();
                return step(player, Step::Start { devices });
            }
            Ok(())
        }
    }
}

/// One cluster of all devices, all deployments served by all, no vote with a device that is gone.
fn whole(player: &mut Player, loads: &[Asked]) -> Result<(), PlayError> {
    let within = Some(Span(WHOLE));
    step(player, Step::Wait { until: Condition::Cluster, within })?;
    loads.iter().try_for_each(|(name, _)| {
        step(player, Step::Wait { until: Condition::Serving(name.clone()), within })
    })
}

/// Resident bytes and open files of each daemon.
fn resources(player: &Player) -> impl Iterator<Item = (u64, usize)> {
    player.hall.devices.iter().filter_map(|device| device.daemon.pid()).filter_map(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
        Some((kib << 10, fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plots_are_drawn_from_the_seed_and_spare_the_clients() {
        let devices: Vec<String> = (1..=6).map(|number| format!("d-{number}")).collect();
        let mut kinds = std::collections::BTreeSet::new();
        for round in 0..500 {
            let drawn = plot(7, round, &devices, &Trouble::ALL);
            assert_eq!(format!("{drawn:?}"), format!("{:?}", plot(7, round, &devices, &Trouble::ALL)));
            assert!(drawn.troubles.iter().all(|(device, ..)| *device != drawn.home), "{drawn:?}");
            assert!((1..=2).contains(&drawn.troubles.len()), "{drawn:?}");
            kinds.extend(drawn.troubles.iter().map(|(_, trouble, _)| *trouble));
        }
        assert_eq!(kinds.len(), Trouble::ALL.len());
    }
}
