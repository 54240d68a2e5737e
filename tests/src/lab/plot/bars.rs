//! Bars side by side: policies, in groups of cases.

use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{
    Labels, PlotError,
    frame::{self, SMALL, said},
};

/// One case, with a value for each policy that has one.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Below its bars.
    pub name: String,
    /// One for each name of the legend, in that order; `None` leaves a gap.
    pub values: Vec<Option<f64>>,
}

/// A group of bars for each case, a bar in it for each of `names`, with its value above it.
pub fn bars(labels: &Labels<'_>, names: &[String], groups: &[Group]) -> Result<String, PlotError> {
    let values = || groups.iter().flat_map(|group| group.values.iter().take(names.len()).flatten().copied());
    if values().next().is_none() || values().any(|value| !value.is_finite() || value < 0.0) {
        let why = "no values, or not all finite and positive";
        return Err(PlotError::Nothing { title: labels.title.to_owned(), why });
    }
    let above = frame::top(values().fold(0.0, f64::max)) * 1.04;
    let legend: Vec<_> = names.iter().enumerate().map(|(n, name)| (name.clone(), frame::colour(n))).collect();
    frame::framed(labels, &legend, |area| {
        let mut chart = frame::chart(area, labels, (groups.len() as f64, above), 0, false)?;
        // A fifth of each group's room stays free.
        let wide = 0.8 / names.len() as f64;
        let size = if names.len() * groups.len() > 16 { 13 } else { SMALL };
        for (place, group) in groups.iter().enumerate() {
            for (number, value) in group.values.iter().enumerate().take(names.len()) {
                let Some(value) = *value else { continue };
                let left = place as f64 + 0.1 + wide * number as f64;
                let corners = [(left + wide * 0.06, 0.0), (left + wide * 0.94, value)];
                let bar = Rectangle::new(corners, frame::colour(number).filled());
                chart.draw_series([bar]).map_err(said)?;
                let style = frame::text(size, Pos::new(HPos::Center, VPos::Bottom));
                let at = (left + wide / 2.0, value + above * 0.008);
                chart.draw_series([Text::new(frame::short(value), at, style)]).map_err(said)?;
            }
            frame::tick(area, &chart, place as f64 + 0.5, &group.name)?;
        }
        Ok(())
    })
}
