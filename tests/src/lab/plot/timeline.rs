//! What happened when: rates second by second, with events.

use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{
    Labels, PlotError,
    frame::{self, Failure, INK, SMALL, said},
};

/// A rate over time.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// For the legend.
    pub name: String,
    /// Begin of each bin in seconds, and its value. A bin lasts until the next, the last one as long as the first.
    pub bins: Vec<(f64, f64)>,
}

/// Rows for the names of events: neighbours do not write over each other.
const ROWS: usize = 4;
const ROW: i32 = 17;

/// Curves in steps, with a vertical line and a name for each event in `marks`.
pub fn timeline(labels: &Labels<'_>, curves: &[Curve], marks: &[(f64, String)]) -> Result<String, PlotError> {
    let bins = || curves.iter().flat_map(|curve| curve.bins.iter().copied());
    let finite = |(at, value): (f64, f64)| at.is_finite() && value.is_finite();
    if bins().next().is_none() || !bins().all(finite) || marks.iter().any(|(at, _)| !at.is_finite()) {
        return Err(PlotError::Nothing { title: labels.title.to_owned(), why: "no bins, or not all finite" });
    }
    let last_mark = marks.iter().map(|(at, _)| *at).fold(0.0, f64::max);
    let right = curves.iter().map(|curve| end(&curve.bins)).fold(last_mark, f64::max);
    let above = frame::top(bins().map(|(_, value)| value).fold(0.0, f64::max));
    let legend: Vec<_> =
        curves.iter().enumerate().map(|(n, curve)| (curve.name.clone(), frame::colour(n))).collect();
    frame::framed(labels, &legend, |area| {
        let rows = ROW * marks.len().min(ROWS) as i32 + 6;
        let mut chart = frame::chart(area, labels, (right.max(1e-3), above), rows, true)?;
        for (number, curve) in curves.iter().enumerate() {
            let colour = frame::colour(number).stroke_width(2);
            chart.draw_series(LineSeries::new(steps(&curve.bins), colour)).map_err(said)?;
        }
        for (at, _) in marks {
            let ends = [(*at, 0.0), (*at, above)];
            chart.draw_series(DashedLineSeries::new(ends, 4, 4, INK.stroke_width(1))).map_err(said)?;
        }
        let pixel = |at: f64| chart.backend_coord(&(at, above));
        name(area, marks, pixel)
    })
}

/// Writes the names of events above the plot, each in the first row where there is room for it.
fn name(
    area: &frame::Area<'_>,
    marks: &[(f64, String)],
    pixel: impl Fn(f64) -> (i32, i32),
) -> Result<(), Failure> {
    let (left, top) = area.get_base_pixel();
    let right = area.dim_in_pixel().0 as i32;
    let mut in_order: Vec<&(f64, String)> = marks.iter().collect();
    in_order.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut taken = [i32::MIN; ROWS];
    for (at, label) in in_order {
        let (x, y) = pixel(*at);
        let wide = frame::width(label, SMALL);
        // Kept within the picture.
        let x = (x - left).min(right - wide / 2 - 4).max(wide / 2 + 4);
        let row = taken.iter().position(|end| x - wide / 2 > *end + 6);
        // Where there is room in none, the one with the most.
        let row = row.unwrap_or_else(|| (0..ROWS).min_by_key(|row| taken[*row]).unwrap_or_default());
        taken[row] = x + wide / 2;
        let style = frame::text(SMALL, Pos::new(HPos::Center, VPos::Bottom));
        let at = (x, y - top - 4 - ROW * row as i32);
        area.draw(&Text::new(label.clone(), at, style)).map_err(said)?;
    }
    Ok(())
}

/// Where the last bin ends.
fn end(bins: &[(f64, f64)]) -> f64 {
    let width = bins.windows(2).next().map_or(1.0, |pair| pair[1].0 - pair[0].0);
    bins.last().map_or(0.0, |(at, _)| at + width)
}

fn steps(bins: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let ends = bins.iter().skip(1).map(|(at, _)| *at).chain([end(bins)]);
    bins.iter().zip(ends).flat_map(|((at, value), end)| [(*at, *value), (end, *value)]).collect()
}
