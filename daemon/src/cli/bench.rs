//! `mesh bench`: closed-loop load. Each client sends its next request when it has the answer to its last one.

use std::{
    io::{self, IsTerminal},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use mesh_inference::tensor::Tensor;
use serde::Serialize;

use super::{
    args::{Bench, Global},
    client::{self, Client, ClientError},
    exit::CliError,
    infer::as_f64,
    inputs, output,
};
use crate::app::InferResponse;

const SECONDS_DEFAULT: Duration = Duration::from_secs(10);
/// Time that a single request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);
/// Different random inputs that are sent in turn.
const VARIANTS: u64 = 8;
/// Largest difference of two answers to one input, relative to the largest magnitude: devices of different kinds
/// compute with different kernels.
const TOLERANCE: f64 = 1e-5;

/// What `--json` prints: this shape is a promise.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    seconds: f64,
    requests: u64,
    errors: u64,
    throughput_rps: f64,
    p50_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
}

type Inputs = Vec<(String, Tensor)>;

pub(super) fn run(global: &Global, args: &Bench) -> Result<(), CliError> {
    let client = Client::new(global)?;
    let model = client.metadata(&args.name)?;
    let variants: Vec<Inputs> = match args.inputs.is_empty() {
        false => vec![inputs::read(&args.inputs, &model)?],
        true => {
            (0..VARIANTS).map(|seed| inputs::random(&model, &args.shapes, seed)).collect::<Result<_, _>>()?
        }
    };
    // The first answers are what later ones are compared with; and an error here is worth more than a count of it.
    let expected: Vec<InferResponse> = variants
        .iter()
        .map(|inputs| client.infer(&args.name, inputs, REQUEST_LIMIT))
        .collect::<Result<_, _>>()?;
    let load = Load {
        client,
        model: args.name.clone(),
        cases: variants.into_iter().zip(expected).collect(),
        limit: args.requests.unwrap_or(u64::MAX),
        until: args.requests.is_none().then(|| args.seconds.unwrap_or(SECONDS_DEFAULT)),
        started: AtomicU64::new(0),
        tally: Mutex::new(Tally::default()),
    };
    let report = load.run(args)?;
    if args.json {
        return client::print_json(&report);
    }
    output::print(&format!(
        "{} requests in {:.1} s with {} clients: {}\np50 {}   p95 {}   p99 {}   errors {}\n",
        report.requests,
        report.seconds,
        args.concurrency,
        output::rate(report.throughput_rps),
        output::millis(report.p50_ms),
        output::millis(report.p95_ms),
        output::millis(report.p99_ms),
        report.errors
    ))
}

/// What has happened so far.
#[derive(Debug, Default)]
struct Tally {
    latencies_ms: Vec<f64>,
    errors: u64,
    last_error: Option<String>,
    /// When the last verdict came: the end of measuring, whenever somebody looks.
    ended: Option<Instant>,
    /// Set when going on makes no sense: nobody answers any more.
    lost: Option<String>,
}

impl Tally {
    /// Counts a request that took so long and was judged at `at`.
    fn count(&mut self, verdict: Result<(), String>, took: Duration, at: Instant) {
        self.ended = self.ended.max(Some(at));
        match verdict {
            Ok(()) => self.latencies_ms.push(took.as_secs_f64() * 1e3),
            Err(error) => {
                self.errors += 1;
                self.last_error = Some(error);
            }
        }
    }
}

struct Load {
    client: Client,
    model: String,
    cases: Vec<(Inputs, InferResponse)>,
    limit: u64,
    until: Option<Duration>,
    started: AtomicU64,
    tally: Mutex<Tally>,
}

/// A client gives up after this many errors in a row that say nobody listens.
const LOST_MAX: u32 = 50;

impl Load {
    fn run(&self, args: &Bench) -> Result<Report, CliError> {
        let start = Instant::now();
        thread::scope(|scope| {
            for index in 0..args.concurrency {
                let name = format!("client-{index}");
                thread::Builder::new().name(name).spawn_scoped(scope, move || self.client(start))?;
            }
            let view = view(args);
            while !self.is_done(start) && self.tally().lost.is_none() {
                thread::sleep(Duration::from_millis(100));
                self.show(&view, start);
            }
            view.finish_and_clear();
            Ok::<(), io::Error>(())
        })
        .map_err(|error| CliError::failed(format!("the clients could not be started: {error}")))?;
        self.report(start)
    }

    fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_done(&self, start: Instant) -> bool {
        self.until.is_some_and(|limit| start.elapsed() >= limit)
            || self.started.load(Ordering::Relaxed) >= self.limit
    }

    /// One client's loop.
    fn client(&self, start: Instant) {
        let mut lost = 0;
        while self.until.is_none_or(|limit| start.elapsed() < limit) && lost < LOST_MAX {
            let index = self.started.fetch_add(1, Ordering::Relaxed);
            if index >= self.limit {
                return;
            }
            let case = usize::try_from(index % self.cases.len() as u64).unwrap_or(0);
            let (inputs, expected) = &self.cases[case];
            let sent = Instant::now();
            let result = self.client.infer(&self.model, inputs, REQUEST_LIMIT);
            let took = sent.elapsed();
            lost = if matches!(result, Err(ClientError::NoDaemon { .. })) { lost + 1 } else { 0 };
            let verdict = result.map_err(|error| error.to_string()).and_then(|got| same(&got, expected));
            let mut tally = self.tally();
            tally.count(verdict, took, Instant::now());
            if lost == LOST_MAX {
                tally.lost = tally.last_error.clone();
            }
            drop(tally);
            if lost > 0 {
                thread::sleep(Duration::from_millis(20));
            }
        }
    }

    fn show(&self, view: &ProgressBar, start: Instant) {
        let tally = self.tally();
        let answered = tally.latencies_ms.len();
        let recent = &tally.latencies_ms[answered.saturating_sub(1000)..];
        let mut recent = recent.to_vec();
        let errors = tally.errors;
        drop(tally);
        recent.sort_by(f64::total_cmp);
        let seconds = start.elapsed().as_secs_f64();
        view.set_position(match self.until {
            Some(_) => u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
            None => answered as u64 + errors,
        });
        view.set_message(format!(
            "{answered} answers, {}, p50 {}, p99 {}, {errors} errors",
            output::rate(answered as f64 / seconds),
            output::millis(percentile(&recent, 50.0)),
            output::millis(percentile(&recent, 99.0)),
        ));
    }

    fn report(&self, start: Instant) -> Result<Report, CliError> {
        let mut tally = self.tally();
        if let Some(error) = tally.lost.take() {
            return Err(CliError::unreachable(error));
        }
        if let Some(error) = &tally.last_error {
            output::note(&format!("the last of {} errors: {error}", tally.errors));
        }
        tally.latencies_ms.sort_by(f64::total_cmp);
        let answered = tally.latencies_ms.len() as u64;
        let ended = tally.ended.unwrap_or_else(Instant::now);
        let seconds = ended.saturating_duration_since(start).as_secs_f64();
        Ok(Report {
            model: self.model.clone(),
            seconds,
            requests: answered + tally.errors,
            errors: tally.errors,
            throughput_rps: answered as f64 / seconds,
            p50_ms: percentile(&tally.latencies_ms, 50.0),
            p95_ms: percentile(&tally.latencies_ms, 95.0),
            p99_ms: percentile(&tally.latencies_ms, 99.0),
        })
    }
}

fn view(args: &Bench) -> ProgressBar {
    if args.json || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let length = match args.requests {
        Some(count) => count,
        None => u64::try_from(args.seconds.unwrap_or(SECONDS_DEFAULT).as_millis()).unwrap_or(u64::MAX),
    };
    let style = ProgressStyle::with_template("{bar:20} {percent:>3} % {msg}");
    ProgressBar::new(length).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// The nearest-rank percentile of sorted values; 0 when there are none.
fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let rank = (percent / 100.0 * sorted.len() as f64).ceil();
    // The rank is between 0 and the length, which a float holds exactly.
    sorted.get((rank as usize).max(1) - 1).copied().unwrap_or(0.0)
}

/// Whether two answers agree.
fn same(got: &InferResponse, expected: &InferResponse) -> Result<(), String> {
    if got.outputs.len() != expected.outputs.len() {
        return Err("an answer has another number of outputs than the first".into());
    }
    for ((name, got), (_, first)) in got.outputs.iter().zip(&expected.outputs) {
        if got.dtype() != first.dtype() || got.shape() != first.shape() {
            return Err(format!("output {name:?} has another type or shape than in the first answer"));
        }
        if got.bytes() != first.bytes() {
            let difference = difference(got, first);
            if difference > TOLERANCE {
                return Err(format!("output {name:?} differs from the first answer by {difference:.1e}"));
            }
        }
    }
    Ok(())
}

