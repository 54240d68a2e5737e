//! Plots for the documentation, as SVG: small, on white, readable on light and dark pages, in the reader's own
//! `sans-serif`. The same numbers give the same bytes.

mod bars;
mod frame;
mod lines;
mod timeline;

pub use bars::{Group, bars};
pub use lines::{Line, lines};
pub use timeline::{Curve, timeline};

/// What stands around a plot.
#[derive(Debug, Clone, Copy)]
pub struct Labels<'a> {
    /// Above it.
    pub title: &'a str,
    /// Below it.
    pub x: &'a str,
    /// At its left.
    pub y: &'a str,
}

/// Why there is no plot.
#[derive(Debug, thiserror::Error)]
pub enum PlotError {
    /// Nothing to be seen.
    #[error("the plot \"{title}\" has nothing to show: {why}")]
    Nothing {
        /// Its title.
        title: String,
        /// What is missing.
        why: &'static str,
    },
    /// The drawing failed.
    #[error("the plot \"{title}\" cannot be drawn: {why}")]
    Drawing {
        /// Its title.
        title: String,
        /// What the drawing library says.
        why: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABELS: Labels<'_> = Labels { title: "Speed & <ratio>", x: "devices", y: "times one device" };

    /// Well-formed as far as text goes, on white, in no other font, and the same each time.
    fn check(draw: impl Fn() -> Result<String, PlotError>, shown: &[&str]) {
        let svg = draw().expect("it is drawn");
        assert_eq!(svg, draw().expect("it is drawn again"));
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        assert!(svg.contains("Speed &amp; &lt;ratio&gt;"), "special characters are escaped");
        assert!(svg.contains("fill=\"#FFFFFF\""), "it has a white background");
        for family in svg.split("font-family=\"").skip(1) {
            assert!(family.starts_with("sans-serif\""), "{family}");
        }
        for text in shown {
            assert!(svg.contains(text), "{text} is missing");
        }
        if let Ok(folder) = std::env::var("MESH_PLOTS") {
            let file = std::path::Path::new(&folder).join(format!("{}.svg", shown[0]));
            let mut file = std::fs::File::create(file).expect("the folder is there");
            std::io::Write::write_all(&mut file, svg.as_bytes()).expect("it is written");
        }
    }

    fn line(name: &str, points: &[(f64, f64)]) -> Line {
        Line { name: name.to_owned(), points: points.to_vec() }
    }

    #[test]
    fn lines_show_every_series_and_the_ideal() {
        let series = [
            line("Mesh", &[(1.0, 1.0), (4.0, 3.9), (6.0, 5.7), (8.0, 7.4)]),
            line("DEFER's cuts", &[(1.0, 1.0), (4.0, 2.1), (6.0, 2.2), (8.0, 2.4)]),
            line("random", &[(4.0, 1.4), (8.0, 1.2)]),
        ];
        check(|| lines(&LABELS, &series, Some(1.0)), &["Mesh", "random", "ideal", "times one device"]);
        assert!(lines(&LABELS, &[], None).is_err());
        let bad = [line("nan", &[(1.0, f64::NAN)])];
        assert!(lines(&LABELS, &bad, None).is_err());
        check(|| lines(&LABELS, &[line("one point", &[(3.0, 0.0)])], None), &["one point"]);
    }

    #[test]
    fn bars_show_every_policy_in_every_group() {
        let names = ["Mesh", "EdgePipe", "PipeDream", "random"].map(str::to_owned);
        let group =
            |name: &str, values: &[Option<f64>]| Group { name: name.to_owned(), values: values.to_vec() };
        let groups = [
            group("equal devices", &[Some(7.4), Some(7.1), Some(7.2), Some(3.0)]),
            group("unequal devices", &[Some(6.4), Some(5.9), Some(1.9), Some(0.7)]),
            group("slow links", &[Some(4.1), Some(3.9), None, Some(0.25)]),
        ];
        check(|| bars(&LABELS, &names, &groups), &["PipeDream", "slow links", "7.4", "0.25"]);
        assert!(bars(&LABELS, &[], &groups).is_err());
        assert!(bars(&LABELS, &names, &[group("none", &[None, None, None, None])]).is_err());
    }

    #[test]
    fn timelines_show_curves_and_events() {
        let answers = (0..40)
            .map(|s| (f64::from(s), if (12..15).contains(&s) { 4.0 } else { 80.0 + f64::from(s % 5) }));
        let errors = (0..40).map(|s| (f64::from(s), if s == 12 { 6.0 } else { 0.0 }));
        let curves = [
            Curve { name: "answers".to_owned(), bins: answers.collect() },
            Curve { name: "errors".to_owned(), bins: errors.collect() },
        ];
        let marks = [
            (12.3, "kill device-3".to_owned()),
            (13.9, "kill device-4".to_owned()),
            (25.0, "back".to_owned()),
        ];
        check(|| timeline(&LABELS, &curves, &marks), &["answers", "errors", "kill device-3", "back"]);
        assert!(timeline(&LABELS, &[], &marks).is_err());
    }
}
