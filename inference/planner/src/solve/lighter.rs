//! Cuts where less crosses, for a rate that is hardly lower.
//!
//! A predicted rate is not exact to a hundredth, but how many bytes cross a cut is known. Between two blocks of one layer
//! many times as many can cross as between two layers: what a fast link carries all the same, until it is slow one day.

use super::Costed;
use super::chain::Steps;
use super::climb::cost;
use crate::evaluate::{evaluate_draft, fits};
use crate::instance::Instance;

/// A cut is moved by so many blocks at most.
const FARTHEST: usize = 8;
/// What crosses must become so much less.
const LIGHTER: f64 = 0.75;

/// Moves the cuts of a plan to where fewer bytes cross, as long as its bottleneck is at most `limit_s` and it answers as
/// soon.
pub(super) fn lighter(instance: &Instance<'_>, start: Costed, limit_s: f64, steps: &mut Steps) -> Costed {
    let mut best = start;
    for stage in 1..best.0.stages.len() {
        let (before, after) = (&best.0.stages[stage - 1], &best.0.stages[stage]);
        let cut = after.first;
        let near = cut.saturating_sub(FARTHEST).max(before.first + 1)..=(cut + FARTHEST).min(after.end - 1);
        let is_lighter = |to: &usize| instance.cut(*to) <= LIGHTER * instance.cut(cut);
        let mut cuts: Vec<usize> = near.filter(is_lighter).collect();
        cuts.sort_by(|a, b| {
            instance.cut(*a).total_cmp(&instance.cut(*b)).then(a.abs_diff(cut).cmp(&b.abs_diff(cut)))
        });
        for to in cuts {
            let mut draft = best.0.clone();
            (draft.stages[stage - 1].end, draft.stages[stage].first) = (to, to);
            if !steps.pay(cost(&draft)) {
                return best;
            }
            let evaluation = evaluate_draft(instance, &draft);
            let is_as_good = evaluation.bottleneck_s <= limit_s
                && evaluation.latency_s <= best.1.latency_s * (1.0 + 1e-9)
                && evaluation.is_served();
            if is_as_good && fits(instance, &draft) {
                best = (draft, evaluation);
                break;
            }
        }
    }
    best
}
