//! Questions with the whole model's answers.

use std::path::Path;

use super::LoadError;
use crate::{
    models::{Named, Whole, difference},
    rack::BinaryRequest,
};

/// Difference allowed, as a part of the output's largest magnitude.
const TOLERANCE: f64 = 1e-5;

/// Encoded requests and what the whole model answers to each.
#[derive(Debug)]
pub struct Expected {
    questions: Vec<(BinaryRequest, Named)>,
}

impl Expected {
    /// Asks the model in `file` `count` seeded inputs with batch `batch` and `length` for every other dynamic
    /// extent, in one session of this process that is gone when this returns.
    pub fn compute(file: &Path, batch: i64, length: i64, count: usize, seed: u64) -> Result<Self, LoadError> {
        let name = file.display().to_string();
        let mut whole =
            Whole::open(file).map_err(|source| LoadError::Whole { file: name.clone(), source })?;
        let uncheckable = |why: String| LoadError::Uncheckable { file: name.clone(), why };
        let mut questions: Vec<(BinaryRequest, Named)> = Vec::with_capacity(count);
        for number in 0..count as u64 {
            let inputs = whole.inputs(batch, length, seed.wrapping_add(number));
            let inputs = inputs.ok_or_else(|| uncheckable(format!("its batch is fixed, and not {batch}")))?;
            let answer = whole.run(&inputs);
            difference(&answer, &answer).map_err(uncheckable)?;
            // An answer to somebody else's question must be seen.
            if questions.iter().any(|(_, other)| is_right(&answer, other)) {
                return Err(uncheckable("it answers two different inputs alike".to_owned()));
            }
            questions.push((BinaryRequest::new(&inputs), answer));
        }
        if questions.is_empty() {
            return Err(uncheckable("no input was asked for".to_owned()));
        }
        Ok(Self { questions })
    }

    /// How many questions there are.
    pub fn len(&self) -> usize {
        self.questions.len()
    }

    /// Whether there is none, which cannot be.
    pub fn is_empty(&self) -> bool {
        self.questions.is_empty()
    }

    pub(super) fn request(&self, index: usize) -> &BinaryRequest {
        &self.questions[index].0
    }

    /// How far an answer is from the whole model's, or why the two cannot be compared.
    pub(super) fn check(&self, index: usize, answer: &Named) -> Result<(), String> {
        match difference(answer, &self.questions[index].1) {
            Ok(far) if far <= TOLERANCE => Ok(()),
            Ok(far) => Err(format!("wrong answer: differs by {far:.2e} of the largest magnitude")),
            Err(why) => Err(format!("wrong answer: {why}")),
        }
    }
}

fn is_right(found: &Named, expected: &Named) -> bool {
    difference(found, expected).is_ok_and(|far| far <= TOLERANCE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digits;

    #[test]
    fn only_the_answer_to_the_same_question_is_right() {
        let expected = Expected::compute(&digits::model(), 1, 0, 4, 3).expect("digits can be checked");
        assert_eq!(expected.len(), 4);
        for question in 0..expected.len() {
            for (answer, (_, named)) in expected.questions.iter().enumerate() {
                let checked = expected.check(question, named);
                assert_eq!(checked.is_ok(), question == answer, "{question}, {answer}: {checked:?}");
            }
        }
        assert!(expected.check(0, &Named::new()).is_err());
    }

    #[test]
    fn a_missing_model_is_an_error_that_names_it() {
        let error = Expected::compute(Path::new("no-such.onnx"), 1, 0, 1, 0).expect_err("no model");
        assert!(error.to_string().contains("no-such.onnx"), "{error}");
    }
}
