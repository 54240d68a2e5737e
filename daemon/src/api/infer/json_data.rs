//! Tensor data as JSON: flat or nested lists of numbers or booleans, to and from little-endian bytes.

use std::fmt;

use mesh_inference::tensor::{DType, Tensor};
use serde::{
    Deserializer, Serialize, Serializer,
    de::{DeserializeSeed, Error, SeqAccess, Visitor},
    ser::Error as _,
};

use super::fill::Filler;

/// Lists in lists that data may have; also what keeps the recursion short.
const DEPTH_MAX: usize = 32;

/// Reads JSON `text` into the memory of a tensor.
pub(super) fn read(text: &str, filler: Filler<'_>) -> Result<(), String> {
    let mut reading = Reading { filler, depth: 0 };
    let mut from = serde_json::Deserializer::from_str(text);
    reading.deserialize_into(&mut from).map_err(|error| {
        // The position is inside this piece of the request and would mislead.
        let text = error.to_string();
        text.rsplit_once(" at line ").map_or(text.clone(), |(what, _)| what.to_owned())
    })?;
    reading.filler.end()
}

struct Reading<'t> {
    filler: Filler<'t>,
    depth: usize,
}

impl Reading<'_> {
    fn deserialize_into<'de, D: Deserializer<'de>>(&mut self, from: D) -> Result<(), D::Error> {
        Element(self).deserialize(from)
    }
}

/// One element, or a list of them.
struct Element<'f, 't>(&'f mut Reading<'t>);

impl<'de> DeserializeSeed<'de> for Element<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Element<'_, '_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(if self.0.filler.dtype() == DType::Bool {
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
        if self.0.filler.dtype() == DType::Bool {
            return self.0.filler.integer(value.into()).map_err(E::custom);
        }
        Err(E::custom(format!("{value} is not a number")))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.0.filler.integer(value.into()).map_err(E::custom)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.0.filler.integer(value.into()).map_err(E::custom)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.0.filler.float(value).map_err(E::custom)
    }
}

/// Why a tensor's elements cannot be said in JSON, if they cannot.
pub(super) fn check(tensor: &Tensor) -> Result<(), String> {
    match tensor.dtype() {
        DType::Fp32 => all_finite(raw(tensor).map(|bytes| f32::from_le_bytes(bytes).into())),
        DType::Fp64 => all_finite(raw(tensor).map(f64::from_le_bytes)),
        DType::Fp16 | DType::Bf16 => Err("the protocol has no JSON form for 16-bit floats".into()),
        DType::Bool
        | DType::Uint8
        | DType::Uint16
        | DType::Uint32
        | DType::Uint64
        | DType::Int8
        | DType::Int16
        | DType::Int32
        | DType::Int64 => Ok(()),
    }
}

fn all_finite(mut values: impl Iterator<Item = f64>) -> Result<(), String> {
    match values.find(|value| !value.is_finite()) {
        Some(value) => Err(format!("it holds {value}, which JSON cannot say")),
        None => Ok(()),
    }
}

/// A tensor's elements as a flat JSON list, of a tensor that was checked. Numbers read back as the same value.
#[derive(Debug)]
pub(super) struct Elements<'t>(pub(super) &'t Tensor);

impl Serialize for Elements<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        macro_rules! numbers {
            ($t:ty) => {
                to.collect_seq(raw(self.0).map(<$t>::from_le_bytes))
            };
        }
        match self.0.dtype() {
            DType::Bool => to.collect_seq(raw::<1>(self.0).map(|[byte]| byte != 0)),
            DType::Uint8 => numbers!(u8),
            DType::Uint16 => numbers!(u16),
            DType::Uint32 => numbers!(u32),
            DType::Uint64 => numbers!(u64),
            DType::Int8 => numbers!(i8),
            DType::Int16 => numbers!(i16),
            DType::Int32 => numbers!(i32),
            DType::Int64 => numbers!(i64),
            DType::Fp32 => numbers!(f32),
            DType::Fp64 => numbers!(f64),
            DType::Fp16 | DType::Bf16 => Err(S::Error::custom("16-bit floats have no JSON form")),
        }
    }
}

fn raw<const SIZE: usize>(tensor: &Tensor) -> impl Iterator<Item = [u8; SIZE]> {
    let (elements, rest) = tensor.bytes().as_chunks::<SIZE>();
    assert!(rest.is_empty(), "a tensor's bytes are whole elements");
    elements.iter().copied()
}
