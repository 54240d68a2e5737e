//! What a load saw, as numbers.

use hdrhistogram::Histogram;
use serde::Serialize;

use super::record::{Outcome, Record};

/// Ratio of one bucket of latencies to the next.
const BUCKET_RATIO: f64 = 1.25;
/// Most bins of a timeline.
const MOST_BINS: f64 = 100_000.0;

/// What a load saw.
#[derive(Debug, Clone, Serialize)]
pub struct LoadReport {
    /// Answers equal to the whole model's.
    pub right: u64,
    /// Answers that were not.
    pub wrong: u64,
    /// Requests refused for the moment, by status 503 or 429.
    pub refused: u64,
    /// Requests that got another error or no answer.
    pub failed: u64,
    /// Arrivals of an open loop that found all clients busy, and were never sent.
    pub dropped: u64,
    /// The first texts of wrong answers, refusals and failures, with their time.
    pub failures: Vec<String>,
    /// From the start to the stop.
    pub seconds: f64,
    /// Right answers per second over the whole time.
    pub throughput_rps: f64,
    /// Of right answers, from arrival to answer.
    pub latency: Latency,
    /// Longest time without a right answer, from start to stop.
    pub longest_gap_s: f64,
    /// When that began, from the start.
    pub longest_gap_from_s: f64,
    /// Answers and errors, second by second.
    pub timeline: Vec<Bin>,
    /// Requests that the first entrance did not answer and the second was asked, whatever it said.
    pub turned: u64,
    /// Events that were noted while it ran.
    pub marks: Vec<Mark>,
    /// Requests that ended after a million others: counted above, missing in latency, timeline and windows.
    pub untimed: u64,
    /// Time of each right answer, in order, in seconds, and its latency in milliseconds.
    #[serde(skip)]
    answers: Vec<(f64, f64)>,
    /// Times of those to requests that the mesh had sent again, in order.
    #[serde(skip)]
    resent: Vec<f64>,
    /// Times of everything else, in order.
    #[serde(skip)]
    errors: Vec<f64>,
}

/// Latencies, in milliseconds.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Latency {
    /// Median.
    pub p50_ms: f64,
    /// 90th percentile.
    pub p90_ms: f64,
    /// 95th percentile.
    pub p95_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// Largest.
    pub max_ms: f64,
    /// Mean.
    pub mean_ms: f64,
    /// The histogram, without empty buckets.
    pub buckets: Vec<Bucket>,
}

/// Latencies above the bucket before and up to `up_to_ms`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Bucket {
    /// Upper end.
    pub up_to_ms: f64,
    /// How many.
    pub count: u64,
}

/// A part of a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bin {
    /// When it begins.
    pub at_s: f64,
    /// Right answers in it.
    pub answers: u64,
    /// Wrong answers, refusals and failures in it.
    pub errors: u64,
}

/// An event.
#[derive(Debug, Clone, Serialize)]
pub struct Mark {
    /// When.
    pub at_s: f64,
    /// What.
    pub label: String,
}

impl LoadReport {
    pub(super) fn of(record: &Record, seconds: f64) -> Self {
        let mut answers = Vec::with_capacity(record.events.len());
        let (mut resent, mut errors) = (Vec::new(), Vec::new());
        for event in &record.events {
            if event.is_resent && event.outcome == Outcome::Right {
                resent.push(event.at.as_secs_f64());
            }
            match event.outcome {
                Outcome::Right => answers.push((event.at.as_secs_f64(), f64::from(event.latency_us) / 1e3)),
                Outcome::Wrong | Outcome::Refused | Outcome::Failed => errors.push(event.at.as_secs_f64()),
            }
        }
        let in_time = answers.partition_point(|(at, _)| *at <= seconds) as u64 + record.untimed;
        let marks = record.marks.iter();
        let mut report = Self {
            right: record.right,
            wrong: record.wrong,
            refused: record.refused,
            failed: record.failed,
            dropped: record.dropped,
            turned: record.turned,
            failures: record.failures.clone(),
            seconds,
            throughput_rps: if seconds > 0.0 { in_time as f64 / seconds } else { 0.0 },
            latency: Latency::of(&answers),
            longest_gap_s: 0.0,
            longest_gap_from_s: 0.0,
            timeline: Vec::new(),
            marks: marks.map(|(at, label)| Mark { at_s: at.as_secs_f64(), label: label.clone() }).collect(),
            untimed: record.untimed,
            answers,
            resent,
            errors,
        };
        (report.longest_gap_from_s, report.longest_gap_s) = report.longest_gap(0.0, seconds);
        report.timeline = report.timeline(1.0);
        report
    }

