//! Whether a running plan is given up for a better one: only for a gain that pays, that lasts, and that the last such
//! move has brought as well. Pure: time comes as an argument.

use std::time::{Duration, Instant};

/// Pause after any plan before a voluntary move.
pub const COOL_DOWN: Duration = Duration::from_secs(30);
/// The pause after a voluntary move that did not bring what it promised is longer by this; twice as long after every
/// further one in a row...
const PATIENCE: u32 = 2;
/// ...up to this, which is also waited after one of which nobody knows.
const PATIENCE_MAX: u32 = 10;
/// A voluntary move must promise this much more.
pub const GAIN: f64 = 0.10;
/// The first voluntary move after a plan that was made in haste must promise this much more.
pub const GAIN_AFTER_HASTE: f64 = 0.02;
/// The gain must be there in so many looks in a row, unless devices have come or gone.
const LOOKS: u32 = 2;
/// A move must bring at least this part of the gain that it promised.
const KEPT: f64 = 0.5;
/// A new plan is judged after this long at the earliest.
const SETTLED: Duration = Duration::from_secs(15);

/// What is known of the moves of one deployment.
#[derive(Debug, Default)]
pub struct Moves {
    planned: Option<Instant>,
    last: Option<Voluntary>,
    /// Voluntary moves in a row that were not worth it.
    failures: u32,
    /// The last voluntary move was not worth it: none before this.
    not_before: Option<Instant>,
    /// Better plans in a row that were given up before they served, and no other before this.
    regrets: u32,
    regretted_until: Option<Instant>,
    /// Looks in a row that showed a gain.
    seen: u32,
    /// The running plan was made in haste, when a better one was known.
    is_hasty: bool,
}

#[derive(Debug)]
struct Voluntary {
    at: Instant,
    /// Speed of the plan that was given up, and of the new one as promised: requests or answers per second.
    before: f64,
    promised: f64,
    is_judged: bool,
}

impl Moves {
    /// A plan was made that had to be made. `is_hasty`: it is not nearly the best, for that took more loading.
    pub fn planned(&mut self, now: Instant, is_hasty: bool) {
        self.planned = Some(now);
        (self.regrets, self.regretted_until) = (0, None);
        self.last = None;
        self.seen = 0;
        self.is_hasty = is_hasty;
    }

    /// A plan was made because it is better.
    pub fn moved(&mut self, now: Instant, before: f64, promised: f64) {
        self.planned = Some(now);
        self.last = Some(Voluntary { at: now, before, promised, is_judged: false });
        self.not_before = None;
        self.seen = 0;
        self.is_hasty = false;
    }

    /// The speed of the running plan, now that all of its stages have been measured. Judges the last voluntary move,
    /// once.
    pub fn judge(&mut self, now: Instant, speed: f64) {
        let Some(last) = self.last.as_mut().filter(|last| !last.is_judged) else { return };
        if now.saturating_duration_since(last.at) < SETTLED {
            return;
        }
        last.is_judged = true;
        self.regrets = 0;
        if speed - last.before < KEPT * (last.promised - last.before) {
            let patience = PATIENCE.saturating_mul(1 << self.failures.min(8)).min(PATIENCE_MAX);
            self.failures += 1;
            self.not_before = Some(last.at + COOL_DOWN * patience);
        } else {
            self.failures = 0;
        }
    }

    /// What the last voluntary move was made from has changed since, far more than a forecast is off by: what it brought
    /// says nothing of the next one.
    pub fn excuse(&mut self) {
        if let Some(last) = &mut self.last {
            last.is_judged = true;
        }
        self.not_before = None;
    }

    /// Whether the last plan was made because it is better.
    pub fn is_voluntary(&self) -> bool {
        self.last.is_some()
    }

    /// The plan that was made because it is better is given up before it has served: as if it had not been made, the
    /// first time. A link that is fast and slow by turns would have one after another made and given up, so the next one
    /// waits, and twice as long after every further one.
    pub fn given_up(&mut self, now: Instant) {
        let patience = ((1 << self.regrets.min(8)) - 1).min(PATIENCE_MAX);
        let regretted_until = Some(now + COOL_DOWN * patience);
        *self =
            Self { failures: self.failures, regrets: self.regrets + 1, regretted_until, ..Self::default() };
    }

    /// Whether a voluntary move may be made now. `changed`: devices have come or gone since the last plan.
    pub fn may_move(&self, now: Instant, changed: bool) -> bool {
        let since = |at: Instant| now.saturating_duration_since(at);
        let cooled = self.planned.is_none_or(|at| since(at) >= COOL_DOWN);
        let unknown = self.last.as_ref().is_some_and(|last| !last.is_judged);
        let known =
            changed || !unknown || self.planned.is_none_or(|at| since(at) >= COOL_DOWN * PATIENCE_MAX);
        let is_due = |not_before: Option<Instant>| not_before.is_none_or(|at| now >= at);
        cooled && known && is_due(self.not_before) && is_due(self.regretted_until)
    }

    /// Whether a look is due even if nothing has changed: to confirm a gain, or after haste.
    pub fn wants_a_look(&self) -> bool {
        self.seen > 0 || self.is_hasty
    }

    /// A look at the best plan found: whether to move to it. `gain` is over the running plan, 0 for none.
    pub fn weigh(&mut self, gain: f64, changed: bool) -> bool {
        if gain <= if self.is_hasty { GAIN_AFTER_HASTE } else { GAIN } {
            self.seen = 0;
            self.is_hasty = false;
            return false;
        }
        self.seen += 1;
        changed || self.seen >= LOOKS
    }
}

#[cfg(test)]
mod tests;
