//! What moving data really costs this device's processors, by watching it work.
//!
//! Probes tell what a byte costs while nothing else goes on. Under load it costs more: caches are cold, packets come
//! in pieces, tensors are packed. Over a stretch of time, what the process has used, less what its stages have computed
//! and what it uses at rest, has gone into the bytes of that stretch, into clients, who bring requests and take answers,
//! and into what the device does beside while it works. How much into which, several stretches tell (`moving/fit.rs`).

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use mesh_planner::TransferCost;
use rustix::time::{ClockId, clock_gettime};

use crate::{
    data::{DataMetrics, StageKey},
    net::Chores,
};

mod fit;

use fit::{Costs, Stretch, Stretches};

/// Length of a stretch...
const STRETCH: Duration = Duration::from_secs(5);
/// ...which has to hold this many of the longest runs, for one that reaches over its end is counted in the next...
const RUNS: f64 = 20.0;
/// ...up to this many seconds: where runs would need more, nothing is learnt from them.
const STRETCH_MAX_S: f64 = 120.0;
/// What is used at rest is told anew when it differs by this part.
const REST_NEWS: f64 = 0.1;
/// Stretches at rest that are remembered: ten minutes.
const RESTS: usize = 120;
/// Stretches at rest before the least is believed.
const RESTS_TRUSTED: usize = 3;
/// At rest, moving should take less than this part of the processors.
const LEAST: f64 = 0.003;
/// A device that is never more at rest than this is not believed.
const REST_MAX: f64 = 0.5;
/// A correction that has moved less than this is no news, and what is used beside, by this part of the processors.
const NEWS: f64 = 0.05;
const BESIDE_NEWS: f64 = 0.01;

/// The device at one moment.
#[derive(Debug, Clone)]
pub struct Sample {
    /// When.
    pub at: Instant,
    /// Processor seconds that the process has used.
    pub processor_s: f64,
    /// Runs of each stage, and what one costs in seconds of the device.
    pub stages: BTreeMap<StageKey, (u64, f64)>,
    /// Jobs that wait or run.
    pub jobs: usize,
    /// Bytes sent over the data plane, as they were on the wire.
    pub sent: u64,
    /// Bytes received.
    pub received: u64,
    /// Bytes of tensors that clients brought and took.
    pub entered: u64,
    /// Chores that have begun so far.
    pub chores: u64,
    /// Nothing is being prepared: no model is uploaded, imported or profiled, no weights come or go, no session is made,
    /// no link is measured.
    pub is_settled: bool,
}

impl Sample {
    /// From the data plane's numbers.
    pub fn new(
        at: Instant,
        processor_s: f64,
        metrics: &DataMetrics,
        chores: Chores,
        is_settled: bool,
    ) -> Self {
        let stage = |s: &crate::data::StageMetrics| (s.key.clone(), (s.runs, s.compute_s));
        Self {
            at,
            processor_s,
            stages: metrics.stages.iter().map(stage).collect(),
            jobs: metrics.stages.iter().map(|stage| stage.queue).sum(),
            sent: metrics.links.iter().map(|link| link.bytes_sent).sum(),
            received: metrics.received,
            entered: metrics.entered,
            chores: chores.begun,
            is_settled: is_settled && chores.under_way == 0,
        }
    }

    /// Whether nothing ran since `last`. A run may take longer than a stretch: it has ended in none, and the processors
    /// were busy all the same.
    fn is_idle_since(&self, last: &Self) -> bool {
        let ran = |(key, (runs, _)): (&StageKey, &(u64, f64))| {
            last.stages.get(key).is_some_and(|(before, _)| runs != before)
        };
        last.jobs + self.jobs == 0 && !self.stages.iter().any(ran)
    }

    /// Seconds of the longest run, in seconds of the device.
    fn longest_s(&self) -> f64 {
        self.stages.values().map(|(_, seconds)| *seconds).fold(0.0, f64::max)
    }

    /// Whether the stretch that began with `last` is long enough.
    fn ends(&self, last: &Self) -> bool {
        let took = self.at.saturating_duration_since(last.at);
        let needed = (RUNS * self.longest_s()).min(STRETCH_MAX_S);
        took >= STRETCH && (self.is_idle_since(last) || took.as_secs_f64() >= needed)
    }
}

