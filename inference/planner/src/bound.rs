//! What no plan can beat: lower bounds on the bottleneck.

use crate::instance::Instance;

/// Rounds of improving the prices in `compute_bound`.
const ROUNDS: usize = 40;

/// Runs of blocks times devices that `path_bound` looks at.
const MAX_PATHS: usize = 20_000_000;

/// What the bounds say about an instance.
#[derive(Debug)]
pub(crate) struct Bound {
    /// Seconds per request below which no plan's bottleneck can be.
    value: f64,
    /// Prices of the usable devices' time in `compute_bound`; their sum is 1.
    prices: Vec<f64>,
}

impl Bound {
    pub(crate) fn new(instance: &Instance<'_>) -> Self {
        let (bound, prices) = compute_bound(instance);
        let value = bound.max(other_bounds(instance)).max(path_bound(instance, &prices));
        Self { value, prices }
    }
}

/// Seconds per request below which no plan's bottleneck can be.
pub(crate) fn lower_bound(instance: &Instance<'_>) -> f64 {
    instance.bound().value
}

/// The price of each device's time, with sum 1 over the devices, and what the blocks before each position cost at
/// least. The cost of all blocks is a lower bound on the bottleneck.
pub(crate) fn prices(instance: &Instance<'_>) -> (Vec<f64>, Vec<f64>) {
    let devices = instance.usable();
    let prices = &instance.bound().prices;
    let mut by_device = vec![0.0; instance.devices()];
    devices.iter().zip(prices).for_each(|(&device, &price)| by_device[device] = price);
    let mut cost = vec![0.0];
    for block in 0..instance.blocks {
        let priced = devices
            .iter()
            .filter(|&&device| can_hold(instance, device, block))
            .map(|&device| by_device[device] * instance.seconds(device, block, block + 1))
            .fold(f64::INFINITY, f64::min);
        cost.push(cost[block] + if priced.is_finite() { priced } else { 0.0 });
    }
    (by_device, cost)
}

fn other_bounds(instance: &Instance<'_>) -> f64 {
    let replication = instance.problem.replication;
    if instance.problem.pin.is_some() && replication {
        return 0.0;
    }
    let hop = forced_hop(instance, replication);
    if replication { hop } else { hop.max(largest_block(instance)) }
}

fn can_hold(instance: &Instance<'_>, device: usize, block: usize) -> bool {
    instance.is_profiled(device) && instance.block_bytes(block) <= instance.memory(device)
}

/// Fractional unrelated machines, by duality: for any prices `p` with sum 1 over the devices, the busiest device
/// works for at least `sum over blocks of min over devices of p * seconds`. Prices start in proportion to the
/// devices' speeds, which is exact where classes differ by a factor, and are then moved towards busy devices.
fn compute_bound(instance: &Instance<'_>) -> (f64, Vec<f64>) {
    let devices = instance.usable();
    let mut prices: Vec<f64> =
        devices.iter().map(|&device| 1.0 / instance.seconds(device, 0, instance.blocks).max(1e-12)).collect();
    let mut best = (0.0f64, Vec::new());
    for round in 0..ROUNDS {
        let total: f64 = prices.iter().sum();
        prices.iter_mut().for_each(|price| *price /= total);
        let (bound, busy) = priced(instance, &devices, &prices);
        if bound > best.0 || best.1.is_empty() {
            best = (bound, prices.clone());
        }
        let average: f64 = busy.iter().zip(&prices).map(|(busy, price)| busy * price).sum();
        if average <= 0.0 {
            break;
        }
        let step = 0.5 / (round + 1) as f64;
        for (price, busy) in prices.iter_mut().zip(&busy) {
            *price *= (step * (busy / average - 1.0)).clamp(-1.0, 1.0).exp();
        }
    }
    best
}

/// The bound for some prices, and how busy each device is when every block goes where it is cheapest.
fn priced(instance: &Instance<'_>, devices: &[usize], prices: &[f64]) -> (f64, Vec<f64>) {
    let mut busy = vec![0.0; devices.len()];
    let mut bound = 0.0;
    for block in 0..instance.blocks {
        let mut cheapest: Option<(usize, f64)> = None;
        for (index, &device) in devices.iter().enumerate() {
            let cost = prices[index] * instance.seconds(device, block, block + 1);
            if cheapest.is_none_or(|(_, old)| cost < old) && can_hold(instance, device, block) {
                cheapest = Some((index, cost));
            }
        }
        if let Some((index, cost)) = cheapest {
            bound += cost;
            busy[index] += instance.seconds(devices[index], block, block + 1);
        }
    }
    (bound, busy)
}

