//! How long an answer is waited for: when a request that takes longer than usual is sent to other devices as well, and
//! when it is sent again in any case.
//!
//! The copy of a slow request is the "hedged request" of Dean and Barroso, The Tail at Scale (2013).

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use libp2p::PeerId;

use super::request::Sent;
use crate::data::{
    latency::Recent,
    limits::DataLimits,
    route::{Route, RouteStage},
};

/// Latencies needed before they say what is usual.
const MEASURED_MIN: usize = 16;
/// Before there are as many, an attempt is given so many times the predicted latency: there may be a queue.
const UNMEASURED_TIMES: u32 = 20;
/// Of so many of the last answers the slowest tells what an attempt takes, and it is given so many times that. Not the
/// slowest of all: one that a fault has held up would hold up everything behind the next fault.
const USUAL: f64 = 0.9;
const USUAL_TIMES: u32 = 4;
/// So many of the last answers came sooner than what is called quick: also in the seconds after most have become slow.
const QUICK: f64 = 0.1;
/// A copy goes out after so many times the median, which a fault does not move before it has held up every second one.
const MEDIAN_TIMES: f64 = 3.0;
/// Latencies needed before their median counts: copies are few, and cost little where they are not needed.
const MEDIAN_MIN: usize = 5;
/// Before there are as many, the median is taken for so many times the predicted latency.
const PREDICTED_TIMES: u32 = 2;
/// A slow replica is given so many times longer than the fastest of its stage at most.
const SLOW_MAX: f64 = 16.0;
/// Answers that say how long an attempt takes: what went wrong a while ago is forgotten.
const ATTEMPTS: usize = 64;
/// Copies that may go out at once, and for each answer: a mesh that is slow because it is busy is not made busier.
const COPIES_MAX: f64 = 3.0;
const COPIES_PER_ANSWER: f64 = 0.1;

/// What an attempt usually takes, and what it is given.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Usual {
    median: Duration,
    timeout: Duration,
}

/// The times of one deployment.
#[derive(Debug)]
pub(super) struct Patience {
    /// From a send to its answer.
    attempts: Recent,
    /// Their median and [`USUAL`] quantile, found once for each answer: every send asks for them.
    measured: Option<[Duration; 2]>,
    /// By what the plan before has shown, until this one has shown enough.
    carried: Option<Usual>,
    /// When the last answer came through a device, since this plan is there.
    answered: BTreeMap<PeerId, Instant>,
    /// Copies that may be sent now.
    copies: f64,
    /// When the last one was.
    last_copy: Option<Instant>,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts: Recent::last(ATTEMPTS),
            measured: None,
            carried: None,
            answered: BTreeMap::new(),
            copies: COPIES_MAX,
            last_copy: None,
        }
    }
}

impl Patience {
    /// Another plan has other latencies: as many times longer as it is predicted to be slower.
    pub(super) fn set_plan(&mut self, old: Option<&Route>, new: Option<&Route>, limits: &DataLimits) {
        self.carried = self.carry(old, new, limits);
        (self.attempts, self.measured) = (Recent::last(ATTEMPTS), None);
        self.answered.clear();
    }

    fn carry(&self, old: Option<&Route>, new: Option<&Route>, limits: &DataLimits) -> Option<Usual> {
        let times = new?.latency.div_duration_f64(old?.latency);
        let Usual { median, timeout } = self.usual(limits)?;
        let longer = |time: Duration| Duration::try_from_secs_f64(time.as_secs_f64() * times.max(1.0)).ok();
        times.is_finite().then_some(())?;
        Some(Usual { median: longer(median)?, timeout: longer(timeout)? })
    }

    fn usual(&self, limits: &DataLimits) -> Option<Usual> {
        if self.attempts.len() < MEASURED_MIN {
            return self.carried;
        }
        let [median, usual] = self.measured?;
        Some(Usual { median, timeout: (usual * USUAL_TIMES).max(limits.attempt_min) })
    }

    /// An attempt that was sent to these devices then was answered.
    pub(super) fn answered(&mut self, now: Instant, sent: Instant, devices: &[PeerId]) {
        self.attempts.record(now.saturating_duration_since(sent));
        self.measured = self.attempts.quantiles([0.5, USUAL]);
        self.copies = (self.copies + COPIES_PER_ANSWER).min(COPIES_MAX);
        for device in devices {
            self.answered.insert(*device, now);
        }
    }

    /// What half of the last attempts took at most.
    pub(super) fn median(&self) -> Option<Duration> {
        self.measured.map(|[median, _]| median)
    }

    /// What an attempt took when it went well, with what others have under way in the queues.
    pub(super) fn quick(&self) -> Option<Duration> {
        if self.attempts.len() < MEASURED_MIN { None } else { self.attempts.quantile(QUICK) }
    }

