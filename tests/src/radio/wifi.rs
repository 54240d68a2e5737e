//! SEIFER's simulation: a model divided over devices at random places of a square, where only the slowest transfer
//! counts. Mesh, SEIFER's k-path placement, its greedy baseline and random plans on the same draws.
//!
//! Sizes are SEIFER's own: a transfer is 8 bytes per element, counted once per consumer, compressed by 1.44, and a
//! part's memory is the sum of all its outputs (4 bytes per element) and its parameter count. One thing differs: its
//! code leaves the last segment of a part out of the part's memory. Here all segments count, for everyone. A column
//! of its own shows k-path under the published rule, to compare with the published figures.

use std::{collections::BTreeMap, fmt::Write as _, time::Instant};

use mesh_planner::{
    Block, DEFAULT_STEPS, Device, LinkRate, Links, Objective, PairLink, Problem, check, solve,
};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::policies::{self, Choices, Policy};
use crate::radio::{bound::slowest_of_best_walk, mbit_between, places};

/// Mbit (of 2^20 bits) of one element on a link.
const MBIT_PER_ELEMENT: f64 = 8.0 / 1.44 * 8.0 / 1_048_576.0;
/// Memory is multiplied by this, so that Mesh's cut buffers, which SEIFER does not count, weigh next to nothing.
const MEMORY_SCALE: u64 = 1 << 20;
const MIB: u64 = 1 << 20;

/// A model as SEIFER's partitioner sees it.
#[derive(Debug, Deserialize)]
pub struct Cuts {
    /// Elements that cross at every cut point, the first being the input, once per consumer.
    pub elements: Vec<u64>,
    /// Memory of every segment between two cut points.
    pub memory_bytes: Vec<u64>,
}

/// A published figure, in seconds of the slowest transfer; `None` where it is not a number.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Published {
    /// The model's name.
    pub model: String,
    /// Memory of every device, in MB of 2^20 bytes.
    pub capacity_mb: u64,
    /// Number of devices.
    pub devices: usize,
    /// k-path placement with 20 classes.
    pub kpath_s: Option<f64>,
    /// Greedy ("joint optimisation").
    pub greedy_s: Option<f64>,
    /// Random.
    pub random_s: Option<f64>,
}

/// One configuration: mean seconds of the slowest transfer over the draws where everyone found a plan.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The configuration and its published figures.
    pub published: Published,
    /// Draws of places.
    pub trials: usize,
    /// Draws where all four found a plan.
    pub compared: usize,
    /// Draws where k-path placement found no path although a partition was there.
    pub seifer_failed: usize,
    /// Mesh's plan.
    pub mesh_s: f64,
    /// SEIFER's k-path placement.
    pub seifer_s: f64,
    /// SEIFER's greedy baseline.
    pub greedy_s: f64,
    /// Random.
    pub random_s: f64,
    /// What Mesh says no plan can be below.
    pub bound_s: f64,
    /// What the best walk says no plan can be below ([`slowest_of_best_walk`]).
    pub walk_bound_s: f64,
    /// Plans of Mesh that are at one of the bounds, so that none is better.
    pub optimal: usize,
    /// Draws where some other plan was better than Mesh's.
    pub beaten: usize,
    /// Milliseconds that Mesh's planner took, on average.
    pub mesh_ms: f64,
    /// k-path under the published memory rule.
    pub published_rule_s: Option<f64>,
}

/// The models whose cut points are known.
pub fn models() -> BTreeMap<String, Cuts> {
    serde_json::from_str(include_str!("../../data/wifi/cuts.json"))
        .expect("the file in the repository is whole")
}

/// The 39 configurations that have published figures of all three.
pub fn configurations() -> Vec<Published> {
    serde_json::from_str(include_str!("../../data/wifi/published.json"))
        .expect("the file in the repository is whole")
}

/// Runs every configuration whose model is known with so many draws; the others' names come second.
pub fn run(trials: usize) -> (Vec<Row>, Vec<Published>) {
    let models = models();
    let (known, unknown): (Vec<_>, Vec<_>) =
        configurations().into_iter().partition(|configuration| models.contains_key(&configuration.model));
    let rows = known.into_iter().map(|known| row(&models[&known.model], known, trials)).collect();
    (rows, unknown)
}

/// The planning problem of a model on devices with these links in Mbit/s.
pub fn problem(cuts: &Cuts, capacity_mb: u64, mbit: &[Vec<f64>]) -> Problem {
    let block = |&bytes: &u64| Block {
        weight_bytes: bytes * MEMORY_SCALE,
        overhead_bytes: 0,
        peak_bytes: 0,
        seconds: BTreeMap::from([("any".to_owned(), 0.0)]),
    };
    let pair = |from: usize, to: usize| PairLink {
        from: name(from),
        to: name(to),
        bytes_per_s: mbit[from][to] / MBIT_PER_ELEMENT,
        latency_s: 0.0,
    };
    let devices = 0..mbit.len();
    let pairs = devices.clone().flat_map(|from| devices.clone().map(move |to| (from, to)));
    Problem {
        blocks: cuts.memory_bytes.iter().map(block).collect(),
        cuts: cuts.elements.clone(),
        devices: devices.clone().map(|index| device(index, capacity_mb * MIB * MEMORY_SCALE)).collect(),
        links: Links {
            default: LinkRate { bytes_per_s: 0.0, latency_s: 0.0 },
            pairs: pairs.filter(|(from, to)| from != to).map(|(from, to)| pair(from, to)).collect(),
        },
        ingress: None,
        arriving: BTreeMap::new(),
        objective: Objective::Throughput,
        replication: false,
        min_stages: None,
        max_stages: None,
        pin: None,
    }
}

