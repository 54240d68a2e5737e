//! Measuring a load once it runs evenly.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Latency, Load, LoadError};

/// How long to warm up and to measure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    /// Answers to let pass first.
    pub warmup_answers: u64,
    /// Least answers to measure.
    pub answers: u64,
    /// Least time to measure, in seconds.
    pub seconds: f64,
    /// Most time for all of it.
    pub bound: Duration,
}

/// What was measured in a window.
#[derive(Debug, Clone, Serialize)]
pub struct Steady {
    /// Begin of the window, on the clock of the load.
    pub from_s: f64,
    /// Its end.
    pub to_s: f64,
    /// Right answers in it.
    pub answers: u64,
    /// Wrong answers, refusals and failures in it.
    pub errors: u64,
    /// Rate of right answers per second, those under way at the ends counted in part.
    pub rate_rps: f64,
    /// The rates of its first and second half: far apart where the load was not steady.
    pub halves_rps: [f64; 2],
    /// Latencies of its answers.
    pub latency: Latency,
}

/// Waits for the warm-up, then until both the answers and the time of the window have passed, and tells what came in
/// it. `look` is called all the while. The load goes on.
pub fn measure_steady(load: &Load, window: &Window, look: &mut dyn FnMut()) -> Result<Steady, LoadError> {
    let end = Instant::now() + window.bound;
    let left = || end.saturating_duration_since(Instant::now());
    load.wait_for(window.warmup_answers, left())?;
    let from_s = load.seconds();
    load.watch(window.answers.max(1), left(), look)?;
    while load.seconds() < from_s + window.seconds && !left().is_zero() {
        look();
        let rest = Duration::try_from_secs_f64(from_s + window.seconds - load.seconds()).unwrap_or_default();
        std::thread::sleep(rest.min(left()).min(Duration::from_millis(50)));
    }
    let to_s = load.seconds();
    load.wait_for_all_since(to_s, left())?;
    let report = load.report();
    let middle = f64::midpoint(from_s, to_s);
    let rate = |from, to| report.rate_between(from, to);
    Ok(Steady {
        from_s,
        to_s,
        answers: report.answers_between(from_s, to_s),
        errors: report.errors_between(from_s, to_s),
        rate_rps: rate(from_s, to_s),
        halves_rps: [rate(from_s, middle), rate(middle, to_s)],
        latency: report.latency_between(from_s, to_s),
    })
}
