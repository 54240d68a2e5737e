//! A plan as a picture: stages from left to right with their devices, what is handed on between them, and the resource
//! that sets the rate in colour. SVG, on white.

use std::fmt::Write;

use mesh_planner::{BottleneckKind, Stage};

use super::{name_of, named};
use crate::{app::PlanDocument, cli::output, status::Status};

const BOX_WIDTH: usize = 200;
/// Between two stages in a row.
const GAP: usize = 96;
const ROW_GAP: usize = 40;
const MARGIN: usize = 24;
const LINE: usize = 17;
/// Height of a stage's own lines, above those of its devices.
const HEAD: usize = 66;
const TOP: usize = 82;
/// Stages in a row.
const COLUMNS: usize = 5;
/// Devices of a stage that are named; the rest is counted.
const NAMED_MAX: usize = 12;
/// Characters of a device's name that fit.
const NAME_MAX: usize = 18;

/// Draws a plan, with the names of the devices that `status` knows.
pub(super) fn draw(document: &PlanDocument, status: &Status) -> String {
    let plan = &document.plan;
    let rows: Vec<&[Stage]> = plan.stages.chunks(COLUMNS).collect();
    let heights: Vec<usize> = rows.iter().map(|row| row.iter().map(height).max().unwrap_or(0)).collect();
    let columns = plan.stages.len().clamp(2, COLUMNS);
    let width = 2 * MARGIN + columns * BOX_WIDTH + (columns - 1) * GAP + GAP;
    let unused = plan.unused.len();
    let body: usize = heights.iter().map(|height| height + ROW_GAP).sum();
    let height = TOP + body + unused * LINE + MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"13\" fill=\"#1f2933\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    let title = format!("{} plan {}", document.name, document.epoch);
    text(&mut svg, (MARGIN, 32), "font-size=\"18\" font-weight=\"bold\"", &title);
    text(&mut svg, (MARGIN, 56), "fill=\"#52606d\"", &summary(document, status));
    let mut y = TOP;
    let mut index = 0;
    for (row, height) in rows.iter().zip(&heights) {
        for (column, stage) in row.iter().enumerate() {
            let x = MARGIN + column * (BOX_WIDTH + GAP);
            let is_last = index + 1 == plan.stages.len();
            draw_stage(&mut svg, (x, y), (index, stage), document, status);
            draw_hop(&mut svg, (x + BOX_WIDTH, y), (index, stage), document, is_last);
            index += 1;
        }
        y += height + ROW_GAP;
    }
    for unused in &plan.unused {
        let line = format!("unused: {}: {}", name_of(status, &unused.device), unused.reason);
        text(&mut svg, (MARGIN, y), "fill=\"#52606d\"", &line);
        y += LINE;
    }
    svg.push_str("</svg>\n");
    svg
}

fn summary(document: &PlanDocument, status: &Status) -> String {
    let plan = &document.plan;
    let gap = (plan.bottleneck_s / plan.lower_bound_s - 1.0) * 100.0;
    let quality = match plan.optimal {
        true => "optimal".to_owned(),
        false if gap.is_finite() => format!("within {:.1} % of what any plan can do", gap.max(0.0)),
        false => "no bound known".to_owned(),
    };
    let lift = document
        .lifts
        .first()
        .map_or(String::new(), |lift| format!("; {}", named(status, &lift.to_string())));
    format!(
        "{} predicted, {} for one request; {quality}{lift}",
        output::rate(plan.throughput_rps),
        output::millis(plan.latency_s * 1e3)
    )
}

fn height(stage: &Stage) -> usize {
    let named = stage.replicas.len().min(NAMED_MAX) + usize::from(stage.replicas.len() > NAMED_MAX);
    HEAD + (named + stage.standbys.len()).saturating_sub(1) * LINE + 12
}

