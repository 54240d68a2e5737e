//! EdgePipe (arXiv 2110.14895): the exact programme over device types. A state is the blocks done, how many devices of
//! each type are used, and the type that goes on; its value is the slowest stage or transfer so far.
//!
//! In its model all devices of a type are equal and have one bandwidth, a transfer goes at the slower one of its two
//! ends, and latency and the transfers from and to the ingress cost nothing.

use mesh_planner::{PinnedStage, Problem};

use super::view::{View, over};

/// States of the table; its size is exponential in the number of types.
const MAX_STATES: usize = 20_000_000;
/// Steps: one per state, end of stage and next type.
const MAX_STEPS: usize = 8_000_000_000;

/// The stages of the shortest bottleneck in EdgePipe's model. Devices of one type are used in list order; a type is a
/// class, a speed and a memory size, and its bandwidth is that of the slowest link of its devices.
///
/// # Errors
/// When nothing fits, the problem is senseless, or the types are too many for the table.
pub fn edgepipe(problem: &Problem) -> Result<Vec<PinnedStage>, String> {
    let view = View::new(problem)?;
    let types = types(&view);
    let mut table = Table::new(&view, &types)?;
    table.fill();
    let last = table.best.ok_or("no schedule fits the devices' memory and the stages asked for")?;
    let (ends, order) = table.trace(last);
    let mut used = vec![0; types.len()];
    let device = |&kind: &usize| {
        used[kind] += 1;
        types[kind].members[used[kind] - 1]
    };
    let devices: Vec<usize> = order.iter().map(device).collect();
    Ok(view.stages(&ends, &devices))
}

/// The bottleneck of stages in EdgePipe's model, in seconds.
#[cfg(test)]
pub(super) fn own_cost(problem: &Problem, stages: &[PinnedStage]) -> f64 {
    let view = View::new(problem).unwrap();
    let types = types(&view);
    let kind_of = |stage: &PinnedStage| {
        let device = problem.devices.iter().position(|device| device.id == stage.devices[0]).unwrap();
        types.iter().position(|kind| kind.members.contains(&device)).unwrap()
    };
    let mut slowest = 0.0f64;
    for (index, stage) in stages.iter().enumerate() {
        let kind = &types[kind_of(stage)];
        slowest = slowest.max(view.seconds(kind.members[0], stage.first_block, stage.last_block + 1));
        if let Some(next) = stages.get(index + 1) {
            let rate = kind.rate.min(types[kind_of(next)].rate);
            slowest = slowest.max(over(view.cut(next.first_block), rate));
        }
    }
    slowest
}

#[derive(Debug)]
struct Kind {
    members: Vec<usize>,
    rate: f64,
}

fn types(view: &View<'_>) -> Vec<Kind> {
    let count = view.devices();
    let mut kinds: Vec<Kind> = Vec::new();
    for device in 0..count {
        let traits = (view.class(device), view.memory(device));
        let same = |kind: &&mut Kind| (view.class(kind.members[0]), view.memory(kind.members[0])) == traits;
        match kinds.iter_mut().find(same) {
            Some(kind) => kind.members.push(device),
            None => kinds.push(Kind { members: vec![device], rate: f64::INFINITY }),
        }
    }
    for kind in &mut kinds {
        for &device in &kind.members {
            let others = (0..count).filter(|&other| other != device);
            kind.rate = others
                .flat_map(|other| [view.rate(device, other), view.rate(other, device)])
                .fold(kind.rate, f64::min);
        }
    }
    kinds
}

/// The last stage of a finished schedule: its first block, devices used before it, and its type.
#[derive(Debug, Clone, Copy)]
struct Last {
    first: usize,
    used: usize,
    kind: usize,
}

struct Table<'a> {
    view: &'a View<'a>,
    types: &'a [Kind],
    /// Places of the digits in a count vector, and one more: how many vectors there are.
    places: Vec<usize>,
    /// Slowest so far, by `state`; infinite where nothing leads there.
    slowest_s: Vec<f64>,
    /// First block and type of the stage before.
    before: Vec<(u16, u16)>,
    best_s: f64,
    best: Option<Last>,
}