    /// All requests that did not get the right answer, those dropped among them.
    pub fn not_right(&self) -> u64 {
        self.wrong + self.refused + self.failed + self.dropped
    }

    /// Rate of right answers within a window of time: each counts by the part of its time under way that lies in the
    /// window. Exact for clients that ask again at once and are answered evenly, also for few answers and for such as
    /// come in bursts, and right on average for others. Requests under way at `to_s` must have ended since; else they
    /// are missing.
    pub fn rate_between(&self, from_s: f64, to_s: f64) -> f64 {
        let of_answer = |&(at, latency_ms): &(f64, f64)| {
            let under_way = latency_ms / 1e3;
            if under_way <= 0.0 {
                return f64::from(u8::from(from_s < at && at <= to_s));
            }
            ((at.min(to_s) - (at - under_way).max(from_s)) / under_way).max(0.0)
        };
        let answers: f64 = self.answers.iter().map(of_answer).sum();
        if to_s > from_s { answers / (to_s - from_s) } else { 0.0 }
    }

    /// Right answers within a window over its length.
    pub fn throughput_between(&self, from_s: f64, to_s: f64) -> f64 {
        let length = to_s - from_s;
        if length > 0.0 { self.within(from_s, to_s).len() as f64 / length } else { 0.0 }
    }

    /// Right answers within a window.
    pub fn answers_between(&self, from_s: f64, to_s: f64) -> u64 {
        self.within(from_s, to_s).len() as u64
    }

    /// Wrong answers, refusals and failures within a window.
    pub fn errors_between(&self, from_s: f64, to_s: f64) -> u64 {
        let from = self.errors.partition_point(|at| *at < from_s);
        (self.errors.partition_point(|at| *at <= to_s).max(from) - from) as u64
    }

    /// The first right answer to a request that arrived at `since_s` or later, as seconds after that.
    pub fn first_answer_since(&self, since_s: f64) -> Option<f64> {
        let arrived_later = |(at, latency_ms): &&(f64, f64)| at - latency_ms / 1e3 >= since_s;
        self.answers.iter().find(arrived_later).map(|(at, _)| at - since_s)
    }

    /// The first right answer by a route that was picked at `since_s` or later, as seconds after that: to a request that
    /// arrived since, or that the mesh has sent again.
    pub fn first_answer_by_new_route(&self, since_s: f64) -> Option<f64> {
        let resent = self.resent.iter().find(|at| **at >= since_s).map(|at| at - since_s);
        self.first_answer_since(since_s).into_iter().chain(resent).reduce(f64::min)
    }

    /// Latencies of the right answers that came within a window.
    pub fn latency_between(&self, from_s: f64, to_s: f64) -> Latency {
        Latency::of(self.within(from_s, to_s))
    }

    /// Longest time without a right answer within a window, its ends included: seconds.
    pub fn longest_gap_between(&self, from_s: f64, to_s: f64) -> f64 {
        self.longest_gap(from_s, to_s).1
    }

    /// When the longest time without a right answer within a window began, and how long it was.
    fn longest_gap(&self, from_s: f64, to_s: f64) -> (f64, f64) {
        let (mut began, mut longest, mut last) = (from_s, 0.0f64, from_s);
        for at in self.within(from_s, to_s).iter().map(|(at, _)| *at).chain([to_s]) {
            if at - last > longest {
                (began, longest) = (last, at - last);
            }
            last = at;
        }
        (began, longest)
    }

    /// Answers and errors in bins of `width_s` seconds, up to the stop or the last answer.
    pub fn timeline(&self, width_s: f64) -> Vec<Bin> {
        let last = |at: Option<f64>| at.unwrap_or(0.0);
        let end = self.seconds.max(last(self.answers.last().map(|(at, _)| *at)));
        let end = end.max(last(self.errors.last().copied()));
        let width_s = if width_s > 0.0 { width_s.max(end / MOST_BINS) } else { end.max(1.0) };
        let count = (end / width_s) as usize + 1;
        let mut bins: Vec<Bin> =
            (0..count).map(|n| Bin { at_s: n as f64 * width_s, answers: 0, errors: 0 }).collect();
        for (at, _) in &self.answers {
            bins[((at / width_s) as usize).min(count - 1)].answers += 1;
        }
        for at in &self.errors {
            bins[((at / width_s) as usize).min(count - 1)].errors += 1;
        }
        bins
    }

