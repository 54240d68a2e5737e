//! Few devices and few cuts: every way to deal devices out to stages, as long as it could be better than what is known.

use super::chain::Steps;
use super::climb::cost;
use super::near::at_home;
use super::rates::{Group, Rates};
use super::restart::stage_of;
use super::shares::polish;
use super::shift::shift;
use crate::evaluate::{Draft, Evaluation, evaluate_draft, fits};
use crate::instance::Instance;

/// Up to so many devices and blocks: there are 9,365 ways to deal some or all of six devices out to stages in a row, and
/// for each the cuts.
const DEVICES_MAX: usize = 6;
const BLOCKS_MAX: usize = 12;

/// The best of all mixtures of at most so many devices, or what was known, if that is no worse. Shares are those that
/// polishing finds.
pub(super) fn search(
    instance: &Instance<'_>,
    known: (Draft, Evaluation),
    enough: f64,
    steps: &mut Steps,
) -> (Draft, Evaluation) {
    let devices = instance.usable();
    if devices.len() > DEVICES_MAX || instance.blocks > BLOCKS_MAX || known.1.bottleneck_s <= enough {
        return known;
    }
    let rates = Rates::new(instance, (0..=instance.blocks).collect());
    let lacks_links = instance.lacks_links();
    let mut search = Search { rates, devices, best: known, enough, lacks_links, stages: Vec::new() };
    search.go_on(0, 0, steps);
    search.best
}

struct Search<'a> {
    rates: Rates<'a>,
    devices: Vec<usize>,
    best: (Draft, Evaluation),
    enough: f64,
    lacks_links: bool,
    /// Blocks and devices of the stages so far.
    stages: Vec<(usize, usize, Vec<usize>)>,
}

impl Search<'_> {
    /// All ways on from a block, with the devices that are not in `used`.
    fn go_on(&mut self, first: usize, used: usize, steps: &mut Steps) {
        let blocks = self.rates.instance.blocks;
        if first == blocks {
            self.look(steps);
            return;
        }
        let (min, max) = self.rates.instance.stage_limits();
        if self.stages.len() == max {
            return;
        }
        let all = (1 << self.devices.len()) - 1;
        for group in (1..=all).filter(|group| group & used == 0) {
            let members = (0..self.devices.len()).filter(|at| group >> at & 1 == 1);
            let members: Vec<usize> = members.map(|at| self.devices[at]).collect();
            for end in first + 1..=blocks {
                if self.best.1.bottleneck_s <= self.enough || !steps.pay(members.len() as u64) {
                    return;
                }
                let is_last = end == blocks;
                if (is_last && self.stages.len() + 1 < min) || (!is_last && used | group == all) {
                    continue;
                }
                let mut together = Group::default();
                for &device in &members {
                    together.join(&self.rates.of(device)[end * (blocks + 1) + first]);
                }
                if together.takes(self.best.1.bottleneck_s) {
                    continue;
                }
                self.stages.push((first, end, members.clone()));
                self.go_on(end, used | group, steps);
                self.stages.pop();
            }
        }
    }

    /// Looks at the stages as they are.
    fn look(&mut self, steps: &mut Steps) {
        let instance = self.rates.instance;
        let stages =
            self.stages.iter().map(|(first, end, members)| stage_of(instance, members, *first, *end));
        let Some(draft) = stages.collect::<Option<_>>().map(|stages| Draft { stages }) else { return };
        if !steps.pay(cost(&draft)) {
            return;
        }
        // What enters where links lack may have to stay there: a point that only small steps lead on from.
        let at_home = self.lacks_links.then(|| at_home(instance, &draft)).flatten();
        self.take(polish(instance, draft, false));
        if let Some(draft) = at_home {
            let evaluation = evaluate_draft(instance, &draft);
            self.take(shift(instance, (draft, evaluation), steps));
        }
    }

    fn take(&mut self, (draft, evaluation): (Draft, Evaluation)) {
        if evaluation.bottleneck_s < self.best.1.bottleneck_s * (1.0 - 1e-9)
            && evaluation.is_served()
            && fits(self.rates.instance, &draft)
        {
            self.best = (draft, evaluation);
        }
    }
}
