//! ViT on two kinds of real boards: 62 device mixes and link rates, Mesh against the known optimum in EdgePipe's cost
//! model and against the schedules that EdgePipe's published tool prints.

use std::{collections::BTreeMap, fmt::Write as _, time::Instant};

use mesh_planner::{
    Block, DEFAULT_STEPS, Device, LinkRate, Links, Objective, PinnedStage, Problem, check, solve,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Choices, Policy, cost, edgepipe, plan};

/// Times are per micro-batch of so many images.
const MICRO_BATCH: u64 = 8;
const FLOAT_BYTES: u64 = 4;
/// The published tool's megabytes and megabits.
const MEGA: f64 = 1_048_576.0;

/// Measured profiles of models and boards.
#[derive(Debug, Deserialize)]
pub struct Profiles {
    models: BTreeMap<String, Model>,
    devices: BTreeMap<String, Board>,
}

#[derive(Debug, Deserialize)]
struct Model {
    memory_mb: Vec<f64>,
    elements_in: u64,
    elements_out: Vec<u64>,
}

#[derive(Debug, Deserialize)]
struct Board {
    memory_mb: f64,
    seconds: BTreeMap<String, Vec<f64>>,
}

/// One device mix and link rate.
#[derive(Debug, Deserialize)]
pub struct Case {
    /// The model's name.
    pub model: String,
    /// Number of boards by kind (`mb`, `rcc`).
    pub devices: BTreeMap<String, usize>,
    /// Bandwidth of every link in Mbit/s, of 2^20 bits.
    pub mbps: f64,
    /// The optimum; `None` where nothing fits.
    pub result: Option<Schedule>,
    /// What the published tool prints, on mixed sets.
    pub published_tool: Option<Schedule>,
}

/// A chain and what it costs.
#[derive(Debug, Deserialize)]
pub struct Schedule {
    /// Seconds per micro-batch of the slowest stage or transfer.
    pub bottleneck_s: f64,
    /// Device, first and last sub-layer of every stage, counted from 1.
    pub schedule: Vec<(String, usize, usize)>,
}

impl Schedule {
    /// In the form that `Problem::pin` takes.
    pub fn stages(&self) -> Vec<PinnedStage> {
        let stage = |(device, first, last): &(String, usize, usize)| PinnedStage {
            first_block: first - 1,
            last_block: last - 1,
            devices: vec![device.clone()],
        };
        self.schedule.iter().map(stage).collect()
    }
}

/// One line of the comparison. Seconds per micro-batch of 8; `None` where nothing fits or nothing was published.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The model's name.
    pub model: String,
    /// Minnowboards.
    pub mb: usize,
    /// RCC-VEs.
    pub rcc: usize,
    /// Bandwidth in Mbit/s.
    pub mbps: f64,
    /// Mesh's plan.
    pub mesh_s: Option<f64>,
    /// Whether Mesh's plan says that none is better.
    pub mesh_optimal: bool,
    /// Milliseconds that Mesh's planner took.
    pub mesh_ms: f64,
    /// The known optimum.
    pub optimum_s: Option<f64>,
    /// EdgePipe's programme as the policy here has it.
    pub edgepipe_s: Option<f64>,
    /// The published tool's schedule at its true cost, by Mesh's evaluation.
    pub published_tool_s: Option<f64>,
}

/// Measured profiles, as published with EdgePipe.
pub fn profiles() -> Profiles {
    let text = include_str!("../../../inference/planner/tests/data/vit_profiles.json");
    serde_json::from_str(text).expect("the file in the repository is whole")
}

/// The 62 cases.
pub fn cases() -> Vec<Case> {
    let text = include_str!("../../data/vit/reference.json");
    serde_json::from_str(text).expect("the file in the repository is whole")
}