impl<'a> Table<'a> {
    fn new(view: &'a View<'a>, types: &'a [Kind]) -> Result<Self, String> {
        let mut places = vec![1usize];
        for kind in types {
            places.push(places[places.len() - 1].saturating_mul(kind.members.len() + 1));
        }
        let vectors = places[types.len()];
        let states = vectors.saturating_mul(types.len()).saturating_mul(view.blocks);
        let steps = states.saturating_mul(view.blocks / 2 + 1).saturating_mul(types.len());
        if states > MAX_STATES || steps > MAX_STEPS {
            return Err(format!(
                "EdgePipe's programme over {} device types and {} blocks needs {states} states and {steps} steps; \
                 at most {MAX_STATES} and {MAX_STEPS} are tried",
                types.len(),
                view.blocks
            ));
        }
        let mut slowest_s = vec![f64::INFINITY; states];
        for kind in 0..types.len() {
            slowest_s[kind * view.blocks] = 0.0;
        }
        let before = vec![(0, 0); states];
        Ok(Self { view, types, places, slowest_s, before, best_s: f64::INFINITY, best: None })
    }

    fn state(&self, used: usize, kind: usize, done: usize) -> usize {
        (used * self.types.len() + kind) * self.view.blocks + done
    }

    /// How many devices of a type a count vector has.
    fn count(&self, used: usize, kind: usize) -> usize {
        used % self.places[kind + 1] / self.places[kind]
    }

    /// In the order of the count vectors, which only grow.
    fn fill(&mut self) {
        let (least, most) = self.view.stage_limits();
        for used in 0..self.places[self.types.len()] {
            let stages = (0..self.types.len()).map(|kind| self.count(used, kind)).sum::<usize>() + 1;
            if stages > most {
                continue;
            }
            for kind in 0..self.types.len() {
                if self.count(used, kind) < self.types[kind].members.len() {
                    self.leave(used, kind, stages >= least, stages < most);
                }
            }
        }
    }

    /// All stages of this type after these devices.
    fn leave(&mut self, used: usize, kind: usize, may_end: bool, may_go_on: bool) {
        let view = self.view;
        let device = self.types[kind].members[0];
        let then = used + self.places[kind];
        let next: Vec<usize> = (0..self.types.len())
            .filter(|&next| may_go_on && self.count(then, next) < self.types[next].members.len())
            .collect();
        for first in 0..view.blocks {
            let so_far = self.slowest_s[self.state(used, kind, first)];
            if so_far >= self.best_s {
                continue;
            }
            for end in first + 1..=view.blocks {
                let slowest_s = so_far.max(view.seconds(device, first, end));
                if slowest_s >= self.best_s {
                    break;
                }
                if !view.fits(device, first, end) {
                    continue;
                }
                if end == view.blocks {
                    if may_end {
                        (self.best_s, self.best) = (slowest_s, Some(Last { first, used, kind }));
                    }
                    continue;
                }
                self.hand_on(slowest_s, (kind, first), &next, (then, end));
            }
        }
    }

    fn hand_on(
        &mut self,
        slowest_s: f64,
        (kind, first): (usize, usize),
        next: &[usize],
        (used, end): (usize, usize),
    ) {
        for &to in next {
            let rate = self.types[kind].rate.min(self.types[to].rate);
            let with_hop = slowest_s.max(over(self.view.cut(end), rate));
            let state = self.state(used, to, end);
            if with_hop < self.slowest_s[state] && with_hop < self.best_s {
                self.slowest_s[state] = with_hop;
                // Blocks are at most 2,000, and types fewer than the states allow.
                self.before[state] = (first as u16, kind as u16);
            }
        }
    }

    /// Ends and types of the stages.
    fn trace(&self, last: Last) -> (Vec<usize>, Vec<usize>) {
        let (mut ends, mut order) = (vec![self.view.blocks], vec![last.kind]);
        let Last { mut first, mut used, mut kind } = last;
        while first > 0 {
            ends.push(first);
            let (before, previous) = self.before[self.state(used, kind, first)];
            (first, kind) = (before.into(), previous.into());
            used -= self.places[kind];
            order.push(kind);
        }
        ends.reverse();
        order.reverse();
        (ends, order)
    }
}
