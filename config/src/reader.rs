//! Takes single values out of the file or the environment; collects what is wrong on the way.

use std::path::{Path, PathBuf};

use crate::error::{Defect, Place};
use crate::keys::{KEYS, Key};
use crate::raw::{Entry, Value};

/// A value and where it was given.
#[derive(Debug, Clone)]
pub(crate) struct Given<T> {
    pub(crate) value: T,
    pub(crate) place: Place,
}

/// The values of one configuration.
pub(crate) struct Reader<'a> {
    pub(crate) file: &'a Path,
    pub(crate) entries: Vec<Entry>,
    pub(crate) env: &'a dyn Fn(&str) -> Option<String>,
    pub(crate) defects: Vec<Defect>,
}

impl Reader<'_> {
    pub(crate) fn defect(&mut self, place: Place, message: impl Into<String>) {
        self.defects.push(Defect::new(place, message));
    }

    /// A key's value: from the environment, which gives text, else from the file.
    fn given(&self, section: &str, name: &str) -> Option<Given<Value>> {
        let key = key(section, name);
        let variable = key.variable();
        if let Some(text) = (self.env)(&variable) {
            return Some(Given { value: Value::Text(text), place: Place::Variable(variable) });
        }
        let entry = self.entries.iter().find(|entry| entry.section == section && entry.name == name)?;
        let place = Place::Line(self.file.to_owned(), entry.line);
        Some(Given { value: entry.value.clone(), place })
    }

    /// Reads a key by a rule that says what it expects when a value does not follow it.
    pub(crate) fn read<T>(
        &mut self,
        section: &str,
        name: &str,
        rule: impl Fn(&Value, bool) -> Result<T, String>,
    ) -> Option<Given<T>> {
        let given = self.given(section, name)?;
        let from_environment = matches!(given.place, Place::Variable(_));
        match rule(&given.value, from_environment) {
            Ok(value) => Some(Given { value, place: given.place }),
            Err(expected) => {
                let message = complaint(key(section, name), &given, &expected);
                self.defect(given.place, message);
                None
            }
        }
    }

    /// Says that a required key is missing, unless it was given and wrong.
    pub(crate) fn require<T>(&mut self, section: &str, name: &str, given: Option<Given<T>>) -> Option<T> {
        if given.is_none() && self.given(section, name).is_none() {
            let key = key(section, name);
            let message = format!(
                "`{name}` is missing in [{section}]; add for example `{name} = {}`, or set {}",
                key.example,
                key.variable()
            );
            self.defect(Place::File(self.file.to_owned()), message);
        }
        given.map(|given| given.value)
    }

    /// A path as given, or relative to the config file.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.file.parent().unwrap_or(Path::new("")).join(path)
    }
}

fn complaint(key: &Key, given: &Given<Value>, expected: &str) -> String {
    let is_text = match &given.value {
        Value::Text(text) => format!("is {text:?}"),
        Value::Integer(Some(number)) => format!("is {number}"),
        Value::Boolean(value) => format!("is {value}"),
        other @ (Value::Integer(None) | Value::List(_) | Value::Other(_)) => format!("is {}", other.kind()),
    };
    match &given.place {
        Place::Variable(name) => {
            let example = key.example.trim_matches(['[', ']']).replace('"', "");
            format!("{is_text}; it must be {expected}, for example {name}={example}")
        }
        Place::Line(..) | Place::File(_) | Place::Search => {
            let Key { section, name, example } = key;
            format!(
                "`{name}` in [{section}] {is_text}; it must be {expected}, for example `{name} = {example}`"
            )
        }
    }
}

fn key(section: &str, name: &str) -> &'static Key {
    KEYS.iter()
        .find(|key| key.section == section && key.name == name)
        .expect("only keys of the table are read")
}

/// Any text.
pub(crate) fn text(value: &Value, _: bool) -> Result<String, String> {
    match value {
        Value::Text(text) => Ok(text.clone()),
        Value::Integer(_) | Value::Boolean(_) | Value::List(_) | Value::Other(_) => {
            Err("text in quotes".to_owned())
        }
    }
}

/// A whole number in a range.
pub(crate) fn integer(low: i64, high: i64) -> impl Fn(&Value, bool) -> Result<i64, String> {
    move |value, from_environment| {
        let number = match value {
            Value::Integer(number) => *number,
            Value::Text(text) if from_environment => text.trim().parse().ok(),
            Value::Text(_) | Value::Boolean(_) | Value::List(_) | Value::Other(_) => None,
        };
        let fitting = number.filter(|number| (low..=high).contains(number));
        fitting.ok_or_else(|| format!("a whole number from {low} to {high}"))
    }
}

/// True or false.
pub(crate) fn boolean(value: &Value, from_environment: bool) -> Result<bool, String> {
    match value {
        Value::Boolean(value) => Ok(*value),
        Value::Text(text) if from_environment && text == "true" => Ok(true),
        Value::Text(text) if from_environment && text == "false" => Ok(false),
        Value::Text(_) | Value::Integer(_) | Value::List(_) | Value::Other(_) => {
            Err("true or false".to_owned())
        }
    }
}

/// A list of texts; comma-separated in the environment.
pub(crate) fn list(value: &Value, from_environment: bool) -> Result<Vec<String>, String> {
    let expected = || "a list of texts".to_owned();
    match value {
        Value::List(items) => {
            items.iter().map(|item| text(item, false)).collect::<Result<_, _>>().map_err(|_| expected())
        }
        Value::Text(text) if from_environment => {
            Ok(text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect())
        }
        Value::Text(_) | Value::Integer(_) | Value::Boolean(_) | Value::Other(_) => Err(expected()),
    }
}
