//! How the requests of a stage are shared among its replicas.
//!
//! With the other stages' shares fixed, every load is a straight line in one replica's share: compute, links and
//! cards grow with it; for a replica at an ingress, what is sent elsewhere and back shrinks with it. So for a
//! bottleneck `t` each share has an interval, and `t` can be had when the intervals admit a sum of 1. Bisection over
//! `t` gives a stage's best shares; the stages take turns.

use crate::evaluate::{Draft, DraftStage, Evaluation, evaluate_draft};
use crate::instance::Instance;

/// Turns over all stages.
const TURNS: usize = 3;
/// Halvings of the bottleneck: enough for nine digits.
const HALVINGS: usize = 40;
/// A replica is not worth its memory below this share.
const LEAST_SHARE: f64 = 1e-4;

/// Shares in proportion to the devices' rates for blocks `first..end`.
pub(super) fn by_speed(
    instance: &Instance<'_>,
    devices: &[usize],
    first: usize,
    end: usize,
) -> Vec<(usize, f64)> {
    let seconds = |device: usize| instance.seconds(device, first, end).max(1e-12);
    let total: f64 = devices.iter().map(|&device| 1.0 / seconds(device)).sum();
    devices.iter().map(|&device| (device, 1.0 / seconds(device) / total)).collect()
}

/// Chooses better shares as long as that helps. `keep` leaves every replica in.
pub(super) fn polish(instance: &Instance<'_>, draft: Draft, keep: bool) -> (Draft, Evaluation) {
    let evaluation = evaluate_draft(instance, &draft);
    let mut best = (draft, evaluation);
    for _ in 0..TURNS {
        let before = best.1.bottleneck_s;
        for index in 0..best.0.stages.len() {
            if best.0.stages[index].replicas.len() < 2 {
                continue;
            }
            let Some(replicas) = shared(instance, &best.0, index, keep) else { continue };
            let mut draft = best.0.clone();
            draft.stages[index].replicas = replicas;
            let evaluation = evaluate_draft(instance, &draft);
            if evaluation.bottleneck_s <= best.1.bottleneck_s {
                best = (draft, evaluation);
            }
        }
        if best.1.bottleneck_s >= before * (1.0 - 1e-9) {
            break;
        }
    }
    best
}

/// A load in seconds: `fixed + slope * share`.
#[derive(Debug, Clone, Copy)]
struct Line {
    fixed: f64,
    slope: f64,
}

fn shared(instance: &Instance<'_>, draft: &Draft, index: usize, keep: bool) -> Option<Vec<(usize, f64)>> {
    let stage = &draft.stages[index];
    let lines: Vec<Vec<Line>> =
        stage.replicas.iter().map(|&(device, _)| lines_of(instance, draft, index, device)).collect();
    let current = |lines: &Vec<Line>, share: f64| {
        lines.iter().map(|line| line.fixed + line.slope * share).fold(0.0, f64::max)
    };
    let now = lines.iter().zip(&stage.replicas).map(|(lines, &(_, share))| current(lines, share));
    let (mut low, mut high) = (0.0, now.fold(0.0, f64::max));
    if !high.is_finite() {
        // Some replica cannot be reached. Even shares over slow but real links stay below this.
        high = 1e12;
    }
    let mut found = None;
    for _ in 0..HALVINGS {
        let middle = if found.is_none() { high } else { (low + high) / 2.0 };
        match split(&lines, middle) {
            Some(shares) => (found, high) = (Some(shares), middle),
            None if found.is_none() => return None,
            None => low = middle,
        }
    }
    Some(tidied(stage, &found?, keep))
}

