//! From the message of a `ModelInfer` to an [`InferRequest`], checked against the model's metadata. Clients are not
//! trusted: lists are capped while they are read, and data stays where it lies until its size has been checked.

use std::time::Duration;

use mesh_inference::tensor::{DType, Tensor};
use tokio::time::Instant;

use super::{
    contents,
    response::Answer,
    wire::{Fields, Value},
};
use crate::{
    api::{
        body::Pieces,
        error::ApiError,
        infer::{
            TIMEOUT_DEFAULT,
            checks::{self, Asked, Described, InputsLeft, RANK_MAX, TENSORS_MAX},
            fill,
        },
        protocol::check_version,
    },
    app::{App, AppError, InferRequest, ModelMetadata, TensorSpec},
};

/// A request, and how its answer is to be written.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) request: InferRequest,
    pub(super) answer: Answer,
}

/// Reads a request that must be answered by `deadline`, if there is one. All tensors together may take `inputs_max` bytes.
pub(super) fn parse(
    message: Pieces,
    app: &dyn App,
    deadline: Option<Instant>,
    inputs_max: usize,
) -> Result<Parsed, ApiError> {
    // Holds the message's room in the budget until the tensors have their own memory.
    let mut fields = Fields::new(message);
    let given = Given::read(&mut fields)
        .map_err(|what| ApiError::bad(format!("the message is not an inference request: {what}")))?;
    check_version(&given.model, &given.version)?;
    let model = app.metadata(&given.model)?;
    let asked: Vec<_> = given.outputs.iter().map(Output::asked).collect();
    let outputs = checks::outputs(&asked, &model)?;
    let asked = given.timeout.map_or(Ok(None), checks::timeout)?;
    let specs = specs(&given, &model)?;
    let (mut data, mut left) = (given.data.into_iter(), InputsLeft::new(inputs_max));
    let mut inputs = Vec::with_capacity(given.inputs.len());
    for (mut input, spec) in given.inputs.into_iter().zip(specs) {
        let wrong = |what: String| checks::wrong_input(&spec.name, &model, &what);
        let data = input.check(data.next(), spec).map_err(wrong)?;
        left.take(data.bytes())?;
        if let Data::Typed { bytes, .. } = data {
            fields.make_room(bytes)?;
        }
        let tensor = data.read(spec.dtype, &input.shape).map_err(wrong)?;
        inputs.push((spec.name.clone(), tensor));
    }
    let request = InferRequest {
        model: model.name.clone(),
        inputs,
        // By name even where all are wanted: the answer has those of the model that the request was made for.
        outputs: outputs.clone(),
        timeout: time_left(asked, deadline)?,
        from_elsewhere: false,
    };
    Ok(Parsed { request, answer: Answer { model: model.name, id: given.id, outputs } })
}

/// What the model says of the inputs that are given.
fn specs<'m>(given: &Given, model: &'m ModelMetadata) -> Result<Vec<&'m TensorSpec>, ApiError> {
    let names: Vec<&str> = given.inputs.iter().map(|input| input.name.as_str()).collect();
    let specs = checks::inputs(&names, model)?;
    let (entries, inputs) = (given.data.len(), given.inputs.len());
    if entries > 0 && entries != inputs {
        return Err(ApiError::bad(format!(
            "raw_input_contents has {entries} entries for {inputs} inputs: send one for each, in their order, or none"
        )));
    }
    Ok(specs)
}

/// What the parameters allow or, if that is less, what is left until the call's deadline.
fn time_left(asked: Option<Duration>, deadline: Option<Instant>) -> Result<Duration, ApiError> {
    let Some(deadline) = deadline else { return Ok(asked.unwrap_or(TIMEOUT_DEFAULT)) };
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        let message = "the call's deadline passed before its message had come: give more time";
        return Err(AppError::DeadlineExceeded(message.into()).into());
    }
    Ok(asked.map_or(left, |asked| asked.min(left)))
}

/// A request as it is written.
#[derive(Debug, Default)]
struct Given {
    model: String,
    version: String,
    id: String,
    /// Microseconds.
    timeout: Option<u64>,
    inputs: Vec<Input>,
    outputs: Vec<Output>,
    /// The inputs' data, when it is not with them.
    data: Vec<Pieces>,
}

