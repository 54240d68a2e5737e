//! Chains of devices that differ, where links do not matter: how far each set of devices can get.
//!
//! For a bottleneck `t` and a set of devices, the furthest position that a chain of them reaches follows from the
//! sets with one device less, when links, cards and cut buffers are left out: whoever starts later is never worse off.
//! So a `t` at which no set reaches the end is a lower bound on every chain, and a chain that does reach it is the best
//! one if its real cost is the same. Devices that are alike but for their links count as one kind.

use super::chain::{Steps, draft_of};
use crate::evaluate::{Draft, Evaluation, evaluate_draft, fits};
use crate::instance::Instance;

/// Sets of devices that are looked at, at most: 17 devices that all differ.
const MAX_SETS: usize = 1 << 17;
/// Bottlenecks that are tried.
const TRIES: usize = 24;
/// The bound and the best chain are not brought closer together than this.
const CLOSE: f64 = 1e-5;
/// A difference that rounding cannot explain.
const MARGIN: f64 = 1e-9;

/// The best chain found, and a bound on all chains that take less than `known`.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) chain: Option<(Draft, Evaluation)>,
    pub(super) bound: f64,
}

/// Bisects over the bottleneck. `None` when there are too many sets.
pub(super) fn search(
    instance: &Instance<'_>,
    (bound, known): (f64, f64),
    steps: &mut Steps,
) -> Option<Found> {
    let sets = Sets::new(instance)?;
    let (min, max) = instance.stage_limits();
    let (mut low, mut high) = (bound, known.min(1e12));
    let mut found = Found { chain: None, bound: low };
    let mut best = known;
    for attempt in 0..TRIES {
        let work = (sets.count * sets.kinds.len() / 2 + 8 * sets.kinds.len() * instance.blocks) as u64;
        if !steps.pay(work) {
            break;
        }
        // Once both ends have met, a trace below the best chain: when no set gets there, it is the best of all.
        let have_met = low >= high * (1.0 - CLOSE) || attempt + 1 == TRIES;
        // Where the bound itself leaves a chain, bisection cannot raise it.
        let limit = match attempt {
            _ if have_met => best.min(high) * (1.0 - MARGIN),
            0 => low * (1.0 + CLOSE / 2.0),
            _ => (low + high) / 2.0,
        };
        match sets.chain(limit) {
            None => low = low.max(limit / (1.0 - if have_met { MARGIN } else { 0.0 })),
            Some(draft) => {
                high = limit;
                let evaluation = evaluate_draft(instance, &draft);
                let is_allowed = (min..=max).contains(&draft.stages.len()) && fits(instance, &draft);
                if evaluation.bottleneck_s < best && is_allowed {
                    best = evaluation.bottleneck_s;
                    found.chain = Some((draft, evaluation));
                }
            }
        }
        if have_met {
            break;
        }
    }
    found.bound = low;
    Some(found)
}

struct Sets<'a> {
    instance: &'a Instance<'a>,
    kinds: Vec<Vec<usize>>,
    strides: Vec<usize>,
    count: usize,
}

impl<'a> Sets<'a> {
    fn new(instance: &'a Instance<'a>) -> Option<Self> {
        let mut kinds: Vec<Vec<usize>> = Vec::new();
        for device in instance.usable() {
            match kinds.iter_mut().find(|kind| are_alike(instance, kind[0], device)) {
                Some(kind) => kind.push(device),
                None => kinds.push(vec![device]),
            }
        }
        let mut strides = Vec::with_capacity(kinds.len());
        let mut count = 1usize;
        for kind in &kinds {
            strides.push(count);
            count = count.checked_mul(kind.len() + 1).filter(|&count| count <= MAX_SETS)?;
        }
        Some(Self { instance, kinds, strides, count })
    }

    /// A chain that no stage makes longer than `limit`, if there may be one: links are not looked at.
    fn chain(&self, limit: f64) -> Option<Draft> {
        let (min, max) = self.instance.stage_limits();
        let reach: Vec<Vec<u32>> = self.kinds.iter().map(|kind| self.reach(kind[0], limit)).collect();
        let blocks = self.instance.blocks as u32;
        let mut furthest = vec![0u32; self.count];
        let mut used = vec![0usize; self.kinds.len()];
        // As many stages as were asked for, else as few as possible.
        let mut fewest: Option<(bool, usize, usize)> = None;
        for set in 1..self.count {
            self.count_up(&mut used);
            let mut best = 0;
            for ((stride, reach), used) in self.strides.iter().zip(&reach).zip(&used) {
                if *used > 0 {
                    best = best.max(reach[furthest[set - stride] as usize]);
                }
            }
            furthest[set] = best;
            if best == blocks {
                let devices: usize = used.iter().sum();
                let candidate = (devices < min, devices, set);
                if devices <= max && fewest.is_none_or(|old| candidate < old) {
                    fewest = Some(candidate);
                }
            }
        }
        fewest.map(|(.., set)| self.read_back(set, &furthest, &reach))
    }

    /// The numbers of devices of each kind in the next set.
    fn count_up(&self, used: &mut [usize]) {
        for (used, kind) in used.iter_mut().zip(&self.kinds) {
            if *used < kind.len() {
                *used += 1;
                return;
            }
            *used = 0;
        }
    }

    /// By first block: how far a device gets in time and memory.
    fn reach(&self, device: usize, limit: f64) -> Vec<u32> {
        let instance = self.instance;
        let mut end = 0;
        let ends = (0..=instance.blocks).map(|start| {
            end = end.max(start);
            let fits = |end: usize| {
                let held = instance.held(start, end).saturating_add(instance.peak(start, end));
                instance.seconds(device, start, end) <= limit && held <= instance.memory(device)
            };
            while end < instance.blocks && fits(end + 1) {
                end += 1;
            }
            end as u32
        });
        ends.collect()
    }

    fn read_back(&self, mut set: usize, furthest: &[u32], reach: &[Vec<u32>]) -> Draft {
        let used = |set: usize, kind: usize| set / self.strides[kind] % (self.kinds[kind].len() + 1);
        let mut stages = Vec::new();
        while set > 0 {
            let end = furthest[set];
            let came_from = |&kind: &usize| {
                used(set, kind) > 0 && reach[kind][furthest[set - self.strides[kind]] as usize] == end
            };
            let Some(kind) = (0..self.kinds.len()).find(came_from) else { break };
            let device = self.kinds[kind][used(set, kind) - 1];
            set -= self.strides[kind];
            if furthest[set] < end {
                stages.push((device, furthest[set] as usize, end as usize));
            }
        }
        draft_of(stages)
    }
}

fn are_alike(instance: &Instance<'_>, a: usize, b: usize) -> bool {
    let (one, other) = (&instance.problem.devices[a], &instance.problem.devices[b]);
    one.class == other.class && one.speed == other.speed && one.memory_bytes == other.memory_bytes
}
