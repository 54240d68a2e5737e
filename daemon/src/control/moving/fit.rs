//! What the processors' time went into, from a few stretches of work: linear regression with a prior (ridge regression;
//! Hoerl and Kennard 1970).

use std::collections::VecDeque;

/// Stretches that count.
const STRETCHES: usize = 5;
/// Stretches before anything is believed.
const STRETCHES_TRUSTED: usize = 3;
/// A stretch's share is known to this: a run that reaches over its end is counted in the next.
const NOISE: f64 = 0.02;
/// How far costs are expected to lie from what probes say (once) and what is used beside (nothing): a standard deviation.
const APART: f64 = 0.5;
const BESIDE: f64 = 0.04;
/// So many standard deviations are no chance.
const ODD: f64 = 3.0;
/// Costs stay between these, times what probes say: a probe over a far link takes long, and all that goes on beside it
/// looks like its price.
const BOUNDS: (f64, f64) = (0.1, 4.0);
const BESIDE_MAX: f64 = 0.3;

/// A stretch of work, in parts of the processors' time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Stretch {
    /// What moving bytes should have taken.
    pub(super) moving: f64,
    /// What clients should have taken.
    pub(super) entry: f64,
    /// What was used over computing and rest.
    pub(super) spent: f64,
}

/// What things take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Costs {
    /// Part of the processors that is used beside all that is counted while the device works: reports, looks, plans.
    pub(super) beside: f64,
    /// How many times what it should.
    pub(super) moving: f64,
    /// The same for clients.
    pub(super) entry: f64,
}

impl Default for Costs {
    fn default() -> Self {
        Self { beside: 0.0, moving: 1.0, entry: 1.0 }
    }
}

/// The last stretches.
#[derive(Debug, Default)]
pub(super) struct Stretches(VecDeque<Stretch>);

impl Stretches {
    /// Takes one more; what things take, once enough are known.
    pub(super) fn learn(&mut self, stretch: Stretch) -> Option<Costs> {
        if self.0.len() == STRETCHES {
            self.0.pop_front();
        }
        self.0.push_back(stretch);
        if self.0.len() < STRETCHES_TRUSTED {
            return None;
        }
        // Something else may go on in one of them: more than the others together can explain.
        let without = |index: usize| {
            let costs = fit(&self.without(Some(index)));
            let stretch = &self.0[index];
            ((stretch.spent - costs.of(stretch)).abs() / stretch.doubt(), costs)
        };
        let worst = (0..self.0.len()).map(without).max_by(|a, b| a.0.total_cmp(&b.0));
        let odd = worst.filter(|(deviations, _)| *deviations > ODD).map(|(_, costs)| costs);
        Some(odd.unwrap_or_else(|| fit(&self.without(None))))
    }

    fn without(&self, left_out: Option<usize>) -> Vec<Stretch> {
        let others = self.0.iter().enumerate().filter(|(index, _)| Some(*index) != left_out);
        others.map(|(_, stretch)| *stretch).collect()
    }
}

impl Stretch {
    /// Standard deviation of what was spent, as far as nothing is known but what should have been.
    fn doubt(&self) -> f64 {
        let part = APART * self.moving.hypot(self.entry);
        NOISE.hypot(BESIDE).hypot(part)
    }
}

impl Costs {
    fn of(&self, stretch: &Stretch) -> f64 {
        self.beside + self.moving * stretch.moving + self.entry * stretch.entry
    }
}

/// The most likely costs. What is used beside tells itself apart from what bytes take by stretches with more and with
/// fewer bytes; where all are alike, the prior divides it, and the sum is right all the same.
fn fit(stretches: &[Stretch]) -> Costs {
    let prior = [0.0, 1.0, 1.0];
    let trust = [NOISE / BESIDE, NOISE / APART, NOISE / APART].map(|part| part * part);
    let mut matrix = [[0.0; 4]; 3];
    for row in 0..3 {
        matrix[row][row] = trust[row];
        matrix[row][3] = trust[row] * prior[row];
    }
    for stretch in stretches {
        let inputs = [1.0, stretch.moving, stretch.entry];
        for row in 0..3 {
            for column in 0..3 {
                matrix[row][column] += inputs[row] * inputs[column];
            }
            matrix[row][3] += inputs[row] * stretch.spent;
        }
    }
    let [beside, moving, entry] = solved(matrix);
    Costs {
        beside: beside.clamp(0.0, BESIDE_MAX),
        moving: moving.clamp(BOUNDS.0, BOUNDS.1),
        entry: entry.clamp(BOUNDS.0, BOUNDS.1),
    }
}

