//! The leader's search for better plans beside its other duties: when to search, and what to do with what is found.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use mesh_consensus::EpochPlan;
use mesh_planner::{Device, Evaluation, Objective, Plan, Problem, Replan};
use tokio::task::JoinHandle;

use super::{
    leader::{PLANNER_STEPS, Solved, verified},
    links::FAR_SLOWER,
    moves::{GAIN, Moves},
};

/// Problems are compared, and plans searched for, no more often than this.
const PAUSE: Duration = Duration::from_secs(3);
/// Searching may take one part in so many of the time, unless devices or links change; but a pause is never longer than
/// `PAUSE_MAX`.
const RARELY: u32 = 20;
const PAUSE_MAX: Duration = Duration::from_secs(20);
/// A device with less than one core searches less, down to this part.
const LEAST_STEPS: f64 = 0.1;
/// Compute times, sizes and rates that differ by less than this do not make another problem.
const COMPUTE_NEWS: f64 = 0.05;
const LINK_NEWS: f64 = 0.25;
/// Latencies that differ by less than this many seconds are the same.
const LATENCY_NEWS_S: f64 = 0.001;
/// Requests enter where they did unless some device's part has changed by this much.
const INGRESS_NEWS: f64 = 0.15;
/// A link that has become far slower is seldom alone: others of the same device are being probed, which takes this long. A
/// plan that is made before would take them for what they were.
const LINKS_SETTLE: Duration = Duration::from_secs(4);
/// A device of which every look shows that it is slower by this part than at the one before is not known yet...
const SINKS: f64 = 0.08;
/// ...but what still changes, of devices and of links, is waited for no longer than this: a plan by half of the truth brings
/// less than it promises.
const SETTLE_MAX: Duration = Duration::from_secs(12);
/// A device that loads weights for longer than this many seconds makes a plan late...
const LATE_S: f64 = 10.0;
/// ...so it has to bring more over this many seconds, until it serves as well, than one that leaves such devices out.
const HORIZON_S: f64 = 300.0;

/// Searches for better plans, one at a time per deployment. Lost with the leader, which costs time only.
#[derive(Debug, Default)]
pub struct Improver {
    courses: HashMap<String, Course>,
}

#[derive(Debug, Default)]
struct Course {
    moves: Moves,
    /// What the last plan or search was made from.
    last: Option<Problem>,
    looked: Option<Instant>,
    /// No search before this.
    not_before: Option<Instant>,
    search: Option<Search>,
    /// Links at the last look: bytes per second from device to device.
    links: BTreeMap<(String, String), f64>,
    /// When the first and the last of some became far slower, until a search has begun with that.
    fell: Option<(Instant, Instant)>,
    /// What of each device is there for stages, at the last look.
    speeds: BTreeMap<String, f64>,
    /// Since when looks in a row have shown less of some.
    sinks: Option<Instant>,
}

#[derive(Debug)]
struct Search {
    epoch: u64,
    /// Devices have come or gone since the last plan, or links have become far slower: no second look is needed.
    changed: bool,
    task: JoinHandle<(Result<Found, String>, Duration)>,
}

/// A plan and what it is better by.
#[derive(Debug)]
pub struct Found {
    /// Verified.
    pub solved: Solved,
    /// Over the running plan: 0.1 for 10 % faster.
    pub gain: f64,
    /// Of the running plan and of the new one: requests, or answers, per second.
    speeds: (f64, f64),
}

impl Course {
    /// Of a plan that an earlier leader made: when, and what it thought of its moves, is not known.
    fn taken_over(now: Instant) -> Self {
        let mut course = Self::default();
        course.moves.planned(now, false);
        course
    }

    /// Notices links that have become far slower since the last look.
    fn look_at_links(&mut self, problem: &Problem, now: Instant) {
        let pairs = problem.links.pairs.iter();
        let links: BTreeMap<(String, String), f64> =
            pairs.map(|pair| ((pair.from.clone(), pair.to.clone()), pair.bytes_per_s)).collect();
        let is_far_slower = |(pair, rate): (&(String, String), &f64)| {
            self.links.get(pair).is_some_and(|before| rate * FAR_SLOWER < *before)
        };
        if links.iter().any(is_far_slower) {
            self.fell = Some((self.fell.map_or(now, |(first, _)| first), now));
            self.moves.excuse();
        }
        self.links = links;
    }

