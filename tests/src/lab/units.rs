//! Quantities as people write them in a scenario: `"100Mbit"`, `"20ms"`, `"512MiB"`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Bits per second of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(pub u64);

/// A time; written `"20ms"`, `"1.5s"` or `"2min"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Span(pub Duration);

/// Bytes; written `"512MiB"`, `"2GB"` or a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A number and its unit, parted at the first letter.
fn parted(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let number: f64 = text[..at].trim().parse().ok()?;
    (number.is_finite() && number >= 0.0).then_some((number, &text[at..]))
}

fn scaled(text: &str, units: &[(&str, f64)], example: &str) -> Result<f64, String> {
    let found = parted(text).and_then(|(number, unit)| {
        units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| number * factor)
    });
    found.ok_or_else(|| {
        let names: Vec<&str> = units.iter().map(|(name, _)| *name).filter(|name| !name.is_empty()).collect();
        format!(
            "{text:?} is not understood: write a number and one of {}, such as {example:?}",
            names.join(", ")
        )
    })
}

impl Rate {
    /// Reads `"100Mbit"`.
    ///
    /// # Errors
    /// What to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let units = [("bit", 1.0), ("kbit", 1e3), ("Mbit", 1e6), ("Gbit", 1e9)];
        let rate = scaled(text, &units, "100Mbit")?;
        if rate < 1000.0 {
            return Err(format!("{text:?} is less than 1 kbit: to take a link away, use the event \"cut\""));
        }
        Ok(Self(rate as u64))
    }

    /// Bytes per second.
    pub fn bytes_per_s(self) -> f64 {
        self.0 as f64 / 8.0
    }
}

impl Span {
    /// Reads `"20ms"`.
    ///
    /// # Errors
    /// What to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let seconds =
            scaled(text, &[("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("min", 60.0), ("h", 3600.0)], "20ms")?;
        Ok(Self(Duration::from_secs_f64(seconds.min(1e9))))
    }
}

impl Size {
    /// Reads `"512MiB"`.
    ///
    /// # Errors
    /// What to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (ki, k) = (1024.0, 1000.0);
        let units = [
            ("", 1.0),
            ("B", 1.0),
            ("KiB", ki),
            ("MiB", ki * ki),
            ("GiB", ki * ki * ki),
            ("kB", k),
            ("MB", k * k),
            ("GB", k * k * k),
        ];
        Ok(Self(scaled(text, &units, "512MiB")? as u64))
    }
}

macro_rules! as_text {
    ($type:ty, $write:expr) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = String::deserialize(from)?;
                Self::parse(&text).map_err(D::Error::custom)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                let write: fn(&$type) -> String = $write;
                to.serialize_str(&write(self))
            }
        }
    };
}

as_text!(Rate, |rate| format!("{}kbit", rate.0 / 1000));
as_text!(Span, |span| format!("{}us", span.0.as_micros()));
as_text!(Size, |size| format!("{}B", size.0));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write() {
        assert_eq!(Rate::parse("100Mbit"), Ok(Rate(100_000_000)));
        assert_eq!(Rate::parse("1.5 Gbit"), Ok(Rate(1_500_000_000)));
        assert_eq!(Span::parse("20ms"), Ok(Span(Duration::from_millis(20))));
        assert_eq!(Span::parse("0s"), Ok(Span(Duration::ZERO)));
        assert_eq!(Size::parse("512MiB"), Ok(Size(512 << 20)));
        assert_eq!(Size::parse("7"), Ok(Size(7)));
    }

    #[test]
    fn what_they_should_not() {
        for text in ["", "fast", "-1Mbit", "100MB", "1e999Gbit", "0Mbit", "NaNMbit"] {
            let error = Rate::parse(text).unwrap_err();
            assert!(error.contains("bit"), "{error}");
        }
        assert!(Span::parse("20").is_err() && Size::parse("many").is_err());
    }
}
