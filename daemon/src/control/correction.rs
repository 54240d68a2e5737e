//! What serving shows about a model's profile and about the devices that serve it: factors by which blocks and
//! devices are slower than the profile says. Pure: time comes as an argument.
//!
//! A stage's ratio is its measured seconds over the profiled ones. Where several devices run the stage, what they have
//! in common is the blocks' (the median), and each one's own deviation is the device's. A device alone with its stage
//! is told apart by time: a profile does not change while a model is served, so what comes quickly is the device's,
//! and what was always there is the blocks'.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use mesh_planner::{Plan, Problem};

/// Stages that have run so often are believed...
const RUNS_TRUSTED: u64 = 20;
/// ...or fewer times, but for so long: what lasts seconds varies little.
const RUNS_LEAST: u64 = 5;
const TIME_TRUSTED_S: f64 = 10.0;
/// A device whose stage takes this much longer than before has become slow: its blocks have not.
const JUMP: f64 = 1.3;
/// Factors stay within `1 / LARGEST` and `LARGEST`.
const LARGEST: f64 = 4.0;
/// What is known of a device that has run nothing for so long is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// Weight of the newest ratio in a device's factor, and in that of blocks that three or more devices run.
const NEWEST: f64 = 0.5;
/// Time in which a lasting deviation of a device that runs its stage alone becomes its blocks'.
const SETTLING_S: f64 = 100.0;
/// A device so near to what it should be is as it should be.
const NEAR: f64 = 0.1;

/// One stage on one device, as a report shows it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seen<'a> {
    /// The device.
    pub device: &'a str,
    /// First block (inclusive).
    pub first_block: usize,
    /// Last block (inclusive).
    pub last_block: usize,
    /// Measured seconds of a run.
    pub seconds: f64,
    /// Runs so far.
    pub runs: u64,
    /// The device's speed by calibration: it divides the profile's seconds.
    pub speed: f64,
}

/// What has been learnt, by model hash.
#[derive(Debug, Default)]
pub struct Corrections {
    models: BTreeMap<String, Learnt>,
}

/// What has been learnt about one model.
#[derive(Debug, Default)]
struct Learnt {
    /// By block: true seconds over profiled ones.
    blocks: Vec<f64>,
    /// Stages that are served now, by first and last block.
    stages: BTreeMap<(usize, usize), StageFacts>,
    devices: BTreeMap<String, DeviceFacts>,
}

#[derive(Debug)]
struct StageFacts {
    /// Of its blocks.
    factor: f64,
    steps: u32,
    learnt: Instant,
    /// By device.
    ratios: BTreeMap<String, Ratio>,
}

/// A stage on a device.
#[derive(Debug, Clone, Copy)]
struct Ratio {
    /// Measured over profiled seconds.
    value: f64,
    /// What the profile says, in seconds.
    profiled: f64,
    /// The device's factor when it began with this stage.
    anchor: f64,
    /// As reported, to know what is new.
    reported: (f64, u64),
}

#[derive(Debug)]
struct DeviceFacts {
    /// How many times slower it is than its calibration says.
    factor: f64,
    ran: Instant,
}

/// Whether so many runs of so many seconds each are enough to be believed.
pub fn is_trusted(runs: u64, seconds: f64) -> bool {
    runs >= RUNS_TRUSTED || (runs >= RUNS_LEAST && runs as f64 * seconds >= TIME_TRUSTED_S)
}

impl Corrections {
    /// Whether anything has been learnt about a model.
    pub fn knows(&self, model: &str) -> bool {
        self.models.get(model).is_some_and(|learnt| !learnt.blocks.is_empty())
    }

