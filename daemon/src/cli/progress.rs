//! Progress on stderr: bars on a terminal, plain lines otherwise.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressStyle};

use super::output;

/// How a step's work is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Bytes,
    Items,
}

/// Steps of long work, one after the other.
#[derive(Debug, Default)]
pub(super) struct Progress {
    step: String,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Shows that `done` of `total` (0: unknown) of a step is done; a new name begins a new step.
    pub(super) fn show(&mut self, step: &str, done: u64, total: u64, unit: Unit) {
        if self.step != step {
            self.finish();
            step.clone_into(&mut self.step);
            match io::stderr().is_terminal() {
                true => self.bar = Some(bar(step, unit)),
                false => output::note(&format!("{step} …")),
            }
        }
        let Some(bar) = &self.bar else { return };
        if total > 0 {
            bar.set_length(total);
        }
        bar.set_position(done);
    }

    /// Ends the current step.
    pub(super) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
            output::note(&format!("{} {}", self.step, "done"));
        }
        self.step.clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn bar(step: &str, unit: Unit) -> ProgressBar {
    let counts = match unit {
        Unit::Bytes => "{binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}",
        Unit::Items => "{pos} of {len}",
    };
    let template = format!("{{spinner}} {{msg:28}} {{bar:30}} {counts}, {{eta}} left");
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::no_length().with_style(style).with_message(step.to_owned());
    bar.enable_steady_tick(std::time::Duration::from_millis(120));
    bar
}
