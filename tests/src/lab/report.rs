//! What a run of a scenario found.

use serde::{Deserialize, Serialize};

use super::{load::LoadReport, machine::Usage, scenario::Try};

/// Joules per second of a busy core above an idle one: a Raspberry Pi 4 takes 2.7 W idle and 6.4 W with four busy
/// cores.
pub const JOULES_PER_CORE_S: f64 = 0.93;
/// Joules per byte sent or received: 0.6 W of a gigabit card at full rate.
pub const JOULES_PER_BYTE: f64 = 5e-9;

/// A whole run.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// The scenario.
    pub scenario: String,
    /// Processors of the host.
    pub host_cores: usize,
    /// What happened, in order.
    pub events: Vec<Happened>,
    /// What was measured, in order.
    pub measurements: Vec<Measurement>,
    /// Loads that have ended, by name.
    pub loads: Vec<(String, LoadReport)>,
}

/// One event of the script.
#[derive(Debug, Clone, Serialize)]
pub struct Happened {
    /// Seconds after the start of the script.
    pub at_s: f64,
    /// Seconds until it was done.
    pub took_s: f64,
    /// What.
    pub what: String,
}

/// A stretch of steady load.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Measurement {
    /// From the scenario.
    pub label: String,
    /// The deployment.
    pub deployment: String,
    /// Length, seconds.
    pub seconds: f64,
    /// Right answers in it.
    pub answers: u64,
    /// Wrong answers and requests without an answer in it; for a cell of a table, in all of its load.
    pub faults: u64,
    /// Answers per second.
    pub rate: f64,
    /// Median and 99th percentile of latency, milliseconds.
    pub p50_ms: f64,
    /// See `p50_ms`.
    pub p99_ms: f64,
    /// What the mesh predicted for the plan while it was measured, requests per second: the mean of looks every four
    /// seconds.
    pub predicted: f64,
    /// What it predicted the moment before the measurement began, from what it had measured until then. 0: not looked at.
    #[serde(default)]
    pub foreseen: f64,
    /// What was predicted before its load, when the plan was new: nothing of it had been measured. 0: not looked at.
    #[serde(default)]
    pub planned: f64,
    /// Processor seconds of the whole model alone on one thread of the host meanwhile: how fast the host is. 0: not measured.
    #[serde(default)]
    pub whole_s: f64,
    /// The plan in a line: blocks and devices by stage, and what limits it.
    pub plan: String,
    /// What each device used in it.
    pub devices: Vec<DeviceUse>,
    /// Answers per second in each turn of a comparison, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub turns: Vec<f64>,
    /// Why there was nothing to measure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub impossible: Option<String>,
}

impl Measurement {
    /// How many times the rate of `first` this is.
    pub fn times(&self, first: &Self) -> f64 {
        self.rate / first.rate
    }

    /// The same on a host that had been equally fast, where that was measured. Cells that had turns have had the same
    /// host.
    pub fn times_on_equal_hosts(&self, first: &Self) -> f64 {
        let in_turns = !self.turns.is_empty() && !first.turns.is_empty();
        let is_known = !in_turns && self.whole_s > 0.0 && first.whole_s > 0.0;
        self.times(first) * if is_known { self.whole_s / first.whole_s } else { 1.0 }
    }

    /// The turns of a cell as one measurement.
    ///
    /// # Panics
    /// Without a turn.
    pub fn of_turns(turns: Vec<Self>) -> Self {
        let sum = |value: fn(&Self) -> f64| turns.iter().map(value).sum::<f64>();
        let mean = |value: fn(&Self) -> f64| sum(value) / turns.len() as f64;
        let of = |value: fn(&Self) -> f64| middle(turns.iter().map(value).collect());
        let last = turns.last().cloned().expect("a comparison has rounds");
        Self {
            seconds: sum(|turn| turn.seconds),
            answers: turns.iter().map(|turn| turn.answers).sum(),
            faults: turns.iter().map(|turn| turn.faults).sum(),
            rate: sum(|turn| turn.rate * turn.seconds) / sum(|turn| turn.seconds),
            p50_ms: of(|turn| turn.p50_ms),
            p99_ms: turns.iter().map(|turn| turn.p99_ms).fold(0.0, f64::max),
            predicted: mean(|turn| turn.predicted),
            foreseen: mean(|turn| turn.foreseen),
            planned: mean(|turn| turn.planned),
            whole_s: mean(|turn| turn.whole_s),
            turns: turns.iter().map(|turn| turn.rate).collect(),
            ..last
        }
    }

    /// How far the rate is from what was predicted, as a part.
    pub fn off_by(&self) -> f64 {
        self.rate / self.predicted - 1.0
    }

    /// The row of a plan that could not be had.
    pub fn impossible(cell: &Try, why: &str) -> Self {
        Self {
            label: cell.label.clone(),
            deployment: cell.name.clone(),
            impossible: Some(why.to_owned()),
            ..Self::default()
        }
    }
}

/// The middle one; of two in the middle, the higher.
fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What a device used during a measurement.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceUse {
    /// Its name.
    pub name: String,
    /// Processor seconds per second.
    pub cores: f64,
    /// Bytes sent per answer of the whole mesh.
    pub sent_per_answer: f64,
    /// Bytes received per answer.
    pub received_per_answer: f64,
    /// Modelled energy per answer, joules: processor time and bytes at the constants of this module.
    pub joules_per_answer: f64,
    /// Largest memory use so far, bytes.
    pub memory_peak: u64,
}

