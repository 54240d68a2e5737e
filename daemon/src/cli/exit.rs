//! How a command ends: 0 done, 1 failed, 64 wrong usage, 69 daemon or cluster unreachable, 78 bad config.

use std::{
    error::Error,
    io::{self, Write},
    process::ExitCode,
};

/// The command did not do what it was asked to.
pub(super) const FAILED: u8 = 1;
/// The command line is wrong.
pub(super) const USAGE: u8 = 64;
/// The daemon or the cluster cannot be reached.
pub(super) const UNREACHABLE: u8 = 69;
/// The config is wrong.
pub(super) const CONFIG: u8 = 78;

/// Why a command ended early, for people, with the exit code.
#[derive(Debug)]
pub(super) struct CliError {
    code: u8,
    message: String,
}

impl CliError {
    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self { code: FAILED, message: message.into() }
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self { code: USAGE, message: message.into() }
    }

    pub(super) fn unreachable(message: impl Into<String>) -> Self {
        Self { code: UNREACHABLE, message: message.into() }
    }

    pub(super) fn config(message: impl Into<String>) -> Self {
        Self { code: CONFIG, message: message.into() }
    }

    /// Failed for a reason that is an error with sources, below what was tried.
    pub(super) fn because(what: impl Into<String>, error: &dyn Error) -> Self {
        Self::failed(format!("{}: {}", what.into(), chain(error)))
    }

    /// Prints the message, if there is one, and gives the exit code.
    pub(super) fn report(&self) -> ExitCode {
        if !self.message.is_empty() {
            let _ = writeln!(io::stderr(), "mesh: {}", self.message);
        }
        ExitCode::from(self.code)
    }

    #[cfg(test)]
    pub(super) fn code(&self) -> u8 {
        self.code
    }

    #[cfg(test)]
    pub(super) fn message(&self) -> &str {
        &self.message
    }
}

/// Writing to stdout failed. A reader that has gone (`mesh status | head -1`) has what it wants.
impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self { code: 0, message: String::new() };
        }
        Self::failed(format!("the output could not be written: {error}"))
    }
}

/// An error and its sources in one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        // Some libraries repeat their source in their own words.
        let cause = error.to_string();
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = error.source();
    }
    text
}
