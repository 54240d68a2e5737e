//! Fleets drawn at random: devices, links, memory and a model from a number, and the script that compares Mesh's plan
//! on them with those of other systems.

use std::{path::PathBuf, time::Duration};

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::{
    scenario::{Condition, DeviceSpec, Event, Hardware, Rematch, Scenario, Step, Try},
    units::{Rate, Size, Span},
};
use crate::policies::Policy;

/// Most processor time of all devices together, in cores: the host has to have some left for clients and kernel.
const CORES: f64 = 1.2;
/// Processor shares of single devices.
const SHARES: (f64, f64) = (0.06, 0.4);
/// Rates of slow cards, Mbit/s: a phone's Wi-Fi at the end of the garden up to Fast Ethernet.
const SLOW: (f64, f64) = (5.0, 100.0);
/// Answers that a rate is told from at least.
const ANSWERS: u64 = 25;
/// A plan that comes so close to Mesh's is measured again, in turns with it.
const CLOSE: f64 = 0.2;

/// A model and MiB of which nine tenths are less than its weights (98 and 418 MiB) with anything beside them; `None` for
/// those that any small device holds.
const MODELS: [(&str, Option<f64>); 4] = [
    ("resnet50", Some(110.0)),
    ("mobilenet_v3_large", None),
    ("densenet121", None),
    ("bert_base", Some(418.0)),
];

/// Fleet `number`; equal numbers give equal fleets.
pub fn draw(number: u64) -> Scenario {
    let mut random = ChaCha8Rng::seed_from_u64(number);
    let count = random.random_range(2..=6);
    let (model, weights) = MODELS[random.random_range(0..MODELS.len())];
    let shares = shares(count, &mut random);
    let is_slow = random.random_range(0..2) == 0;
    let is_tight = random.random_range(0..3) == 0;
    let device = |at: usize, random: &mut ChaCha8Rng| DeviceSpec {
        name: format!("d{}", at + 1),
        count: None,
        address: None,
        hardware: Hardware {
            cpu: Some(shares[at]),
            threads: Some(1),
            rate: Some(Rate(if is_slow { slow_rate(random) } else { 1_000_000_000 })),
            budget: weights.filter(|_| is_tight).map(|weights| budget(weights, count, random)),
            ..Hardware::default()
        },
    };
    let devices: Vec<DeviceSpec> = (0..count).map(|at| device(at, &mut random)).collect();
    let links = if is_slow { "slow links" } else { "1 Gbit/s" };
    let memory = if is_tight && weights.is_some() { ", no device holds it" } else { "" };
    Scenario {
        awake: true,
        name: format!("fleet-{number}"),
        about: format!("{model} on {count} devices, {links}{memory}"),
        seed: number,
        founders: None,
        env: std::collections::BTreeMap::new(),
        defaults: Hardware::default(),
        device: devices,
        link: Vec::new(),
        radio: None,
        event: script(model),
    }
}

fn shares(count: usize, random: &mut ChaCha8Rng) -> Vec<f64> {
    let mut shares: Vec<f64> = (0..count).map(|_| random.random_range(SHARES.0..SHARES.1)).collect();
    let sum: f64 = shares.iter().sum();
    let factor = (CORES / sum).min(1.0);
    for share in &mut shares {
        // Whole percents read better and are what a control group can keep.
        *share = (*share * factor * 100.0).round().max(SHARES.0 * 100.0) / 100.0;
    }
    shares
}

/// Evenly on a scale of orders of magnitude, in whole Mbit/s.
fn slow_rate(random: &mut ChaCha8Rng) -> u64 {
    let rate = SLOW.0 * (SLOW.1 / SLOW.0).powf(random.random_range(0.0..1.0));
    rate.round() as u64 * 1_000_000
}

/// Too little for the whole model, enough for it on all devices together with room for activations.
fn budget(weights: f64, count: usize, random: &mut ChaCha8Rng) -> Size {
    let least = if count == 2 { 0.75 } else { 0.5 };
    let mib = weights * random.random_range(least..0.9);
    Size((mib.round() as u64) << 20)
}

fn script(model: &str) -> Vec<Event> {
    let now = |step| Event { at: None, step };
    let within = Some(Span(Duration::from_secs(60)));
    let mut events = vec![
        now(Step::Start { devices: vec!["*".into()] }),
        now(Step::Wait { until: Condition::Cluster, within }),
        // Links and cards are measured as they are, and what each device uses at rest.
        now(Step::Wait { until: Condition::Time(Span(Duration::from_secs(60))), within: None }),
    ];
    for policy in Policy::ALL {
        let is_mesh = policy == Policy::Mesh;
        let cell = Try {
            label: policy.name().to_owned(),
            model: PathBuf::from(model),
            name: model.to_owned(),
            on: vec!["*".into()],
            policy: (!is_mesh).then(|| policy.name().to_owned()),
            objective: None,
            stages: None,
            clients: 4,
            hurry: true,
            lift: true,
            optional: !is_mesh,
            settle: Span(Duration::from_secs(if is_mesh { 45 } else { 8 })),
            seconds: if is_mesh { 20.0 } else { 10.0 },
            answers: ANSWERS,
        };
        events.push(now(Step::Try(cell)));
    }
    events.push(now(Step::Rematch(Rematch {
        label: Policy::Mesh.name().to_owned(),
        against: Policy::ALL.into_iter().filter(|p| p.is_baseline()).map(|p| p.name().to_owned()).collect(),
        within: CLOSE,
        rounds: 3,
        settle: Span(Duration::from_secs(12)),
        seconds: 15.0,
    })));
    events
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::path::Path;

    use super::*;

    #[test]
    fn what_is_drawn_can_be_played() {
        for number in 0..200 {
            let fleet = draw(number);
            let text = toml::to_string(&fleet).unwrap();
            let read = Scenario::parse(&text, Path::new("drawn")).unwrap();
            assert_eq!(read.machines(), fleet.machines(), "{text}");
            assert_eq!(read.event.len(), fleet.event.len(), "{text}");
            let cores: f64 = fleet.device.iter().filter_map(|device| device.hardware.cpu).sum();
            assert!(cores <= CORES + 0.1, "{number}: {cores} cores");
        }
    }
}
