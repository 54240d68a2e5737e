//! One fault after another under load: how long clients wait, and whether anything is lost.

mod attempt;
mod page;

use std::{
    error::Error,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::ValueEnum;
use mesh_tests::lab::{play::Player, scenario::Scenario};
use serde::{Deserialize, Serialize};

use super::origin::Origin;

const SCENARIO: &str = "lab/scenarios/faults.toml";
/// The same with cards that can lose frames.
const SCENARIO_LOSSY: &str = "lab/scenarios/faults-far.toml";
/// How long a fault lasts, and clients are watched.
const DURING: Duration = Duration::from_secs(8);
/// Digits answered per second: gaps are seen to a few hundredths of a second.
const DIGITS_RATE: f64 = 30.0;
const DEPLOYMENTS: [&str; 2] = ["digits", "resnet50"];

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
pub(super) enum Fault {
    Nothing,
    KillStage,
    KillLeader,
    KillIngress,
    Freeze,
    Cut,
    PartitionLeader,
    KillTwo,
    KillThree,
    Lossy,
}

impl Fault {
    const ALL: [Self; 10] = [
        Self::Nothing,
        Self::KillStage,
        Self::KillLeader,
        Self::KillIngress,
        Self::Freeze,
        Self::Cut,
        Self::PartitionLeader,
        Self::KillTwo,
        Self::KillThree,
        Self::Lossy,
    ];

    /// The lab that it happens in.
    fn scenario(self) -> &'static str {
        if self == Self::Lossy { SCENARIO_LOSSY } else { SCENARIO }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::KillStage => "a device with a stage is killed",
            Self::KillLeader => "the leader is killed",
            Self::KillIngress => "the ingress of other clients is killed",
            Self::Freeze => "a device with a stage freezes",
            Self::Cut => "the cable of a device with a stage is cut",
            Self::PartitionLeader => "the leader is parted from the others",
            Self::KillTwo => "two devices with stages are killed at once",
            Self::KillThree => "three devices are killed in a row",
            Self::Lossy => "a device with a stage loses 30 % of the frames that it sends",
        }
    }

    /// Longest time for an answer by the new route, as promised.
    fn promised_s(self) -> Option<f64> {
        match self {
            Self::Nothing => None,
            Self::Freeze | Self::Cut | Self::PartitionLeader | Self::Lossy => Some(4.0),
            Self::KillStage | Self::KillLeader | Self::KillIngress | Self::KillTwo | Self::KillThree => {
                Some(2.0)
            }
        }
    }
}

/// What the clients of one deployment saw of one fault.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Clients {
    /// Whether a device that the fault hit had a stage of it.
    was_hit: bool,
    /// From the fault to the first right answer by a route that was picked after it; of several faults the longest. Not
    /// looked at by earlier code.
    #[serde(default)]
    new_route_s: Option<f64>,
    /// The same to a request that was sent after it.
    first_s: f64,
    /// Longest time without an answer.
    silence_s: f64,
    /// Longest time that a client waited.
    wait_s: f64,
}

/// What was seen of one fault.
#[derive(Debug, Serialize, Deserialize)]
struct Seen {
    digits: Clients,
    /// Nothing where its clients are at the device that is killed.
    resnet: Option<Clients>,
    wrong: u64,
    lost: u64,
    refused: u64,
    /// Why the mesh was not whole again, if it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unhealed: Option<String>,
}

/// All tries of one fault by one code on one host, each kept as soon as it is over.
#[derive(Debug, Serialize, Deserialize)]
struct Measured {
    #[serde(flatten)]
    origin: Origin,
    /// Requests per second to ResNet-50 in each try.
    resnet_rates: Vec<f64>,
    seen: Vec<Seen>,
}

impl Measured {
    /// What was seen of a fault by this code on this host; nothing by another, or by code with changes.
    fn so_far(fault: Fault, origin: &Origin) -> Result<Self, Box<dyn Error>> {
        let kept = read(fault)?.filter(|kept| origin.is_commit() && kept.origin == *origin);
        let new = || Self { origin: origin.clone(), resnet_rates: Vec::new(), seen: Vec::new() };
        Ok(kept.unwrap_or_else(new))
    }
}

/// Plays the faults until each has happened so many times to this code, and writes the section of all that have, to
/// this code or another.
pub(super) fn section(
    models: &Path,
    tries: usize,
    faults: &[Fault],
    origin: &Origin,
    text: &mut String,
) -> Result<(), Box<dyn Error>> {
    let faults = if faults.is_empty() { &Fault::ALL[..] } else { faults };
    for path in [SCENARIO, SCENARIO_LOSSY] {
        let here: Vec<Fault> = faults.iter().copied().filter(|fault| fault.scenario() == path).collect();
        if !here.is_empty() {
            let mut player = Player::new(scenario(path)?, models.to_path_buf(), |line| eprintln!("{line}"))?;
            player.play()?;
            all_tries(&mut player, tries, &here, origin)?;
        }
    }
    let mut all = Vec::new();
    for fault in Fault::ALL {
        all.extend(read(fault)?.map(|measured| (fault, measured)));
    }
    page::write(&scenario(SCENARIO)?.about, &all, text);
    Ok(())
}

fn scenario(path: &str) -> Result<Scenario, Box<dyn Error>> {
    Ok(Scenario::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join(path))?)
}

/// Plays faults in one lab until each has happened so many times.
fn all_tries(
    player: &mut Player,
    tries: usize,
    faults: &[Fault],
    origin: &Origin,
) -> Result<(), Box<dyn Error>> {
    let before = player.predicted("resnet50").unwrap_or(f64::NAN);
    let resnet_rate = attempt::capacity(player)? / 2.0;
    let after = player.predicted("resnet50").unwrap_or(f64::NAN);
    eprintln!(
        "resnet50: {before:.2}/s predicted, {after:.2}/s after load; asked {resnet_rate:.2} times a second"
    );
    for &fault in faults {
        let mut measured = Measured::so_far(fault, origin)?;
        for number in measured.seen.len()..tries {
            let one = attempt::attempt(player, fault, number, resnet_rate)?;
            let resnet = one.resnet.unwrap_or(one.digits);
            eprintln!(
                "{} {}: by the new route after {:.2} and {:.2} s; to a new request after {:.2} and {:.2} s; silent {:.2} \
                 and {:.2} s; a client waited {:.2} s; {} lost",
                fault.name(),
                number + 1,
                one.digits.new_route_s.unwrap_or(f64::NAN),
                resnet.new_route_s.unwrap_or(f64::NAN),
                one.digits.first_s,
                resnet.first_s,
                one.digits.silence_s,
                resnet.silence_s,
                resnet.wait_s,
                one.lost
            );
            let unhealed = one.unhealed.clone();
            measured.resnet_rates.push(resnet_rate);
            measured.seen.push(one);
            super::write(&file(fault), &serde_json::to_string_pretty(&measured)?)?;
            if let Some(why) = unhealed {
                return Err(format!("{} {}: {why}", fault.name(), number + 1).into());
            }
        }
    }
    Ok(())
}

fn file(fault: Fault) -> PathBuf {
    let name = fault.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
    super::docs().join(format!("benchmarks/faults/{name}.json"))
}

fn read(fault: Fault) -> Result<Option<Measured>, Box<dyn Error>> {
    match fs::read_to_string(file(fault)) {
        Ok(text) => Ok(Some(serde_json::from_str(&text)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}
