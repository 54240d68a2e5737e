//! What activations are on the wire: a profile knows tensors whole and without their zeros, but how far a codec packs
//! them shows only in serving. Each device tells how large its frames are, so that what a plan can do is stated for the
//! bytes that really cross its cuts.

use std::collections::{BTreeMap, BTreeSet};

use mesh_consensus::EpochPlan;
use serde::{Deserialize, Serialize};

use crate::data::{LinkMetrics, StageKey};

/// A size is told again when it has changed by more than this part: every report goes to all devices.
const NEWS: f64 = 0.05;
/// So many frames are enough to be believed.
const FRAMES_TRUSTED: u64 = 8;

/// Activations that a device sends to one stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CrossingReport {
    /// Deployment name.
    pub deployment: String,
    /// Epoch of the plan.
    pub epoch: u64,
    /// Index of the stage that they are sent to.
    pub stage: usize,
    /// How many were sent, when this was told.
    pub frames: u64,
    /// Bytes of one on the wire.
    pub bytes: f64,
}

/// What this device tells of its frames.
#[derive(Debug, Default)]
pub struct Crossing(BTreeMap<StageKey, CrossingReport>);

impl Crossing {
    /// What to tell of the plans that run, from the numbers of all links: the same again, unless there is news.
    pub fn look(&mut self, links: &[LinkMetrics], running: &BTreeSet<(&str, u64)>) -> Vec<CrossingReport> {
        let mut sent: BTreeMap<&StageKey, (u64, f64)> = BTreeMap::new();
        for of in links.iter().flat_map(|link| &link.sent) {
            let (frames, bytes) = sent.entry(&of.to).or_default();
            *frames += of.frames;
            *bytes += of.frames as f64 * of.bytes;
        }
        let mut before = std::mem::take(&mut self.0);
        for (to, (frames, bytes)) in sent {
            if frames < FRAMES_TRUSTED || !running.contains(&(to.deployment.as_str(), to.epoch)) {
                continue;
            }
            let bytes = bytes / frames as f64;
            let is_news = |told: &CrossingReport| {
                (bytes - told.bytes).abs() > NEWS * told.bytes || frames / 2 > told.frames
            };
            let told = before.remove(to).filter(|told| !is_news(told)).unwrap_or_else(|| CrossingReport {
                deployment: to.deployment.clone(),
                epoch: to.epoch,
                stage: to.stage,
                frames,
                bytes,
            });
            self.0.insert(to.clone(), told);
        }
        self.0.values().cloned().collect()
    }
}

/// Puts what devices tell of a running plan's frames in the place of the profile's bytes, at the cuts before its
/// stages. Only what is smaller counts: a link with room to spare takes tensors as they are, which it does not feel.
pub fn apply<'a>(
    told: impl Iterator<Item = &'a CrossingReport>,
    deployment: &str,
    active: &EpochPlan,
    cuts: &mut [u64],
) {
    let mut sent = vec![(0.0, 0.0); active.plan.stages.len()];
    for told in told.filter(|told| told.deployment == deployment && told.epoch == active.epoch) {
        // Peers say what they like.
        if let Some((frames, bytes)) = sent.get_mut(told.stage).filter(|_| told.bytes.is_finite()) {
            *frames += told.frames as f64;
            *bytes += told.frames as f64 * told.bytes.max(0.0);
        }
    }
    for (stage, (frames, bytes)) in active.plan.stages.iter().zip(sent) {
        if let Some(cut) = cuts.get_mut(stage.first_block).filter(|_| frames > 0.0) {
            *cut = (*cut).min((bytes / frames).ceil() as u64);
        }
    }
}

#[cfg(test)]
#[path = "crossing/tests.rs"]
mod tests;
