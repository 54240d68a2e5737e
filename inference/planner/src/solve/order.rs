//! Chains for a given order of devices, each used or skipped, and a local search over orders.

use super::chain::{Chains, From, Goal, Row, Steps, draft_of};
use crate::evaluate::Draft;
use crate::instance::Instance;

/// Orders longer than this cost more than they bring.
const MAX_ORDER: usize = 48;

/// Devices that orders along links begin with.
const MAX_STARTS: usize = 128;
/// Length of the orders along links while nobody knows how many stages a good chain has.
const SHORT_ORDER: usize = 16;
/// A chain that is so near to its bound is hard to better by changing its order: only orders along links are tried.
const NEAR: f64 = 1.02;
/// Part of the steps that these may take.
const GLANCE: u64 = 16;
/// A chain that is further from its bound than this is worth all steps.
const FAR: f64 = 1.05;

/// A chain and its value: largest load, or latency.
pub(super) type Found = (Draft, f64);

/// Searches over orders until the steps are used up, from a chain that is known already or from likely orders.
pub(super) fn search(
    instance: &Instance<'_>,
    goal: Goal,
    (known, bound): (Option<Found>, f64),
    steps: &mut Steps,
) -> Option<Found> {
    let mut best: Option<(Vec<usize>, Found)> = None;
    let is_known = known.is_some();
    if let Some((draft, value)) = known {
        let order: Vec<usize> = draft.stages.iter().map(|stage| stage.replicas[0].0).collect();
        let found = best_in_order(instance, &order, goal, steps);
        keep(&mut best, order.clone(), Some((draft, value)));
        keep(&mut best, order, found);
    }
    let is_near = best.as_ref().is_some_and(|(_, (_, value))| *value <= bound * NEAR);
    let orders = match &best {
        Some((order, _)) => link_orders(instance, 2 * order.len() + 2),
        None => {
            let mut orders = link_orders(instance, SHORT_ORDER);
            orders.extend(first_orders(instance));
            orders
        }
    };
    let mut budget = Steps::new(if is_near { steps.left() / GLANCE } else { steps.left() });
    let before = budget.left();
    for order in orders {
        let found = best_in_order(instance, &order, goal, &mut budget);
        keep(&mut best, order, found);
        if budget.left() == 0 {
            break;
        }
    }
    steps.pay(before - budget.left());
    if is_near {
        return best.map(|(_, found)| found);
    }
    // A chain that was fitted is hard to better by changing its order, unless it is far from what could be.
    let is_fitted = is_known && best.as_ref().is_some_and(|(_, (_, value))| *value <= bound * FAR);
    let mut budget = Steps::new(if is_fitted { steps.left() / 4 } else { steps.left() });
    let before = budget.left();
    improve(instance, goal, &mut budget, &mut best);
    steps.pay(before - budget.left());
    best.map(|(_, found)| found)
}

/// The best chain of a few likely orders.
pub(super) fn quick(instance: &Instance<'_>, goal: Goal, steps: &mut Steps) -> Option<Found> {
    let orders = first_orders(instance).into_iter().take(6);
    let found = orders.filter_map(|order| best_in_order(instance, &order, goal, steps));
    found.min_by(|a, b| a.1.total_cmp(&b.1))
}

fn keep(best: &mut Option<(Vec<usize>, Found)>, order: Vec<usize>, found: Option<Found>) {
    if let Some(found) = found
        && best.as_ref().is_none_or(|(_, (_, value))| found.1 < *value)
    {
        *best = Some((order, found));
    }
}

/// Devices in orders that tend to be good: by speed, by memory, and along the fastest links.
pub(super) fn first_orders(instance: &Instance<'_>) -> Vec<Vec<usize>> {
    let usable = instance.usable();
    let time = |device: usize| instance.seconds(device, 0, instance.blocks);
    let mut by_speed = usable.clone();
    by_speed.sort_by(|&a, &b| time(a).total_cmp(&time(b)).then(a.cmp(&b)));
    let mut by_memory = usable;
    by_memory.sort_by(|&a, &b| instance.memory(b).cmp(&instance.memory(a)).then(a.cmp(&b)));
    let mut orders = vec![by_speed.clone(), by_memory];
    for &start in by_speed.iter().take(8) {
        orders.push(along_links(instance, &by_speed, start));
    }
    for order in &mut orders {
        order.truncate(MAX_ORDER);
    }
    let reversed: Vec<Vec<usize>> =
        orders.iter().map(|order| order.iter().rev().copied().collect()).collect();
    orders.extend(reversed);
    orders.sort();
    orders.dedup();
    orders
}

/// Orders of so many devices along the fastest links from every device: where links set the rate, the start matters
/// most.
fn link_orders(instance: &Instance<'_>, length: usize) -> Vec<Vec<usize>> {
    let usable = instance.usable();
    let order = |&start: &usize| {
        let mut order = along_links(instance, &usable, start);
        order.truncate(length);
        order
    };
    usable.iter().take(MAX_STARTS).map(order).collect()
}

