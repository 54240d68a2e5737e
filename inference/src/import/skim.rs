//! Reads an ONNX file once, moves its large tensors into blobs and keeps the rest.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::{Component, Path, PathBuf},
};

use prost::Message as _;

use crate::{
    blobs::{BlobError, BlobRef, BlobStore},
    manifest::{MAX_MANIFEST_BYTES, set_blob},
    onnx::{ModelProto, TensorProto, data_type},
};

use super::{
    ImportError, Phase, Progress,
    payload::{self, Payload},
    wire::{Field, Source, Wire, put_bytes},
};

/// Tensors from this size on become blobs.
pub(super) const BLOB_FROM: u64 = 64 * 1024;

/// Messages inside messages, as prost counts them.
const MAX_DEPTH: usize = 100;

/// Most bytes of graph and small tensors; the manifest adds little to them.
const MAX_KEPT: u64 = MAX_MANIFEST_BYTES / 2;

/// Messages on the way to a dense tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
}

/// What to do with a field.
enum Fate {
    Keep,
    Drop,
    Enter(Kind),
}

fn fate(kind: Kind, number: u64) -> Fate {
    match (kind, number) {
        (Kind::Model, 7) | (Kind::Attribute, 6 | 11) => Fate::Enter(Kind::Graph),
        (Kind::Graph, 1) => Fate::Enter(Kind::Node),
        (Kind::Graph, 5) | (Kind::Attribute, 5 | 10) => Fate::Enter(Kind::Tensor),
        (Kind::Node, 5) => Fate::Enter(Kind::Attribute),
        // Training information, notes and stack traces of exporters: nothing that inference needs.
        (Kind::Model, 6 | 20) | (Kind::Graph, 10) | (Kind::Node, 6 | 9) => Fate::Drop,
        (Kind::Model | Kind::Graph | Kind::Node | Kind::Attribute | Kind::Tensor, _) => Fate::Keep,
    }
}

/// The file without its large tensors, which are in the store afterwards.
pub(super) fn skim(
    path: &Path,
    folder: &Path,
    store: &BlobStore,
    progress: &mut dyn FnMut(Progress),
) -> Result<ModelProto, ImportError> {
    let source = Source::open(path)?;
    let (done, total) = (0, source.length());
    let mut skimmer =
        Skimmer { source, folder, store, progress, kept: 0, done, total, files: BTreeSet::new() };
    skimmer.check_start()?;
    let length = skimmer.source.length();
    let bytes = skimmer.message(Kind::Model, length, 0)?;
    skimmer.report();
    let model = ModelProto::decode(bytes.as_slice()).map_err(|e| skimmer.source.damaged(e.to_string()))?;
    Ok(model)
}

struct Skimmer<'a> {
    source: Source,
    folder: &'a Path,
    store: &'a BlobStore,
    progress: &'a mut dyn FnMut(Progress),
    kept: u64,
    /// Bytes read from external files.
    done: u64,
    total: u64,
    files: BTreeSet<PathBuf>,
}

