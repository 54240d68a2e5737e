//! How the requests of a stage are shared among its replicas.
//!
//! With the other stages' shares fixed, every load of a device is the largest of some lines in its share: compute
//! grows with it; data moves when the share is above or below what the device has already. So for a bottleneck `t`
//! each share has an interval, and `t` can be had when the intervals admit a sum of 1. Bisection over `t` gives a
//! stage's best shares; the stages take turns. Only how much each single link carries is an estimate, from the shares
//! as they are; the evaluation decides.

use super::near::at_home;
use crate::evaluate::{Draft, DraftStage, Evaluation, Resource, entrances, evaluate_draft};
use crate::flow::Remote;
use crate::instance::{Instance, UNREACHABLE_S};

/// Turns over all stages.
const TURNS: usize = 3;
/// Halvings of the bottleneck at most, and how close they bring both ends.
const HALVINGS: usize = 40;
const CLOSE: f64 = 1e-9;
/// What is as good and differs by so much in a share is a step aside, from where there may be a way on.
const ASIDE: f64 = 0.01;
/// How far to go towards shares that were found.
const PARTS: [f64; 4] = [1.0, 0.5, 0.2, 0.05];
/// A replica is not worth its memory below this share.
const LEAST_SHARE: f64 = 1e-4;

/// Shares in proportion to the devices' rates for blocks `first..end`.
pub(super) fn by_speed(
    instance: &Instance<'_>,
    devices: &[usize],
    first: usize,
    end: usize,
) -> Vec<(usize, f64)> {
    let seconds = |device: usize| instance.alone_s(device, first, end).max(1e-12);
    let total: f64 = devices.iter().map(|&device| 1.0 / seconds(device)).sum();
    devices.iter().map(|&device| (device, 1.0 / seconds(device) / total)).collect()
}

/// Chooses better shares as long as that helps. `keep` leaves every replica in.
pub(super) fn polish(instance: &Instance<'_>, draft: Draft, keep: bool) -> (Draft, Evaluation) {
    let evaluation = evaluate_draft(instance, &draft);
    let mut best = (draft, evaluation);
    // Replicas without a link between them can only take what enters at each: a point that no step lands on.
    let has_all = |draft: &Draft| {
        let mut pairs = draft.stages.iter().zip(&best.0.stages);
        !keep || pairs.all(|(new, old)| new.replicas.len() == old.replicas.len())
    };
    if !best.1.is_served()
        && let Some(draft) = at_home(instance, &best.0).filter(has_all)
    {
        let evaluation = evaluate_draft(instance, &draft);
        if evaluation.bottleneck_s < best.1.bottleneck_s {
            best = (draft, evaluation);
        }
    }
    let mut was_aside = false;
    for _ in 0..TURNS {
        let before = best.1.bottleneck_s;
        let mut is_aside = false;
        for index in 0..best.0.stages.len() {
            if best.0.stages[index].replicas.len() < 2 {
                continue;
            }
            let Some(shares) = shared(instance, &best, index) else { continue };
            // The links' lines are estimates: where going all the way overshoots, a part of it may be right.
            for part in PARTS {
                let mut draft = best.0.clone();
                let stage = &mut draft.stages[index];
                stage.replicas = tidied(stage, &shares, part, keep);
                let evaluation = evaluate_draft(instance, &draft);
                if evaluation.bottleneck_s <= best.1.bottleneck_s {
                    is_aside |= part == 1.0 && differs(&draft.stages[index], &best.0.stages[index]);
                    best = (draft, evaluation);
                    break;
                }
            }
        }
        if best.1.bottleneck_s >= before * (1.0 - 1e-9) {
            if was_aside || !is_aside {
                break;
            }
            was_aside = true;
        }
    }
    best
}

/// Whether some replica's share is another one by more than a little.
fn differs(stage: &DraftStage, other: &DraftStage) -> bool {
    let mut pairs = stage.replicas.iter().zip(&other.replicas);
    stage.replicas.len() != other.replicas.len() || pairs.any(|(a, b)| (a.1 - b.1).abs() > ASIDE)
}

/// Seconds per request that stand for a link that does not exist.
const NO_LINK: f64 = 1e18;

