//! Plans that came close, measured again in turns: the host's drift is in all alike, and all are made from what the mesh
//! has learnt meanwhile.

use super::{PlayError, Player};
use crate::lab::{
    report::Measurement,
    scenario::{Rematch, Step, Try},
};

impl Player {
    /// Those of the others that came close to the first have their turns with it, and these take the place of their rows.
    pub(super) fn rematch(&mut self, rematch: &Rematch) -> Result<(), PlayError> {
        if self.report.measurement(&rematch.label).is_none() {
            return Err(PlayError::Script(format!("rematch: {} was not measured", rematch.label)));
        }
        let rivals = self.report.close_rivals(&rematch.label, &rematch.against, rematch.within);
        let labels = rivals.iter().map(|rival| rival.label.as_str());
        let cells = std::iter::once(rematch.label.as_str()).chain(labels).map(|label| self.cell(label));
        let cells: Vec<Try> = cells.collect::<Result<_, _>>()?;
        if cells.len() < 2 {
            return Ok(());
        }
        let mut turns = vec![Vec::new(); cells.len()];
        for _ in 0..rematch.rounds {
            for (cell, turns) in cells.iter().zip(&mut turns) {
                // As long for all, whatever they had before.
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
