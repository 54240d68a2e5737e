//! What can go wrong with ONNX Runtime.

use std::fmt::Write as _;
use std::path::PathBuf;

use crate::tensor::{DType, TensorError};

use super::OLDEST_MINOR;

/// Why ONNX Runtime could not be loaded, or a session not be made.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No library was found, or none of those found could be used.
    #[error(
        "no usable ONNX Runtime shared library was found{}; run `pip download onnxruntime --no-deps`, unzip the wheel, and \
         set inference.onnxruntime to its onnxruntime/capi/libonnxruntime.so.* (version 1.{OLDEST_MINOR} or newer)",
        list(tried)
    )]
    NotFound {
        /// Each place that was looked at, and what was wrong with it.
        tried: Vec<String>,
    },
    /// The library that was named cannot be used.
    #[error(
        "cannot use {} as ONNX Runtime: {reason}; set inference.onnxruntime to a libonnxruntime.so of version \
         1.{OLDEST_MINOR} or newer for this machine's architecture, or to \"auto\"",
        path.display()
    )]
    Unusable {
        /// The library that was named.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The process has loaded another library before.
    #[error("cannot load {}: this process already uses {}; restart it to change the library", asked.display(), loaded.display())]
    AnotherIsLoaded {
        /// The library asked for.
        asked: PathBuf,
        /// The library in use.
        loaded: PathBuf,
    },
    /// An execution provider that was named is not there.
    #[error(
        "the execution provider \"{name}\" is not available in this ONNX Runtime ({reason}); it has: {}; change \
         inference.execution_providers, or install an ONNX Runtime with that provider",
        available.join(", ")
    )]
    Provider {
        /// The provider that was named.
        name: String,
        /// What is wrong with it.
        reason: String,
        /// Those that the library has.
        available: Vec<String>,
    },
    /// The model uses an operator that this ONNX Runtime does not have.
    #[error(
        "the operator {operator} is not implemented in this ONNX Runtime: use a newer one, or export the model with \
         standard operators ({message})"
    )]
    UnsupportedOperator {
        /// Name of the operator, with its domain where it is not ONNX's own.
        operator: String,
        /// What ONNX Runtime said.
        message: String,
    },
    /// The model is not a valid ONNX model for this ONNX Runtime.
    #[error("ONNX Runtime refused the model: {message}")]
    Model {
        /// What ONNX Runtime said.
        message: String,
    },
    /// ONNX Runtime failed outside the model.
    #[error("ONNX Runtime failed while {doing}: {message}")]
    Failed {
        /// What was being done.
        doing: &'static str,
        /// What ONNX Runtime said.
        message: String,
    },
}

/// Why a run gave no outputs.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// An input is missing.
    #[error("the input \"{name}\" is missing; the inputs are: {}", expected.join(", "))]
    MissingInput {
        /// The missing input.
        name: String,
        /// All inputs.
        expected: Vec<String>,
    },
    /// There is no input of this name, or it was given twice.
    #[error("the model has no input \"{name}\" that is not given already; the inputs are: {}", expected.join(", "))]
    UnknownInput {
        /// The input given.
        name: String,
        /// All inputs.
        expected: Vec<String>,
    },
    /// An input has another element type.
    #[error("the input \"{name}\" must be {expected}, not {got}")]
    WrongType {
        /// The input.
        name: String,
        /// Its element type.
        expected: DType,
        /// The element type given.
        got: DType,
    },
    /// An input has another shape.
    #[error("the input \"{name}\" must have the shape {expected}, not {got:?}")]
    WrongShape {
        /// The input.
        name: String,
        /// Its shape, with names or `?` for extents that may vary.
        expected: String,
        /// The shape given.
        got: Vec<i64>,
    },
    /// The run was ended by its [`CancelToken`](super::CancelToken).
    #[error("the run was cancelled")]
    Cancelled,
    /// An output cannot travel.
    #[error("the output \"{name}\" cannot be used")]
    Output {
        /// The output.
        name: String,
        /// What is wrong with it.
        #[source]
        source: TensorError,
    },
    /// ONNX Runtime failed while it ran the model.
    #[error("ONNX Runtime failed in a run: {message}")]
    Failed {
        /// What ONNX Runtime said.
        message: String,
    },
}

impl EngineError {
    /// What ONNX Runtime said about a model, with the operators it lacks recognised.
    pub(super) fn of_model(message: &str) -> Self {
        let message = message.to_owned();
        match missing_operator(&message) {
            Some(operator) => Self::UnsupportedOperator { operator, message },
            None => Self::Model { message },
        }
    }
}

/// The operator in ONNX Runtime's message that it lacks one; the texts are those of ONNX Runtime 1.22 to 1.31.
fn missing_operator(message: &str) -> Option<String> {
    // "Fatal error: com.example:Frob(-1) is not a registered function/op"
    if let Some((before, _)) = message.split_once(" is not a registered function/op") {
        let name = before.rsplit_once(' ').map_or(before, |(_, name)| name);
        let name = name.split_once('(').map_or(name, |(name, _)| name);
        return Some(name.strip_prefix("ai.onnx:").unwrap_or(name).to_owned());
    }
    // "No Op registered for Frob with domain_version of 17"
    // "Could not find an implementation for Frob(13) node with name ''"
    for marker in ["No Op registered for ", "Could not find an implementation for "] {
        if let Some((_, after)) = message.split_once(marker) {
            let name: String = after.chars().take_while(|c| !c.is_whitespace() && *c != '(').collect();
            return Some(name);
        }
    }
    None
}

fn list(tried: &[String]) -> String {
    let mut text = String::new();
    for (index, place) in tried.iter().enumerate() {
        let _ = write!(text, "{}{place}", if index == 0 { " (looked at: " } else { "; " });
    }
    if !text.is_empty() {
        text.push(')');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::missing_operator;

    #[test]
    fn missing_operators_are_recognised() {
        let cases = [
            (
                "Load model failed:Fatal error: com.example:Frob(-1) is not a registered function/op",
                Some("com.example:Frob"),
            ),
            ("Fatal error: ai.onnx:Frob(-1) is not a registered function/op", Some("Frob")),
            ("This is an invalid model. No Op registered for Frob with domain_version of 17", Some("Frob")),
            (
                "NOT_IMPLEMENTED : Could not find an implementation for Frob(13) node with name ''",
                Some("Frob"),
            ),
            ("Protobuf parsing failed.", None),
        ];
        for (message, operator) in cases {
            assert_eq!(missing_operator(message).as_deref(), operator, "{message}");
        }
    }
}