impl DeviceUse {
    /// From the usage before and after, `seconds` apart, in which the mesh gave `rate` answers per second.
    pub fn between(name: &str, before: Usage, after: Usage, seconds: f64, rate: f64) -> Self {
        let each = |total: f64| total / (rate * seconds).max(1.0);
        let cpu_s = after.cpu_s - before.cpu_s;
        let sent = after.sent.saturating_sub(before.sent) as f64;
        let received = after.received.saturating_sub(before.received) as f64;
        Self {
            name: name.to_owned(),
            cores: cpu_s / seconds,
            sent_per_answer: each(sent),
            received_per_answer: each(received),
            joules_per_answer: each(cpu_s * JOULES_PER_CORE_S + (sent + received) * JOULES_PER_BYTE),
            memory_peak: after.memory_peak,
        }
    }
}

impl Report {
    /// A measurement by its label.
    pub fn measurement(&self, label: &str) -> Option<&Measurement> {
        self.measurements.iter().find(|measurement| measurement.label == label)
    }

    /// Those of these others that came `within` this part of a rate, or were faster: by what was measured, or on hosts
    /// taken for equally fast.
    pub fn close_rivals(&self, label: &str, against: &[String], within: f64) -> Vec<&Measurement> {
        let Some(first) = self.measurement(label) else { return Vec::new() };
        let times = |other: &Measurement| other.times(first).max(other.times_on_equal_hosts(first));
        let rivals = against.iter().filter_map(|label| self.measurement(label));
        rivals.filter(|rival| rival.impossible.is_none() && times(rival) >= 1.0 - within).collect()
    }

    /// For people.
    pub fn text(&self) -> String {
        use std::fmt::Write as _;
        let mut text = format!("{}\n", self.scenario);
        if !self.measurements.is_empty() {
            let width = self.measurements.iter().map(|m| m.label.len()).max().unwrap_or(0).max(5);
            let _ = writeln!(
                text,
                "\n{:width$}  {:>9}  {:>9}  {:>6}  {:>9}  {:>9}  {:>7}  {:>6}",
                "LABEL", "RATE", "PREDICTED", "OFF BY", "P50", "P99", "ANSWERS", "FAULTS"
            );
            for m in &self.measurements {
                let off = if m.predicted > 0.0 { m.rate / m.predicted * 100.0 - 100.0 } else { f64::NAN };
                let _ = writeln!(
                    text,
                    "{:width$}  {:>7.3}/s  {:>7.3}/s  {:>5.1}%  {:>6.0} ms  {:>6.0} ms  {:>7}  {:>6}",
                    m.label, m.rate, m.predicted, off, m.p50_ms, m.p99_ms, m.answers, m.faults
                );
            }
            for m in &self.measurements {
                let _ = writeln!(text, "\n{}: {}", m.label, m.plan);
                for device in m.devices.iter().filter(|device| device.cores > 0.0) {
                    let _ = writeln!(
                        text,
                        "  {:12} {:5.1} % of a core, {:9.0} B sent and {:9.0} B received and {:.3} J per answer, {} MiB",
                        device.name,
                        device.cores * 100.0,
                        device.sent_per_answer,
                        device.received_per_answer,
                        device.joules_per_answer,
                        device.memory_peak >> 20
                    );
                }
            }
        }
        for (name, load) in &self.loads {
            let _ = writeln!(
                text,
                "\nload {name}: {} right, {} wrong, {} refused, {} failed, {} dropped in {:.1} s; {:.0} ms median, \
                 {:.0} ms p99, {:.2} s longest without an answer",
                load.right,
                load.wrong,
                load.refused,
                load.failed,
                load.dropped,
                load.seconds,
                load.latency.p50_ms,
                load.latency.p99_ms,
                load.longest_gap_s
            );
            for failure in load.failures.iter().take(5) {
                let _ = writeln!(text, "  {failure}");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(label: &str, rate: f64, whole_s: f64) -> Measurement {
        Measurement { label: label.to_owned(), rate, whole_s, ..Measurement::default() }
    }

    #[test]
    fn a_rival_is_close_by_what_was_measured_or_on_equal_hosts() {
        let gone = Measurement { impossible: Some("does not fit".into()), ..row("gone", 9.0, 1.0) };
        let rows = vec![row("mesh", 4.0, 1.0), row("slow", 3.0, 1.0), row("fast", 3.4, 1.0), gone];
        let mut report = Report { measurements: rows, ..Report::default() };
        let against = ["slow", "fast", "gone", "absent"].map(str::to_owned);
        let close = |report: &Report, within| {
            let rivals = report.close_rivals("mesh", &against, within);
            rivals.iter().map(|rival| rival.label.clone()).collect::<Vec<_>>()
        };
        assert!(close(&report, 0.1).is_empty());
        assert_eq!(close(&report, 0.2), ["fast"]);
        assert_eq!(close(&report, 0.3), ["slow", "fast"]);
        report.measurements[1].whole_s = 1.3;
        assert_eq!(close(&report, 0.1), ["slow"], "its host was slower");
        assert!(report.close_rivals("nobody", &against, 1.0).is_empty());
    }

    #[test]
    fn turns_are_on_one_host_and_every_fault_counts() {
        let turn = |rate, faults| Measurement { seconds: 10.0, faults, ..row("mesh", rate, 1.0) };
        let mesh = Measurement::of_turns(vec![turn(4.0, 1), turn(6.0, 0)]);
        assert_eq!((mesh.rate, mesh.faults, mesh.turns.len()), (5.0, 1, 2));
        let other = Measurement::of_turns(vec![Measurement { whole_s: 2.0, ..turn(4.0, 0) }]);
        assert_eq!(other.times_on_equal_hosts(&mesh), 0.8);
        assert_eq!(row("other", 4.0, 2.0).times_on_equal_hosts(&mesh), 1.6);
    }
}
