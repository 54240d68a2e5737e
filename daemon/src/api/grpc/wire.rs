//! Protobuf's wire format, read from the pieces that a message came in: a run of bytes is handed on where it lies, and
//! nothing is kept that nobody asks for.

use crate::api::{body::Pieces, error::ApiError};

/// The fields of a message, one after the other.
#[derive(Debug)]
pub(super) struct Fields(Pieces);

/// A field's value, by how it is written.
#[derive(Debug)]
pub(super) enum Value {
    Number(u64),
    Four([u8; 4]),
    Eight([u8; 8]),
    Run(Pieces),
}

impl Fields {
    pub(super) fn new(message: Pieces) -> Self {
        Self(message)
    }

    /// Takes room for `bytes` more that are made from this message. What its fields hold has none of its own.
    pub(super) fn make_room(&mut self, bytes: usize) -> Result<(), ApiError> {
        self.0.make_room(bytes)
    }

    /// The next field's number and value.
    pub(super) fn next_field(&mut self) -> Result<Option<(u64, Value)>, String> {
        if self.0.len() == 0 {
            return Ok(None);
        }
        let key = number(&mut self.0)?;
        let value = match key & 7 {
            0 => Value::Number(number(&mut self.0)?),
            1 => Value::Eight(fixed(&mut self.0)?),
            2 => {
                let length = number(&mut self.0)?;
                let length = usize::try_from(length).ok().filter(|length| *length <= self.0.len());
                Value::Run(self.0.split_front(length.ok_or_else(cut)?))
            }
            5 => Value::Four(fixed(&mut self.0)?),
            other => {
                return Err(format!("a field is of the wire type {other}, which protobuf 3 does not have"));
            }
        };
        Ok(Some((key >> 3, value)))
    }
}

impl Value {
    /// A message, or bytes.
    pub(super) fn run(self) -> Result<Pieces, String> {
        match self {
            Self::Run(run) => Ok(run),
            Self::Number(_) | Self::Four(_) | Self::Eight(_) => Err(wrong()),
        }
    }

    pub(super) fn text(self) -> Result<String, String> {
        let mut run = self.run()?;
        let length = run.len();
        String::from_utf8(run.take_front(length).into()).map_err(|_| "a text is not UTF-8".into())
    }

    pub(super) fn number(self) -> Result<u64, String> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Run(_) | Self::Four(_) | Self::Eight(_) => Err(wrong()),
        }
    }

    /// The numbers of a list's field: one, or many packed.
    pub(super) fn each_number(self, mut take: impl FnMut(u64) -> Result<(), String>) -> Result<(), String> {
        match self {
            Self::Number(number) => take(number),
            Self::Run(mut packed) => {
                while packed.len() > 0 {
                    take(number(&mut packed)?)?;
                }
                Ok(())
            }
            Self::Four(_) | Self::Eight(_) => Err(wrong()),
        }
    }
}

/// What is said of a field that is written as another kind of value than the protocol has there.
pub(super) fn wrong() -> String {
    "a field is of another type than the protocol says".into()
}

fn cut() -> String {
    "it ends in the middle of a field".into()
}

/// Seven bits a byte, the lowest first.
fn number(from: &mut Pieces) -> Result<u64, String> {
    let mut number = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let byte = from.next_byte().ok_or_else(cut)?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err("a number is longer than ten bytes".into())
}

fn fixed<const N: usize>(from: &mut Pieces) -> Result<[u8; N], String> {
    if from.len() < N {
        return Err(cut());
    }
    let mut bytes = [0; N];
    from.fill(&mut bytes);
    Ok(bytes)
}
