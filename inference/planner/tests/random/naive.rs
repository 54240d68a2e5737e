//! The cost model once more, written from its description and sharing nothing with the planner, and a search over
//! every plan that gives a device at most one stage.

use std::collections::BTreeMap;

use mesh_planner::Problem;

/// First and last block, and each replica's device and share.
pub(crate) type NaiveStage = (usize, usize, Vec<(usize, f64)>);

type Spread = BTreeMap<usize, f64>;

fn link(problem: &Problem, from: usize, to: usize) -> (f64, f64) {
    let (from, to) = (&problem.devices[from].id, &problem.devices[to].id);
    let pair = problem.links.pairs.iter().find(|pair| pair.from == *from && pair.to == *to);
    pair.map_or((problem.links.default.bytes_per_s, problem.links.default.latency_s), |pair| {
        (pair.bytes_per_s, pair.latency_s)
    })
}

/// What goes from where to where: a device keeps what it can, the rest goes in proportion to what is missing.
fn flows(senders: &Spread, receivers: &Spread) -> Vec<(usize, usize, f64)> {
    let kept = |device: &usize| {
        f64::min(*senders.get(device).unwrap_or(&0.0), *receivers.get(device).unwrap_or(&0.0))
    };
    let moving: f64 = senders.iter().map(|(device, part)| part - kept(device)).sum();
    let mut flows = Vec::new();
    for (from, has) in senders {
        for (to, takes) in receivers {
            let part = (has - kept(from)) * (takes - kept(to)) / moving;
            if moving > 1e-11 && part > 1e-12 {
                flows.push((*from, *to, part));
            }
        }
    }
    flows
}

/// Where requests enter, if anybody says.
fn entering(problem: &Problem) -> Option<Spread> {
    let ids = problem.devices.iter().map(|device| &device.id);
    problem
        .ingress
        .as_ref()
        .map(|ingress| ids.enumerate().map(|(index, id)| (index, *ingress.get(id).unwrap_or(&0.0))).collect())
}

fn left(device: &mesh_planner::Device) -> f64 {
    1.0 - device.transfer.rest_share
}

/// Bottleneck and latency; nothing when a device cannot hold its stage or a link is missing.
pub(crate) fn cost(problem: &Problem, stages: &[NaiveStage]) -> Option<(f64, f64)> {
    let count = problem.devices.len();
    let entering = entering(problem);
    let (mut compute, mut moving) = (vec![0.0; count], vec![0.0; count]);
    let (mut out, mut into) = (vec![0.0; count], vec![0.0; count]);
    let mut links: BTreeMap<(usize, usize), f64> = BTreeMap::new();
    let mut latency = 0.0;
    let mut hops: Vec<(Spread, Spread, f64)> = Vec::new();
    for (index, (first, last, replicas)) in stages.iter().enumerate() {
        let blocks = &problem.blocks[*first..=*last];
        let bytes = blocks.iter().map(|block| block.weight_bytes + block.overhead_bytes).sum::<u64>()
            + blocks.iter().map(|block| block.peak_bytes).max()?
            + problem.cuts[*first]
            + problem.cuts[last + 1];
        for &(index, share) in replicas {
            let device = &problem.devices[index];
            if bytes > device.memory_bytes {
                return None;
            }
            let seconds: f64 = blocks.iter().map(|block| block.seconds[&device.class]).sum();
            compute[index] += share * seconds / device.speed;
            latency += share * seconds / device.speed;
        }
        let here: Spread = replicas.iter().copied().collect();
        if let (0, Some(entering)) = (index, &entering) {
            hops.push((entering.clone(), here.clone(), problem.cuts[0] as f64));
        }
        let next = stages.get(index + 1).map(|(.., replicas)| replicas.iter().copied().collect());
        if let Some(next) = next.or_else(|| entering.clone()) {
            hops.push((here, next, problem.cuts[last + 1] as f64));
        }
    }
    for (senders, receivers, bytes) in hops {
        for (from, to, part) in flows(&senders, &receivers) {
            let (rate, delay) = link(problem, from, to);
            if rate == 0.0 {
                return None;
            }
            let (sender, receiver) = (&problem.devices[from], &problem.devices[to]);
            let send = (sender.transfer.request_s + bytes * sender.transfer.send_s_per_byte) / left(sender);
            let receive =
                (receiver.transfer.request_s + bytes * receiver.transfer.receive_s_per_byte) / left(receiver);
            *links.entry((from, to)).or_insert(0.0) += part * bytes / rate;
            moving[from] += part * send;
            moving[to] += part * receive;
            out[from] += part * bytes;
            into[to] += part * bytes;
            let slowest = [sender, receiver]
                .iter()
                .filter_map(|device| device.card_bytes_per_s)
                .map(|card| bytes / card)
                .fold(bytes / rate, f64::max);
            latency += part * (slowest + delay + send + receive);
        }
    }
    for (index, share) in entering.iter().flatten() {
        let ends = problem.cuts[0] as f64 + problem.cuts[problem.cuts.len() - 1] as f64;
        let device = &problem.devices[*index];
        moving[*index] += share * ends * device.transfer.entry_s_per_byte / left(device);
    }
    let mut worst = links.values().copied().fold(0.0, f64::max);
    for (index, device) in problem.devices.iter().enumerate() {
        let busy = compute[index] * device.transfer.compute_share / left(device) + moving[index];
        worst = worst.max(busy).max(compute[index]);
        if let Some(card) = device.card_bytes_per_s {
            worst = worst.max(out[index] / card).max(into[index] / card);
        }
    }
    Some((worst, latency))
}

