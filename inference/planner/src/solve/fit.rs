//! Chains over many devices and a bound on them: how short a bottleneck the prices of the tiling rule out, and how
//! short a one a beam search still finds a chain for.

use super::beam::Beam;
use super::chain::{Goal, Steps};
use super::order::Found;
use super::tiling::Tiling;
use crate::bound::lower_bound;
use crate::evaluate::{evaluate_draft, fits};
use crate::instance::Instance;

/// The bound is brought as near as this to what cannot be proven.
const NEAR: f64 = 1e-3;
/// Where the best chain is further than this from the bound, beams that are so many times wider get a try.
const FAR: f64 = 0.01;
const WIDER: usize = 3;
/// Limits that are tried for the bound, and for chains.
const TRIES: usize = 16;
/// How far above the bound the first limit is, for each.
const FIRST_RISE: f64 = 0.01;
const FIRST_CHAIN: f64 = 0.004;
/// Rounds of pricing for each limit that a chain is looked for.
const LEAST_ROUNDS: usize = 8;
/// A difference that rounding cannot explain.
const MARGIN: f64 = 1e-9;
/// Fewest and most partial chains that a beam keeps at each position.
const WIDTHS: (usize, usize) = (8, 64);

/// How thoroughly to look.
#[derive(Debug, Clone, Copy)]
pub(super) struct Effort {
    /// Rounds of pricing for each limit that the bound is tried with; with none it stays as it is.
    rounds: usize,
    /// Partial chains times devices that a beam keeps at each position.
    breadth: usize,
    /// The best chain is brought as near as this to what is not found.
    near: f64,
    /// Wider beams get a try.
    is_patient: bool,
}

impl Effort {
    /// Chains are all that is asked for.
    pub(super) const FULL: Self = Self { rounds: 100, breadth: 2048, near: 3e-4, is_patient: true };
    /// A chain is one thing among others.
    pub(super) const SOME: Self = Self { rounds: 24, breadth: 512, near: 1e-3, is_patient: false };
    /// Others will prove the best chain, and want a limit to begin with.
    pub(super) const GLANCE: Self = Self { rounds: 0, breadth: 512, near: 1e-3, is_patient: false };
}

/// What is known about chains.
#[derive(Debug)]
pub(super) struct Fit {
    /// No chain's bottleneck is shorter; of chains that take as long as the known one or longer it says nothing.
    pub(super) bound: f64,
    /// The best chain found that is better than the known one, with its bottleneck.
    pub(super) chain: Option<Found>,
}

impl Fit {
    /// What is known before any search.
    pub(super) fn new(instance: &Instance<'_>) -> Self {
        Self { bound: lower_bound(instance), chain: None }
    }

    /// The goal to be no worse than the chain found.
    pub(super) fn within(&self, goal: Goal) -> Goal {
        let value = self.chain.as_ref().map_or(f64::INFINITY, |(_, value)| value * (1.0 + MARGIN));
        Goal { cap_s: goal.cap_s.min(value), ..goal }
    }
}

/// Looks for chains with a shorter bottleneck than `known`, and for a bound.
pub(super) fn search(
    instance: &Instance<'_>,
    known: f64,
    before: Fit,
    effort: Effort,
    steps: &mut Steps,
) -> Fit {
    let (low, best) = (before.bound, before.chain);
    let mut search = Search { tiling: Tiling::new(instance), effort, low, high: known, best };
    if low > 0.0 && low < known * (1.0 - MARGIN) {
        if effort.rounds > 0 {
            let mut half = Steps::new(steps.left() / 2);
            search.raise(&mut half);
            *steps = Steps::new(steps.left() - steps.left() / 2 + half.left());
        }
        search.find(1, steps);
        if effort.is_patient && search.low < search.high * (1.0 - FAR) {
            search.find(WIDER, steps);
        }
        search.close(steps);
    }
    Fit { bound: search.low.min(search.high), chain: search.best }
}

struct Search<'a> {
    tiling: Tiling<'a>,
    effort: Effort,
    /// No chain is shorter.
    low: f64,
    /// The shortest chain known.
    high: f64,
    best: Option<Found>,
}

impl Search<'_> {
    /// Raises the bound as far as weights are found that prove it: ever faster, then by bisection.
    fn raise(&mut self, steps: &mut Steps) {
        let (mut rise, mut open) = (FIRST_RISE, f64::INFINITY);
        for _ in 0..TRIES {
            let top = open.min(self.high);
            if self.low >= top * (1.0 - NEAR) || steps.left() == 0 {
                break;
            }
            let limit = if open.is_finite() { (self.low + top) / 2.0 } else { self.low * (1.0 + rise) };
            let limit = limit.min(self.high * (1.0 - MARGIN));
            rise *= 2.0;
            let windows = self.tiling.windows(limit);
            if self.tiling.priced(&windows, (self.effort.rounds, self.effort.rounds), steps).is_too_little() {
                self.low = limit;
            } else {
                open = limit;
            }
        }
    }

    /// Lowers the limit for which the beam finds chains: from just above the bound on, then by bisection.
    fn find(&mut self, wider: usize, steps: &mut Steps) {
        let instance = self.tiling.instance;
        let (mut rise, mut failed, mut is_found) = (FIRST_CHAIN, self.low, false);
        let width =
            (self.effort.breadth / self.tiling.devices.len().max(1)).clamp(WIDTHS.0, WIDTHS.1) * wider;
        for _ in 0..TRIES {
            if failed >= self.high * (1.0 - self.effort.near) || steps.left() == 0 {
                break;
            }
            let limit = if is_found { (failed + self.high) / 2.0 } else { self.low * (1.0 + rise) };
            let limit = limit.min(self.high * (1.0 - MARGIN));
            rise *= 2.0;
            let windows = self.tiling.windows(limit);
            let priced = self.tiling.priced(
                &windows,
                (LEAST_ROUNDS, (self.effort.rounds / 2).max(LEAST_ROUNDS)),
                steps,
            );
            if priced.is_too_little() {
                (self.low, failed) = (limit, limit);
                continue;
            }
            let beam = Beam { tiling: &self.tiling, windows: &windows, priced: &priced, limit, width };
            let chain = beam.chain(steps).filter(|draft| fits(instance, draft));
            let found = chain.and_then(|draft| {
                let evaluation = evaluate_draft(instance, &draft);
                evaluation.is_served().then_some((draft, evaluation.bottleneck_s))
            });
            match found.filter(|(_, value)| *value < self.high) {
                Some((draft, value)) => {
                    (self.high, self.best, is_found) = (value, Some((draft, value)), true);
                }
                None => failed = limit,
            }
        }
    }

    /// A last try just below the best chain: when that cannot be, it is the best of all.
    fn close(&mut self, steps: &mut Steps) {
        let limit = self.high * (1.0 - MARGIN);
        if !limit.is_finite() || self.low >= limit || self.low < limit * (1.0 - 2.0 * NEAR) {
            return;
        }
        let windows = self.tiling.windows(limit);
        if self.tiling.priced(&windows, (self.effort.rounds, self.effort.rounds), steps).is_too_little() {
            self.low = self.high;
        }
    }
}

#[cfg(test)]
mod tests;