fn along_links(instance: &Instance<'_>, devices: &[usize], start: usize) -> Vec<usize> {
    let mut left: Vec<usize> = devices.iter().copied().filter(|&device| device != start).collect();
    let mut order = vec![start];
    let mut at = start;
    while order.len() < MAX_ORDER && !left.is_empty() {
        let mut nearest = 0;
        for candidate in 1..left.len() {
            if instance.link(at, left[candidate]).0 > instance.link(at, left[nearest]).0 {
                nearest = candidate;
            }
        }
        at = left.remove(nearest);
        order.push(at);
    }
    order
}

fn improve(instance: &Instance<'_>, goal: Goal, steps: &mut Steps, best: &mut Option<(Vec<usize>, Found)>) {
    let Some(mut order) =
        best.as_ref().map(|(order, _)| order.clone()).or_else(|| first_orders(instance).pop())
    else {
        return;
    };
    let usable = instance.usable();
    // Who was left out for somebody else may come back.
    let left_out = |order: &[usize]| -> Vec<usize> {
        usable.iter().copied().filter(|device| !order.contains(device)).collect()
    };
    let mut outside = left_out(&order);
    let mut dice = Dice::new(order.len() as u64);
    while steps.pay(1) {
        let mut tried = order.clone();
        change(&mut tried, &outside, &mut dice);
        let found = best_in_order(instance, &tried, goal, steps);
        // Equal values are taken too: plateaus are wide where one link or block sets the bottleneck.
        let is_better = match (&found, &best) {
            (Some((_, value)), Some((_, (_, old)))) => value <= old,
            (Some(_), None) => true,
            (None, _) => false,
        };
        if is_better {
            order = tried.clone();
            outside = left_out(&order);
            *best = found.map(|found| (tried, found));
        }
    }
}

/// Swaps two devices, moves one, turns a piece around, or brings in one from outside.
pub(super) fn change(order: &mut Vec<usize>, outside: &[usize], dice: &mut Dice) {
    let length = order.len();
    let (a, b) = (dice.below(length), dice.below(length));
    match dice.below(if outside.is_empty() { 3 } else { 4 }) {
        0 => order.swap(a, b),
        1 => {
            let device = order.remove(a);
            order.insert(b.min(order.len()), device);
        }
        2 => order[a.min(b)..=a.max(b)].reverse(),
        _ => {
            let device = outside[dice.below(outside.len())];
            if !order.contains(&device) {
                order[a] = device;
            }
        }
    }
}

/// The best chain whose devices come in this order; devices may be left out.
pub(super) fn best_in_order(
    instance: &Instance<'_>,
    order: &[usize],
    goal: Goal,
    steps: &mut Steps,
) -> Option<Found> {
    let (min, max) = instance.stage_limits();
    let counted = min > 1 || max < order.len();
    let layers = if counted { max.min(order.len()) } else { order.len().min(2) };
    let mut chains = Chains::new(instance, goal, *steps);
    let mut rows: Vec<Row> = Vec::with_capacity(layers * order.len());
    // Layer 0 holds first stages. Without limits one more layer holds all later ones; else each has its own.
    for layer in 0..layers {
        for position in 0..order.len() {
            let row = row(&mut chains, order, &rows, (layer, position), counted);
            rows.push(row);
        }
    }
    let mut best: Option<(usize, usize, f64)> = None;
    for layer in (0..layers).filter(|&layer| !counted || layer + 1 >= min) {
        for position in 0..order.len() {
            let value = rows[layer * order.len() + position].value[instance.blocks];
            if best.is_none_or(|(.., old)| value < old) {
                best = Some((layer, position, value));
            }
        }
    }
    *steps = chains.steps;
    let (layer, position, value) = best.filter(|(.., value)| value.is_finite())?;
    let draft = read_back(instance, order, &rows, layer * order.len() + position);
    let used = |device| draft.stages.iter().any(|stage| stage.replicas[0].0 == device);
    let value = chains.finish(value, |device| !used(device));
    value.is_finite().then_some((draft, value))
}

fn row(
    chains: &mut Chains<'_>,
    order: &[usize],
    rows: &[Row],
    (layer, position): (usize, usize),
    counted: bool,
) -> Row {
    let device = order[position];
    if layer == 0 {
        let arrivals = chains.begin(device);
        return chains.extend(device, &arrivals, true, 0);
    }
    let mut arrivals = chains.nowhere();
    let from_layers = if counted { layer - 1..layer } else { 0..layer + 1 };
    for from_layer in from_layers {
        for from in 0..position {
            let index = from_layer * order.len() + from;
            let end =
                From { device: order[from], is_first: from_layer == 0, row: &rows[index], tag: index as u32 };
            chains.hand_over(&mut arrivals, end, device);
        }
    }
    chains.extend(device, &arrivals, false, 0)
}

fn read_back(instance: &Instance<'_>, order: &[usize], rows: &[Row], last: usize) -> Draft {
    let (mut index, mut end) = (last, instance.blocks);
    let mut stages = Vec::new();
    loop {
        let (start, before) = rows[index].last_stage(end);
        stages.push((order[index % order.len()], start, end));
        let Some(before) = before else { break };
        (index, end) = (before as usize, start);
    }
    draft_of(stages)
}

/// A small fixed-seed generator (SplitMix64): the search is the same every time.
#[derive(Debug)]
pub(super) struct Dice {
    state: u64,
}

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % limit.max(1) as u64) as usize
    }
}