fn name(index: usize) -> String {
    format!("d{index}")
}

fn device(index: usize, memory_bytes: u64) -> Device {
    let device = json!({"id": name(index), "class": "any", "speed": 1.0, "memory_bytes": memory_bytes});
    serde_json::from_value(device).expect("a device needs no more than these")
}

fn row(cuts: &Cuts, published: Published, trials: usize) -> Row {
    let mut row = Row {
        published,
        trials,
        compared: 0,
        seifer_failed: 0,
        mesh_s: 0.0,
        seifer_s: 0.0,
        greedy_s: 0.0,
        random_s: 0.0,
        bound_s: 0.0,
        walk_bound_s: 0.0,
        optimal: 0,
        beaten: 0,
        mesh_ms: 0.0,
        published_rule_s: None,
    };
    let (capacity_mb, devices) = (row.published.capacity_mb, row.published.devices);
    let (mut by_rule, mut found_by_rule) = (0.0, 0usize);
    for trial in 0..trials as u64 {
        let mbit = mbit_between(&places(devices, trial));
        if let Some(seconds) = published_rule(cuts, capacity_mb, &mbit, trial) {
            (by_rule, found_by_rule) = (by_rule + seconds, found_by_rule + 1);
        }
        let transfers: Vec<f64> = cuts.elements.iter().map(|&n| n as f64 * MBIT_PER_ELEMENT).collect();
        let walk_s = slowest_of_best_walk(&transfers, &cuts.memory_bytes, capacity_mb * MIB, &mbit);
        add(&mut row, &problem(cuts, capacity_mb, &mbit), walk_s, trial);
    }
    let count = row.compared.max(1) as f64;
    for sum in [
        &mut row.mesh_s,
        &mut row.seifer_s,
        &mut row.greedy_s,
        &mut row.random_s,
        &mut row.bound_s,
        &mut row.walk_bound_s,
        &mut row.mesh_ms,
    ] {
        *sum /= count;
    }
    row.published_rule_s = (found_by_rule > 0).then(|| by_rule / found_by_rule as f64);
    row
}

/// One draw for everyone.
fn add(row: &mut Row, problem: &Problem, walk_s: f64, trial: u64) {
    let choices = Choices { seed: trial, ..Choices::default() };
    let other = |policy| policies::plan(policy, problem, &choices).ok().map(|plan| plan.bottleneck_s);
    let start = Instant::now();
    let mesh = solve(problem, DEFAULT_STEPS).ok().filter(|plan| check(problem, plan).is_ok());
    let mesh_ms = start.elapsed().as_secs_f64() * 1e3;
    let (seifer, greedy, random) = (other(Policy::Seifer), other(Policy::Greedy), other(Policy::Random));
    row.seifer_failed += usize::from(seifer.is_none() && greedy.is_some());
    let (Some(mesh), Some(seifer), Some(greedy), Some(random)) = (mesh, seifer, greedy, random) else {
        return;
    };
    row.compared += 1;
    row.mesh_s += mesh.bottleneck_s;
    row.seifer_s += seifer;
    row.greedy_s += greedy;
    row.random_s += random;
    row.bound_s += mesh.lower_bound_s;
    row.mesh_ms += mesh_ms;
    row.walk_bound_s += walk_s;
    row.optimal += usize::from(mesh.optimal || mesh.bottleneck_s <= walk_s * (1.0 + 1e-9));
    let best = seifer.min(greedy).min(random);
    row.beaten += usize::from(best < mesh.bottleneck_s * (1.0 - 1e-9));
}

/// Seconds of the slowest transfer of k-path placement when the last segment of a part needs no memory.
fn published_rule(cuts: &Cuts, capacity_mb: u64, mbit: &[Vec<f64>], seed: u64) -> Option<f64> {
    let memory = |first: usize, end: usize| cuts.memory_bytes[first..end - 1].iter().sum::<u64>();
    let mbit_at = |position: usize| cuts.elements[position] as f64 * MBIT_PER_ELEMENT;
    let limits = policies::Limits { blocks: cuts.memory_bytes.len(), least: 1, most: mbit.len() };
    let fits = |first, end| memory(first, end) < capacity_mb * MIB;
    let ends = policies::least_sum(limits, mbit_at, fits)?;
    let transfers: Vec<f64> = ends[..ends.len() - 1].iter().map(|&end| mbit_at(end)).collect();
    let rates = mbit.concat();
    let links = policies::PathLinks::new(mbit.len(), &rates).ok()?;
    let classes = Choices::default().classes;
    let devices = policies::place(&links, &transfers, classes, &mut ChaCha8Rng::seed_from_u64(seed))?;
    let hops = devices.windows(2).zip(&transfers);
    Some(hops.map(|(pair, transfer)| transfer / mbit[pair[0]][pair[1]]).fold(0.0, f64::max))
}

