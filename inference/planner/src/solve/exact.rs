//! Exact chains: dynamic programming over how many devices of each kind a chain has used.
//!
//! Devices that nothing tells apart (class, speed, memory, card, ingress, links) count as one kind, so the number
//! of states is the product of (members + 1) over the kinds. The recurrence is EdgePipe's, with pairwise links,
//! latency, network cards and end transfers added.

use super::chain::{Chains, From, Goal, Row, Steps, draft_of};
use crate::evaluate::{Draft, evaluate_draft};
use crate::instance::Instance;

/// Tables larger than this are not built.
const MAX_CELLS: usize = 6_000_000;

/// A proven best chain.
#[derive(Debug)]
pub(super) struct Exact {
    /// The chain; none when no chain fits.
    pub(super) draft: Option<Draft>,
    /// Its value: largest load, or latency. No chain has a smaller one.
    pub(super) value: f64,
}

/// The kinds of devices that can be exchanged for each other.
pub(super) fn kinds(instance: &Instance<'_>, devices: &[usize]) -> Vec<Vec<usize>> {
    let mut kinds: Vec<Vec<usize>> = Vec::new();
    for &device in devices {
        match kinds.iter_mut().find(|kind| are_alike(instance, kind[0], device)) {
            Some(kind) => kind.push(device),
            None => kinds.push(vec![device]),
        }
    }
    kinds
}

fn are_alike(instance: &Instance<'_>, a: usize, b: usize) -> bool {
    let (one, other) = (&instance.problem.devices[a], &instance.problem.devices[b]);
    one.class == other.class
        && one.speed == other.speed
        && one.memory_bytes == other.memory_bytes
        && one.card_bytes_per_s == other.card_bytes_per_s
        && one.transfer == other.transfer
        && instance.ingress[a] == instance.ingress[b]
        && instance.link(a, b) == instance.link(b, a)
        && (0..instance.devices())
            .filter(|&c| c != a && c != b)
            .all(|c| instance.link(a, c) == instance.link(b, c) && instance.link(c, a) == instance.link(c, b))
}

/// The table is not too large.
pub(super) fn is_possible(instance: &Instance<'_>) -> bool {
    Table::new(instance, &kinds(instance, &instance.usable()), None).is_some()
}

/// Finds the best chain. `None` when the problem is too large for the table or the step budget.
pub(super) fn best_chain(instance: &Instance<'_>, goal: Goal, steps: &mut Steps) -> Option<Exact> {
    let kinds = kinds(instance, &instance.usable());
    let found = with_first(instance, goal, steps, &kinds, None)?;
    let Some(evaluation) = found.draft.as_ref().map(|draft| evaluate_draft(instance, draft)) else {
        return Some(found);
    };
    if goal.latency || evaluation.bottleneck_s <= found.value * (1.0 + 1e-9) {
        return Some(found);
    }
    // The link back to the first device counts: look at each first device by itself.
    let goal = Goal { cap_s: goal.cap_s.min(evaluation.bottleneck_s * (1.0 + 1e-9)), ..goal };
    let mut best = Exact { value: f64::INFINITY, ..found };
    for first in 0..kinds.len() {
        let other = with_first(instance, goal, steps, &kinds, Some(first))?;
        if other.value < best.value {
            best = other;
        }
    }
    Some(best)
}

fn with_first(
    instance: &Instance<'_>,
    goal: Goal,
    steps: &mut Steps,
    kinds: &[Vec<usize>],
    first: Option<usize>,
) -> Option<Exact> {
    let mut table = Table::new(instance, kinds, first)?;
    if goal.cap_s.is_finite() {
        table.look_ahead(goal.cap_s);
        steps.pay((table.states * kinds.len()) as u64);
    }
    let mut chains = Chains::new(instance, goal, *steps);
    chains.first = first.map(|first| kinds[first][0]);
    let result = table.fill(&mut chains);
    *steps = chains.steps;
    result
}

struct Table<'a> {
    instance: &'a Instance<'a>,
    kinds: &'a [Vec<usize>],
    /// Only chains that begin with this kind.
    first: Option<usize>,
    /// Distance between states that differ by one member of a kind.
    strides: Vec<usize>,
    states: usize,
    rows: Vec<Option<Row>>,
    /// By state, where it is known: what comes before cannot be finished by the devices that are left.
    need: Vec<u32>,
}

impl<'a> Table<'a> {
    fn new(instance: &'a Instance<'a>, kinds: &'a [Vec<usize>], first: Option<usize>) -> Option<Self> {
        let mut strides = Vec::with_capacity(kinds.len());
        let mut states = 1usize;
        for kind in kinds {
            strides.push(states);
            states = states.checked_mul(kind.len() + 1)?;
        }
        let rows = states.checked_mul(kinds.len())?;
        if rows.checked_mul(instance.blocks + 1)? > MAX_CELLS {
            return None;
        }
        Some(Self { instance, kinds, first, strides, states, rows: vec![None; rows], need: Vec::new() })
    }

