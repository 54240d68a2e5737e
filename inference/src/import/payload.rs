//! A large tensor's elements, read from the file as raw little-endian bytes.

use std::io::{self, Read};

use crate::onnx::data_type;

use super::{
    ImportError,
    wire::{Source, Wire},
};

/// Bytes converted at a time.
const BATCH: usize = 64 * 1024;

/// `TensorProto` fields that hold elements.
const FLOAT_DATA: u64 = 4;
const INT32_DATA: u64 = 5;
const STRING_DATA: u64 = 6;
const INT64_DATA: u64 = 7;
pub(super) const RAW_DATA: u64 = 9;
const DOUBLE_DATA: u64 = 10;
const UINT64_DATA: u64 = 11;

pub(super) fn is_data(number: u64) -> bool {
    matches!(
        number,
        FLOAT_DATA | INT32_DATA | STRING_DATA | INT64_DATA | RAW_DATA | DOUBLE_DATA | UINT64_DATA
    )
}

/// The field that holds the elements of a type when they are not raw, and the bytes of one entry when they are.
pub(super) fn typed_field(element: i32) -> Option<(u64, usize)> {
    use data_type as t;
    Some(match element {
        t::FLOAT | t::COMPLEX64 => (FLOAT_DATA, 4),
        t::DOUBLE | t::COMPLEX128 => (DOUBLE_DATA, 8),
        t::INT64 => (INT64_DATA, 8),
        t::UINT64 => (UINT64_DATA, 8),
        t::UINT32 => (UINT64_DATA, 4),
        t::INT32 => (INT32_DATA, 4),
        t::INT16 | t::UINT16 | t::FLOAT16 | t::BFLOAT16 => (INT32_DATA, 2),
        // Types under a byte are packed, so that an entry stands for one byte.
        _ if data_type::bits(element).is_some_and(|bits| bits <= 8) => (INT32_DATA, 1),
        _ => return None,
    })
}

/// Reads the elements in field `number` of the tensor message that ends at `end`.
pub(super) struct Payload<'a> {
    source: &'a mut Source,
    end: u64,
    number: u64,
    /// Bytes that one entry becomes; `None` for raw data and for fixed-size entries, which are copied.
    shrink_to: Option<usize>,
    /// End of the run of entries that is being read.
    run_end: u64,
    batch: Vec<u8>,
    taken: usize,
    /// The failure behind an `io::Error`, for the caller.
    pub(super) failure: Option<ImportError>,
}

impl<'a> Payload<'a> {
    pub(super) fn new(source: &'a mut Source, end: u64, number: u64, entry: usize) -> Self {
        let varints = matches!(number, INT32_DATA | INT64_DATA | UINT64_DATA);
        let run_end = source.position();
        let shrink_to = varints.then_some(entry);
        Self { source, end, number, shrink_to, run_end, batch: Vec::new(), taken: 0, failure: None }
    }

    /// Goes to the next run of entries; false at the end of the tensor.
    fn next_run(&mut self) -> Result<bool, ImportError> {
        while let Some(field) = self.source.field(self.end)? {
            if field.number != self.number {
                self.source.skip(field.wire, self.end)?;
                continue;
            }
            let start = self.source.position();
            match field.wire {
                Wire::Bytes(0) => continue,
                Wire::Bytes(length) => self.run_end = start + length,
                // One entry that is not packed. Varints say themselves where they end.
                Wire::Varint => {
                    self.source.skip(field.wire, self.end)?;
                    self.run_end = self.source.position();
                    self.source.seek(start)?;
                }
                Wire::Fixed64 => self.run_end = start + 8,
                Wire::Fixed32 => self.run_end = start + 4,
            }
            if self.run_end > self.end {
                return Err(self.source.damaged("a tensor's data is longer than the tensor"));
            }
            return Ok(true);
        }
        Ok(false)
    }

    fn refill(&mut self) -> Result<(), ImportError> {
        self.batch.clear();
        self.taken = 0;
        while self.batch.len() < BATCH {
            if self.source.position() >= self.run_end && !self.next_run()? {
                break;
            }
            let room = (BATCH - self.batch.len()) as u64;
            match self.shrink_to {
                None => {
                    let bytes = room.min(self.run_end - self.source.position());
                    self.source.copy(bytes, self.end, &mut self.batch)?;
                }
                Some(width) => {
                    let value = self.source.varint(self.run_end)?;
                    self.batch.extend_from_slice(&value.to_le_bytes()[..width]);
                }
            }
        }
        Ok(())
    }
}

impl Read for Payload<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.batch.len()
            && let Err(error) = self.refill()
        {
            self.failure = Some(error);
            return Err(io::Error::other("the model file could not be read"));
        }
        let ready = &self.batch[self.taken..];
        let take = ready.len().min(buffer.len());
        buffer[..take].copy_from_slice(&ready[..take]);
        self.taken += take;
        Ok(take)
    }
}