impl Given {
    fn read(fields: &mut Fields) -> Result<Self, String> {
        let mut given = Self::default();
        while let Some((number, value)) = fields.next_field()? {
            match number {
                1 => given.model = value.text()?,
                2 => given.version = value.text()?,
                3 => given.id = value.text()?,
                4 => {
                    let (name, parameter) = Parameter::read(value)?;
                    if name == "timeout" {
                        given.timeout = Some(parameter.microseconds()?);
                    }
                }
                5 => push(&mut given.inputs, "inputs", Input::read(value)?)?,
                6 => push(&mut given.outputs, "outputs", Output::read(value)?)?,
                7 => push(&mut given.data, "raw_input_contents", value.run()?)?,
                _ => {}
            }
        }
        Ok(given)
    }
}

fn push<T>(list: &mut Vec<T>, name: &str, item: T) -> Result<(), String> {
    if list.len() == TENSORS_MAX {
        return Err(format!("more than {TENSORS_MAX} {name}"));
    }
    list.push(item);
    Ok(())
}

#[derive(Debug, Default)]
struct Input {
    name: String,
    datatype: String,
    shape: Vec<i64>,
    is_shared: bool,
    contents: Option<Pieces>,
}

impl Input {
    fn read(value: Value) -> Result<Self, String> {
        let (mut input, mut fields) = (Self::default(), Fields::new(value.run()?));
        while let Some((number, value)) = fields.next_field()? {
            match number {
                1 => input.name = value.text()?,
                2 => input.datatype = value.text()?,
                3 => value.each_number(|extent| {
                    if input.shape.len() == RANK_MAX {
                        return Err(format!("a shape of more than {RANK_MAX} dimensions"));
                    }
                    input.shape.push(extent as i64);
                    Ok(())
                })?,
                4 => input.is_shared |= Parameter::read(value)?.0 == SHARED_MEMORY,
                // A message that comes in parts is all of them.
                5 => input.contents.get_or_insert_default().append(value.run()?),
                _ => {}
            }
        }
        Ok(input)
    }

    /// Finds what is wrong with it before memory is taken for it. Its elements are in `run`, or else in its contents.
    fn check(&mut self, run: Option<Pieces>, spec: &TensorSpec) -> Result<Data, String> {
        let (shape, contents) = (&self.shape, self.contents.take().unwrap_or_default());
        let described = Described { datatype: &self.datatype, shape, is_shared: self.is_shared };
        let (dtype, bytes) = described.check(spec)?;
        match run {
            Some(_) if contents.len() > 0 => {
                Err("has both contents and raw_input_contents: send one of them".into())
            }
            Some(run) if run.len() != bytes => Err(format!(
                "raw_input_contents has {} bytes, but {} {shape:?} takes {bytes}",
                run.len(),
                dtype.oip_name()
            )),
            Some(run) => Ok(Data::Raw { run }),
            None if contents.len() == 0 && bytes > 0 => {
                Err("has neither contents nor raw_input_contents".into())
            }
            None => {
                let list = contents::check(&contents, dtype, bytes)?;
                Ok(Data::Typed { contents, list, bytes })
            }
        }
    }
}

/// Where an input's elements are, and how many bytes they take as a tensor.
enum Data {
    /// As in a tensor.
    Raw { run: Pieces },
    /// In one of the protocol's lists.
    Typed { contents: Pieces, list: u64, bytes: usize },
}

impl Data {
    fn bytes(&self) -> usize {
        match self {
            Self::Raw { run } => run.len(),
            Self::Typed { bytes, .. } => *bytes,
        }
    }

    fn read(self, dtype: DType, shape: &[i64]) -> Result<Tensor, String> {
        match self {
            Self::Raw { mut run } => fill::tensor(dtype, shape, |mut filler| {
                run.fill(filler.slot(run.len())?);
                Ok(())
            }),
            Self::Typed { contents, list, .. } => contents::read(contents, list, dtype, shape),
        }
    }
}

#[derive(Debug, Default)]
struct Output {
    name: String,
    by_extension: bool,
}

impl Output {
    fn read(value: Value) -> Result<Self, String> {
        let (mut output, mut fields) = (Self::default(), Fields::new(value.run()?));
        while let Some((number, value)) = fields.next_field()? {
            match number {
                1 => output.name = value.text()?,
                2 => {
                    let (name, parameter) = Parameter::read(value)?;
                    let classes = name == "classification" && !matches!(parameter, Parameter::Number(0));
                    output.by_extension |= classes || name == SHARED_MEMORY;
                }
                _ => {}
            }
        }
        Ok(output)
    }

    fn asked(&self) -> Asked<'_> {
        Asked { name: &self.name, by_extension: self.by_extension }
    }
}