/// Gauss and Jordan's elimination. The matrix is symmetric and positive definite: it needs no pivoting.
fn solved(mut matrix: [[f64; 4]; 3]) -> [f64; 3] {
    for pivot in 0..3 {
        let scale = matrix[pivot][pivot];
        matrix[pivot].iter_mut().for_each(|value| *value /= scale);
        let by = matrix[pivot];
        for (_, row) in matrix.iter_mut().enumerate().filter(|(index, _)| *index != pivot) {
            let times = row[pivot];
            row.iter_mut().zip(by).for_each(|(value, by)| *value -= times * by);
        }
    }
    matrix.map(|row| row[3])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stretch(moving: f64, spent: f64) -> Stretch {
        Stretch { moving, entry: 0.0, spent }
    }

    fn learnt(stretches: &[Stretch]) -> Costs {
        let mut known = Stretches::default();
        stretches.iter().map(|stretch| known.learn(*stretch)).last().flatten().unwrap()
    }

    #[test]
    fn little_that_is_moved_does_not_explain_much_that_is_spent() {
        let costs = learnt(&[stretch(0.02, 0.07); 5]);
        assert!(costs.beside > 0.04 && costs.moving < 1.3, "{costs:?}");
        // With a hundred times as much, nobody would believe twice the price.
        assert!((costs.of(&stretch(0.02, 0.0)) - 0.07).abs() < 0.01, "{costs:?}");
    }

    #[test]
    fn much_that_is_moved_does() {
        let costs = learnt(&[stretch(0.3, 0.54); 5]);
        assert!(costs.beside < 0.03 && costs.moving > 1.7, "{costs:?}");
    }

    #[test]
    fn one_odd_stretch_does_not_count_and_a_lasting_change_does() {
        let mut known = Stretches::default();
        for _ in 0..5 {
            known.learn(stretch(0.2, 0.2));
        }
        let odd = known.learn(stretch(0.2, 0.9)).unwrap();
        assert!((odd.moving - 1.0).abs() < 1e-6, "{odd:?}");
        let lasting = (0..4).map(|_| known.learn(stretch(0.2, 0.3))).last().flatten().unwrap();
        assert!(lasting.moving > 1.35, "{lasting:?}");
    }

    proptest! {
        /// What made the numbers is found again where they differ enough.
        #[test]
        fn what_things_take_is_found(
            (beside, moving, entry) in (0.0..0.1f64, 0.6..2.5f64, 0.6..2.5f64),
            shares in prop::collection::vec((0.0..0.3f64, 0.0..0.3f64), 5),
        ) {
            let truth = Costs { beside, moving, entry };
            let stretches: Vec<Stretch> = shares
                .iter()
                .map(|&(moving, entry)| Stretch { moving, entry, spent: 0.0 })
                .map(|s| Stretch { spent: truth.of(&s), ..s })
                .collect();
            let found = learnt(&stretches);
            for stretch in &stretches {
                prop_assert!((found.of(stretch) - stretch.spent).abs() < 0.1, "{found:?} {truth:?}");
            }
        }

        #[test]
        fn equations_are_solved(inputs in prop::collection::vec(prop::array::uniform3(-1.0..1.0f64), 3..9), wanted in prop::array::uniform3(-5.0..5.0f64)) {
            let mut matrix = [[0.0; 4]; 3];
            for row in 0..3 {
                for column in 0..3 {
                    matrix[row][column] = inputs.iter().map(|i| i[row] * i[column]).sum::<f64>() + f64::from(u8::from(row == column));
                }
                matrix[row][3] = (0..3).map(|column| matrix[row][column] * wanted[column]).sum();
            }
            for (found, wanted) in solved(matrix).iter().zip(wanted) {
                prop_assert!((found - wanted).abs() < 1e-9);
            }
        }
    }
}