/// Shares that sum to 1 with no load above `limit`, if there are any.
fn split(lines: &[Vec<Line>], limit: f64) -> Option<Vec<f64>> {
    let mut intervals = Vec::with_capacity(lines.len());
    for lines in lines {
        let (mut low, mut high) = (0.0f64, 1.0f64);
        for line in lines {
            if line.slope > 0.0 {
                high = high.min((limit - line.fixed) / line.slope);
            } else if line.slope < 0.0 {
                low = low.max((limit - line.fixed) / line.slope);
            } else if line.fixed > limit {
                return None;
            }
        }
        if low > high {
            return None;
        }
        intervals.push((low, high));
    }
    let (lows, highs) = intervals.iter().fold((0.0, 0.0), |(a, b), (low, high)| (a + low, b + high));
    if lows > 1.0 || highs < 1.0 {
        return None;
    }
    let part = if highs > lows { (1.0 - lows) / (highs - lows) } else { 0.0 };
    Some(intervals.iter().map(|(low, high)| low + part * (high - low)).collect())
}

fn tidied(stage: &DraftStage, shares: &[f64], keep: bool) -> Vec<(usize, f64)> {
    let devices = stage.replicas.iter().map(|&(device, _)| device);
    let mut replicas: Vec<(usize, f64)> = if keep {
        devices.zip(shares.iter().map(|share| share.max(1e-6))).collect()
    } else {
        devices.zip(shares.iter().copied()).filter(|&(_, share)| share >= LEAST_SHARE).collect()
    };
    let total: f64 = replicas.iter().map(|&(_, share)| share).sum();
    replicas.iter_mut().for_each(|(_, share)| *share /= total);
    replicas
}

/// Who a stage exchanges data with and in which parts: the neighbouring stage's replicas, or the ingress devices.
fn partners(instance: &Instance<'_>, stage: Option<&DraftStage>) -> Vec<(usize, f64)> {
    match stage {
        Some(stage) => stage.replicas.clone(),
        None => instance.ingress.iter().copied().enumerate().filter(|&(_, share)| share > 0.0).collect(),
    }
}

fn lines_of(instance: &Instance<'_>, draft: &Draft, index: usize, device: usize) -> Vec<Line> {
    let stage = &draft.stages[index];
    let (inputs, outputs) = (instance.cut(stage.first), instance.cut(stage.end));
    let before = index.checked_sub(1).and_then(|before| draft.stages.get(before));
    let after = draft.stages.get(index + 1);
    let mut lines = vec![Line { fixed: 0.0, slope: instance.seconds(device, stage.first, stage.end) }];
    let (mut received, mut sent) = (0.0, 0.0);
    for (from, part) in partners(instance, before).into_iter().filter(|&(from, _)| from != device) {
        lines.push(Line { fixed: 0.0, slope: instance.link_s(from, device, part * inputs) });
        received += part * inputs;
    }
    for (to, part) in partners(instance, after).into_iter().filter(|&(to, _)| to != device) {
        lines.push(Line { fixed: 0.0, slope: instance.link_s(device, to, part * outputs) });
        sent += part * outputs;
    }
    // An ingress also hands requests to the first stage and takes answers from the last; its own share of these
    // stages stays off its card.
    let entering = instance.ingress[device];
    let whole_inputs = entering * instance.cut(0);
    let whole_outputs = entering * instance.cut(instance.blocks);
    let local = |stage: Option<&DraftStage>| {
        let here =
            |stage: &DraftStage| stage.replicas.iter().find(|&&(other, _)| other == device).map(|r| r.1);
        stage.and_then(here).unwrap_or(0.0)
    };
    let out = if before.is_none() {
        Line { fixed: whole_inputs, slope: sent - whole_inputs }
    } else {
        Line { fixed: whole_inputs * (1.0 - local(draft.stages.first())), slope: sent }
    };
    let into = if after.is_none() {
        Line { fixed: whole_outputs, slope: received - whole_outputs }
    } else {
        Line { fixed: whole_outputs * (1.0 - local(draft.stages.last())), slope: received }
    };
    let card_s = instance.card_s(device, 1.0);
    lines.extend([out, into].map(|line| Line { fixed: line.fixed * card_s, slope: line.slope * card_s }));
    lines
}
