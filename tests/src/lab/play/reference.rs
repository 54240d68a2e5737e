//! How fast the host is while something is measured: the whole model on one thread of this process, again and again. Other
//! machines on the same hardware make a host's processors faster and slower by a tenth within minutes, and what was
//! measured one after the other cannot be compared without.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use mesh_inference::profile::thread_seconds;

use super::{LENGTH, LoadError};
use crate::models::{Named, Whole};

/// It takes one part in so many of a processor.
const RARELY: u32 = 30;
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// The whole model.
#[derive(Debug)]
pub(super) struct Reference {
    file: PathBuf,
    whole: Whole,
    inputs: Named,
    next: Instant,
    /// Processor seconds of each run.
    runs: Vec<f64>,
}

impl Reference {
    /// The model in a file, loaded and run once. `None`: its batch is fixed.
    pub(super) fn load(file: &Path) -> Result<Option<Self>, LoadError> {
        let name = file.display().to_string();
        let whole = Whole::open(file).map_err(|source| LoadError::Whole { file: name, source })?;
        let Some(inputs) = whole.inputs(1, LENGTH, 0) else { return Ok(None) };
        let (file, next) = (file.to_path_buf(), Instant::now());
        let mut reference = Self { file, whole, inputs, next, runs: Vec::new() };
        reference.look();
        Ok(Some(reference))
    }

    pub(super) fn is_of(&self, file: &Path) -> bool {
        self.file == file
    }

    /// Forgets what was measured.
    pub(super) fn clear(&mut self) {
        self.runs.clear();
    }

    /// Runs the model, unless that was done a moment ago.
    pub(super) fn look(&mut self) {
        let begun = Instant::now();
        if begun < self.next {
            return;
        }
        let before = thread_seconds();
        std::hint::black_box(self.whole.run(&self.inputs));
        let took = thread_seconds() - before;
        self.runs.push(took);
        self.next =
            Instant::now() + Duration::from_secs_f64(took.max(0.0)).saturating_mul(RARELY).max(PAUSE_MIN);
    }

    /// Processor seconds of a run: the median. 0 without one.
    pub(super) fn middle(&self) -> f64 {
        let mut runs = self.runs.clone();
        runs.sort_by(f64::total_cmp);
        runs.get(runs.len() / 2).copied().unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_model_is_run_now_and_then() {
        let file = crate::digits::model();
        let mut reference = Reference::load(&file).expect("digits load").expect("their batch is free");
        assert!(reference.is_of(&file) && reference.middle() > 0.0);
        reference.look();
        assert_eq!(reference.runs.len(), 1, "not again so soon");
        reference.clear();
        assert_eq!(reference.middle(), 0.0);
        reference.runs = vec![3.0, 1.0, 2.0];
        assert_eq!(reference.middle(), 2.0);
    }
}
