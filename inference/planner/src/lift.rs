//! What would lift a plan: the same problem with one thing made better, solved again.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::check::evaluate;
use crate::evaluate::{Evaluation, Resource};
use crate::instance::Instance;
use crate::plan::{Objective, Plan};
use crate::problem::{Device, LinkRate, PairLink, Problem};
use crate::size::size;
use crate::solve::solve;

/// Links that can be bought: bytes per second, and their name.
const LINKS: [(f64, &str); 3] = [(12.5e6, "100 Mbit/s"), (125e6, "1 Gbit/s"), (1.25e9, "10 Gbit/s")];
/// A better link is at least so much faster.
const FASTER: f64 = 1.5;
/// Devices in use whose links are looked at, the busiest first.
const LINKED: usize = 3;
/// Unused devices whose links are looked at, and devices whose memory is.
const OTHERS: usize = 2;
/// Answers that bring less are left out.
const LEAST_GAIN: f64 = 0.01;
/// Answers given.
const MOST: usize = 5;

/// Something that would make a plan better.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lift {
    /// "a 1 Gbit/s link to attic-pi".
    pub what: String,
    /// How much more rate (or, for latency, speed) there would be: 0.38 is 38 % more.
    pub gain: f64,
}

impl fmt::Display for Lift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: +{:.0} %", self.what, self.gain * 100.0)
    }
}

/// What would lift a plan, the most effective first. Each answer is computed by solving the improved problem with
/// `steps`, so this takes as long as several calls of `solve`.
pub fn lifts(problem: &Problem, plan: &Plan, steps: u64) -> Vec<Lift> {
    let Ok(now) = evaluate(problem, plan) else { return Vec::new() };
    let instance = Instance::new(problem);
    let mut ideas = faster_links(&instance, &now);
    ideas.extend(faster_device(problem, &now));
    ideas.extend(more_memory(&instance));
    ideas.extend(another_device(&instance));
    let mut lifts: Vec<Lift> = ideas.into_iter().filter_map(|idea| idea.tried(plan, &now, steps)).collect();
    lifts.sort_by(|a, b| b.gain.total_cmp(&a.gain).then_with(|| a.what.cmp(&b.what)));
    lifts.truncate(MOST);
    lifts
}

/// A problem with one thing made better.
struct Idea {
    what: String,
    problem: Problem,
}

impl Idea {
    fn tried(self, plan: &Plan, now: &Evaluation, steps: u64) -> Option<Lift> {
        let value = |bottleneck_s: f64, latency_s: f64| match self.problem.objective {
            Objective::Throughput => bottleneck_s,
            Objective::Latency => latency_s,
        };
        let solved = solve(&self.problem, steps).ok().map(|plan| value(plan.bottleneck_s, plan.latency_s));
        let same = evaluate(&self.problem, plan).ok().map(|cost| value(cost.bottleneck_s, cost.latency_s));
        let best = [solved, same].into_iter().flatten().fold(f64::INFINITY, f64::min);
        let gain = value(now.bottleneck_s, now.latency_s) / best.max(1e-12) - 1.0;
        (gain.is_finite() && gain > LEAST_GAIN).then_some(Lift { what: self.what, gain })
    }
}

/// Better links to the devices whose links are busiest, and to unused devices with the slowest links.
fn faster_links(instance: &Instance<'_>, now: &Evaluation) -> Vec<Idea> {
    let devices = instance.devices();
    let mut busy = vec![0.0f64; devices];
    for (resource, load) in &now.loads {
        match *resource {
            Resource::Link(from, to) => {
                busy[from] = busy[from].max(load.seconds);
                busy[to] = busy[to].max(load.seconds);
            }
            Resource::CardOut(device) | Resource::CardIn(device) => {
                busy[device] = busy[device].max(load.seconds);
            }
            Resource::Compute(_) => {}
        }
    }
    let mut used: Vec<usize> = (0..devices).filter(|&device| busy[device] > 0.0).collect();
    used.sort_by(|&a, &b| busy[b].total_cmp(&busy[a]).then(a.cmp(&b)));
    used.truncate(LINKED);
    let is_idle = |device: &usize| now.processors[*device].compute_s == 0.0 && instance.is_profiled(*device);
    let mut idle: Vec<usize> = (0..devices).filter(is_idle).collect();
    idle.sort_by(|&a, &b| fastest(instance, a).total_cmp(&fastest(instance, b)).then(a.cmp(&b)));
    idle.truncate(OTHERS);
    idle.retain(|device| !used.contains(device));
    used.into_iter().chain(idle).filter_map(|device| better_link(instance, device)).collect()
}

