//! Two plans that came close, measured again in turns: the host's drift is in both alike, and both are made from what
//! the mesh has learnt meanwhile.

use super::{PlayError, Player};
use crate::lab::{
    report::Measurement,
    scenario::{Rematch, Step, Try},
};

impl Player {
    /// Where the best of the others came close to the first, both get their turns, and these take the place of their
    /// rows.
    pub(super) fn rematch(&mut self, rematch: &Rematch) -> Result<(), PlayError> {
        if self.report.measurement(&rematch.label).is_none() {
            return Err(PlayError::Script(format!("rematch: {} was not measured", rematch.label)));
        }
        let Some(rival) = self.report.close_rival(&rematch.label, &rematch.against, rematch.within) else {
            return Ok(());
        };
        let cells = [self.cell(&rematch.label)?, self.cell(&rival.label)?];
        let mut turns = [Vec::new(), Vec::new()];
        for _ in 0..rematch.rounds {
            for (cell, turns) in cells.iter().zip(&mut turns) {
                // As long for both, whatever they had before.
                let cell = Try { seconds: rematch.seconds, ..cell.clone() };
                turns.push(self.tried(&cell, rematch.settle.0)?);
            }
        }
        for turns in turns {
            let measured = Measurement::of_turns(turns);
            let mut rows = self.report.measurements.iter_mut();
            if let Some(row) = rows.find(|row| row.label == measured.label) {
                // What was predicted before anything was known of a plan stays.
                let (planned, faults) = (row.planned, row.faults + measured.faults);
                *row = Measurement { planned, faults, ..measured };
            }
        }
        Ok(())
    }

    /// The cell of the script with this label.
    fn cell(&self, label: &str) -> Result<Try, PlayError> {
        let mut steps = self.hall.scenario.event.iter().map(|event| &event.step);
        let cell = steps.find_map(|step| {
            if let Step::Try(cell) = step { (cell.label == label).then(|| cell.clone()) } else { None }
        });
        cell.ok_or_else(|| PlayError::Script(format!("rematch: no cell is called {label}")))
    }
}