/// Learns what moving data and serving clients take, beside what probes say.
#[derive(Debug, Default)]
pub struct Watch {
    last: Option<Sample>,
    /// Processors in use in the last stretches at rest. The least counts: what else went on adds to it. Old ones are
    /// forgotten, for it grows with the number of devices.
    rests: VecDeque<f64>,
    rest_told: f64,
    stretches: Stretches,
    told: Costs,
}

impl Watch {
    /// Takes a sample; what moving and serving really cost, as far as that is known. `cores` are the processors that
    /// the device may use, `probed` is in seconds of all of them.
    pub fn look(&mut self, now: Sample, probed: TransferCost, cores: f64) -> TransferCost {
        match &self.last {
            None => self.last = Some(now),
            Some(last) if now.ends(last) => {
                self.learn(&now, probed, cores);
                self.last = Some(now);
            }
            // Rest may begin here.
            Some(last) if now.jobs == 0 && last.jobs > 0 => self.last = Some(now),
            Some(_) => {}
        }
        let told = self.told;
        TransferCost {
            send_s_per_byte: probed.send_s_per_byte * told.moving,
            receive_s_per_byte: probed.receive_s_per_byte * told.moving,
            entry_s_per_byte: probed.entry_s_per_byte * told.entry,
            rest_share: (self.rest_told / cores + told.beside).clamp(0.0, REST_MAX),
            ..probed
        }
    }

    /// Processors in use at rest as last told; 0 until known.
    pub fn rest_told(&self) -> f64 {
        self.rest_told
    }

    /// Processors in use at rest; `None` until the device was seen at rest a few times.
    fn rest(&self) -> Option<f64> {
        let least = self.rests.iter().copied().reduce(f64::min);
        least.filter(|_| self.rests.len() >= RESTS_TRUSTED)
    }

    fn learn(&mut self, now: &Sample, probed: TransferCost, cores: f64) {
        let Some(last) = &self.last else { return };
        let same = last.stages.keys().eq(now.stages.keys()) && last.chores == now.chores;
        // A stage at work whose first run has not ended: nobody knows what it takes.
        let is_new = now.jobs > 0 && now.stages.values().any(|(runs, _)| *runs == 0);
        if !(last.is_settled && now.is_settled && same) || is_new {
            return;
        }
        let seconds = now.at.saturating_duration_since(last.at).as_secs_f64();
        let used = (now.processor_s - last.processor_s).max(0.0);
        let runs = |key: &StageKey| {
            let before = last.stages.get(key).map_or(0, |(runs, _)| *runs);
            now.stages.get(key).map_or(0.0, |(runs, cost)| runs.saturating_sub(before) as f64 * cost)
        };
        let computed = now.stages.keys().map(runs).sum::<f64>() * cores * probed.compute_share;
        let since = |count: fn(&Sample) -> u64| count(now).saturating_sub(count(last)) as f64;
        let (sent, received, entered) = (since(|s| s.sent), since(|s| s.received), since(|s| s.entered));
        let moving = (sent * probed.send_s_per_byte + received * probed.receive_s_per_byte) * cores;
        let entry = entered * probed.entry_s_per_byte * cores;
        let all = seconds * cores;
        if now.is_idle_since(last) && moving + entry < LEAST * all {
            if self.rests.len() == RESTS {
                self.rests.pop_front();
            }
            let was_known = self.rest().is_some();
            self.rests.push_back(used / seconds);
            let rest = self.rest().unwrap_or(0.0);
            if !was_known && self.rest().is_some() {
                // Until now it was taken for something used beside.
                self.stretches = Stretches::default();
                self.told.beside = 0.0;
            }
            if (rest - self.rest_told).abs() > REST_NEWS * rest {
                self.rest_told = rest;
            }
        } else if RUNS * now.longest_s() <= STRETCH_MAX_S {
            // A device that is given work as soon as it comes up is never at rest: then that, too, is used beside.
            let rest = self.rest().unwrap_or(0.0);
            let spent = used - computed - rest * seconds;
            let stretch = Stretch { moving: moving / all, entry: entry / all, spent: spent / all };
            tracing::debug!(
                seconds,
                computed = computed / all,
                rest = rest / cores,
                ?stretch,
                "work watched"
            );
            if let Some(costs) = self.stretches.learn(stretch) {
                self.tell(costs);
            }
        }
    }

    fn tell(&mut self, costs: Costs) {
        let is_news = |new: f64, old: f64| (new / old - 1.0).abs() > NEWS;
        if is_news(costs.moving, self.told.moving)
            || is_news(costs.entry, self.told.entry)
            || (costs.beside - self.told.beside).abs() > BESIDE_NEWS
        {
            self.told = costs;
        }
    }
}

