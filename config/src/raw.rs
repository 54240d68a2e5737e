//! The file as written: keys, values and lines, before anything is checked.

use std::path::Path;

use toml::de::{DeTable, DeValue};

use crate::error::{ConfigErrors, Defect, Place};
use crate::keys;

/// A value as written, without what TOML has and the config never uses.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Text(String),
    /// `None` when it does not fit.
    Integer(Option<i64>),
    Boolean(bool),
    List(Vec<Value>),
    /// A kind that no key takes, by name.
    Other(&'static str),
}

impl Value {
    fn of(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.to_string()),
            DeValue::Integer(number) => {
                Self::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok())
            }
            DeValue::Boolean(value) => Self::Boolean(*value),
            DeValue::Array(items) => Self::List(items.iter().map(|item| Self::of(item.get_ref())).collect()),
            DeValue::Float(_) => Self::Other("a number with a fraction"),
            DeValue::Datetime(_) => Self::Other("a date"),
            DeValue::Table(_) => Self::Other("a section"),
        }
    }

    /// What it is, for people.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Integer(_) => "a whole number",
            Self::Boolean(_) => "true or false",
            Self::List(_) => "a list",
            Self::Other(kind) => kind,
        }
    }
}

/// A known key of the file with its value and line.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) section: String,
    pub(crate) name: String,
    pub(crate) value: Value,
    pub(crate) line: usize,
}

/// Reads the text; unknown keys and sections are added to `defects`.
///
/// # Errors
/// When the text is not TOML: then every syntax error is in the answer, and nothing else is looked at.
pub(crate) fn parse(file: &Path, text: &str, defects: &mut Vec<Defect>) -> Result<Vec<Entry>, ConfigErrors> {
    let line_of = |offset: usize| 1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count();
    let place = |offset: usize| Place::Line(file.to_owned(), line_of(offset));
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let defect = |error: &toml::de::Error| {
            let at = error.span().map_or(Place::File(file.to_owned()), |span| place(span.start));
            Defect::new(at, format!("this is not TOML: {}", error.message()))
        };
        return Err(ConfigErrors::all(errors.iter().map(defect).collect()));
    }
    let mut entries = Vec::new();
    for (section, content) in table.get_ref().iter() {
        let at = section.span().start;
        let section: &str = section.get_ref();
        let DeValue::Table(content) = content.get_ref() else {
            let message = if keys::is_section(section) {
                format!("`{section}` must be a section, written as [{section}] on a line of its own")
            } else {
                keys::outside_any_section(section)
            };
            defects.push(Defect::new(place(at), message));
            continue;
        };
        if !keys::is_section(section) {
            defects.push(Defect::new(place(at), keys::unknown_section(section)));
            continue;
        }
        for (name, value) in content.iter() {
            let at = name.span().start;
            let name: &str = name.get_ref();
            if keys::is_key(section, name) {
                let (section, name) = (section.to_owned(), name.to_owned());
                entries.push(Entry { section, name, value: Value::of(value.get_ref()), line: line_of(at) });
            } else {
                defects.push(Defect::new(place(at), keys::unknown_key(section, name)));
            }
        }
    }
    Ok(entries)
}