fn draw_stage(
    svg: &mut String,
    (x, y): (usize, usize),
    (index, stage): (usize, &Stage),
    document: &PlanDocument,
    status: &Status,
) {
    let bottleneck = &document.plan.bottleneck;
    let is_limit = |device: &str| bottleneck.kind == BottleneckKind::Compute && bottleneck.device == device;
    let limits = bottleneck.stage == index && stage.replicas.iter().any(|r| is_limit(&r.device));
    let (fill, edge) = if limits { ("#fff3e0", "#d9480f") } else { ("#f1f5f9", "#829ab1") };
    let _ = writeln!(
        svg,
        "<rect x=\"{x}\" y=\"{y}\" width=\"{BOX_WIDTH}\" height=\"{}\" rx=\"6\" fill=\"{fill}\" stroke=\"{edge}\"/>",
        height(stage)
    );
    let title = format!("stage {index}: blocks {} to {}", stage.first_block, stage.last_block);
    text(svg, (x + 10, y + 22), "font-weight=\"bold\"", &title);
    let cost = format!("{}, {}", output::millis(stage.compute_s * 1e3), output::bytes(stage.weight_bytes));
    text(svg, (x + 10, y + 42), "fill=\"#52606d\"", &cost);
    for (line, replica) in stage.replicas.iter().take(NAMED_MAX).enumerate() {
        let name: String = name_of(status, &replica.device).chars().take(NAME_MAX).collect();
        let colour = if limits && is_limit(&replica.device) { "fill=\"#d9480f\"" } else { "" };
        let at = y + HEAD + line * LINE;
        text(svg, (x + 10, at), colour, &name);
        if stage.replicas.len() > 1 {
            let share = format!("{:.0} %", replica.share * 100.0);
            text(svg, (x + BOX_WIDTH - 10, at), &format!("text-anchor=\"end\" {colour}"), &share);
        }
    }
    if stage.replicas.len() > NAMED_MAX {
        let more = format!("and {} more", stage.replicas.len() - NAMED_MAX);
        text(svg, (x + 10, y + HEAD + NAMED_MAX * LINE), "fill=\"#52606d\"", &more);
    }
    for (line, id) in stage.standbys.iter().enumerate() {
        let at = y + height(stage) - 12 - line * LINE;
        let name: String = name_of(status, id).chars().take(NAME_MAX).collect();
        text(svg, (x + 10, at), "fill=\"#829ab1\"", &format!("{name} stands by"));
    }
}

/// The arrow from a stage to the next one, or with the answer back to where the request came from.
fn draw_hop(
    svg: &mut String,
    (x, y): (usize, usize),
    (index, stage): (usize, &Stage),
    document: &PlanDocument,
    is_last: bool,
) {
    let bottleneck = &document.plan.bottleneck;
    let limits = bottleneck.kind != BottleneckKind::Compute && bottleneck.stage == index;
    let colour = if limits { "#d9480f" } else { "#52606d" };
    let (end, middle, at) = (x + GAP - 8, x + GAP / 2, y + 34);
    let _ = writeln!(
        svg,
        "<path d=\"M{} {at}H{end}m-7 -4l7 4l-7 4\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>",
        x + 6
    );
    let style = format!("text-anchor=\"middle\" font-size=\"11\" fill=\"{colour}\"");
    text(svg, (middle, at - 8), &style, &output::bytes(stage.output_bytes));
    let below = if is_last { "answer".to_owned() } else { output::millis(stage.hop_s * 1e3) };
    text(svg, (middle, at + 18), &style, &below);
}

fn text(svg: &mut String, (x, y): (usize, usize), style: &str, content: &str) {
    let escaped = content.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(svg, "<text x=\"{x}\" y=\"{y}\" {style}>{escaped}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(stages: usize, replicas: usize) -> PlanDocument {
        let stage = |index: usize| {
            let replica =
                |r: usize| serde_json::json!({"device": format!("id<{r}>"), "share": 1.0 / replicas as f64});
            serde_json::json!({
                "first_block": index, "last_block": index, "compute_s": 0.01, "hop_s": 0.001, "output_bytes": 1000,
                "weight_bytes": 1 << 20, "replicas": (0..replicas).map(replica).collect::<Vec<_>>(), "standbys": ["id<8>"],
            })
        };
        let plan = serde_json::json!({
            "name": "r&d", "epoch": 3, "bottleneck_s": 0.01, "throughput_rps": 100.0, "latency_s": 0.02,
            "bottleneck": {"kind": "link", "stage": 1, "device": "id<0>"}, "lower_bound_s": 0.009, "optimal": false,
            "why": "", "alternatives": [], "unused": [{"device": "id<9>", "reason": "too slow"}],
            "stages": (0..stages).map(stage).collect::<Vec<_>>(),
            "lifts": [{"what": "a faster link to id<0>", "gain": 0.38}],
        });
        serde_json::from_value(plan).unwrap()
    }

    #[test]
    fn a_picture_is_well_formed_and_inside_its_frame() {
        let status: Status = serde_json::from_value(serde_json::json!({
            "cluster": {"name": "", "id": "", "term": 0, "leader": "", "quorum": true},
            "this_node": "", "nodes": [], "deployments": [], "warnings": [],
        }))
        .unwrap();
        for (stages, replicas) in [(1, 1), (2, 3), (7, 2), (3, 40)] {
            let svg = draw(&document(stages, replicas), &status);
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
            assert!(!svg.contains("id<") && svg.contains("r&amp;d"), "{svg}");
            let number = |text: &str, key: &str| -> Option<usize> {
                let rest = text.split(&format!(" {key}=\"")).nth(1)?;
                rest.split('"').next()?.parse().ok()
            };
            let (width, height) = (number(&svg, "width").unwrap(), number(&svg, "height").unwrap());
            for line in svg.lines().filter(|line| line.starts_with("<text") || line.starts_with("<rect x")) {
                let (x, y) = (number(line, "x").unwrap(), number(line, "y").unwrap());
                assert!(x < width && y < height, "{line} outside of {width} x {height}");
            }
        }
    }
}