/// Processor seconds that this process has used.
pub fn processor_s() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROBED: TransferCost = TransferCost {
        send_s_per_byte: 6e-9,
        receive_s_per_byte: 1e-8,
        request_s: 1e-4,
        entry_s_per_byte: 5e-9,
        rest_share: 0.0,
        compute_share: 1.0,
    };
    const CORES: f64 = 0.15;

    struct Device {
        watch: Watch,
        now: Sample,
    }

    impl Device {
        fn new() -> Self {
            let key = StageKey { deployment: "m".into(), epoch: 1, stage: 0 };
            let now = Sample {
                at: Instant::now(),
                processor_s: 1.0,
                stages: BTreeMap::from([(key, (0, 0.05))]),
                jobs: 0,
                sent: 0,
                received: 0,
                entered: 0,
                chores: 0,
                is_settled: true,
            };
            Self { watch: Watch::default(), now }
        }

        fn look(&mut self, seconds: f64, runs: u64, moving: f64, other: f64) -> TransferCost {
            self.now.at += Duration::from_secs_f64(seconds);
            self.now.processor_s += (runs as f64 * 0.05 + moving) * CORES + 0.004 * seconds + other;
            for (done, _) in self.now.stages.values_mut() {
                *done += runs;
            }
            self.watch.look(self.now.clone(), PROBED, CORES)
        }

        /// Five seconds with so many runs of 50 ms that receive and send 1 MB each, at `times` the probed cost. How many
        /// times the probed cost is told, with what is used beside.
        fn work(&mut self, runs: u64, times: f64, other: f64) -> f64 {
            self.now.sent += runs * 1_000_000;
            self.now.received += runs * 1_000_000;
            let moving = runs as f64 * (6e-3 + 1e-2);
            let told = self.look(5.0, runs, moving * times, other);
            told.send_s_per_byte / PROBED.send_s_per_byte + beside(&told) * 5.0 / moving.max(0.1)
        }

        /// Long enough for rest to be known.
        fn rest(&mut self) {
            (0..=RESTS_TRUSTED).for_each(|_| {
                self.work(0, 1.0, 0.0);
            });
        }

        /// Five seconds with so many requests of 1 MB by clients, at `times` the assumed cost.
        fn serve(&mut self, requests: u64, times: f64) -> f64 {
            self.now.entered += requests * 1_000_000;
            let serving = requests as f64 * 5e-3;
            let told = self.look(5.0, requests, serving * times, 0.0);
            told.entry_s_per_byte / PROBED.entry_s_per_byte + beside(&told) * 5.0 / serving
        }
    }

    /// What is used over the 4 ms a second at rest, once that is known.
    fn beside(told: &TransferCost) -> f64 {
        if told.rest_share > 0.0 { told.rest_share - 0.004 / CORES } else { 0.0 }
    }

    #[test]
    fn what_moving_really_costs_is_found() {
        let mut device = Device::new();
        assert_eq!(device.work(0, 1.0, 0.0), 1.0);
        device.rest();
        let told = (0..4).map(|_| device.work(50, 1.8, 0.0)).last().unwrap();
        assert!((told - 1.8).abs() < 0.05, "{told}");
        // One odd stretch does not count, a lasting change does.
        assert_eq!(device.work(50, 1.8, 0.5), told);
        let told = (0..5).map(|_| device.work(50, 1.2, 0.0)).last().unwrap();
        assert!((told - 1.2).abs() < 0.05, "{told}");
    }

    #[test]
    fn what_clients_cost_is_found_beside_it() {
        let mut device = Device::new();
        device.rest();
        let told = (0..4).map(|_| device.serve(80, 1.5)).last().unwrap();
        assert!((told - 1.5).abs() < 0.05, "{told}");
        // With bytes that move beside, the whole is right.
        let clients = 50.0 * 5e-3;
        for _ in 0..4 {
            device.now.entered += 50 * 1_000_000;
            device.now.processor_s += clients * 1.5 * CORES;
            device.work(50, 1.2, 0.0);
        }
        let told = device.look(1.0, 0, 0.0, 0.0);
        let moving = (told.send_s_per_byte + told.receive_s_per_byte) * 50e6;
        let whole = moving + told.entry_s_per_byte * 50e6 + beside(&told) * 5.0;
        let truth = 50.0 * 1.6e-2 * 1.2 + clients * 1.5;
        assert!((whole / truth - 1.0).abs() < 0.05, "{whole} of {truth}");
    }

    #[test]
    fn nothing_is_learnt_without_traffic_or_while_something_is_prepared() {
        let mut device = Device::new();
        let last =
            |device: &mut Device, runs, other| (0..8).map(|_| device.work(runs, 2.0, other)).last().unwrap();
        device.rest();
        assert!((last(&mut device, 0, 0.1) - 1.0).abs() < 1e-6, "nothing was moved");
        device.now.is_settled = false;
        assert!((last(&mut device, 50, 0.0) - 1.0).abs() < 1e-6, "something was prepared");
    }

    #[test]
    fn a_run_that_outlasts_a_stretch_is_not_rest() {
        let mut device = Device::new();
        for stage in device.now.stages.values_mut() {
            stage.1 = 12.0;
        }
        device.now.jobs = 2;
        let busy = |device: &mut Device| device.look(5.0, 0, 0.0, 5.0 * CORES).rest_share;
        assert_eq!((0..30).map(|_| busy(&mut device)).last(), Some(0.0));
        device.now.jobs = 0;
        device.rest();
        let rest = device.look(5.0, 0, 0.0, 0.0).rest_share;
        assert!((rest * CORES - 0.004).abs() < 1e-3, "{rest}");
    }

    #[test]
    fn a_device_that_was_never_at_rest_knows_what_it_uses_beside() {
        let mut device = Device::new();
        let little = |device: &mut Device| {
            device.now.sent += 1_000_000;
            device.look(5.0, 10, 6e-3, 0.06 * 5.0 * CORES).rest_share
        };
        let told = (0..8).map(|_| little(&mut device)).last().unwrap();
        let truth = 0.06 + 0.004 / CORES;
        assert!((told - truth).abs() < 0.015, "{told} for {truth}");
        // Rest, once it is seen, does not count twice.
        device.rest();
        let told = device.look(5.0, 0, 0.0, 0.0).rest_share;
        assert!((told * CORES - 0.004).abs() < 1e-3, "{told}");
        let told = (0..8).map(|_| little(&mut device)).last().unwrap();
        assert!((told - truth).abs() < 0.015, "{told} for {truth}");
    }

    #[test]
    fn chores_are_not_rest() {
        let mut device = Device::new();
        for _ in 0..30 {
            device.now.chores += 1;
            device.look(5.0, 0, 0.0, 4.0 * CORES);
        }
        assert_eq!(device.look(1.0, 0, 0.0, 0.0).rest_share, 0.0);
        device.rest();
        let rest = device.look(5.0, 0, 0.0, 0.0).rest_share;
        assert!((rest * CORES - 0.004).abs() < 1e-3, "{rest}");
    }

    #[test]
    fn a_stretch_holds_many_runs() {
        let mut device = Device::new();
        device.rest();
        for stage in device.now.stages.values_mut() {
            stage.1 = 1.0;
        }
        // Five seconds each: a run that began in one stretch ends in the next.
        for turn in 0..23 {
            device.now.jobs = 1;
            device.now.sent += 1_000_000;
            let early = if turn % 2 == 0 { 0.5 } else { -0.5 };
            device.now.at += STRETCH;
            device.now.processor_s += (4.0 * 1.0 + 6e-3 * 1.5 + early) * CORES + 0.02;
            device.now.stages.values_mut().for_each(|(runs, _)| *runs += 4);
            let told = device.watch.look(device.now.clone(), PROBED, CORES);
            let times = told.send_s_per_byte / PROBED.send_s_per_byte;
            assert!((times - 1.0).abs() < 0.05, "too little was moved to tell: {times}");
        }
        assert!(device.now.at.saturating_duration_since(device.watch.last.unwrap().at) < 5 * STRETCH);
    }

    #[test]
    fn corrections_are_bounded_and_leave_the_rest() {
        let mut device = Device::new();
        device.rest();
        for _ in 0..5 {
            device.work(50, 30.0, 0.0);
        }
        let costs = device.look(1.0, 0, 0.0, 0.0);
        assert_eq!(costs.send_s_per_byte, 4.0 * PROBED.send_s_per_byte);
        assert!(costs.rest_share <= REST_MAX, "{costs:?}");
        assert_eq!((costs.request_s, costs.compute_share), (PROBED.request_s, PROBED.compute_share));
    }
}