    /// Time that an attempt is given, twice as much after every one that was given up or copied.
    pub(super) fn timeout(&self, route: Option<&Route>, before: u32, limits: &DataLimits) -> Duration {
        let predicted = route.map_or(Duration::ZERO, |route| route.latency);
        let unmeasured = || limits.attempt_unmeasured.max(predicted.saturating_mul(UNMEASURED_TIMES));
        let base = self.usual(limits).map_or_else(unmeasured, |usual| usual.timeout);
        base.saturating_mul(doubled(before)).min(limits.timeout_max)
    }

    /// When an attempt has taken so much longer than usual on these devices that others may be asked as well; `None`
    /// while nothing is known of what is usual.
    pub(super) fn copy_after(
        &self,
        route: &Route,
        devices: &[PeerId],
        before: u32,
        limits: &DataLimits,
    ) -> Option<Duration> {
        let measured = if self.attempts.len() < MEDIAN_MIN { None } else { self.median() };
        let carried = || self.carried.map(|usual| usual.median);
        let predicted = || (!route.latency.is_zero()).then(|| route.latency.saturating_mul(PREDICTED_TIMES));
        let median = measured.or_else(carried).or_else(predicted)?;
        let after = median.mul_f64(MEDIAN_TIMES * slowness(route, devices)).max(limits.copy_min);
        Some(after.saturating_mul(doubled(before)))
    }

    /// Whether a copy of an attempt that has waited for long, or for all the time it was given, is worth it: there is
    /// one left, or none was sent since it was, and some device of it lets nothing through. Where answers come, there is
    /// a queue, which a copy would only make longer.
    pub(super) fn may_copy(&self, now: Instant, attempt: &Sent) -> bool {
        let may = self.copies >= 1.0 || self.last_copy.is_none_or(|at| at < attempt.at);
        may && attempt.address.devices.iter().any(|device| self.is_stuck(now, *device, attempt.at))
    }

    /// A copy is sent.
    pub(super) fn copied(&mut self, now: Instant) {
        self.copies = (self.copies - 1.0).max(0.0);
        self.last_copy = Some(now);
    }

    /// Whether no answer has come through a device for half of the time since `sent`.
    pub(super) fn is_stuck(&self, now: Instant, device: PeerId, sent: Instant) -> bool {
        let since = |at: Instant| now.saturating_duration_since(at);
        self.answered.get(&device).is_none_or(|last| since(*last) >= since(sent) / 2)
    }

    /// Whether no answer has come through a device since `sent`.
    pub(super) fn is_silent(&self, device: PeerId, sent: Instant) -> bool {
        self.answered.get(&device).is_none_or(|last| *last <= sent)
    }
}

fn doubled(times: u32) -> u32 {
    2u32.saturating_pow(times.min(16))
}

