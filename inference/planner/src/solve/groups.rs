//! Chains whose stages run on groups of devices: for an order of devices, consecutive ones share a stage.
//!
//! A dynamic programme over (devices of the order used, blocks done). It keeps one best way per state, so hop
//! costs, which depend on the sending group, make it a heuristic; the result is evaluated and polished in full.

use std::collections::BTreeMap;

use super::chain::Steps;
use super::order::{Dice, change, first_orders};
use super::rates::{Group, Rates};
use super::shares::{by_speed, polish};
use crate::evaluate::{Draft, DraftStage, Evaluation, entrances, fits};
use crate::flow::Remote;
use crate::instance::Instance;

/// Longest order of devices that is looked at.
const MAX_ORDER: usize = 32;
/// Most cut positions that are looked at.
const MAX_POSITIONS: usize = 72;
/// Orders that are tried without finding anything better.
const PATIENCE: usize = 24;
/// Up to so many devices, every order is tried: 720 for six.
const ALL_ORDERS: usize = 6;

/// Other shares may make what was found by so much faster.
const WORTH_POLISHING: f64 = 1.5;

/// Numbers of stages that are worth going on from.
const MAX_RESULTS: usize = 4;

/// Devices of a stage with their shares.
type Replicas = Vec<(usize, f64)>;

/// A draft and its cost.
pub(super) type Costed = (Draft, Evaluation);

/// Searches orders until the steps are used up or nothing better turns up. Returns the best drafts of the most
/// promising numbers of stages, best first. What takes much longer than the `known` bottleneck is not looked at.
pub(super) fn search(instance: &Instance<'_>, known: f64, steps: &mut Steps) -> Vec<Costed> {
    let mut orders = first_orders(instance);
    orders.iter_mut().for_each(|order| order.truncate(MAX_ORDER));
    let Some(first) = orders.first().cloned() else { return Vec::new() };
    let all = first.len() <= ALL_ORDERS;
    if all {
        orders.extend(all_orders(&first));
    }
    let rates = Rates::new(instance, positions(instance, first.len()));
    let limit = known * WORTH_POLISHING;
    let mut best = Best::default();
    for order in orders {
        best.take(&order, in_order((&rates, limit), &order, steps));
        if steps.left() == 0 {
            break;
        }
    }
    if !all && let Some(order) = best.order.clone() {
        improve((&rates, limit), order, &mut best, steps);
    }
    best.ranked()
}