    fn within(&self, from_s: f64, to_s: f64) -> &[(f64, f64)] {
        let from = self.answers.partition_point(|(at, _)| *at < from_s);
        let to = self.answers.partition_point(|(at, _)| *at <= to_s);
        &self.answers[from..to.max(from)]
    }
}

impl Latency {
    /// Of answers with their latencies in milliseconds. Percentiles are within 0.1 %.
    fn of(answers: &[(f64, f64)]) -> Self {
        let Some(max_ms) = answers.iter().map(|(_, ms)| *ms).max_by(f64::total_cmp) else {
            return Self::default();
        };
        let histogram = Histogram::<u64>::new_with_bounds(1, u64::from(u32::MAX), 3);
        let mut histogram = histogram.expect("the bounds and digits are in order");
        for (_, ms) in answers {
            histogram.saturating_record((ms * 1e3).round() as u64);
        }
        let ms = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        let buckets =
            histogram.iter_log(100, BUCKET_RATIO).filter(|step| step.count_since_last_iteration() > 0);
        let bucket = |upper: u64, count| Bucket { up_to_ms: upper as f64 / 1e3, count };
        Self {
            p50_ms: ms(0.5),
            p90_ms: ms(0.9),
            p95_ms: ms(0.95),
            p99_ms: ms(0.99),
            max_ms,
            mean_ms: answers.iter().map(|(_, ms)| ms).sum::<f64>() / answers.len() as f64,
            buckets: buckets
                .map(|step| bucket(step.value_iterated_to(), step.count_since_last_iteration()))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::{super::record::Event, *};

    fn report(events: &[(f64, Outcome)], seconds: f64) -> LoadReport {
        let mut record = Record::default();
        for (at, outcome) in events {
            let at = Duration::from_secs_f64(*at);
            record.add(Event { at, latency_us: 2_000, is_resent: false, outcome: *outcome }, None);
        }
        LoadReport::of(&record, seconds)
    }

    /// Right answers, by the time of each and the time that it was under way.
    fn of_answers(answers: &[(f64, f64)], seconds: f64) -> LoadReport {
        let mut record = Record::default();
        for (at, under_way) in answers {
            let latency_us = (under_way * 1e6).round() as u32;
            let (at, outcome) = (Duration::from_secs_f64(*at), Outcome::Right);
            record.add(Event { at, latency_us, is_resent: false, outcome }, None);
        }
        LoadReport::of(&record, seconds)
    }

    #[test]
    fn an_even_stream_has_its_rate_in_any_window() {
        let even: Vec<_> = (1..=100).map(|n| (f64::from(n) * 0.25, 0.25)).collect();
        // Four clients, whose answers come together.
        let bursts: Vec<_> = (4..=103).map(|n| (f64::from(n / 4), 1.0)).collect();
        for answers in [even, bursts] {
            let report = of_answers(&answers, 25.0);
            for (from, to) in [(0.0, 25.0), (3.1, 4.9), (10.0, 11.0), (10.3, 10.4), (0.0, 1.0)] {
                let rate = report.rate_between(from, to);
                assert!((rate - 4.0).abs() < 1e-9, "{from} to {to}: {rate}");
            }
            assert!((report.throughput_rps - 4.0).abs() < 1e-9);
        }
    }

    #[test]
    fn a_failed_request_is_no_rate() {
        let report = report(&[(0.5, Outcome::Failed), (1.5, Outcome::Wrong)], 2.0);
        assert_eq!(report.rate_between(0.0, 2.0), 0.0);
        assert_eq!(report.rate_between(1.0, 1.0), 0.0);
    }

    #[test]
    fn an_outage_shows_as_gap_and_in_the_timeline() {
        let before = (0..10).map(|n| (f64::from(n) * 0.1, Outcome::Right));
        let during = [(1.5, Outcome::Refused), (2.5, Outcome::Failed), (2.6, Outcome::Wrong)];
        let after = (0..10).map(|n| (4.0 + f64::from(n) * 0.1, Outcome::Right));
        let report = report(&before.chain(during).chain(after).collect::<Vec<_>>(), 5.0);
        assert!((report.longest_gap_s - 3.1).abs() < 1e-6, "{}", report.longest_gap_s);
        let seen: Vec<_> = report.timeline.iter().map(|bin| (bin.answers, bin.errors)).collect();
        assert_eq!(seen, [(10, 0), (0, 1), (0, 2), (0, 0), (10, 0), (0, 0)]);
        assert_eq!((report.wrong, report.refused, report.failed, report.not_right()), (1, 1, 1, 3));
        assert_eq!(report.errors_between(2.0, 3.0), 2);
        assert_eq!(report.longest_gap_between(2.0, 3.0), 1.0);
        assert!((report.longest_gap_from_s - 0.9).abs() < 1e-6, "{}", report.longest_gap_from_s);
    }

    #[test]
    fn the_first_answer_since_is_to_a_request_that_came_later() {
        // Asked at 0.9, 1.1 and 1.2; the one in the middle waits longest.
        let report = of_answers(&[(1.3, 0.4), (1.8, 0.6), (2.9, 1.8)], 3.0);
        assert!((report.first_answer_since(1.0).unwrap_or(0.0) - 0.8).abs() < 1e-6);
        assert_eq!(report.first_answer_since(1.5), None);
    }

    #[test]
    fn an_answer_by_a_new_route_is_to_a_request_that_was_sent_again_or_came_later() {
        let mut record = Record::default();
        // Asked at 0.5, 0.9 and 1.2; the one in the middle is sent again.
        for (at, latency_us, is_resent) in
            [(1.1, 600_000, false), (1.4, 500_000, true), (1.8, 600_000, false)]
        {
            let at = Duration::from_secs_f64(at);
            record.add(Event { at, latency_us, is_resent, outcome: Outcome::Right }, None);
        }
        let report = LoadReport::of(&record, 2.0);
        let first = |since| report.first_answer_by_new_route(since).unwrap_or(f64::NAN);
        assert!((first(1.0) - 0.4).abs() < 1e-6, "{}", first(1.0));
        assert!((first(1.15) - 0.25).abs() < 1e-6, "{}", first(1.15));
        assert!((first(0.4) - 0.7).abs() < 1e-6, "{}", first(0.4));
        assert_eq!(report.first_answer_by_new_route(1.9), None);
    }

    #[test]
    fn answers_after_the_stop_count_but_not_in_the_rate() {
        let report = report(&[(0.5, Outcome::Right), (1.5, Outcome::Right)], 1.0);
        assert_eq!((report.right, report.throughput_rps), (2, 1.0));
    }

    proptest! {
        #[test]
        fn windows_side_by_side_share_out_every_answer(
            latencies in prop::collection::vec((0.0..30.0f64, 0.0..5.0f64), 1..100),
            cuts in prop::collection::vec(0.0..30.0f64, 0..6),
        ) {
            let mut answers: Vec<_> = latencies.iter().map(|(at, under_way)| (*at, under_way.min(*at))).collect();
            answers.sort_by(|a, b| a.0.total_cmp(&b.0));
            let report = of_answers(&answers, 31.0);
            let mut ends = cuts;
            ends.extend([-1.0, 31.0]);
            ends.sort_by(f64::total_cmp);
            let shares = ends.windows(2).map(|ends| report.rate_between(ends[0], ends[1]) * (ends[1] - ends[0]));
            prop_assert!((shares.sum::<f64>() - answers.len() as f64).abs() < 1e-3);
        }

        #[test]
        fn percentiles_and_buckets_match_the_sorted_latencies(
            mut latencies in prop::collection::vec(1u32..10_000_000, 1..300),
        ) {
            let mut record = Record::default();
            for latency_us in &latencies {
                let (at, outcome) = (Duration::from_secs(1), Outcome::Right);
                record.add(Event { at, latency_us: *latency_us, is_resent: false, outcome }, None);
            }
            let latency = LoadReport::of(&record, 2.0).latency;
            latencies.sort_unstable();
            for (quantile, got) in [(0.5, latency.p50_ms), (0.9, latency.p90_ms), (0.99, latency.p99_ms)] {
                let rank = ((quantile * latencies.len() as f64).ceil() as usize).max(1) - 1;
                let want = f64::from(latencies[rank]) / 1e3;
                prop_assert!((got / want - 1.0).abs() < 2e-3, "{quantile}: {got} for {want}");
            }
            prop_assert_eq!(latency.max_ms, f64::from(latencies[latencies.len() - 1]) / 1e3);
            prop_assert_eq!(latency.buckets.iter().map(|b| b.count).sum::<u64>(), latencies.len() as u64);
        }
    }
}