/// Bytes per second of a device's fastest link or of its card, whichever is less.
fn fastest(instance: &Instance<'_>, device: usize) -> f64 {
    let others = (0..instance.devices()).filter(|&other| other != device);
    let links = others.map(|other| instance.link(device, other).0.max(instance.link(other, device).0));
    let card = instance.problem.devices[device].card_bytes_per_s.unwrap_or(f64::INFINITY);
    links.fold(0.0, f64::max).min(card)
}

fn better_link(instance: &Instance<'_>, device: usize) -> Option<Idea> {
    let now = fastest(instance, device);
    let &(rate, name) = LINKS.iter().find(|(rate, _)| *rate >= now * FASTER)?;
    let mut problem = instance.problem.clone();
    let id = instance.id(device).to_owned();
    problem.links.pairs.retain(|pair| pair.from != id && pair.to != id);
    for other in (0..instance.devices()).filter(|&other| other != device) {
        for (from, to) in [(device, other), (other, device)] {
            let (old, latency_s) = instance.link(from, to);
            let (from, to) = (instance.id(from).to_owned(), instance.id(to).to_owned());
            problem.links.pairs.push(PairLink { from, to, bytes_per_s: old.max(rate), latency_s });
        }
    }
    let card = &mut problem.devices[device].card_bytes_per_s;
    *card = card.map(|old| old.max(rate));
    Some(Idea { what: format!("a {name} link to {id}"), problem })
}

/// The device that sets the rate, twice as fast.
fn faster_device(problem: &Problem, now: &Evaluation) -> Option<Idea> {
    let busiest = (0..problem.devices.len())
        .max_by(|&a, &b| now.processors[a].busy_s.total_cmp(&now.processors[b].busy_s))?;
    let mut problem = problem.clone();
    let device = &mut problem.devices[busiest];
    device.speed *= 2.0;
    let cost = &mut device.transfer;
    let (sent, received) = (&mut cost.send_s_per_byte, &mut cost.receive_s_per_byte);
    for seconds in [sent, received, &mut cost.request_s, &mut cost.entry_s_per_byte] {
        *seconds /= 2.0;
    }
    Some(Idea { what: format!("{} twice as fast", device.id), problem })
}

/// Memory for the whole model on the fastest devices that lack it.
fn more_memory(instance: &Instance<'_>) -> Vec<Idea> {
    let bytes = instance.stage_bytes(0, instance.blocks);
    let mut short = instance.usable();
    short.retain(|&device| instance.memory(device) < bytes);
    let seconds = |device: usize| instance.seconds(device, 0, instance.blocks);
    short.sort_by(|&a, &b| seconds(a).total_cmp(&seconds(b)).then(a.cmp(&b)));
    short.truncate(OTHERS);
    let with_memory = |device: usize| {
        let mut problem = instance.problem.clone();
        let more = bytes - instance.memory(device);
        problem.devices[device].memory_bytes = bytes;
        Idea { what: format!("{} more memory on {}", size(more), instance.id(device)), problem }
    };
    short.into_iter().map(with_memory).collect()
}

/// One more device like the fastest.
fn another_device(instance: &Instance<'_>) -> Option<Idea> {
    let seconds = |device: usize| instance.seconds(device, 0, instance.blocks);
    let model = instance.usable().into_iter().min_by(|&a, &b| seconds(a).total_cmp(&seconds(b)))?;
    let mut problem = instance.problem.clone();
    let like = instance.id(model);
    let mut id = format!("another {like}");
    while problem.devices.iter().any(|device| device.id == id) {
        id = format!("another {id}");
    }
    problem.devices.push(Device { id: id.clone(), ..problem.devices[model].clone() });
    let mut add = |from: &str, to: &str, (bytes_per_s, latency_s): (f64, f64)| {
        problem.links.pairs.push(PairLink { from: from.into(), to: to.into(), bytes_per_s, latency_s });
    };
    for other in (0..instance.devices()).filter(|&other| other != model) {
        add(&id, instance.id(other), instance.link(model, other));
        add(instance.id(other), &id, instance.link(other, model));
    }
    // Two of a kind are linked as the first one is at its best.
    let LinkRate { bytes_per_s, latency_s } = instance.problem.links.default;
    let best = if instance.devices() > 1 {
        (fastest_link(instance, model), latency_s)
    } else {
        (bytes_per_s, latency_s)
    };
    add(&id, like, best);
    add(like, &id, best);
    Some(Idea { what: format!("another device like {like}"), problem })
}

fn fastest_link(instance: &Instance<'_>, device: usize) -> f64 {
    let others = (0..instance.devices()).filter(|&other| other != device);
    others.map(|other| instance.link(device, other).0).fold(0.0, f64::max)
}
