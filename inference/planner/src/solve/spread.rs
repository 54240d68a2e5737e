//! Few stages on many devices: equal parts of the work, each on a group of devices with equal rates together.
//!
//! With many devices a group can be matched to its part of the work almost exactly, and a hop between two groups
//! uses many links at once, so that no single one matters much.

use super::chain::Steps;
use super::climb::cost;
use super::shares::{by_speed, polish};
use crate::bound::prices;
use crate::evaluate::{Draft, DraftStage, Evaluation, evaluate_draft, fits};
use crate::instance::Instance;

/// Most stages that are tried.
const MAX_STAGES: usize = 24;
/// A boundary may move by this part of a stage's work to a cut with fewer bytes.
const SLACK: f64 = 0.1;
/// Drafts whose shares are polished.
const POLISHED: usize = 2;

/// The best of the divisions into one stage, two stages and so on.
pub(super) fn search(instance: &Instance<'_>, steps: &mut Steps) -> Option<(Draft, Evaluation)> {
    let (min, max) = instance.stage_limits();
    let (price, work) = prices(instance);
    let most = max.min(MAX_STAGES).min(instance.usable().len());
    // Only what orders them is kept: among a thousand devices the loads of a draft's links take ten megabytes.
    let mut found: Vec<(Draft, f64)> = Vec::new();
    for stages in min..=most {
        for slack in [SLACK, 0.0] {
            let bounds = boundaries(instance, &work, stages, slack);
            let Some(draft) = grouped(instance, &bounds, &price, &work) else { continue };
            // Few drafts are looked at, so that each may be large.
            if !steps.pay(cost(&draft) / 50) {
                break;
            }
            if fits(instance, &draft) {
                let bottleneck_s = evaluate_draft(instance, &draft).bottleneck_s;
                found.push((draft, bottleneck_s));
            }
        }
    }
    found.sort_by(|a, b| a.1.total_cmp(&b.1));
    found.truncate(POLISHED);
    let polished = found.into_iter().map(|(draft, _)| polish(instance, draft, false));
    polished.min_by(|a, b| a.1.bottleneck_s.total_cmp(&b.1.bottleneck_s))
}

/// Positions that divide the work into equal parts, moved to small cuts nearby.
fn boundaries(instance: &Instance<'_>, work: &[f64], stages: usize, slack: f64) -> Vec<usize> {
    let part = work[instance.blocks] / stages as f64;
    let mut bounds = vec![0];
    for index in 1..stages {
        let target = part * index as f64;
        let first = bounds[bounds.len() - 1] + 1;
        let last = instance.blocks - (stages - index);
        let nearest = work.partition_point(|&done| done < target).clamp(first, last);
        let near = |position: &usize| (work[*position] - target).abs() <= part * slack;
        let smallest =
            (first..=last).filter(near).min_by(|&a, &b| instance.cut(a).total_cmp(&instance.cut(b)));
        bounds.push(smallest.unwrap_or(nearest));
    }
    bounds.push(instance.blocks);
    bounds
}

/// Devices are dealt out from the most valuable one on, each to the stage that still lacks most and that it can hold.
fn grouped(instance: &Instance<'_>, bounds: &[usize], price: &[f64], work: &[f64]) -> Option<Draft> {
    let stages = bounds.len() - 1;
    let total = work[instance.blocks].max(1e-12);
    let range = |stage: usize| (bounds[stage], bounds[stage + 1]);
    let mut lacking: Vec<f64> =
        (0..stages).map(|stage| (work[bounds[stage + 1]] - work[bounds[stage]]) / total).collect();
    let wanted = lacking.clone();
    let bytes: Vec<u64> =
        (0..stages).map(|stage| instance.stage_bytes(range(stage).0, range(stage).1)).collect();
    let mut groups: Vec<Vec<usize>> = vec![Vec::new(); stages];
    let mut devices = instance.usable();
    devices.sort_by(|&a, &b| price[b].total_cmp(&price[a]).then(a.cmp(&b)));
    for device in devices {
        let able = (0..stages).filter(|&stage| bytes[stage] <= instance.memory(device));
        // In parts of what a stage needs, so that small stages are not starved.
        let need = |stage: usize| lacking[stage] / wanted[stage].max(1e-12);
        let neediest = able.max_by(|&a, &b| need(a).total_cmp(&need(b)).then(b.cmp(&a)));
        if let Some(stage) = neediest {
            groups[stage].push(device);
            lacking[stage] -= price[device];
        }
    }
    let stages = groups.iter().enumerate().map(|(stage, devices)| {
        let (first, end) = range(stage);
        let replicas = by_speed(instance, devices, first, end);
        (!replicas.is_empty()).then_some(DraftStage { first, end, replicas })
    });
    Some(Draft { stages: stages.collect::<Option<Vec<_>>>()? })
}