/// How many times slower than the fastest of their stages these devices are at most: shares follow speeds.
fn slowness(route: &Route, devices: &[PeerId]) -> f64 {
    let of_stage = |(stage, device): (&RouteStage, &PeerId)| {
        let most = stage.replicas.iter().map(|(_, share)| *share).fold(0.0, f64::max);
        let own =
            stage.replicas.iter().find(|(replica, _)| replica == device).map_or(most, |(_, share)| *share);
        if own > 0.0 { most / own } else { 1.0 }
    };
    let slowest = route.stages.iter().zip(devices).map(of_stage).fold(1.0, f64::max);
    if slowest.is_finite() { slowest.min(SLOW_MAX) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::data::frame::Address;

    fn limits() -> DataLimits {
        DataLimits {
            attempt_unmeasured: Duration::from_millis(700),
            attempt_min: Duration::from_millis(50),
            copy_min: Duration::from_millis(20),
            ..DataLimits::default()
        }
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn route(epoch: u64, latency: Duration) -> Route {
        Route { epoch, latency, ..Route::default() }
    }

    fn record(patience: &mut Patience, count: usize, latency: Duration) {
        let sent = Instant::now();
        (0..count).for_each(|_| patience.answered(sent + latency, sent, &[]));
    }

    fn sent_to(device: PeerId, at: Instant) -> Sent {
        let address = Address {
            request: 1,
            attempt: 0,
            ingress: PeerId::random(),
            deployment: "m".into(),
            epoch: 1,
            devices: [device].into(),
            backlog: Vec::new(),
        };
        Sent { address, at, until: at, gives_up: at, outputs: Arc::default() }
    }

    #[test]
    fn the_time_of_an_attempt_follows_the_measured_latencies() {
        let mut patience = Patience::default();
        fn timeout(patience: &Patience, route: Option<&Route>, before: u32) -> Duration {
            patience.timeout(route, before, &limits())
        }
        assert_eq!(timeout(&patience, None, 0), limits().attempt_unmeasured);
        let mut old = route(1, limits().attempt_unmeasured);
        let latency = old.latency;
        patience.set_plan(None, Some(&old), &limits());
        assert_eq!(timeout(&patience, Some(&old), 0), latency * 20, "a slow model is given its time");
        record(&mut patience, MEASURED_MIN, millis(40));
        assert_eq!(timeout(&patience, Some(&old), 0), millis(160));
        assert_eq!(timeout(&patience, Some(&old), 2), millis(640));
        let mut next = |epoch, latency| {
            let new = route(epoch, latency);
            patience.set_plan(Some(&old), Some(&new), &limits());
            let carried = timeout(&patience, Some(&new), 0);
            record(&mut patience, 8 * MEASURED_MIN, millis(60));
            old = new;
            (carried, timeout(&patience, Some(&old), 0))
        };
        let slower = next(2, latency * 2);
        assert_eq!(slower, (millis(320), millis(240)), "a plan that is slower by what is predicted");
        assert_eq!(next(3, latency), (millis(240), millis(240)), "a faster one may come short of it");
        assert_eq!(next(4, Duration::ZERO), (millis(240), millis(240)));
        assert_eq!(next(5, latency), (latency * 20, millis(240)), "there is nothing to compare with");
    }

    #[test]
    fn an_attempt_that_took_long_is_forgotten() {
        let mut patience = Patience::default();
        let mut record = |count: usize, latency| {
            record(&mut patience, count, latency);
            patience.timeout(None, 0, &limits())
        };
        assert_eq!(record(100, millis(50)), millis(200));
        assert_eq!(record(6, millis(6000)), millis(200), "a fault has held some up");
        assert_eq!(record(1, millis(6000)), millis(24_000), "it takes so long now");
        assert_eq!(record(100, millis(50)), millis(200));
    }

    #[test]
    fn a_copy_goes_out_after_three_times_the_median_even_where_a_fault_has_held_up_many() {
        let mut patience = Patience::default();
        let (fast, slow) = (PeerId::random(), PeerId::random());
        let replicas = vec![(fast, 0.8), (slow, 0.2)];
        let stages = vec![RouteStage { replicas, ..RouteStage::default() }];
        let route = Route { stages, ..Route::default() };
        let after =
            |patience: &Patience, device, before| patience.copy_after(&route, &[device], before, &limits());
        assert_eq!(after(&patience, fast, 0), None, "it is not known what is usual");
        let predicted = Route { latency: millis(100), ..route.clone() };
        record(&mut patience, MEDIAN_MIN - 1, millis(50));
        assert_eq!(patience.copy_after(&predicted, &[fast], 0, &limits()), Some(millis(600)));
        record(&mut patience, ATTEMPTS, millis(50));
        assert_eq!(patience.copy_after(&predicted, &[fast], 0, &limits()), Some(millis(150)));
        assert_eq!(after(&patience, fast, 0), Some(millis(150)));
        assert_eq!(after(&patience, slow, 0), Some(millis(600)), "it has a fourth of the other's share");
        assert_eq!(after(&patience, PeerId::random(), 1), Some(millis(300)));
        record(&mut patience, ATTEMPTS / 2 - 1, millis(6000));
        assert_eq!(after(&patience, fast, 0), Some(millis(150)));
        record(&mut patience, ATTEMPTS, millis(1));
        assert_eq!(after(&patience, fast, 0), Some(limits().copy_min));
    }

    #[test]
    fn copies_are_few_and_no_queue_is_copied() {
        let (device, start) = (PeerId::random(), Instant::now());
        let mut patience = Patience::default();
        let sent = sent_to(device, start);
        let now = start + millis(400);
        assert!(patience.may_copy(now, &sent), "nothing has come through it");
        patience.answered(start + millis(250), start, &[device]);
        assert!(!patience.may_copy(now, &sent), "answers come");
        let now = start + millis(500);
        assert!(patience.may_copy(now, &sent), "none has come for a while");
        for _ in 0..3 {
            assert!(patience.may_copy(now, &sent));
            patience.copied(now);
        }
        assert!(!patience.may_copy(now, &sent), "enough for now");
        let later = sent_to(device, now + millis(1));
        assert!(patience.may_copy(now + millis(500), &later), "none has gone out since it was sent");
        patience.copied(now + millis(500));
        assert!(!patience.may_copy(now + millis(500), &later));
        record(&mut patience, 11, millis(1));
        assert!(patience.may_copy(now, &sent), "one in ten");
    }

    #[test]
    fn shares_of_any_kind_give_a_time() {
        let devices: Vec<PeerId> = (0..3).map(|_| PeerId::random()).collect();
        for shares in [[0.0, 0.0, 0.0], [f64::NAN, 1.0, 0.0], [f64::INFINITY, 1e-300, -1.0]] {
            let replicas = devices.iter().copied().zip(shares).collect();
            let route =
                Route { stages: vec![RouteStage { replicas, ..RouteStage::default() }], ..Route::default() };
            for device in &devices {
                assert!((1.0..=SLOW_MAX).contains(&slowness(&route, &[*device])), "{shares:?}");
            }
        }
    }
}
