//! All defects of a configuration, each with the place to mend.

use std::fmt;
use std::path::PathBuf;

/// Where a defect is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A line of the file, counted from 1.
    Line(PathBuf, usize),
    /// The file as a whole.
    File(PathBuf),
    /// An environment variable.
    Variable(String),
    /// Not in a file: none was found.
    Search,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(file, line) => write!(f, "{}:{line}", file.display()),
            Self::File(file) => write!(f, "{}", file.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Search => f.write_str("config"),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Defect {
    /// Where.
    pub place: Place,
    /// What, and what to do.
    pub message: String,
    /// The user that runs this may not read a file: nothing else is known to be wrong with it.
    pub is_denied: bool,
}

impl Defect {
    pub(crate) fn new(place: Place, message: impl Into<String>) -> Self {
        Self { place, message: message.into(), is_denied: false }
    }
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// Everything that is wrong with a configuration; never empty. Displayed with one line per defect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    /// The defects, in the order of the file.
    pub defects: Vec<Defect>,
}

impl ConfigErrors {
    pub(crate) fn one(place: Place, message: impl Into<String>) -> Self {
        Self { defects: vec![Defect::new(place, message)] }
    }

    pub(crate) fn all(mut defects: Vec<Defect>) -> Self {
        defects.sort();
        defects.dedup();
        Self { defects }
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, defect) in self.defects.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{defect}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