/// The largest difference of two tensors of one shape, relative to the second's largest magnitude; infinite when
/// one of a pair alone is no finite number.
pub(super) fn difference(got: &Tensor, reference: &Tensor) -> f64 {
    let (got, reference) = (as_f64(got), as_f64(reference));
    let largest = reference.iter().copied().filter(|v| v.is_finite()).fold(0.0, |m: f64, v| m.max(v.abs()));
    let distance = |(a, b): (&f64, &f64)| match a == b || (a.is_nan() && b.is_nan()) {
        true => 0.0,
        false if a.is_finite() && b.is_finite() => (a - b).abs() / largest.max(f64::MIN_POSITIVE),
        false => f64::INFINITY,
    };
    got.iter().zip(&reference).map(distance).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Mutex, atomic::AtomicU64},
        time::{Duration, Instant},
    };

    use mesh_inference::tensor::Tensor;

    use super::{Client, Load, Report, Tally, difference, percentile};

    #[test]
    fn measuring_ends_with_the_last_verdict() {
        let end = Instant::now();
        let (start, ms) = (end - Duration::from_millis(500), Duration::from_millis);
        let mut tally = Tally::default();
        // Clients come to the tally in any order.
        for (verdict, before_end) in [(Ok(()), 400), (Err("gone".to_owned()), 0), (Ok(()), 200)] {
            tally.count(verdict, ms(7), end - ms(before_end));
        }
        let load = Load {
            client: Client::at("http://127.0.0.1:1", None),
            model: "m".into(),
            cases: Vec::new(),
            limit: 3,
            until: None,
            started: AtomicU64::new(3),
            tally: Mutex::new(tally),
        };
        // Whoever watches wakes later.
        std::thread::sleep(ms(20));
        let report = load.report(start).unwrap();
        assert_eq!((report.requests, report.errors), (3, 1));
        assert!((report.seconds - 0.5).abs() < 1e-9, "{}", report.seconds);
        assert!((report.throughput_rps - 4.0).abs() < 1e-6, "{}", report.throughput_rps);
        assert!((report.p50_ms - 7.0).abs() < 1e-9);
    }

    #[test]
    fn percentiles_are_nearest_rank() {
        let values: Vec<f64> = (1..=100u8).map(f64::from).collect();
        for (percent, wanted) in [(50.0, 50.0), (95.0, 95.0), (99.0, 99.0), (100.0, 100.0), (0.0, 1.0)] {
            assert!((percentile(&values, percent) - wanted).abs() < 1e-9, "{percent}");
        }
        assert!(percentile(&[], 50.0).abs() < 1e-9);
        assert!((percentile(&[7.0], 99.0) - 7.0).abs() < 1e-9);
    }

    #[test]
    fn differences_are_relative_to_the_largest_magnitude() {
        let tensor =
            |values: &[f32]| Tensor::from_slice(&[i64::try_from(values.len()).unwrap()], values).unwrap();
        assert!(difference(&tensor(&[1.0, 2.0]), &tensor(&[1.0, 2.0])).abs() < 1e-12);
        assert!((difference(&tensor(&[1.0, 99.0]), &tensor(&[1.0, 100.0])) - 0.01).abs() < 1e-6);
        assert!(difference(&tensor(&[f32::NAN]), &tensor(&[1.0])).is_infinite());
        assert!(difference(&tensor(&[f32::NAN]), &tensor(&[f32::NAN])).abs() < 1e-12);
        assert!(difference(&tensor(&[f32::INFINITY]), &tensor(&[f32::INFINITY])).abs() < 1e-12);
    }

    #[test]
    fn the_report_has_exactly_the_promised_keys() {
        let report = Report {
            model: "m".into(),
            seconds: 1.0,
            requests: 1,
            errors: 0,
            throughput_rps: 1.0,
            p50_ms: 1.0,
            p95_ms: 1.0,
            p99_ms: 1.0,
        };
        let value = serde_json::to_value(report).unwrap();
        let mut keys: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
        keys.sort();
        assert_eq!(
            keys,
            ["errors", "model", "p50_ms", "p95_ms", "p99_ms", "requests", "seconds", "throughput_rps"]
        );
    }
}