    /// Drops models that are not in `keep`.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.models.retain(|model, _| keep(model));
    }

    /// Takes the newest reports of all stages of a model that are served. `block_seconds` is its profile.
    pub fn learn(&mut self, model: &str, block_seconds: &[f64], seen: &[Seen<'_>], now: Instant) {
        if seen.is_empty() && !self.models.contains_key(model) {
            return;
        }
        self.models.entry(model.to_owned()).or_default().learn(block_seconds, seen, now);
    }

    /// Corrects a problem that was made from the profile, for a plan that runs: what its own stages have shown counts
    /// for them, and not what another deployment's stages of the same blocks have shown, which are cut elsewhere.
    pub fn apply_to(&self, model: &str, plan: &Plan, problem: &mut Problem) {
        self.apply(model, problem);
        let Some(learnt) = self.models.get(model) else { return };
        for stage in &plan.stages {
            let (first, last) = (stage.first_block, stage.last_block);
            let Some(own) = learnt.stages.get(&(first, last)) else { continue };
            let factors = learnt.blocks.get(first..=last).into_iter().flatten();
            let blocks = problem.blocks.get_mut(first..=last).into_iter().flatten();
            for (block, factor) in blocks.zip(factors) {
                block.seconds.values_mut().for_each(|seconds| *seconds *= own.factor / factor);
            }
        }
    }

    /// Corrects a problem that was made from the profile.
    pub fn apply(&self, model: &str, problem: &mut Problem) {
        let Some(learnt) = self.models.get(model) else { return };
        for (block, factor) in problem.blocks.iter_mut().zip(&learnt.blocks) {
            block.seconds.values_mut().for_each(|seconds| *seconds *= factor);
        }
        for device in &mut problem.devices {
            if let Some(facts) = learnt.devices.get(&device.id) {
                device.speed /= facts.factor;
            }
        }
    }
}

