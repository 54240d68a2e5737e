//! The JSON part of an inference request. Clients are not trusted: lists are capped while they are read, unknown keys
//! are skipped without being kept, and tensor data stays text until its size has been checked.

use std::{borrow::Cow, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::checks::{RANK_MAX, TENSORS_MAX};

#[derive(Debug, Deserialize)]
pub(super) struct Header<'a> {
    #[serde(default)]
    pub(super) id: String,
    #[serde(default)]
    pub(super) parameters: RequestParameters,
    #[serde(borrow, deserialize_with = "tensors")]
    pub(super) inputs: Vec<Input<'a>>,
    #[serde(default, deserialize_with = "tensors")]
    pub(super) outputs: Vec<Output>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RequestParameters {
    /// Microseconds; 0 is the same as none.
    #[serde(default)]
    pub(super) timeout: u64,
    #[serde(default)]
    pub(super) binary_data_output: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct Input<'a> {
    #[serde(borrow)]
    pub(super) name: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) datatype: Cow<'a, str>,
    #[serde(deserialize_with = "shape")]
    pub(super) shape: Vec<i64>,
    #[serde(default)]
    pub(super) parameters: InputParameters,
    #[serde(borrow, default)]
    pub(super) data: Option<&'a RawValue>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct InputParameters {
    pub(super) binary_data_size: Option<u64>,
    pub(super) shared_memory_region: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Output {
    pub(super) name: String,
    #[serde(default)]
    pub(super) parameters: OutputParameters,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct OutputParameters {
    pub(super) binary_data: Option<bool>,
    #[serde(default)]
    pub(super) classification: u64,
    pub(super) shared_memory_region: Option<String>,
}

fn tensors<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    from.deserialize_seq(Capped::<T, TENSORS_MAX>(PhantomData))
}

fn shape<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<i64>, D::Error> {
    from.deserialize_seq(Capped::<i64, RANK_MAX>(PhantomData))
}

/// Reads a list of at most `MAX` items.
struct Capped<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Capped<T, MAX> {
    type Value = Vec<T>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "a list of at most {MAX}")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            if items.len() == MAX {
                return Err(A::Error::custom(format!("more than {MAX} in this list")));
            }
            items.push(item);
        }
        Ok(items)
    }
}