/// How the shares of a stage are set before they are improved.
#[derive(Debug, Clone, Copy)]
enum Rule {
    BySpeed,
    Equal,
    AsEntering,
}

/// The best bottleneck over all plans, with some care for the shares of the most promising ones.
pub(crate) fn best_bottleneck(problem: &Problem) -> Option<(f64, Vec<NaiveStage>)> {
    let mut found: Vec<(f64, Vec<NaiveStage>)> = Vec::new();
    every_plan(problem, &mut Vec::new(), 0, &mut found);
    found.sort_by(|a, b| a.0.total_cmp(&b.0));
    found.truncate(4);
    let improved = found.into_iter().map(|(value, stages)| shift_shares(problem, value, stages));
    improved.min_by(|a, b| a.0.total_cmp(&b.0))
}

fn every_plan(
    problem: &Problem,
    stages: &mut Vec<(usize, usize, u32)>,
    used: u32,
    found: &mut Vec<(f64, Vec<NaiveStage>)>,
) {
    let next = stages.last().map_or(0, |&(_, last, _)| last + 1);
    if next == problem.blocks.len() {
        let (min, max) = (problem.min_stages.unwrap_or(1), problem.max_stages.unwrap_or(usize::MAX));
        if (min..=max).contains(&stages.len()) {
            with_rules(problem, stages, found);
        }
        return;
    }
    for last in next..problem.blocks.len() {
        for members in 1..1u32 << problem.devices.len() {
            let is_one = members.count_ones() == 1 || problem.replication;
            if members & used == 0 && is_one && holds(problem, next, last, members) {
                stages.push((next, last, members));
                every_plan(problem, stages, used | members, found);
                stages.pop();
            }
        }
    }
}

fn holds(problem: &Problem, first: usize, last: usize, members: u32) -> bool {
    let bytes: u64 = problem.blocks[first..=last].iter().map(|block| block.weight_bytes).sum();
    (0..problem.devices.len())
        .filter(|device| members >> device & 1 == 1)
        .all(|d| problem.devices[d].memory_bytes >= bytes)
}

fn with_rules(problem: &Problem, stages: &[(usize, usize, u32)], found: &mut Vec<(f64, Vec<NaiveStage>)>) {
    let is_chain = stages.iter().all(|(.., members)| members.count_ones() == 1);
    for rule in [Rule::BySpeed, Rule::Equal, Rule::AsEntering] {
        let stages: Vec<NaiveStage> = stages
            .iter()
            .map(|&(first, last, members)| (first, last, shares(problem, (first, last), members, rule)))
            .collect();
        if let Some((bottleneck, _)) = cost(problem, &stages) {
            // Only the best few are kept, so that memory stays small.
            if found.len() >= 64 {
                found.sort_by(|a, b| a.0.total_cmp(&b.0));
                found.truncate(4);
            }
            found.push((bottleneck, stages));
        }
        if is_chain {
            break;
        }
    }
}

fn shares(problem: &Problem, (first, last): (usize, usize), members: u32, rule: Rule) -> Vec<(usize, f64)> {
    let weight = |index: usize| {
        let device = &problem.devices[index];
        let seconds: f64 = problem.blocks[first..=last]
            .iter()
            .map(|block| block.seconds[&device.class] / device.speed)
            .sum();
        let entering = problem.ingress.as_ref().and_then(|ingress| ingress.get(&device.id));
        match rule {
            Rule::BySpeed => 1.0 / seconds.max(1e-3),
            Rule::Equal => 1.0,
            Rule::AsEntering => entering.copied().unwrap_or(0.5).max(0.01),
        }
    };
    let members = (0..problem.devices.len()).filter(|device| members >> device & 1 == 1);
    let members: Vec<(usize, f64)> = members.map(|device| (device, weight(device))).collect();
    let total: f64 = members.iter().map(|(_, weight)| weight).sum();
    members.into_iter().map(|(device, weight)| (device, weight / total)).collect()
}

/// Moves share between two replicas of a stage as long as that helps, in ever smaller steps.
fn shift_shares(problem: &Problem, value: f64, stages: Vec<NaiveStage>) -> (f64, Vec<NaiveStage>) {
    let (mut value, mut stages) = (value, stages);
    let mut step = 0.25;
    while step > 1e-3 {
        let mut is_better = false;
        for stage in 0..stages.len() {
            for from in 0..stages[stage].2.len() {
                for to in (0..stages[stage].2.len()).filter(|&to| to != from) {
                    let moved = f64::min(step, stages[stage].2[from].1 * 0.999);
                    let mut tried = stages.clone();
                    tried[stage].2[from].1 -= moved;
                    tried[stage].2[to].1 += moved;
                    if let Some((bottleneck, _)) = cost(problem, &tried)
                        && bottleneck < value * (1.0 - 1e-9)
                    {
                        (value, stages, is_better) = (bottleneck, tried, true);
                    }
                }
            }
        }
        if !is_better {
            step /= 2.0;
        }
    }
    (value, stages)
}