/// Changes an order as long as that helps.
fn improve((rates, limit): (&Rates<'_>, f64), mut order: Vec<usize>, best: &mut Best, steps: &mut Steps) {
    let outside: Vec<usize> =
        rates.instance.usable().into_iter().filter(|device| !order.contains(device)).collect();
    let mut dice = Dice::new(7);
    let mut failures = 0;
    while failures < PATIENCE && steps.pay(1) {
        let mut tried = order.clone();
        change(&mut tried, &outside, &mut dice);
        failures += 1;
        if best.take(&tried, in_order((rates, limit), &tried, steps)) {
            (order, failures) = (tried, 0);
        }
    }
}

/// The best draft of each number of stages, and the order that gave the best of all.
#[derive(Debug, Default)]
struct Best {
    order: Option<Vec<usize>>,
    by_stages: BTreeMap<usize, Costed>,
}

impl Best {
    /// True when the draft is better than all before.
    fn take(&mut self, order: &[usize], found: Option<Costed>) -> bool {
        let Some(found) = found else { return false };
        let value = |costed: &Costed| costed.1.bottleneck_s;
        let least = self.by_stages.values().map(value).fold(f64::INFINITY, f64::min);
        let is_best = value(&found) < least * (1.0 - 1e-9);
        if is_best {
            self.order = Some(order.to_vec());
        }
        let stages = found.0.stages.len();
        if self.by_stages.get(&stages).is_none_or(|old| value(&found) < value(old)) {
            self.by_stages.insert(stages, found);
        }
        is_best
    }

    fn ranked(self) -> Vec<Costed> {
        let mut ranked: Vec<Costed> = self.by_stages.into_values().collect();
        ranked.sort_by(|a, b| a.1.bottleneck_s.total_cmp(&b.1.bottleneck_s));
        ranked.truncate(MAX_RESULTS);
        ranked
    }
}

fn all_orders(devices: &[usize]) -> Vec<Vec<usize>> {
    let mut orders = vec![Vec::new()];
    for &device in devices {
        let with = |order: &Vec<usize>| {
            let order = order.clone();
            (0..=order.len()).map(move |place| {
                let mut order = order.clone();
                order.insert(place, device);
                order
            })
        };
        orders = orders.iter().flat_map(with).collect();
    }
    orders
}

fn in_order((rates, limit): (&Rates<'_>, f64), order: &[usize], steps: &mut Steps) -> Option<Costed> {
    let instance = rates.instance;
    let members = order.iter().map(|&device| rates.of(device)).collect();
    let (positions, entrances) = (rates.positions.as_slice(), entrances(instance));
    let search = Search { instance, order, positions, members, entrances, limit };
    let draft = search.solve(steps)?;
    let (draft, evaluation) = polish(instance, draft, false);
    fits(instance, &draft).then_some((draft, evaluation))
}

/// Both ends and the cheapest cut of each stretch of equal work.
fn positions(instance: &Instance<'_>, devices: usize) -> Vec<usize> {
    let blocks = instance.blocks;
    let wanted = MAX_POSITIONS.min(1_600 / devices.max(1)).max(2 * devices).max(8);
    if blocks < wanted {
        return (0..=blocks).collect();
    }
    let Some(&any) = instance.usable().first() else { return vec![0, blocks] };
    let total = instance.seconds(any, 0, blocks);
    let stretch = |position: usize| {
        let done = instance.seconds(any, 0, position) / total.max(1e-12);
        (done * (wanted - 1) as f64) as usize
    };
    let mut chosen = vec![0];
    let mut best: Option<usize> = None;
    for position in 1..blocks {
        if let Some(old) = best.filter(|&old| stretch(old) != stretch(position)) {
            chosen.push(old);
            best = None;
        }
        if best.is_none_or(|old| instance.cut(position) < instance.cut(old)) {
            best = Some(position);
        }
    }
    chosen.extend(best);
    chosen.push(blocks);
    chosen
}

/// The last stage of the best way to a state: devices `low..high` of the order run positions `start..`.
#[derive(Debug, Clone, Copy)]
struct Cell {
    value: f64,
    low: usize,
    high: usize,
    start: usize,
    /// Index of the state before; none for a first stage.
    before: Option<usize>,
}

struct Search<'a> {
    instance: &'a Instance<'a>,
    order: &'a [usize],
    positions: &'a [usize],
    /// In the order's order: what each device adds to a group.
    members: Vec<&'a [Group]>,
    entrances: Vec<(usize, f64)>,
    /// Ways that take so long are left.
    limit: f64,
}

impl Search<'_> {
    fn solve(&self, steps: &mut Steps) -> Option<Draft> {
        let (min, max) = self.instance.stage_limits();
        let counted = min > 1 || max < self.order.len();
        let layers = if counted { max.min(self.order.len()) } else { 1 };
        let (width, reach) = (self.positions.len(), self.order.len() + 1);
        let mut cells: Vec<Option<Cell>> = vec![None; layers * reach * width];
        // The cells' values, those of one position side by side.
        let mut values = vec![f64::INFINITY; cells.len()];
        // By cell: the replicas of its last stage.
        let mut senders: Vec<Replicas> = vec![Vec::new(); cells.len()];
        for layer in 0..layers {
            for high in 1..reach {
                for end in 1..width {
                    let at = (layer * reach + high) * width + end;
                    cells[at] = cells[at - width];
                    let limit = cells[at].map_or(self.limit, |cell| cell.value);
                    let place = (layer, high, end);
                    let best = self.best_stage((&values, &senders), place, (counted, limit), steps);
                    cells[at] = best.or(cells[at]);
                    values[(layer * width + end) * reach + high] =
                        cells[at].map_or(f64::INFINITY, |cell| cell.value);
                    senders[at] = cells[at].map_or_else(Vec::new, |cell| self.replicas(&cell, end));
                }
            }
            if steps.left() == 0 && layer + 1 < min {
                return None;
            }
        }
        let finals = (0..layers).filter(|&layer| !counted || layer + 1 >= min);
        let finals = finals.map(|layer| (layer * reach + self.order.len()) * width + width - 1);
        let value = |at: &usize| cells[*at].map_or(f64::INFINITY, |cell| cell.value);
        let last = finals.min_by(|a, b| value(a).total_cmp(&value(b)))?;
        self.read_back(&cells, last)
    }

    fn best_stage(
        &self,
        (values, senders): (&[f64], &[Replicas]),
        (layer, high, end): (usize, usize, usize),
        (counted, limit): (bool, f64),
        steps: &mut Steps,
    ) -> Option<Cell> {
        let (width, reach) = (self.positions.len(), self.order.len() + 1);
        let mut best: Option<Cell> = None;
        for start in (0..end).rev() {
            let at_start = end * width + start;
            let mut group = Group::default();
            // No devices are before a first stage. With layers, a stage counts on those of the layer before.
            let from = match (start, layer) {
                (0, 0) => None,
                (0, _) => continue,
                (_, 0) if counted => continue,
                (..) => Some(layer - usize::from(counted)),
            };
            for low in (0..high).rev() {
                steps.pay(1);
                group.join(&self.members[low][at_start]);
                let arrived = from.map_or(0.0, |layer| values[(layer * width + start) * reach + low]);
                let limit = best.map_or(limit, |best| best.value);
                // Nor do fewer devices get there sooner, or at all.
                if arrived >= limit {
                    break;
                }
                if group.takes(limit) {
                    continue;
                }
                let value = f64::max(arrived, group.busy_s());
                let before = from.map(|layer| (layer * reach + low) * width + start);
                let cell = Cell { value, low, high, start, before };
                let value = value.max(self.hop(senders, &cell, end));
                if value < limit {
                    best = Some(Cell { value, ..cell });
                }
            }
        }
        best
    }

    fn replicas(&self, cell: &Cell, end: usize) -> Vec<(usize, f64)> {
        let (first, end) = (self.positions[cell.start], self.positions[end]);
        let bytes = self.instance.stage_bytes(first, end);
        let members: Vec<usize> = self.order[cell.low..cell.high]
            .iter()
            .copied()
            .filter(|&d| bytes <= self.instance.memory(d))
            .collect();
        by_speed(self.instance, &members, first, end)
    }

    /// Busiest link or card of the hop into a stage.
    fn hop(&self, senders: &[Replicas], cell: &Cell, end: usize) -> f64 {
        let instance = self.instance;
        let bytes = instance.cut(self.positions[cell.start]);
        let receivers = self.replicas(cell, end);
        let Some(before) = cell.before else {
            return self.entry(&receivers, bytes);
        };
        // Nobody is on both sides, so everybody sends to everybody.
        let mut busiest = 0.0f64;
        for &(to, takes) in &receivers {
            for &(from, has) in &senders[before] {
                busiest = busiest.max(instance.link_s(from, to, has * takes * bytes));
            }
        }
        let cards = senders[before].iter().chain(&receivers);
        cards.map(|&(device, part)| instance.card_s(device, part * bytes)).fold(busiest, f64::max)
    }

    /// Busiest link or card of the way into the first stage.
    fn entry(&self, receivers: &[(usize, f64)], bytes: f64) -> f64 {
        let instance = self.instance;
        let remote = Remote::between(&self.entrances, receivers);
        let cards = remote.senders.iter().chain(&remote.receivers);
        let card = cards.map(|&(device, part)| instance.card_s(device, part * bytes)).fold(0.0, f64::max);
        remote.flows().map(|(from, to, part)| instance.link_s(from, to, part * bytes)).fold(card, f64::max)
    }

    fn read_back(&self, cells: &[Option<Cell>], last: usize) -> Option<Draft> {
        let mut stages = Vec::new();
        let (mut at, mut end) = (last, self.positions.len() - 1);
        loop {
            let cell = cells[at]?;
            let replicas = self.replicas(&cell, end);
            stages.push(DraftStage { first: self.positions[cell.start], end: self.positions[end], replicas });
            let Some(before) = cell.before else { break };
            (at, end) = (before, cell.start);
        }
        stages.reverse();
        Some(Draft { stages })
    }
}