/// A load in seconds: `fixed + slope * share`.
#[derive(Debug, Clone, Copy)]
struct Line {
    fixed: f64,
    slope: f64,
}

fn shared(instance: &Instance<'_>, costed: &(Draft, Evaluation), index: usize) -> Option<Vec<f64>> {
    let (draft, evaluation) = costed;
    let stage = &draft.stages[index];
    let lines = lines_of(instance, evaluation, draft, index);
    let current = |lines: &Vec<Line>, share: f64| {
        lines.iter().map(|line| line.fixed + line.slope * share).fold(0.0, f64::max)
    };
    let now = lines.iter().zip(&stage.replicas).map(|(lines, &(_, share))| current(lines, share));
    let (mut low, mut high) = (0.0, now.fold(0.0, f64::max));
    // Where some replica cannot be reached, even shares over slow but real links stay below this.
    high = high.min(UNREACHABLE_S);
    sums(&lines, high)?;
    for _ in 0..HALVINGS {
        let middle = (low + high) / 2.0;
        if sums(&lines, middle).is_some() {
            high = middle
        } else {
            low = middle
        }
        if low >= high * (1.0 - CLOSE) {
            break;
        }
    }
    let part = sums(&lines, high)
        .map(|(lows, highs)| if highs > lows { (1.0 - lows) / (highs - lows) } else { 0.0 })?;
    let shares = lines.iter().filter_map(|lines| interval(lines, high));
    Some(shares.map(|(low, high)| low + part * (high - low)).collect())
}

/// The sums of the least and the greatest shares with no load above `limit`, if 1 is between them.
fn sums(lines: &[Vec<Line>], limit: f64) -> Option<(f64, f64)> {
    let (mut lows, mut highs) = (0.0, 0.0);
    for lines in lines {
        let (low, high) = interval(lines, limit)?;
        (lows, highs) = (lows + low, highs + high);
    }
    (lows <= 1.0 && highs >= 1.0).then_some((lows, highs))
}

/// The least and the greatest share with no load above `limit`.
fn interval(lines: &[Line], limit: f64) -> Option<(f64, f64)> {
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
    (low <= high).then_some((low, high))
}

/// The stage's replicas with their shares moved by `part` of the way to `shares`.
fn tidied(stage: &DraftStage, shares: &[f64], part: f64, keep: bool) -> Vec<(usize, f64)> {
    let moved = stage.replicas.iter().zip(shares);
    let moved = moved.map(|(&(device, old), new)| (device, old + part * (new - old)));
    let mut replicas: Vec<(usize, f64)> = if keep {
        moved.map(|(device, share)| (device, share.max(1e-6))).collect()
    } else {
        moved.filter(|&(_, share)| share >= LEAST_SHARE).collect()
    };
    let total: f64 = replicas.iter().map(|&(_, share)| share).sum();
    replicas.iter_mut().for_each(|(_, share)| *share /= total);
    replicas
}

/// The loads of one replica's device that depend on its share of stage `index`.
///
/// What it exchanges over links depends on how far its share differs from its part of the neighbouring stage (or of
/// the entering requests): above, it receives; below, it sends on what it cannot take itself. Each such load has a
/// bend at that part, and is the larger of two lines.
struct Side {
    /// Fraction of the requests that the device has on this side.
    part: f64,
    /// Busiest link per unit of what it takes from others, or hands to others.
    over: f64,
    /// Busiest link per unit of what others take from it, or hand to it, because it takes less than it has.
    under: f64,
    bytes: f64,
    /// Anything is exchanged on this side: inputs and outputs are free when nobody says where requests enter.
    exists: bool,
}

impl Side {
    /// `is_input`: the other side sends to the stage.
    fn new(instance: &Instance<'_>, device: usize, hop: &Hop, is_input: bool) -> Self {
        let link = |from, to| instance.link_s(from, to, hop.bytes);
        let (mut over, mut under) = (0.0f64, 0.0f64);
        for &(other, weight) in hop.away.iter().filter(|&&(other, _)| other != device) {
            let seconds = if is_input { link(other, device) } else { link(device, other) };
            over = over.max(weight * seconds);
        }
        let part = hop.other.iter().find(|&&(other, _)| other == device).map_or(0.0, |&(_, part)| part);
        for &(mate, weight) in hop.mates.iter().filter(|&&(mate, _)| part > 0.0 && mate != device) {
            let seconds = if is_input { link(device, mate) } else { link(mate, device) };
            under = under.max(weight * seconds);
        }
        Self { part, over, under, bytes: hop.bytes, exists: !hop.other.is_empty() }
    }
}