    /// Where the devices that a state leaves over can take over at the earliest, when links cost nothing.
    fn look_ahead(&mut self, cap_s: f64) {
        let instance = self.instance;
        // By kind and end: the first block of the longest stage.
        let starts = self.kinds.iter().map(|kind| {
            let mut start = 0;
            let of_end = |end: usize| {
                let is_too_long = |start: usize| {
                    instance.seconds(kind[0], start, end) > cap_s
                        || instance.held(start, end).saturating_add(instance.peak(start, end))
                            > instance.memory(kind[0])
                };
                while start < end && is_too_long(start) {
                    start += 1;
                }
                start as u32
            };
            (0..=instance.blocks).map(of_end).collect::<Vec<u32>>()
        });
        let starts: Vec<Vec<u32>> = starts.collect();
        let mut left = vec![instance.blocks as u32; self.states];
        for state in 1..self.states {
            let with = (0..self.kinds.len()).filter(|&kind| self.used(state, kind) > 0);
            let earliest = with.map(|kind| starts[kind][left[state - self.strides[kind]] as usize]).min();
            left[state] = earliest.unwrap_or(left[state]);
        }
        // The states are numbered so that what one leaves over has the number that is left to the last.
        left.reverse();
        self.need = left;
    }

    fn used(&self, state: usize, kind: usize) -> usize {
        state / self.strides[kind] % (self.kinds[kind].len() + 1)
    }

    fn stages(&self, state: usize) -> usize {
        (0..self.kinds.len()).map(|kind| self.used(state, kind)).sum()
    }

    /// A chain of this state may hand over from kind `from` to kind `to`: two devices that stand for them.
    fn pair(&self, from: usize, to: usize) -> (usize, usize) {
        let second = usize::from(from == to);
        (self.kinds[from][0], self.kinds[to][second])
    }

    fn fill(mut self, chains: &mut Chains<'_>) -> Option<Exact> {
        let (min, max) = self.instance.stage_limits();
        let mut best: Option<(usize, usize)> = None;
        let mut best_value = f64::INFINITY;
        for state in 1..self.states {
            let stages = self.stages(state);
            if stages > max {
                continue;
            }
            for kind in (0..self.kinds.len()).filter(|&kind| self.used(state, kind) > 0).collect::<Vec<_>>() {
                let row = self.row(chains, state, kind, stages);
                let unused = |device: usize| {
                    let of = self.kinds.iter().position(|kind| kind.contains(&device));
                    of.is_none_or(|of| self.used(state, of) < self.kinds[of].len())
                };
                let value = chains.finish(row.value[self.instance.blocks], unused);
                if stages >= min && value < best_value {
                    (best, best_value) = (Some((state, kind)), value);
                }
                self.rows[state * self.kinds.len() + kind] = Some(row);
                if chains.steps.left() == 0 {
                    return None;
                }
            }
        }
        let draft = best.map(|(state, kind)| self.read_back(state, kind));
        Some(Exact { draft, value: best_value })
    }

    fn row(&self, chains: &mut Chains<'_>, state: usize, kind: usize, stages: usize) -> Row {
        let device = self.kinds[kind][0];
        let need = self.need.get(state).map_or(0, |&need| need as usize);
        if stages == 1 {
            let is_wanted = self.first.is_none_or(|first| first == kind);
            let arrivals = if is_wanted { chains.begin(device) } else { chains.nowhere() };
            return chains.extend(device, &arrivals, true, need);
        }
        let before = state - self.strides[kind];
        let mut arrivals = chains.nowhere();
        for from in 0..self.kinds.len() {
            if let Some(row) = &self.rows[before * self.kinds.len() + from] {
                let (sender, receiver) = self.pair(from, kind);
                let end = From { device: sender, is_first: stages == 2, row, tag: from as u32 };
                chains.hand_over(&mut arrivals, end, receiver);
            }
        }
        // The first device is its kind's first member; a later stage of that kind has another one.
        let other = self.kinds[kind].get(1).filter(|_| self.first == Some(kind));
        chains.extend(other.copied().unwrap_or(device), &arrivals, false, need)
    }

    fn read_back(&self, state: usize, kind: usize) -> Draft {
        let mut free: Vec<usize> = (0..self.kinds.len()).map(|kind| self.used(state, kind)).collect();
        let (mut state, mut kind, mut end) = (state, kind, self.instance.blocks);
        let mut stages = Vec::new();
        while let Some(row) = &self.rows[state * self.kinds.len() + kind] {
            let (start, before) = row.last_stage(end);
            free[kind] -= 1;
            stages.push((self.kinds[kind][free[kind]], start, end));
            let Some(before) = before else { break };
            state -= self.strides[kind];
            (kind, end) = (before as usize, start);
        }
        draft_of(stages)
    }
}