    /// Notices devices that become slower from look to look.
    fn look_at_devices(&mut self, problem: &Problem, now: Instant) {
        let left = |device: &Device| device.speed * (1.0 - device.transfer.rest_share);
        let devices = problem.devices.iter();
        let speeds: BTreeMap<String, f64> = devices.map(|device| (device.id.clone(), left(device))).collect();
        let sinks = |(id, speed): (&String, &f64)| {
            self.speeds.get(id).is_some_and(|before| *speed < before * (1.0 - SINKS))
        };
        self.sinks = speeds.iter().any(sinks).then(|| self.sinks.unwrap_or(now));
        self.speeds = speeds;
    }

    /// Whether the next look will know more: other links may be found slow, or a device slower.
    fn is_settling(&self, now: Instant) -> bool {
        let since = |at: Instant| now.saturating_duration_since(at);
        self.fell.is_some_and(|(first, last)| since(last) < LINKS_SETTLE && since(first) < SETTLE_MAX)
            || self.sinks.is_some_and(|at| since(at) < SETTLE_MAX)
    }

    /// Whether a search is due, which is then made from this problem: `Some` of whether devices have come or gone, or links
    /// have become far slower, since the last plan or search.
    fn wants_search(&mut self, problem: &Problem, now: Instant) -> Option<bool> {
        self.look_at_links(problem, now);
        self.look_at_devices(problem, now);
        let came_or_went = self.last.as_ref().is_some_and(|last| ids(last) != ids(problem));
        let changed = came_or_went || self.fell.is_some();
        let news = self.last.as_ref().is_none_or(|last| changed || differs(last, problem));
        // Who has seen a gain looks once more at once.
        let is_soon = !changed && !self.moves.wants_a_look() && self.not_before.is_some_and(|at| now < at);
        if self.is_settling(now)
            || is_soon
            || !self.moves.may_move(now, came_or_went)
            || !(news || self.moves.wants_a_look())
        {
            return None;
        }
        self.last = Some(problem.clone());
        self.fell = None;
        Some(changed)
    }
}

impl Improver {
    /// Drops deployments that are not in `keep`.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.courses.retain(|name, _| keep(name));
    }

    /// A plan was made that had to be made.
    pub fn planned(&mut self, name: &str, solved: &Solved, now: Instant) {
        let course = self.courses.entry(name.to_owned()).or_default();
        course.moves.planned(now, solved.is_hasty);
        course.last = Some(solved.problem.clone());
        course.search = None;
    }

    /// Whether it is time to compare problems again.
    pub fn is_due(&self, name: &str, now: Instant) -> bool {
        self.courses.get(name).is_none_or(|course| {
            course.search.is_none()
                && course.looked.is_none_or(|at| now.saturating_duration_since(at) >= PAUSE)
        })
    }

    /// The speed of the running plan, measured.
    pub fn judge(&mut self, name: &str, epoch: u64, speed: f64, now: Instant) {
        let Some(course) = self.courses.get_mut(name) else { return };
        tracing::trace!(deployment = name, epoch, speed, "measured");
        course.moves.judge(now, speed);
    }

    /// Whether it is time to look at the plan that is being prepared, which is a better one and nothing more.
    pub fn may_regret(&self, name: &str, now: Instant) -> bool {
        self.is_due(name, now) && self.courses.get(name).is_some_and(|course| course.moves.is_voluntary())
    }

    /// Why a better plan that is being prepared is to be given up, for people: links have become so slow since that it is
    /// not worth it any more. What is best now is searched for at once then.
    pub fn regrets(
        &mut self,
        name: &str,
        active: &EpochPlan,
        preparing: &EpochPlan,
        problem: &Problem,
        now: Instant,
    ) -> Option<String> {
        let course = self.courses.get_mut(name)?;
        course.looked = Some(now);
        course.look_at_links(problem, now);
        if course.fell.is_none() || course.is_settling(now) {
            return None;
        }
        let reason = regret(problem, &active.plan, &preparing.plan)?;
        course.moves.given_up(now);
        Some(reason)
    }

    /// Starts a search on a thread of its own, if a move is allowed now and there is reason to think that one pays.
    pub fn look(&mut self, name: &str, active: &EpochPlan, problem: Problem, now: Instant) {
        let course = self.courses.entry(name.to_owned()).or_insert_with(|| Course::taken_over(now));
        course.looked = Some(now);
        let Some(changed) = course.wants_search(&problem, now) else { return };
        let (running, epoch) = (active.plan.clone(), active.epoch);
        let task = crate::background::spawn(move || {
            let started = Instant::now();
            (search(problem, &running), started.elapsed())
        });
        course.search = Some(Search { epoch, changed, task });
    }

    /// A plan to move to, if a search has ended with one that is worth it.
    pub async fn found(&mut self, name: &str, epoch: u64, now: Instant) -> Option<Found> {
        let course = self.courses.get_mut(name)?;
        if !course.search.as_ref().is_some_and(|search| search.task.is_finished()) {
            return None;
        }
        let search = course.search.take()?;
        let (result, took) = search.task.await.ok()?;
        course.not_before = Some(now + (took * RARELY).min(PAUSE_MAX));
        if search.epoch != epoch {
            return None;
        }
        let found = result
            .inspect_err(|reason| tracing::debug!(deployment = name, %reason, "no better plan"))
            .ok()?;
        if !course.moves.weigh(found.gain, search.changed) {
            return None;
        }
        course.moves.moved(now, found.speeds.0, found.speeds.1);
        Some(found)
    }
}