/// One hop of a stage, with the shares as they are.
struct Hop {
    /// The neighbouring stage's replicas or the ingress devices, and their parts.
    other: Vec<(usize, f64)>,
    /// Which of them exchange over links, as fractions of all that moves.
    away: Vec<(usize, f64)>,
    /// Which replicas of the stage itself do, in the same way.
    mates: Vec<(usize, f64)>,
    bytes: f64,
}

impl Hop {
    fn new(stage: &DraftStage, other: Vec<(usize, f64)>, bytes: f64) -> Self {
        let remote = Remote::between(&other, &stage.replicas);
        let scaled = |parts: Vec<(usize, f64)>, all: &[(usize, f64)]| {
            if parts.is_empty() { all.to_vec() } else { parts }
        };
        let scale = if remote.fraction > 0.0 { 1.0 / remote.fraction } else { 1.0 };
        let mut away = scaled(remote.senders, &other);
        let mut mates = scaled(remote.receivers, &stage.replicas);
        away.iter_mut().chain(&mut mates).for_each(|(_, part)| *part *= scale);
        Self { other, away, mates, bytes }
    }
}

/// The neighbouring stage's replicas, or the ingress devices.
fn partners(instance: &Instance<'_>, stage: Option<&DraftStage>) -> Vec<(usize, f64)> {
    stage.map_or_else(|| entrances(instance), |stage| stage.replicas.clone())
}

fn lines_of(
    instance: &Instance<'_>,
    evaluation: &Evaluation,
    costed: &Draft,
    index: usize,
) -> Vec<Vec<Line>> {
    let stage = &costed.stages[index];
    let before = index.checked_sub(1).and_then(|before| costed.stages.get(before));
    let input = Hop::new(stage, partners(instance, before), instance.cut(stage.first));
    let output = Hop::new(stage, partners(instance, costed.stages.get(index + 1)), instance.cut(stage.end));
    let of_replica = |&(device, share): &(usize, f64)| {
        let input = Side::new(instance, device, &input, true);
        let output = Side::new(instance, device, &output, false);
        let compute = instance.seconds(device, stage.first, stage.end);
        let around = Around { instance, evaluation, device, share };
        around.lines(compute, &input, &output)
    };
    stage.replicas.iter().map(of_replica).collect()
}

/// A replica's device with all that it does in the plan.
struct Around<'a> {
    instance: &'a Instance<'a>,
    evaluation: &'a Evaluation,
    device: usize,
    share: f64,
}

