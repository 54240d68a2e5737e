//! The protobuf wire format over a file, without holding the file.

use std::{
    fs::File,
    io::{self, BufReader, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use super::ImportError;

const BUFFER: usize = 256 * 1024;

/// A file that is read field by field.
#[derive(Debug)]
pub(super) struct Source {
    reader: BufReader<File>,
    path: PathBuf,
    position: u64,
    length: u64,
}

/// How a field is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    Varint,
    Fixed64,
    /// Length-delimited, with the length.
    Bytes(u64),
    Fixed32,
}

/// The start of a field. The source stands at its value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    pub(super) number: u64,
    pub(super) wire: Wire,
}

impl Source {
    pub(super) fn open(path: &Path) -> Result<Self, ImportError> {
        let failed = |source| ImportError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        if !found.is_file() {
            return Err(failed(io::Error::other("not a regular file")));
        }
        let (path, length) = (path.to_owned(), found.len());
        Ok(Self { reader: BufReader::with_capacity(BUFFER, file), path, position: 0, length })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn damaged(&self, detail: impl Into<String>) -> ImportError {
        ImportError::Damaged { path: self.path.clone(), at: self.position, detail: detail.into() }
    }

    fn failed(&self, source: io::Error) -> ImportError {
        if source.kind() == io::ErrorKind::UnexpectedEof {
            return ImportError::Truncated { path: self.path.clone(), at: self.length };
        }
        ImportError::Read { path: self.path.clone(), source }
    }

    /// Fails unless `bytes` more lie before `end`. What a field claims is checked here before it is believed.
    fn within(&self, bytes: u64, end: u64) -> Result<u64, ImportError> {
        match self.position.checked_add(bytes) {
            Some(stop) if stop <= end => Ok(stop),
            Some(_) | None if end >= self.length => {
                Err(ImportError::Truncated { path: self.path.clone(), at: self.length })
            }
            Some(_) | None => Err(self.damaged("a field is longer than what holds it")),
        }
    }

    pub(super) fn varint(&mut self, end: u64) -> Result<u64, ImportError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            self.within(1, end)?;
            let mut byte = [0];
            self.reader.read_exact(&mut byte).map_err(|e| self.failed(e))?;
            self.position += 1;
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] < 0x80 {
                return Ok(value);
            }
        }
        Err(self.damaged("a number has too many digits"))
    }

    /// The next field of a message that ends at `end`; `None` at its end.
    pub(super) fn field(&mut self, end: u64) -> Result<Option<Field>, ImportError> {
        if self.position == end {
            return Ok(None);
        }
        let key = self.varint(end)?;
        let (number, wire) = (key >> 3, key & 7);
        let wire = match wire {
            0 => Wire::Varint,
            1 => Wire::Fixed64,
            2 => {
                let length = self.varint(end)?;
                self.within(length, end)?;
                Wire::Bytes(length)
            }
            5 => Wire::Fixed32,
            _ => return Err(self.damaged(format!("field {number} has the unknown wire type {wire}"))),
        };
        if number == 0 {
            return Err(self.damaged("a field has number 0"));
        }
        Ok(Some(Field { number, wire }))
    }

    pub(super) fn seek(&mut self, position: u64) -> Result<(), ImportError> {
        let distance = i64::try_from(i128::from(position) - i128::from(self.position));
        let moved = match distance {
            Ok(distance) => self.reader.seek_relative(distance),
            Err(_) => self.reader.seek(SeekFrom::Start(position)).map(|_| ()),
        };
        moved.map_err(|e| self.failed(e))?;
        self.position = position;
        Ok(())
    }

    /// Goes past a field's value.
    pub(super) fn skip(&mut self, wire: Wire, end: u64) -> Result<(), ImportError> {
        let bytes = match wire {
            Wire::Varint => return self.varint(end).map(|_| ()),
            Wire::Fixed64 => 8,
            Wire::Fixed32 => 4,
            Wire::Bytes(length) => length,
        };
        let stop = self.within(bytes, end)?;
        self.seek(stop)
    }

    /// Appends the next `bytes` to `into`; memory grows only with what is really read.
    pub(super) fn copy(&mut self, bytes: u64, end: u64, into: &mut Vec<u8>) -> Result<(), ImportError> {
        self.within(bytes, end)?;
        let got = (&mut self.reader).take(bytes).read_to_end(into).map_err(|e| self.failed(e))?;
        self.position += got as u64;
        if got as u64 == bytes {
            Ok(())
        } else {
            Err(ImportError::Truncated { path: self.path.clone(), at: self.position })
        }
    }

    /// Appends a whole field, key and value, to `into`.
    pub(super) fn copy_field(
        &mut self,
        field: Field,
        end: u64,
        into: &mut Vec<u8>,
    ) -> Result<(), ImportError> {
        match field.wire {
            Wire::Varint => {
                put_varint(field.number << 3, into);
                put_varint(self.varint(end)?, into);
                Ok(())
            }
            Wire::Fixed64 => {
                put_varint(field.number << 3 | 1, into);
                self.copy(8, end, into)
            }
            Wire::Fixed32 => {
                put_varint(field.number << 3 | 5, into);
                self.copy(4, end, into)
            }
            Wire::Bytes(length) => {
                put_varint(field.number << 3 | 2, into);
                put_varint(length, into);
                self.copy(length, end, into)
            }
        }
    }
}

/// Appends `value` as a varint.
pub(super) fn put_varint(mut value: u64, into: &mut Vec<u8>) {
    while value >= 0x80 {
        into.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

/// Appends a length-delimited field.
pub(super) fn put_bytes(number: u64, bytes: &[u8], into: &mut Vec<u8>) {
    put_varint(number << 3 | 2, into);
    put_varint(bytes.len() as u64, into);
    into.extend_from_slice(bytes);
}
