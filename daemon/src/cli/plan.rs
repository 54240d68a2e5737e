//! `mesh plan`: how a model is cut and placed, and why.

use std::{fmt::Write, fs::File, io::Write as _, path::Path};

use mesh_planner::{BottleneckKind, Lift, Plan as PlacedPlan};

use super::{
    args::{Global, Plan},
    client::{self, Client},
    exit::CliError,
    output::{self, Paint, Table, paint},
};
use crate::{
    app::{PlanDocument, ProblemDocument},
    status::Status,
};

mod picture;

pub(super) fn run(global: &Global, args: &Plan) -> Result<(), CliError> {
    let client = Client::new(global)?;
    if args.problem {
        let path = format!("/api/plan/{}?problem=1", client::segment(&args.name));
        let document: ProblemDocument = client.get(&path)?;
        if document.rebuilt {
            output::note(
                "the device that made the plan does not remember from what: this is what a plan would be made from now",
            );
        }
        return client::print_json(&document);
    }
    let path = format!("/api/plan/{}?lifts=1", client::segment(&args.name));
    let document: PlanDocument = client.get(&path)?;
    if args.json {
        return client::print_json(&document);
    }
    let status: Status = client.get("/api/status")?;
    if let Some(path) = &args.svg {
        return draw(&document, &status, path);
    }
    let head = format!("{} plan {}\n", paint(Paint::Bold, &document.name), document.epoch);
    output::print(&(head + &describe(&document.plan, &document.lifts, &status)))
}

fn draw(document: &PlanDocument, status: &Status, path: &Path) -> Result<(), CliError> {
    let picture = picture::draw(document, status);
    let written = File::create(path).and_then(|mut file| file.write_all(picture.as_bytes()));
    written.map_err(|error| CliError::because(format!("{} cannot be written", path.display()), &error))?;
    output::note(&format!("{} shows plan {} of {}", path.display(), document.epoch, document.name));
    Ok(())
}

/// A plan in words and tables, with the names of the devices that `status` knows.
pub(super) fn describe(plan: &PlacedPlan, lifts: &[Lift], status: &Status) -> String {
    let name = |id: &str| name_of(status, id);
    let mut text = format!("{}\n\n", named(status, &plan.why));
    let mut table = Table::new(&["STAGE", "BLOCKS", "DEVICES", "WEIGHTS", "COMPUTE", "SENDS", "HOP"]);
    for (index, stage) in plan.stages.iter().enumerate() {
        let devices: Vec<String> = stage
            .replicas
            .iter()
            .map(|replica| match stage.replicas.len() {
                1 => name(&replica.device),
                _ => format!("{} {:.0} %", name(&replica.device), replica.share * 100.0),
            })
            .chain(stage.standbys.iter().map(|id| format!("({} stands by)", name(id))))
            .collect();
        table.row(vec![
            index.to_string(),
            format!("{}-{}", stage.first_block, stage.last_block),
            devices.join(", "),
            output::bytes(stage.weight_bytes),
            output::millis(stage.compute_s * 1e3),
            output::bytes(stage.output_bytes),
            output::millis(stage.hop_s * 1e3),
        ]);
    }
    text.push_str(&table.render(0));
    let limit = match plan.bottleneck.kind {
        BottleneckKind::Compute => "the processor of",
        BottleneckKind::Link => "the link from",
        BottleneckKind::Card => "the network card of",
    };
    let _ = write!(
        text,
        "\nPredicted: {} and {} for one request; limited by {limit} {} (stage {}).\n",
        output::rate(plan.throughput_rps),
        output::millis(plan.latency_s * 1e3),
        name(&plan.bottleneck.device),
        plan.bottleneck.stage
    );
    text.push_str(&alternatives(plan));
    if !lifts.is_empty() {
        text.push_str("\nWhat would lift it:\n");
        for lift in lifts {
            let _ = writeln!(text, "  {}", named(status, &lift.to_string()));
        }
    }
    for unused in &plan.unused {
        let _ = writeln!(text, "Unused: {}: {}", name(&unused.device), unused.reason);
    }
    text
}

fn alternatives(plan: &PlacedPlan) -> String {
    if plan.alternatives.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["CONSIDERED", "RATE", "ONE REQUEST", ""]);
    for other in &plan.alternatives {
        let (rate, latency) = match other.infeasible {
            Some(_) => ("-".to_owned(), "-".to_owned()),
            None => (output::rate(other.throughput_rps), output::millis(other.latency_s * 1e3)),
        };
        table.row(vec![other.what.clone(), rate, latency, other.infeasible.clone().unwrap_or_default()]);
    }
    format!("\n{}", table.render(0))
}

/// A text of the planner, which knows devices by their ids only.
fn named(status: &Status, text: &str) -> String {
    status.nodes.iter().fold(text.to_owned(), |text, node| text.replace(&node.id, &node.name))
}

/// A device's name, or the end of its id when it is not known.
pub(super) fn name_of(status: &Status, id: &str) -> String {
    let node = status.nodes.iter().find(|node| node.id == id);
    node.map_or_else(|| output::short_id(id), |node| node.name.clone())
}