impl Learnt {
    fn learn(&mut self, block_seconds: &[f64], seen: &[Seen<'_>], now: Instant) {
        let current: BTreeSet<(usize, usize)> = seen.iter().map(|s| (s.first_block, s.last_block)).collect();
        self.stages.retain(|key, _| current.contains(key));
        for (key, stage) in &mut self.stages {
            let here = |device: &str| {
                seen.iter().any(|s| s.device == device && (s.first_block, s.last_block) == *key)
            };
            stage.ratios.retain(|device, _| here(device));
        }
        let mut fresh = BTreeMap::new();
        for seen in seen.iter().filter(|seen| is_trusted(seen.runs, seen.seconds)) {
            if let Some(is_first) = self.take(block_seconds, seen, now) {
                *fresh.entry((seen.first_block, seen.last_block)).or_insert(false) |= is_first;
            }
        }
        if !fresh.is_empty() {
            self.blocks.resize(block_seconds.len(), 1.0);
        }
        for (key, joined) in fresh {
            if let Some(stage) = self.stages.get_mut(&key) {
                stage.step(joined, now);
                self.blocks[key.0..=key.1].fill(stage.factor);
            }
        }
        self.rate_devices(now);
        self.forget(now);
    }

    /// Files what is new. Says whether the device is new at this stage; `None` when there is nothing new.
    fn take(&mut self, block_seconds: &[f64], seen: &Seen<'_>, now: Instant) -> Option<bool> {
        let blocks = block_seconds.get(seen.first_block..=seen.last_block)?;
        let profiled = blocks.iter().sum::<f64>() / seen.speed;
        let value = seen.seconds / profiled;
        if !(value.is_finite() && value > 0.0 && profiled > 0.0) {
            return None;
        }
        let value = value.clamp(LARGEST.powi(-2), LARGEST.powi(2));
        let key = (seen.first_block, seen.last_block);
        let reported = (seen.seconds, seen.runs);
        let known = self.stages.get(&key).and_then(|stage| stage.ratios.get(seen.device)).copied();
        if known.is_some_and(|known| known.reported == reported) {
            return None;
        }
        let anchor = known.map_or_else(|| self.anchor(seen, blocks, value), |known| known.anchor);
        let stage = self.stages.entry(key).or_insert_with(|| StageFacts {
            factor: 1.0,
            steps: 0,
            learnt: now,
            ratios: BTreeMap::new(),
        });
        stage.ratios.insert(seen.device.to_owned(), Ratio { value, profiled, anchor, reported });
        let device = self.devices.entry(seen.device.to_owned());
        device.or_insert(DeviceFacts { factor: anchor, ran: now }).ran = now;
        Some(known.is_none())
    }

    /// How slow a device is taken to be that begins with a stage: as it was, unless it is clearly over that.
    fn anchor(&self, seen: &Seen<'_>, block_seconds: &[f64], value: f64) -> f64 {
        let factor = self.devices.get(seen.device).map_or(1.0, |facts| facts.factor);
        let factors = self.blocks.get(seen.first_block..=seen.last_block).unwrap_or(&[]);
        let weighed: f64 = block_seconds.iter().zip(factors).map(|(seconds, factor)| seconds * factor).sum();
        let blocks = if factors.is_empty() { 1.0 } else { weighed / block_seconds.iter().sum::<f64>() };
        let recovered = factor > 1.0 && value * JUMP < blocks * factor;
        let factor = if recovered { (value / blocks).max(1.0) } else { factor };
        if (factor - 1.0).abs() < NEAR { 1.0 } else { factor }
    }

    /// A device's factor is what its stages take beyond what their blocks explain.
    fn rate_devices(&mut self, now: Instant) {
        for (device, facts) in self.devices.iter_mut().filter(|(_, facts)| facts.ran == now) {
            let (mut measured, mut explained) = (0.0, 0.0);
            for stage in self.stages.values() {
                if let Some(ratio) = stage.ratios.get(device) {
                    measured += ratio.value * ratio.profiled;
                    explained += stage.factor * ratio.profiled;
                }
            }
            if explained > 0.0 {
                facts.factor += NEWEST * (bounded(measured / explained) - facts.factor);
            }
        }
    }

    fn forget(&mut self, now: Instant) {
        self.devices.retain(|_, facts| now.saturating_duration_since(facts.ran) < FORGOTTEN);
        for stage in self.stages.values_mut() {
            stage.ratios.retain(|device, _| self.devices.contains_key(device));
        }
    }
}

impl StageFacts {
    /// Moves the blocks' factor after new ratios. `joined`: a device is new here.
    fn step(&mut self, joined: bool, now: Instant) {
        let since = now.saturating_duration_since(self.learnt).as_secs_f64();
        self.learnt = now;
        self.steps = if joined { 1 } else { self.steps.saturating_add(1) };
        if self.ratios.len() >= 3 {
            let median = median(self.ratios.values().map(|ratio| ratio.value).collect());
            let weight = if joined { 1.0 } else { NEWEST };
            self.factor = bounded(self.factor + weight * (median - self.factor));
            return;
        }
        let own = self.ratios.values().map(|ratio| ratio.value / ratio.anchor);
        let common = median(own.clone().collect());
        if joined {
            self.factor = bounded(common);
            return;
        }
        if own.clone().fold(0.0, f64::max) > JUMP * self.factor {
            return;
        }
        // No device gets much faster than it is: what it seemed to be slower by was never the blocks'.
        let fastest = self.ratios.values().map(|ratio| ratio.value / ratio.anchor.min(1.0));
        let most = fastest.fold(0.0, f64::max) * JUMP;
        let weight = (1.0 / f64::from(self.steps)).max((since / SETTLING_S).min(0.2));
        self.factor = bounded((self.factor + weight * (common - self.factor)).min(most));
    }
}

fn bounded(factor: f64) -> f64 {
    factor.clamp(1.0 / LARGEST, LARGEST)
}

/// The middle value; between two, their geometric mean. 1 of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 1.0,
        odd if odd % 2 == 1 => values[odd / 2],
        even => (values[even / 2 - 1] * values[even / 2]).sqrt(),
    }
}

#[cfg(test)]
mod tests;
