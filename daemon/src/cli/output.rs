//! What people see: tables, colours, numbers.

use std::io::{self, IsTerminal, Write};

use super::exit::CliError;
pub(super) use crate::control::select::short_id;

/// Prints to stdout.
pub(super) fn print(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Prints a line to stderr; there is nobody to tell when that fails.
pub(super) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// A style of text on stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Paint {
    Bold,
    Dim,
    Green,
    Yellow,
    Red,
}

/// Whether stdout shows colours: a terminal, and `NO_COLOR` is not set to anything.
pub(super) fn colours() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The same of stderr.
pub(super) fn error_colours() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Text in a style, where stdout shows styles.
pub(super) fn paint(paint: Paint, text: &str) -> String {
    if !colours() {
        return text.to_owned();
    }
    let code = match paint {
        Paint::Bold => 1,
        Paint::Dim => 2,
        Paint::Green => 32,
        Paint::Yellow => 33,
        Paint::Red => 31,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// Rows under a header, in columns that are as wide as they need to be. Cells may carry colours.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|text| paint(Paint::Bold, text)).collect()] }
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The table, indented.
    pub(super) fn render(&self, indent: usize) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                self.rows.iter().filter_map(|row| row.get(column)).map(|c| width(c)).max().unwrap_or(0)
            })
            .collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(indent);
            for (cell, &wide) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.push_str(&" ".repeat(wide - width(cell) + 2));
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// Characters that are seen: all but colour codes.
fn width(text: &str) -> usize {
    let mut seen = 0;
    let mut in_code = false;
    for c in text.chars() {
        match (in_code, c) {
            (false, '\x1b') => in_code = true,
            (true, 'm') => in_code = false,
            (false, _) => seen += 1,
            (true, _) => {}
        }
    }
    seen
}

/// Bytes for people: `1.5 MiB`.
pub(super) fn bytes(count: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", units[unit])
}

/// Milliseconds for people, with three digits that mean something.
pub(super) fn millis(ms: f64) -> String {
    match ms {
        _ if ms >= 10_000.0 => format!("{:.1} s", ms / 1000.0),
        _ if ms >= 100.0 => format!("{ms:.0} ms"),
        _ if ms >= 1.0 => format!("{ms:.1} ms"),
        _ => format!("{:.0} µs", ms * 1000.0),
    }
}

/// A rate for people.
pub(super) fn rate(per_second: f64) -> String {
    if per_second >= 100.0 { format!("{per_second:.0}/s") } else { format!("{per_second:.1}/s") }
}

#[cfg(test)]
mod tests {
    use super::{Table, bytes, millis, short_id, width};

    #[test]
    fn numbers() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536 << 10, "1.5 MiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (1 << 30, "1.0 GiB"),
            (u64::MAX, "16777216.0 TiB"),
        ];
        for (count, text) in cases {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(millis(0.25), "250 µs");
        assert_eq!(millis(12.34), "12.3 ms");
        assert_eq!(millis(12_340.0), "12.3 s");
        assert_eq!(short_id("12D3KooWAbcdefgh12345678"), "…12345678");
    }

    #[test]
    fn columns_line_up_whatever_the_colours() {
        assert_eq!(width("\x1b[31mred\x1b[0m"), 3);
        let mut table = Table::new(&["A", "LONGER"]);
        table.row(vec!["\x1b[31mlong cell\x1b[0m".into(), "x".into()]);
        let lines: Vec<String> = table.render(1).lines().map(str::to_owned).collect();
        assert_eq!(lines[0], " A          LONGER");
        assert_eq!(lines[1], " \x1b[31mlong cell\x1b[0m  x");
    }
}