impl Around<'_> {
    fn lines(&self, compute: f64, input: &Side, output: &Side) -> Vec<Line> {
        let (instance, device) = (self.instance, self.device);
        let link = |side: &Side, slope: f64| {
            let slope = slope.clamp(-NO_LINK, NO_LINK);
            Line { fixed: -side.part * slope, slope }
        };
        let mut lines = vec![
            link(input, input.over),
            link(input, -input.under),
            link(output, output.over),
            link(output, -output.under),
        ];
        // Without a partner on a side nothing moves there.
        lines.retain(|line| line.slope != 0.0);
        let work = &self.evaluation.processors[device];
        let idle = work.compute_s - self.share * compute;
        lines.push(Line { fixed: idle, slope: compute });
        let has = |side: &Side| if side.exists { 1.0 } else { 0.0 };
        let (has_input, has_output) = (has(input), has(output));
        let (send, receive) = (
            |side: &Side| instance.send_s(device, side.bytes),
            |side: &Side| instance.receive_s(device, side.bytes),
        );
        let bends = [
            Bend { at: input.part, over: has_input * receive(input), under: has_input * send(input) },
            Bend { at: output.part, over: has_output * send(output), under: has_output * receive(output) },
        ];
        let busy_part = instance.compute_share(device);
        let fixed = busy_part * idle + work.transfer_s;
        self.bent(&mut lines, Line { fixed, slope: busy_part * compute }, &bends);
        let card_s = |side: &Side| instance.card_s(device, side.bytes);
        if card_s(input) > 0.0 || card_s(output) > 0.0 {
            let (out, into) = (self.load(Resource::CardOut(device)), self.load(Resource::CardIn(device)));
            let (taken, given) = (has_input * card_s(input), has_output * card_s(output));
            let bend = |at, over, under| Bend { at, over, under };
            let sent = [bend(input.part, 0.0, taken), bend(output.part, given, 0.0)];
            self.bent(&mut lines, Line { fixed: out, slope: 0.0 }, &sent);
            let received = [bend(input.part, taken, 0.0), bend(output.part, 0.0, given)];
            self.bent(&mut lines, Line { fixed: into, slope: 0.0 }, &received);
        }
        lines
    }

    fn load(&self, resource: Resource) -> f64 {
        let loads = &self.evaluation.loads;
        let at = loads.binary_search_by_key(&resource, |&(resource, _)| resource);
        at.map_or(0.0, |at| loads[at].1.seconds)
    }

    /// Adds the lines whose maximum is `line` and the bends. `line.fixed` still has in it what the bends cost now.
    fn bent(&self, lines: &mut Vec<Line>, line: Line, bends: &[Bend; 2]) {
        let now: f64 = bends.iter().map(|bend| bend.cost(self.share)).sum();
        for first in bends[0].lines() {
            for second in bends[1].lines() {
                let fixed = line.fixed - now + first.fixed + second.fixed;
                lines.push(Line { fixed, slope: line.slope + first.slope + second.slope });
            }
        }
    }
}

/// A cost per unit of share above `at`, and another below.
struct Bend {
    at: f64,
    over: f64,
    under: f64,
}

impl Bend {
    fn cost(&self, share: f64) -> f64 {
        if share > self.at { self.over * (share - self.at) } else { self.under * (self.at - share) }
    }

    fn lines(&self) -> impl Iterator<Item = Line> {
        let (over, under) = (self.over, -self.under);
        let both = [over, under].map(|slope| Line { fixed: -self.at * slope, slope });
        both.into_iter().take(if self.over == self.under && self.over == 0.0 { 1 } else { 2 })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::problem::Problem;

    /// From the shares that the devices' speeds give, the first turn is no gain: what leaves by the link to the fourth
    /// device takes as long after it. (Found by the random test of `replan`, which begins elsewhere.)
    #[test]
    fn a_step_aside_can_lead_on() {
        let device = |id: &str, class: &str, speed: f64| {
            format!(
                r#"{{"id": "{id}", "class": "{class}", "speed": {speed}, "memory_bytes": 8, "card_bytes_per_s": null}}"#
            )
        };
        let devices = [("d0", "fast", 1.0), ("d1", "fast", 1.0), ("d2", "slow", 2.0), ("d3", "slow", 1.0)];
        let devices = devices.map(|(id, class, speed)| device(id, class, speed)).join(",");
        let problem = format!(
            r#"{{"blocks": [{{"weight_bytes": 0, "peak_bytes": 0, "seconds": {{"fast": 0.0, "slow": 1.0}}}}],
                "cuts": [0, 8], "devices": [{devices}],
                "links": {{"default": {{"bytes_per_s": 5.0, "latency_s": 0.5}}, "pairs": []}},
                "ingress": {{"d0": 0.25, "d1": 0.25, "d2": 0.25, "d3": 0.25}}, "objective": "throughput",
                "replication": true, "min_stages": null, "max_stages": null}}"#
        );
        let problem: Problem = serde_json::from_str(&problem).unwrap();
        let instance = Instance::new(&problem);
        let replicas = by_speed(&instance, &[0, 1, 2], 0, 1);
        let draft = Draft { stages: vec![DraftStage { first: 0, end: 1, replicas }] };
        let polished = polish(&instance, draft, false).1.bottleneck_s;
        assert!((polished - 2.0 / 13.0).abs() < 1e-6, "{polished}");
    }
}
