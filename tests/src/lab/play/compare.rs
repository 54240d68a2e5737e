//! Cells measured in turn: the host's drift is in all of them alike.

use std::time::Duration;

use super::{PlayError, Player, deploy::Others};
use crate::lab::{
    report::Measurement,
    scenario::{Compare, Deploy},
};

impl Player {
    /// Deploys all cells, lets the mesh learn from each under load, and gives them their turns.
    pub(super) fn compare(&mut self, compare: &Compare) -> Result<(), PlayError> {
        for cell in &compare.cell {
            self.deploy(&Deploy::from(cell), Others::Left)?;
        }
        for cell in &compare.cell {
            self.turn(cell, cell.settle.0)?;
        }
        let mut turns: Vec<Vec<Measurement>> = vec![Vec::new(); compare.cell.len()];
        for _ in 0..compare.rounds {
            for (cell, turns) in compare.cell.iter().zip(&mut turns) {
                turns.push(self.turn(cell, Duration::ZERO)?);
            }
        }
        self.report.measurements.extend(turns.into_iter().map(Measurement::of_turns));
        Ok(())
    }
}