/// The same prices with what data costs the processors: every request takes some path through the devices, in runs of
/// blocks that its device can hold, and pays for compute and for both ends of every hop. The cheapest path is a bound.
/// Hops from and to the ingress are left out, as requests may stay where they enter; where they enter is given, and so
/// is what that costs.
fn path_bound(instance: &Instance<'_>, prices: &[f64]) -> f64 {
    let priced = priced_kinds(instance, prices);
    if !instance.moves_cost() || priced.len() * instance.blocks * instance.blocks > MAX_PATHS {
        return 0.0;
    }
    let mut cheapest = vec![f64::INFINITY; instance.blocks + 1];
    cheapest[0] = 0.0;
    for end in 1..=instance.blocks {
        for &(device, price) in &priced {
            let leaves = if end < instance.blocks { instance.send_s(device, instance.cut(end)) } else { 0.0 };
            for start in (0..end).rev() {
                let held = instance.held(start, end).saturating_add(instance.peak(start, end));
                if held > instance.memory(device) {
                    break;
                }
                let arrives = if start > 0 { instance.receive_s(device, instance.cut(start)) } else { 0.0 };
                let compute = instance.compute_share(device) * instance.seconds(device, start, end);
                let cost = cheapest[start] + price * (compute + arrives + leaves);
                cheapest[end] = cheapest[end].min(cost);
            }
        }
    }
    let usable = instance.usable().into_iter().zip(prices);
    let entries = usable.map(|(device, price)| price * instance.ingress[device] * instance.entry_s(device));
    let bound = (cheapest[instance.blocks] + entries.sum::<f64>()) * (1.0 - 1e-12);
    if bound.is_finite() { bound } else { 0.0 }
}

/// Usable devices with their prices; of devices that are alike in both only one.
fn priced_kinds(instance: &Instance<'_>, prices: &[f64]) -> Vec<(usize, f64)> {
    let mut kinds: Vec<(usize, f64)> = Vec::new();
    let devices = &instance.problem.devices;
    for (device, &price) in instance.usable().into_iter().zip(prices) {
        let is_known = kinds.iter().any(|&(other, known)| {
            let (one, other) = (&devices[device], &devices[other]);
            (price - known).abs() <= 0.0
                && one.class == other.class
                && one.speed == other.speed
                && one.memory_bytes == other.memory_bytes
                && one.transfer == other.transfer
        });
        if !is_known {
            kinds.push((device, price));
        }
    }
    kinds
}

/// Without replication one device runs the whole of every block.
fn largest_block(instance: &Instance<'_>) -> f64 {
    let devices = instance.usable();
    let best = |block: usize| {
        let held = devices.iter().filter(|&&device| can_hold(instance, device, block));
        held.map(|&device| instance.seconds(device, block, block + 1)).fold(f64::INFINITY, f64::min)
    };
    (0..instance.blocks).map(best).filter(|seconds| seconds.is_finite()).fold(0.0, f64::max)
}

/// When no device can hold the model, every request crosses at least the smallest cut over some link.
fn forced_hop(instance: &Instance<'_>, replication: bool) -> f64 {
    let devices = instance.usable();
    let needed = instance.held(0, instance.blocks).saturating_add(instance.peak(0, instance.blocks));
    if devices.iter().any(|&device| instance.memory(device) >= needed) {
        return 0.0;
    }
    let smallest = (1..instance.blocks).map(|position| instance.cut(position)).fold(f64::INFINITY, f64::min);
    let mut rate = 0.0f64;
    for &from in &devices {
        for &to in devices.iter().filter(|&&to| to != from) {
            let (link, _) = instance.link(from, to);
            rate = if replication { rate + link } else { rate.max(link) };
        }
    }
    if rate > 0.0 && smallest.is_finite() { smallest / rate } else { 0.0 }
}