/// Requests, or answers, per second: more is better.
pub fn speed(evaluation: &Evaluation, objective: Objective) -> f64 {
    match objective {
        Objective::Throughput => evaluation.throughput_rps,
        Objective::Latency => 1.0 / evaluation.latency_s.max(1e-9),
    }
}

fn search(problem: Problem, running: &Plan) -> Result<Found, String> {
    // Requests share the replicas by themselves: another plan has to be better than that.
    let running = &mesh_planner::reshare(&problem, running).map_err(|e| e.to_string())?;
    let now = mesh_planner::evaluate(&problem, running).map_err(|e| e.to_string())?;
    // The leader computes stages too: planning must not be what makes it slow.
    let part = mesh_inference::profile::cores().clamp(LEAST_STEPS, 1.0);
    let steps = (PLANNER_STEPS as f64 * part) as u64;
    let Replan { mut plan, gain, .. } =
        mesh_planner::replan(&problem, running, steps).map_err(|e| e.to_string())?;
    // Without a gain the running plan cannot go on as it is; what that takes is not decided here.
    let mut gain = gain.ok_or("the running plan does not fit the devices any more")?;
    let before = speed(&now, problem.objective);
    if let Some((sooner, speed)) = sooner(&problem, running, before, &plan, steps) {
        (plan, gain) = (sooner, speed / before - 1.0);
    }
    let solved = verified(problem, plan, Some(running))?;
    Ok(Found { solved, gain, speeds: (before, before * (1.0 + gain)) })
}

/// Another plan and its speed, where `plan` has devices load for long: without them, if that brings more within a while.
fn sooner(problem: &Problem, running: &Plan, before: f64, plan: &Plan, steps: u64) -> Option<(Plan, f64)> {
    let late = late(problem, running, plan);
    if late.is_empty() {
        return None;
    }
    let mut fewer = problem.clone();
    let left_out = fewer.devices.iter_mut().filter(|device| late.contains_key(&device.id));
    // They still take requests in, and pass them on.
    left_out.for_each(|device| device.memory_bytes = 0);
    let other = mesh_planner::replan(&fewer, running, steps).ok()?.plan;
    let brings = |plan: &Plan| {
        let speed = speed(&mesh_planner::evaluate(problem, plan).ok()?, problem.objective);
        let loading = mesh_planner::loading_s(problem, running, plan).into_values().fold(0.0, f64::max);
        let wait = (loading / HORIZON_S).min(1.0);
        Some((before * wait + speed * (1.0 - wait), speed))
    };
    let ((with, _), (without, speed)) = (brings(plan)?, brings(&other)?);
    tracing::debug!(?late, with, without, "a plan that is sooner there");
    (without > with).then_some((other, speed))
}

