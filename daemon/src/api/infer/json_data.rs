//! Tensor data as JSON: flat or nested lists of numbers or booleans, to and from little-endian bytes.

use std::{fmt, io::Write};

use half::{bf16, f16};
use mesh_inference::tensor::{DType, Tensor};
use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, SeqAccess, Visitor},
};

/// Lists in lists that data may have; also what keeps the recursion short.
const DEPTH_MAX: usize = 32;

/// Reads JSON `text` into `target`, which has room for exactly the elements wanted.
pub(super) fn read(text: &str, dtype: DType, target: &mut [u8]) -> Result<(), String> {
    let mut filler = Filler { dtype, target, at: 0, depth: 0 };
    let mut from = serde_json::Deserializer::from_str(text);
    filler.deserialize_into(&mut from).map_err(|error| {
        // The position is inside this piece of the request and would mislead.
        let text = error.to_string();
        text.rsplit_once(" at line ").map_or(text.clone(), |(what, _)| what.to_owned())
    })?;
    let size = dtype.size();
    match filler.at == filler.target.len() {
        true => Ok(()),
        false => Err(format!("{} elements where the shape wants {}", filler.at / size, target.len() / size)),
    }
}

struct Filler<'t> {
    dtype: DType,
    target: &'t mut [u8],
    at: usize,
    depth: usize,
}

impl Filler<'_> {
    fn deserialize_into<'de, D: Deserializer<'de>>(&mut self, from: D) -> Result<(), D::Error> {
        Element(self).deserialize(from)
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), String> {
        let end = self.at + bytes.len();
        match self.target.get_mut(self.at..end) {
            Some(slot) => slot.copy_from_slice(bytes),
            None => {
                let wanted = self.target.len() / bytes.len();
                return Err(format!("more elements than the {wanted} that the shape wants"));
            }
        }
        self.at = end;
        Ok(())
    }

    fn integer(&mut self, value: i128) -> Result<(), String> {
        macro_rules! as_int {
            ($t:ty) => {
                match <$t>::try_from(value) {
                    Ok(number) => self.push(&number.to_le_bytes()),
                    Err(_) => Err(format!("{value} does not fit {}", stringify!($t))),
                }
            };
        }
        match self.dtype {
            DType::Bool => match value {
                0 | 1 => self.push(&[u8::from(value == 1)]),
                _ => Err(format!("{value} is neither true nor false")),
            },
            DType::Uint8 => as_int!(u8),
            DType::Uint16 => as_int!(u16),
            DType::Uint32 => as_int!(u32),
            DType::Uint64 => as_int!(u64),
            DType::Int8 => as_int!(i8),
            DType::Int16 => as_int!(i16),
            DType::Int32 => as_int!(i32),
            DType::Int64 => as_int!(i64),
            // A literal integer is a good way to write a float; rounding is what a cast does.
            DType::Fp16 | DType::Bf16 | DType::Fp32 | DType::Fp64 => self.float(value as f64),
        }
    }

    fn float(&mut self, value: f64) -> Result<(), String> {
        match self.dtype {
            DType::Fp64 => self.push(&value.to_le_bytes()),
            DType::Fp32 if (value as f32).is_finite() => self.push(&(value as f32).to_le_bytes()),
            DType::Fp16 if f16::from_f64(value).is_finite() => self.push(&f16::from_f64(value).to_le_bytes()),
            DType::Bf16 if bf16::from_f64(value).is_finite() => {
                self.push(&bf16::from_f64(value).to_le_bytes())
            }
            DType::Fp32 | DType::Fp16 | DType::Bf16 => Err(format!("{value} does not fit the datatype")),
            DType::Bool
            | DType::Uint8
            | DType::Uint16
            | DType::Uint32
            | DType::Uint64
            | DType::Int8
            | DType::Int16
            | DType::Int32
            | DType::Int64 => Err(format!("{value:?} is not an integer")),
        }
    }
}

/// One element, or a list of them.
struct Element<'f, 't>(&'f mut Filler<'t>);

impl<'de> DeserializeSeed<'de> for Element<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Element<'_, '_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(if self.0.dtype == DType::Bool {
            "true, false or a list of them"
        } else {
            "a number or a list of numbers"
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        if self.0.depth == DEPTH_MAX {
            return Err(A::Error::custom(format!("lists in lists deeper than {DEPTH_MAX}")));
        }
        self.0.depth += 1;
        while list.next_element_seed(Element(self.0))?.is_some() {}
        self.0.depth -= 1;
        Ok(())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        if self.0.dtype == DType::Bool {
            return self.0.push(&[u8::from(value)]).map_err(E::custom);
        }
        Err(E::custom(format!("{value} is not a number")))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.0.integer(value.into()).map_err(E::custom)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.0.integer(value.into()).map_err(E::custom)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.0.float(value).map_err(E::custom)
    }
}

/// Writes a tensor's elements as a flat JSON list. Numbers read back as the same value.
pub(super) fn write(tensor: &Tensor, out: &mut Vec<u8>) -> Result<(), String> {
    macro_rules! numbers {
        ($t:ty) => {
            list::<{ size_of::<$t>() }>(tensor, out, |raw, out| {
                serde_json::to_writer(out, &<$t>::from_le_bytes(raw)).map_err(|error| error.to_string())
            })
        };
    }
    macro_rules! floats {
        ($t:ty) => {
            list::<{ size_of::<$t>() }>(tensor, out, |raw, out| {
                let value = <$t>::from_le_bytes(raw);
                match value.is_finite() {
                    true => serde_json::to_writer(out, &value).map_err(|error| error.to_string()),
                    false => Err(format!("it holds {value}, which JSON cannot say")),
                }
            })
        };
    }
    match tensor.dtype() {
        DType::Bool => list::<1>(tensor, out, |[raw], out| {
            out.write_all(if raw == 0 { b"false" } else { b"true" }).map_err(|error| error.to_string())
        }),
        DType::Uint8 => numbers!(u8),
        DType::Uint16 => numbers!(u16),
        DType::Uint32 => numbers!(u32),
        DType::Uint64 => numbers!(u64),
        DType::Int8 => numbers!(i8),
        DType::Int16 => numbers!(i16),
        DType::Int32 => numbers!(i32),
        DType::Int64 => numbers!(i64),
        DType::Fp32 => floats!(f32),
        DType::Fp64 => floats!(f64),
        DType::Fp16 | DType::Bf16 => Err("the protocol has no JSON form for 16-bit floats".into()),
    }
}

fn list<const SIZE: usize>(
    tensor: &Tensor,
    out: &mut Vec<u8>,
    mut element: impl FnMut([u8; SIZE], &mut Vec<u8>) -> Result<(), String>,
) -> Result<(), String> {
    out.push(b'[');
    let (elements, rest) = tensor.bytes().as_chunks::<SIZE>();
    assert!(rest.is_empty(), "a tensor's bytes are whole elements");
    for (index, raw) in elements.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        element(*raw, out)?;
    }
    out.push(b']');
    Ok(())
}