/// The parameter that says that a tensor lies in shared memory.
const SHARED_MEMORY: &str = "shared_memory_region";

/// A parameter's value.
#[derive(Debug)]
enum Parameter {
    Number(i128),
    Text(String),
    /// Of a kind that nothing here takes.
    Other,
}

impl Parameter {
    /// An entry of a map of parameters: a name and a value.
    fn read(entry: Value) -> Result<(String, Self), String> {
        let (mut name, mut parameter) = (String::new(), Self::Other);
        let mut fields = Fields::new(entry.run()?);
        while let Some((number, value)) = fields.next_field()? {
            match number {
                1 => name = value.text()?,
                2 => parameter = Self::value(value)?,
                _ => {}
            }
        }
        Ok((name, parameter))
    }

    fn value(value: Value) -> Result<Self, String> {
        let (mut parameter, mut fields) = (Self::Other, Fields::new(value.run()?));
        while let Some((number, value)) = fields.next_field()? {
            parameter = match number {
                // Signed and unsigned.
                2 => Self::Number((value.number()? as i64).into()),
                5 => Self::Number(value.number()?.into()),
                3 => Self::Text(value.text()?),
                _ => Self::Other,
            };
        }
        Ok(parameter)
    }

    fn microseconds(&self) -> Result<u64, String> {
        let number = match self {
            Self::Number(number) => u64::try_from(*number).ok(),
            Self::Text(text) => text.trim().parse().ok(),
            Self::Other => None,
        };
        number.ok_or_else(|| {
            "parameters.timeout must be a whole number of microseconds, as int64_param or string_param".into()
        })
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::api::tests::{
        Adder,
        grpc::messages::{InferTensorContents, echo, floats},
    };

    #[test]
    fn a_request_is_the_same_in_whatever_pieces_it_comes() {
        let numbers: Vec<f32> = (0..3000u16).map(f32::from).collect();
        let raw = echo("FP32", numbers.len(), &floats(&numbers));
        let mut typed = raw.clone();
        typed.raw_input_contents.clear();
        typed.inputs[0].contents =
            Some(InferTensorContents { fp32_contents: numbers.clone(), ..Default::default() });
        for message in [raw.encode_to_vec(), typed.encode_to_vec()] {
            for size in [1, 7, 4095, 4096, 5000, 1 << 20] {
                let mut pieces = Pieces::default();
                for piece in message.chunks(size) {
                    pieces.push(piece.to_vec().into());
                }
                let parsed = parse(pieces, &Adder::default(), None, usize::MAX).unwrap();
                let (name, tensor) = &parsed.request.inputs[0];
                assert_eq!((name.as_str(), tensor.shape()), ("x", &[3000][..]));
                assert_eq!(tensor.as_slice::<f32>().unwrap(), numbers, "in pieces of {size}");
                assert_eq!(parsed.request.timeout, TIMEOUT_DEFAULT);
            }
        }
    }

    /// Other writers do not pack lists, and may send a message in parts.
    #[test]
    fn lists_and_messages_may_come_one_by_one() {
        let float = |value: f32| [&[0x35][..], &value.to_le_bytes()].concat();
        let mut input = vec![0x0a, 1, b'x', 0x12, 4, b'F', b'P', b'3', b'2', 0x18, 2];
        for part in [1.0, 2.0].map(float) {
            input.extend([0x2a, 5]);
            input.extend(part);
        }
        let mut message = vec![0x0a, 9];
        message.extend(b"echo-FP32");
        message.extend([0x2a, u8::try_from(input.len()).unwrap()]);
        message.extend(input);
        let mut pieces = Pieces::default();
        pieces.push(message.into());
        let parsed = parse(pieces, &Adder::default(), None, usize::MAX).unwrap();
        assert_eq!(parsed.request.inputs[0].1.as_slice::<f32>().unwrap(), [1.0, 2.0]);
    }

    #[test]
    fn the_earlier_time_counts() {
        let (short, long) = (Duration::from_secs(1), Duration::from_secs(100));
        let at = |left| Some(Instant::now() + left);
        assert_eq!(time_left(None, None).unwrap(), TIMEOUT_DEFAULT);
        assert_eq!(time_left(Some(long), None).unwrap(), long);
        assert_eq!(time_left(Some(short), at(long)).unwrap(), short);
        assert!(time_left(Some(long), at(short)).unwrap() <= short);
        assert!(time_left(None, at(long)).unwrap() > short);
        assert!(time_left(Some(long), Some(Instant::now())).is_err());
    }
}