/// Devices that load for long, in seconds, until a plan can serve.
fn late(problem: &Problem, running: &Plan, plan: &Plan) -> BTreeMap<String, f64> {
    let mut loading = mesh_planner::loading_s(problem, running, plan);
    loading.retain(|_, seconds| *seconds > LATE_S);
    loading
}

/// Why the move to a plan is not worth going on with, now that links have become slow.
fn regret(problem: &Problem, running: &Plan, preparing: &Plan) -> Option<String> {
    let speed = |plan: &Plan| {
        let plan = mesh_planner::reshare(problem, plan).ok()?;
        Some(speed(&mesh_planner::evaluate(problem, &plan).ok()?, problem.objective))
    };
    let gain = speed(preparing)? / speed(running)? - 1.0;
    let since = "links have become slower since it was made";
    if gain < GAIN / 2.0 {
        return Some(format!("{since}: it would not bring what it was made for"));
    }
    let longest = late(problem, running, preparing).into_values().reduce(f64::max)?;
    Some(format!("{since}: to load its weights would take {:.0} s", longest.min(1e6)))
}

fn ids(problem: &Problem) -> Vec<&str> {
    problem.devices.iter().map(|device| device.id.as_str()).collect()
}

/// Whether two problems for the same devices are so different that another plan may be the best.
fn differs(a: &Problem, b: &Problem) -> bool {
    let apart = |a: f64, b: f64, by: f64| (a - b).abs() > by * a.abs().max(b.abs());
    let seconds = |p: &Problem| -> Vec<f64> {
        let first = p.devices.first().map_or("", |device| device.class.as_str());
        p.blocks.iter().map(|block| block.seconds.get(first).copied().unwrap_or(0.0)).collect()
    };
    let blocks = seconds(a).into_iter().zip(seconds(b)).any(|(a, b)| apart(a, b, COMPUTE_NEWS));
    let devices = a.devices.iter().zip(&b.devices).any(|(a, b)| {
        apart(a.speed, b.speed, COMPUTE_NEWS)
            || apart(a.memory_bytes as f64, b.memory_bytes as f64, COMPUTE_NEWS)
            || apart(a.transfer.send_s_per_byte, b.transfer.send_s_per_byte, LINK_NEWS)
            || apart(a.transfer.receive_s_per_byte, b.transfer.receive_s_per_byte, LINK_NEWS)
            || apart(a.transfer.request_s, b.transfer.request_s, LINK_NEWS)
            || apart(1.0 - a.transfer.rest_share, 1.0 - b.transfer.rest_share, COMPUTE_NEWS)
            || apart(a.card_bytes_per_s.unwrap_or(1e12), b.card_bytes_per_s.unwrap_or(1e12), LINK_NEWS)
            || apart(a.transfer.entry_s_per_byte, b.transfer.entry_s_per_byte, LINK_NEWS)
    });
    let links = |p: &Problem| -> BTreeMap<(String, String), (f64, f64)> {
        let pairs = p.links.pairs.iter();
        pairs.map(|l| ((l.from.clone(), l.to.clone()), (l.bytes_per_s, l.latency_s))).collect()
    };
    let (links_a, links_b) = (links(a), links(b));
    let links = links_a.keys().chain(links_b.keys()).any(|pair| {
        let (Some(a), Some(b)) = (links_a.get(pair), links_b.get(pair)) else { return true };
        apart(a.0, b.0, LINK_NEWS) || (apart(a.1, b.1, LINK_NEWS) && (a.1 - b.1).abs() > LATENCY_NEWS_S)
    });
    let enters = |p: &Problem, id: &str| p.ingress.as_ref().and_then(|i| i.get(id)).copied().unwrap_or(0.0);
    let ids = a.devices.iter().map(|device| &device.id);
    let ingress = ids.into_iter().any(|id| (enters(a, id) - enters(b, id)).abs() > INGRESS_NEWS);
    a.blocks.len() != b.blocks.len() || blocks || devices || links || ingress
}

#[cfg(test)]
mod tests;