impl Skimmer<'_> {
    /// A model starts with its format version; without that the file is something else.
    fn check_start(&mut self) -> Result<(), ImportError> {
        let length = self.source.length();
        let not = |source: &Source, detail: &str| ImportError::NotOnnx {
            path: source.path().to_owned(),
            detail: detail.to_owned(),
        };
        if length == 0 {
            return Err(not(&self.source, "it is empty"));
        }
        loop {
            let field = match self.source.field(length) {
                Ok(Some(field)) => field,
                Ok(None) => return Err(not(&self.source, "it states no format version")),
                Err(ImportError::Read { path, source }) => return Err(ImportError::Read { path, source }),
                Err(_) => return Err(not(&self.source, "it is no protobuf message")),
            };
            match (field.number, field.wire) {
                (1, Wire::Varint) => return self.source.seek(0),
                (5, Wire::Varint) | (2 | 3 | 4 | 6 | 7 | 8 | 14 | 20 | 25 | 26, Wire::Bytes(_)) => {}
                _ => return Err(not(&self.source, "its fields are not those of a model")),
            }
            self.source.skip(field.wire, length)?;
        }
    }

    fn report(&mut self) {
        let done_bytes = self.source.position() + self.done;
        (self.progress)(Progress { phase: Phase::Reading, done_bytes, total_bytes: self.total });
    }

    fn keep(&mut self, field: Field, end: u64, into: &mut Vec<u8>) -> Result<(), ImportError> {
        self.kept += match field.wire {
            Wire::Bytes(length) => length + 16,
            Wire::Varint | Wire::Fixed64 | Wire::Fixed32 => 16,
        };
        if self.kept > MAX_KEPT {
            return Err(ImportError::TooLarge { path: self.source.path().to_owned(), limit: MAX_KEPT });
        }
        self.source.copy_field(field, end, into)
    }

    /// The message that ends at `end`, written again without its large tensors.
    fn message(&mut self, kind: Kind, end: u64, depth: usize) -> Result<Vec<u8>, ImportError> {
        if depth > MAX_DEPTH {
            return Err(self.source.damaged("graphs are nested too deeply"));
        }
        let mut kept = Vec::new();
        while let Some(field) = self.source.field(end)? {
            match (fate(kind, field.number), field.wire) {
                (Fate::Drop, wire) => self.source.skip(wire, end)?,
                (Fate::Enter(Kind::Tensor), Wire::Bytes(length)) => {
                    let tensor = self.tensor(self.source.position() + length)?;
                    put_bytes(field.number, &tensor, &mut kept);
                }
                (Fate::Enter(inner), Wire::Bytes(length)) => {
                    let message = self.message(inner, self.source.position() + length, depth + 1)?;
                    put_bytes(field.number, &message, &mut kept);
                }
                (Fate::Keep | Fate::Enter(_), _) => self.keep(field, end, &mut kept)?,
            }
        }
        Ok(kept)
    }

    /// The `TensorProto` that ends at `end`, its elements moved into a blob if there are many.
    fn tensor(&mut self, end: u64) -> Result<Vec<u8>, ImportError> {
        let start = self.source.position();
        let large = end - start >= BLOB_FROM;
        let (mut head, mut data) = (Vec::new(), BTreeSet::new());
        while let Some(field) = self.source.field(end)? {
            if payload::is_data(field.number) {
                data.insert(field.number);
            }
            if large && payload::is_data(field.number) {
                self.source.skip(field.wire, end)?;
            } else {
                self.keep(field, end, &mut head)?;
            }
        }
        let mut tensor =
            TensorProto::decode(head.as_slice()).map_err(|e| self.source.damaged(e.to_string()))?;
        if tensor.is_external() {
            self.external(&mut tensor)?;
            return Ok(tensor.encode_to_vec());
        }
        if !large {
            return Ok(head);
        }
        if tensor.data_type != data_type::STRING && self.size(&tensor)? >= BLOB_FROM {
            self.inline(&mut tensor, &data, start, end)?;
            return Ok(tensor.encode_to_vec());
        }
        self.source.seek(start)?;
        let mut whole = Vec::new();
        while let Some(field) = self.source.field(end)? {
            self.keep(field, end, &mut whole)?;
        }
        Ok(whole)
    }

    fn size(&self, tensor: &TensorProto) -> Result<u64, ImportError> {
        let detail = || format!("{:?} elements of type {}", tensor.dims, tensor.data_type);
        tensor.data_bytes().ok_or_else(|| damaged(tensor, detail()))
    }

    /// Moves elements that are in the model file into a blob.
    fn inline(
        &mut self,
        tensor: &mut TensorProto,
        data: &BTreeSet<u64>,
        start: u64,
        end: u64,
    ) -> Result<(), ImportError> {
        let expected = self.size(tensor)?;
        let (typed, width) = payload::typed_field(tensor.data_type)
            .ok_or_else(|| damaged(tensor, format!("unknown type {}", tensor.data_type)))?;
        let number = if data.contains(&payload::RAW_DATA) { payload::RAW_DATA } else { typed };
        self.source.seek(start)?;
        let mut payload = Payload::new(&mut self.source, end, number, width);
        let stored = self.store.put(&mut payload);
        let failure = payload.failure.take();
        let (hash, bytes) = stored.map_err(|error| failure.unwrap_or(ImportError::Blob(error)))?;
        if bytes != expected {
            return Err(damaged(tensor, format!("{bytes} bytes instead of {expected}")));
        }
        set_blob(tensor, BlobRef { hash, bytes });
        self.source.seek(end)?;
        self.report();
        Ok(())
    }

    /// Moves elements that are in another file into a blob, or into the message when they are few.
    fn external(&mut self, tensor: &mut TensorProto) -> Result<(), ImportError> {
        let file = tensor.external("location").unwrap_or_default().to_owned();
        let number = |key: &str| match tensor.external(key) {
            None => Ok(None),
            Some(text) => text.trim().parse::<u64>().map(Some).map_err(|_| {
                damaged(tensor, format!("{key} '{}' is no number", text.chars().take(40).collect::<String>()))
            }),
        };
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        let expected = self.size(tensor)?;
        if length.is_some_and(|length| length != expected) {
            return Err(damaged(tensor, format!("{} bytes instead of {expected}", length.unwrap_or(0))));
        }
        let path = self.external_path(tensor, &file)?;
        let failed = |source| ImportError::Read { path: path.clone(), source };
        let mut reader = File::open(&path).map_err(failed)?;
        let size = reader.metadata().map_err(failed)?.len();
        let end = offset.saturating_add(expected);
        if end > size {
            return Err(ImportError::ExternalRange { tensor: tensor.name.clone(), file, offset, end, size });
        }
        if self.files.insert(path.clone()) {
            self.total += size;
        }
        reader.seek(SeekFrom::Start(offset)).map_err(failed)?;
        let mut reader = reader.take(expected);
        tensor.raw_data = None;
        if expected < BLOB_FROM {
            let mut raw = Vec::new();
            reader.read_to_end(&mut raw).map_err(failed)?;
            self.kept += expected;
            tensor.raw_data = Some(raw);
            tensor.data_location = None;
            tensor.external_data.clear();
        } else {
            let (hash, bytes) = self.store.put(reader).map_err(|error| {
                if let BlobError::Source(source) = error {
                    return ImportError::Read { path: path.clone(), source };
                }
                ImportError::Blob(error)
            })?;
            if bytes != expected {
                return Err(ImportError::Truncated { path, at: offset + bytes });
            }
            set_blob(tensor, BlobRef { hash, bytes });
        }
        self.done += expected;
        self.report();
        Ok(())
    }

    /// Where an external file is: below the model's folder, symbolic links followed, and nowhere else.
    fn external_path(&self, tensor: &TensorProto, file: &str) -> Result<PathBuf, ImportError> {
        let escapes = || ImportError::ExternalEscapes { tensor: tensor.name.clone(), file: file.to_owned() };
        let relative = Path::new(file);
        let inside =
            relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if file.is_empty() || !inside {
            return Err(escapes());
        }
        let missing = || ImportError::MissingExternal {
            tensor: tensor.name.clone(),
            file: file.to_owned(),
            folder: self.folder.to_owned(),
        };
        let folder = self.folder.canonicalize().map_err(|_| missing())?;
        let path = folder.join(relative).canonicalize().map_err(|_| missing())?;
        if !path.starts_with(&folder) {
            return Err(escapes());
        }
        if path.is_file() { Ok(path) } else { Err(missing()) }
    }
}

fn damaged(tensor: &TensorProto, detail: String) -> ImportError {
    ImportError::Tensor { tensor: tensor.name.clone(), detail }
}