/// The rows as a Markdown table, and what they come to.
pub fn table(rows: &[Row], unknown: &[Published]) -> String {
    let mut text = String::from(
        "Mean seconds of the slowest transfer, same draws for all.\n\n\
         | model | MB | devices | draws | mesh | k-path | greedy | random | mesh's gap to its own bound | gap to the \
         best walk | no better plan | mesh beaten | planned in ms | k-path, published rule | published k-path | published greedy | published random |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    let figure = |value: Option<f64>| value.map_or_else(|| "none".to_owned(), |s| format!("{s:.4}"));
    for row in rows {
        let Published { model, capacity_mb, devices, .. } = &row.published;
        let draws = match row.seifer_failed {
            0 => format!("{}", row.compared),
            failed => format!("{} (k-path failed in {failed} more)", row.compared),
        };
        let _ = write!(text, "| {model} | {capacity_mb} | {devices} | {draws} | ");
        if row.compared == 0 {
            text.push_str("none fits | | | | | | | | | ");
        } else {
            let gap = |bound_s: f64| if bound_s > 0.0 { row.mesh_s / bound_s - 1.0 } else { 0.0 };
            let _ = write!(
                text,
                "{:.4} | {:.4} | {:.4} | {:.4} | {:.1} % | {:.2} % | {} | {} | {:.1} | ",
                row.mesh_s,
                row.seifer_s,
                row.greedy_s,
                row.random_s,
                100.0 * gap(row.bound_s),
                // Sums in another order may round below the bound.
                100.0 * gap(row.walk_bound_s).max(0.0),
                row.optimal,
                row.beaten,
                row.mesh_ms
            );
        }
        let Published { kpath_s, greedy_s, random_s, .. } = &row.published;
        let _ = writeln!(
            text,
            "{} | {} | {} | {} |",
            figure(row.published_rule_s),
            figure(*kpath_s),
            figure(*greedy_s),
            figure(*random_s)
        );
    }
    text.push_str(&summary(rows, unknown));
    text
}

fn summary(rows: &[Row], unknown: &[Published]) -> String {
    let compared: Vec<&Row> = rows.iter().filter(|row| row.compared > 0).collect();
    let best = |row: &Row| row.seifer_s.min(row.greedy_s).min(row.random_s);
    let ahead = compared.iter().filter(|row| row.mesh_s < best(row) * (1.0 - 1e-9)).count();
    let equal = compared.iter().filter(|row| (row.mesh_s - best(row)).abs() <= 1e-9 * best(row)).count();
    let mut text = format!(
        "\nOf {} configurations {} were compared: Mesh's mean is the shortest in {ahead}, equal to the shortest in \
         {equal}, longer in {}.\n",
        rows.len() + unknown.len(),
        compared.len(),
        compared.len() - ahead - equal
    );
    if !unknown.is_empty() {
        let names: Vec<String> =
            unknown.iter().map(|c| format!("{} {} MB x{}", c.model, c.capacity_mb, c.devices)).collect();
        let _ = writeln!(text, "Not run, as the models' cut points are not known: {}.", names.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_partition_is_the_published_one() {
        let resnet = &models()["ResNet50"];
        let mbit = vec![vec![1.0; 6]; 6];
        // All links at 1 Mbit/s: the slowest transfer is the largest. 64 MB: 17.01, 17.01, 4.25; 128 MB: 8.51.
        assert!((published_rule(resnet, 64, &mbit, 0).unwrap() - 17.0139).abs() < 1e-3);
        assert!((published_rule(resnet, 128, &mbit, 0).unwrap() - 8.5069).abs() < 1e-3);
        assert_eq!(published_rule(resnet, 256, &mbit, 0), Some(0.0));
    }

    /// Fewer draws than published, so within a fifth of the published means.
    #[test]
    fn published_means_are_reproduced() {
        for row in configurations().into_iter().filter(|row| row.model == "ResNet50" && row.devices <= 20) {
            let draws = 30;
            let mean = (0..draws)
                .filter_map(|seed| {
                    let mbit = mbit_between(&places(row.devices, seed));
                    published_rule(&models()["ResNet50"], row.capacity_mb, &mbit, seed)
                })
                .sum::<f64>()
                / draws as f64;
            let published = row.kpath_s.unwrap();
            assert!((mean / published - 1.0).abs() < 0.2, "{row:?}: {mean}");
        }
    }

    #[test]
    fn nobody_beats_mesh_on_small_clusters() {
        for published in
            configurations().into_iter().filter(|row| row.model == "ResNet50" && row.devices == 5)
        {
            let row = row(&models()["ResNet50"], published, 3);
            assert_eq!((row.compared, row.beaten), (3, 0), "{row:?}");
        }
    }
}
