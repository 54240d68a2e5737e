//! Lines over numbers of devices.

use plotters::prelude::*;

use super::{
    Labels, PlotError,
    frame::{self, GREY, said},
};

/// Points joined by lines.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// For the legend.
    pub name: String,
    /// From left to right.
    pub points: Vec<(f64, f64)>,
}

/// Lines over x, with ticks where there are points. `ideal`: the slope of a dashed line from the origin, such as 1.0
/// for speed that grows with the number of devices.
pub fn lines(labels: &Labels<'_>, series: &[Line], ideal: Option<f64>) -> Result<String, PlotError> {
    let points = || series.iter().flat_map(|line| line.points.iter().copied());
    if points().next().is_none() || points().any(|(x, y)| !x.is_finite() || !y.is_finite()) {
        return Err(PlotError::Nothing {
            title: labels.title.to_owned(),
            why: "no points, or not all finite",
        });
    }
    let mut ticks: Vec<f64> = points().map(|(x, _)| x).collect();
    ticks.sort_by(f64::total_cmp);
    ticks.dedup();
    let right = points().map(|(x, _)| x).fold(0.0, f64::max);
    let ideal_end = ideal.map_or(0.0, |slope| slope * right);
    let above = frame::top(points().map(|(_, y)| y).fold(ideal_end, f64::max));
    let mut legend: Vec<_> =
        series.iter().enumerate().map(|(n, line)| (line.name.clone(), frame::colour(n))).collect();
    if ideal.is_some() {
        legend.push(("ideal".to_owned(), GREY));
    }
    frame::framed(labels, &legend, |area| {
        let mut chart = frame::chart(area, labels, (frame::top(right), above), 0, false)?;
        for x in ticks {
            frame::tick(area, &chart, x, &frame::short(x))?;
        }
        if ideal.is_some() {
            let ends = [(0.0, 0.0), (right, ideal_end)];
            chart.draw_series(DashedLineSeries::new(ends, 6, 5, GREY.stroke_width(2))).map_err(said)?;
        }
        for (number, line) in series.iter().enumerate() {
            let colour = frame::colour(number);
            let points = line.points.iter().copied();
            chart.draw_series(LineSeries::new(points.clone(), colour.stroke_width(3))).map_err(said)?;
            chart.draw_series(points.map(|at| Circle::new(at, 4, colour.filled()))).map_err(said)?;
        }
        Ok(())
    })
}