/// The planning problem of some boards, without replication, end transfers and latency, as EdgePipe has it.
pub fn problem(profiles: &Profiles, model: &str, devices: &BTreeMap<String, usize>, mbps: f64) -> Problem {
    let layers = &profiles.models[model];
    let block = |index: usize| Block {
        weight_bytes: (layers.memory_mb[index] * MEGA) as u64,
        overhead_bytes: 0,
        peak_bytes: 0,
        seconds: profiles
            .devices
            .iter()
            .map(|(class, board)| (class.clone(), board.seconds[model][index]))
            .collect(),
    };
    let elements = std::iter::once(&layers.elements_in).chain(&layers.elements_out);
    let boards = devices.iter().flat_map(|(class, &count)| (0..count).map(move |index| (class, index)));
    Problem {
        blocks: (0..layers.memory_mb.len()).map(block).collect(),
        cuts: elements.map(|elements| elements * MICRO_BATCH * FLOAT_BYTES).collect(),
        devices: boards.map(|(class, index)| device(profiles, class, index)).collect(),
        links: Links {
            default: LinkRate { bytes_per_s: mbps * MEGA / 8.0, latency_s: 0.0 },
            pairs: Vec::new(),
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

fn device(profiles: &Profiles, class: &str, index: usize) -> Device {
    let memory_bytes = (profiles.devices[class].memory_mb * MEGA) as u64;
    let id = format!("{class}-{index}");
    let device = json!({"id": id, "class": class, "speed": 1.0, "memory_bytes": memory_bytes});
    serde_json::from_value(device).expect("a device needs no more than these")
}

/// Solves all cases.
pub fn run() -> Vec<Row> {
    let profiles = profiles();
    cases().iter().map(|case| row(&profiles, case)).collect()
}

/// Sixteen boards that all differ, where EdgePipe's programme has 16 device types.
#[derive(Debug, Serialize)]
pub struct Sixteen {
    /// Seconds per micro-batch of Mesh's plan.
    pub mesh_s: f64,
    /// What Mesh says no plan can be below.
    pub bound_s: f64,
    /// Milliseconds that Mesh's planner took.
    pub mesh_ms: f64,
    /// Why EdgePipe's programme has no answer, if it has none.
    pub edgepipe: Option<String>,
}

/// ViT-Base on eight boards of each kind at speeds of 1, 0.97, 0.94 and so on.
///
/// # Errors
/// When there is no plan.
pub fn sixteen() -> Result<Sixteen, String> {
    let boards = BTreeMap::from([("mb".to_owned(), 8), ("rcc".to_owned(), 8)]);
    let mut problem = problem(&profiles(), "google/vit-base-patch16-224", &boards, 1000.0);
    for (index, device) in problem.devices.iter_mut().enumerate() {
        device.speed = 1.0 - 0.03 * index as f64;
    }
    let start = Instant::now();
    let plan = solve(&problem, DEFAULT_STEPS).map_err(|error| error.to_string())?;
    let mesh_ms = start.elapsed().as_secs_f64() * 1e3;
    check(&problem, &plan).map_err(|error| error.to_string())?;
    let edgepipe = edgepipe(&problem).err();
    Ok(Sixteen { mesh_s: plan.bottleneck_s, bound_s: plan.lower_bound_s, mesh_ms, edgepipe })
}

impl Sixteen {
    /// In a sentence or two.
    pub fn sentence(&self) -> String {
        let Self { mesh_s, bound_s, mesh_ms, edgepipe } = self;
        let gap = if *bound_s > 0.0 { 100.0 * (mesh_s / bound_s - 1.0) } else { 0.0 };
        let theirs = edgepipe.as_deref().unwrap_or("EdgePipe's programme has an answer, too");
        format!(
            "Sixteen boards that all differ: Mesh plans {mesh_s:.4} s in {mesh_ms:.0} ms, {gap:.1} % above its bound. \
             {theirs}."
        )
    }
}

fn row(profiles: &Profiles, case: &Case) -> Row {
    let problem = problem(profiles, &case.model, &case.devices, case.mbps);
    let start = Instant::now();
    let mesh = solve(&problem, DEFAULT_STEPS).ok().filter(|plan| check(&problem, plan).is_ok());
    let mesh_ms = start.elapsed().as_secs_f64() * 1e3;
    let bottleneck = |plan: mesh_planner::Plan| plan.bottleneck_s;
    let published = case.published_tool.as_ref().map(Schedule::stages);
    Row {
        model: case.model.clone(),
        mb: case.devices.get("mb").copied().unwrap_or(0),
        rcc: case.devices.get("rcc").copied().unwrap_or(0),
        mbps: case.mbps,
        mesh_optimal: mesh.as_ref().is_some_and(|plan| plan.optimal),
        mesh_s: mesh.map(bottleneck),
        mesh_ms,
        optimum_s: case.result.as_ref().map(|result| result.bottleneck_s),
        edgepipe_s: plan(Policy::Edgepipe, &problem, &Choices::default()).ok().map(bottleneck),
        published_tool_s: published.and_then(|stages| cost(&problem, stages).ok()).map(bottleneck),
    }
}

/// The rows as a Markdown table, and what they come to.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| model | mb | rcc | Mbit/s | optimum s | mesh s | planned in ms | edgepipe s | published tool s | mesh against it |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    let seconds = |value: Option<f64>| value.map_or_else(|| "does not fit".to_owned(), |s| format!("{s:.4}"));
    for row in rows {
        let gain = row.published_tool_s.zip(row.mesh_s).map(|(tool, mesh)| format!("{:.2}x", tool / mesh));
        let tool = row.published_tool_s.map_or_else(String::new, |s| format!("{s:.4}"));
        let model = row.model.trim_start_matches("google/").trim_end_matches("-patch16-224");
        let _ = writeln!(
            text,
            "| {model} | {} | {} | {} | {} | {} | {:.1} | {} | {tool} | {} |",
            row.mb,
            row.rcc,
            row.mbps,
            seconds(row.optimum_s),
            seconds(row.mesh_s),
            row.mesh_ms,
            seconds(row.edgepipe_s),
            gain.unwrap_or_default()
        );
    }
    let near = |row: &&Row| match (row.mesh_s, row.optimum_s) {
        (Some(mesh), Some(best)) => (mesh - best).abs() <= 1e-6 * best,
        (mesh, best) => mesh.is_none() && best.is_none(),
    };
    let mixed: Vec<&Row> = rows.iter().filter(|row| row.published_tool_s.is_some()).collect();
    let ahead = |row: &&&Row| row.mesh_s < row.published_tool_s.map(|s| s * (1.0 - 1e-6));
    let _ = writeln!(
        text,
        "\nMesh equals the known optimum in {} of {} cases and beats the published tool in {} of {} mixed ones.",
        rows.iter().filter(near).count(),
        rows.len(),
        mixed.iter().filter(ahead).count(),
        mixed.len()
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policies::edgepipe::own_cost;

    #[test]
    fn edgepipe_finds_the_known_optimum_of_every_case() {
        let profiles = profiles();
        let cases = cases();
        assert_eq!(cases.len(), 62);
        for case in &cases {
            let problem = problem(&profiles, &case.model, &case.devices, case.mbps);
            match (edgepipe(&problem), &case.result) {
                (Ok(stages), Some(best)) => {
                    let found = own_cost(&problem, &stages);
                    assert!((found - best.bottleneck_s).abs() <= 1e-9 * found, "{case:?}: {found}");
                }
                (Err(_), None) => {}
                (found, _) => panic!("{case:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn known_schedules_cost_what_they_are_said_to() {
        let profiles = profiles();
        let mut tools = 0;
        for case in &cases() {
            let problem = problem(&profiles, &case.model, &case.devices, case.mbps);
            tools += usize::from(case.published_tool.is_some());
            for schedule in case.result.iter().chain(&case.published_tool) {
                let plan = cost(&problem, schedule.stages()).unwrap();
                let (found, said) = (plan.bottleneck_s, schedule.bottleneck_s);
                assert!((found - said).abs() <= 1e-9 * said, "{case:?}: {found}");
                assert!((own_cost(&problem, &schedule.stages()) - said).abs() <= 1e-9 * said);
            }
        }
        assert_eq!(tools, 14);
    }

    /// The published tool gives the small board layers that it cannot hold, and ends in a fault when a type between
    /// two others has no board.
    #[test]
    fn inputs_that_the_published_tool_fails_on_have_right_answers() {
        let profiles = profiles();
        let mixed = BTreeMap::from([("mb".to_owned(), 1), ("rcc".to_owned(), 2)]);
        let mut small = problem(&profiles, "google/vit-base-patch16-224", &mixed, 1000.0);
        small.devices[0].memory_bytes = (384.0 * MEGA) as u64;
        let mut gap = problem(&profiles, "google/vit-base-patch16-224", &mixed, 1000.0);
        gap.devices.remove(2);
        for problem in [small, gap] {
            let mesh = solve(&problem, DEFAULT_STEPS).unwrap();
            check(&problem, &mesh).unwrap();
            assert!(mesh.optimal);
            let edgepipe = plan(Policy::Edgepipe, &problem, &Choices::default()).unwrap();
            assert!((mesh.bottleneck_s - edgepipe.bottleneck_s).abs() <= 1e-9 * mesh.bottleneck_s);
        }
    }
}
