//! What all plots have in common: size, colours, title, legend.

use plotters::{
    chart::ChartContext,
    coord::{Shift, types::RangedCoordf64},
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{Labels, PlotError};

const SIZE: (u32, u32) = (720, 420);
const TITLE: i32 = 21;
pub(super) const SMALL: i32 = 16;
const TITLE_ROOM: u32 = 34;
const LEGEND_ROOM: u32 = 22;
/// Width of a letter as a part of the size asked for, which is a quarter more than what is drawn: an average of
/// sans-serif fonts, rather too wide.
const LETTER: f64 = 0.47;

/// Okabe and Ito's colours, which colour-blind people can tell apart.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
];
pub(super) const GREY: RGBColor = RGBColor(130, 130, 130);
const FAINT: RGBColor = RGBColor(225, 225, 225);
pub(super) const INK: RGBColor = RGBColor(30, 30, 30);

pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
pub(super) type Chart<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The colour of the `number`th series.
pub(super) fn colour(number: usize) -> RGBColor {
    COLOURS[number % COLOURS.len()]
}

/// Text in the reader's own font.
pub(super) fn text(size: i32, anchor: Pos) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK).pos(anchor)
}

pub(super) fn middle() -> Pos {
    Pos::new(HPos::Center, VPos::Center)
}

/// Width of a text, roughly.
pub(super) fn width(text: &str, size: i32) -> i32 {
    (text.chars().count() as f64 * f64::from(size) * LETTER) as i32
}

/// Draws background, title and legend, and lets `draw` do the rest.
pub(super) fn framed(
    labels: &Labels<'_>,
    legend: &[(String, RGBColor)],
    draw: impl for<'a> FnOnce(&Area<'a>) -> Result<(), Failure>,
) -> Result<String, PlotError> {
    let mut svg = String::new();
    let failed = |why: Failure| PlotError::Drawing { title: labels.title.to_owned(), why: why.to_string() };
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        head(&root, labels, legend).and_then(|chart| draw(&chart)).map_err(failed)?;
        root.present().map_err(|error| failed(error.into()))?;
    }
    Ok(svg)
}

/// Returns the room below title and legend.
fn head<'a>(
    root: &Area<'a>,
    labels: &Labels<'_>,
    legend: &[(String, RGBColor)],
) -> Result<Area<'a>, Failure> {
    root.fill(&WHITE).map_err(said)?;
    let at = (SIZE.0 as i32 / 2, TITLE_ROOM as i32 / 2 + 2);
    root.draw(&Text::new(labels.title.to_owned(), at, text(TITLE, middle()))).map_err(said)?;
    let mut rows: Vec<Vec<(i32, &(String, RGBColor))>> = vec![Vec::new()];
    let (mut x, limit) = (0, SIZE.0 as i32 - 40);
    for entry in legend {
        let wide = 24 + width(&entry.0, SMALL) + 14;
        if x + wide > limit && x > 0 {
            rows.push(Vec::new());
            x = 0;
        }
        if let Some(row) = rows.last_mut() {
            row.push((x, entry));
        }
        x += wide;
    }
    for (number, row) in rows.iter().enumerate() {
        let end = row.last().map_or(0, |(x, entry)| x + 24 + width(&entry.0, SMALL));
        let (left, y) = ((SIZE.0 as i32 - end) / 2, (TITLE_ROOM + LEGEND_ROOM * number as u32) as i32 + 8);
        for (x, (name, colour)) in row {
            let x = left + x;
            root.draw(&Rectangle::new([(x, y - 5), (x + 18, y + 5)], colour.filled())).map_err(said)?;
            let style = text(SMALL, Pos::new(HPos::Left, VPos::Center));
            root.draw(&Text::new(name.clone(), (x + 24, y), style)).map_err(said)?;
        }
    }
    let room = TITLE_ROOM + if legend.is_empty() { 0 } else { LEGEND_ROOM * rows.len() as u32 };
    Ok(root.split_vertically(room).1)
}

/// Both axes from 0 to `right` and `above`, with `over` pixels left free over the plot. `numbers`: whether x has a
/// tick at every round number; `tick` sets them one by one otherwise.
pub(super) fn chart<'a>(
    area: &Area<'a>,
    labels: &Labels<'_>,
    (right, above): (f64, f64),
    over: i32,
    numbers: bool,
) -> Result<Chart<'a>, Failure> {
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .margin_top(over.max(10))
        .margin_right(18)
        .x_label_area_size(48)
        .y_label_area_size(58)
        .build_cartesian_2d(0.0..right, 0.0..above)
        .map_err(said)?;
    let mut mesh = chart.configure_mesh();
    if !numbers {
        mesh.disable_x_mesh().x_labels(0);
    }
    mesh.light_line_style(TRANSPARENT)
        .bold_line_style(FAINT)
        .axis_style(GREY)
        .y_labels(8)
        .x_label_formatter(&|x| short(*x))
        .y_label_formatter(&|y| short(*y))
        .label_style(("sans-serif", SMALL).into_font().color(&INK))
        .axis_desc_style(("sans-serif", SMALL).into_font().color(&INK))
        .x_desc(labels.x)
        .y_desc(labels.y)
        .draw()
        .map_err(said)?;
    Ok(chart)
}

/// Writes `name` below the x axis.
pub(super) fn tick(area: &Area<'_>, chart: &Chart<'_>, x: f64, name: &str) -> Result<(), Failure> {
    let (x, y) = chart.backend_coord(&(x, 0.0));
    let (left, top) = area.get_base_pixel();
    let style = text(SMALL, Pos::new(HPos::Center, VPos::Top));
    area.draw(&Text::new(name.to_owned(), (x - left, y - top + 8), style)).map_err(said)
}

/// What the drawing library says.
pub(super) fn said(error: DrawingAreaErrorKind<std::io::Error>) -> Failure {
    error.to_string().into()
}

/// The end of an axis from 0 that holds `largest` and some room above it.
pub(super) fn top(largest: f64) -> f64 {
    if largest > 0.0 { largest * 1.08 } else { 1.0 }
}

/// A number with as many digits as it needs to be told from others.
pub(super) fn short(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 || v == 0.0 => 0,
        v if v >= 1.0 => 1,
        v if v >= 0.01 => 2,
        _ => return format!("{value:.1e}"),
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}
