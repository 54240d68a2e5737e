//! Finds the external data files that an ONNX model names, without holding the model in memory.
//!
//! The file is walked as protobuf: messages that can contain a tensor's `external_data` are entered, everything else
//! (weights above all) is skipped by seeking.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, BufReader, Read},
    path::{Component, Path, PathBuf},
};

use super::{client::file_error, exit::CliError};

/// Subgraphs inside subgraphs that are followed.
const DEPTH_MAX: usize = 64;
/// A file's name is short.
const STRING_MAX: u64 = 4096;

/// The messages of ONNX on the way to a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Message {
    Model,
    Graph,
    Function,
    Node,
    Attribute,
    Sparse,
    Tensor,
    ExternalData,
}

impl Message {
    /// The message in a field, for fields that can lead to a tensor. Field numbers are those of `onnx.proto`.
    fn child(self, field: u64) -> Option<Self> {
        match (self, field) {
            (Self::Model, 7) => Some(Self::Graph),
            (Self::Model, 25) => Some(Self::Function),
            (Self::Graph, 1) | (Self::Function, 7) => Some(Self::Node),
            (Self::Graph, 5) => Some(Self::Tensor),
            (Self::Graph, 15) | (Self::Attribute, 22 | 23) => Some(Self::Sparse),
            (Self::Node, 5) | (Self::Function, 11) => Some(Self::Attribute),
            (Self::Attribute, 5 | 10) | (Self::Sparse, 1 | 2) => Some(Self::Tensor),
            (Self::Attribute, 6 | 11) => Some(Self::Graph),
            (Self::Tensor, 13) => Some(Self::ExternalData),
            _ => None,
        }
    }
}

/// Why a file could not be walked.
#[derive(Debug)]
enum WalkError {
    Io(io::Error),
    Broken,
}

impl From<io::Error> for WalkError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Broken } else { Self::Io(error) }
    }
}

/// The data files of a model, as it names them, with where they are. All exist.
pub(super) fn data_files(model: &Path) -> Result<Vec<(String, PathBuf)>, CliError> {
    let file = File::open(model).map_err(|error| file_error(model, &error))?;
    let len = file.metadata().map_err(|error| file_error(model, &error))?.len();
    if len == 0 {
        return Err(CliError::failed(format!("{} is empty: copy or export it again", model.display())));
    }
    let mut walk = Walk { from: BufReader::new(file), at: 0, names: BTreeSet::new() };
    walk.message(Message::Model, len, 0).map_err(|error| match error {
        WalkError::Io(error) => file_error(model, &error),
        WalkError::Broken => CliError::failed(format!(
            "{} is not an ONNX model, or was cut short on its way here: copy or export it again",
            model.display()
        )),
    })?;
    let folder = model.parent().unwrap_or(Path::new(""));
    walk.names.into_iter().map(|name| locate(model, folder, name)).collect()
}

fn locate(model: &Path, folder: &Path, name: String) -> Result<(String, PathBuf), CliError> {
    let inside =
        Path::new(&name).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !inside || name.is_empty() {
        return Err(CliError::failed(format!(
            "{} wants its data from {name:?}, which is not in its folder: save the model again with its data next to it",
            model.display()
        )));
    }
    let path = folder.join(&name);
    match path.is_file() {
        true => Ok((name, path)),
        false => Err(CliError::failed(format!(
            "{} keeps weights in {name:?}, and {} does not exist: copy it there",
            model.display(),
            path.display()
        ))),
    }
}

struct Walk {
    from: BufReader<File>,
    at: u64,
    names: BTreeSet<String>,
}

impl Walk {
    /// Walks one message that ends at `end`.
    fn message(&mut self, message: Message, end: u64, depth: usize) -> Result<(), WalkError> {
        if depth > DEPTH_MAX {
            return Err(WalkError::Broken);
        }
        let mut key = None;
        while self.at < end {
            let tag = self.varint()?;
            let (field, wire) = (tag >> 3, tag & 7);
            let len = match wire {
                0 => {
                    self.varint()?;
                    continue;
                }
                1 => 8,
                2 => self.varint()?,
                5 => 4,
                _ => return Err(WalkError::Broken),
            };
            let stop = self.at.checked_add(len).filter(|&stop| stop <= end).ok_or(WalkError::Broken)?;
            match message.child(field) {
                Some(child) if wire == 2 => self.message(child, stop, depth + 1)?,
                Some(_) => return Err(WalkError::Broken),
                None if message == Message::ExternalData && wire == 2 => {
                    let text = self.string(len)?;
                    match field {
                        1 => key = Some(text),
                        2 if key.as_deref() == Some("location") => drop(self.names.insert(text)),
                        _ => {}
                    }
                }
                None => self.skip(len)?,
            }
        }
        if self.at == end { Ok(()) } else { Err(WalkError::Broken) }
    }

    fn varint(&mut self) -> Result<u64, WalkError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let mut byte = [0];
            self.from.read_exact(&mut byte)?;
            self.at += 1;
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] < 0x80 {
                return Ok(value);
            }
        }
        Err(WalkError::Broken)
    }

    fn string(&mut self, len: u64) -> Result<String, WalkError> {
        if len > STRING_MAX {
            return Err(WalkError::Broken);
        }
        let mut text = Vec::new();
        (&mut self.from).take(len).read_to_end(&mut text)?;
        self.at += text.len() as u64;
        String::from_utf8(text).map_err(|_| WalkError::Broken)
    }

    fn skip(&mut self, len: u64) -> Result<(), WalkError> {
        let step = i64::try_from(len).map_err(|_| WalkError::Broken)?;
        self.from.seek_relative(step)?;
        self.at += len;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write, path::Path};

    use super::data_files;

    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2];
        let mut len = content.len();
        while len >= 0x80 {
            out.push(u8::try_from(len & 0x7f).unwrap() | 0x80);
            len >>= 7;
        }
        out.push(u8::try_from(len).unwrap());
        out.extend_from_slice(content);
        out
    }

    fn tensor(location: &str) -> Vec<u8> {
        let entry = |key: &str, value: &str| {
            field(13, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat())
        };
        [field(9, &[0; 300]), entry("location", location), entry("offset", "0")].concat()
    }

    fn write(path: &Path, content: &[u8]) {
        File::create(path).unwrap().write_all(content).unwrap();
    }

    #[test]
    fn names_are_found_in_weights_and_in_subgraphs() {
        let folder = tempfile::tempdir().unwrap();
        let inner = field(5, &tensor("b.bin"));
        let node = field(5, &field(6, &inner));
        let graph = [field(1, &node), field(5, &tensor("a.bin")), field(5, &tensor("a.bin"))].concat();
        let model = [vec![0x08, 0x07], field(7, &graph)].concat();
        let path = folder.path().join("m.onnx");
        write(&path, &model);
        write(&folder.path().join("a.bin"), b"");
        let missing = data_files(&path).unwrap_err();
        assert!(missing.message().contains("b.bin"), "{}", missing.message());
        write(&folder.path().join("b.bin"), b"");
        let found: Vec<String> = data_files(&path).unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(found, ["a.bin", "b.bin"]);
        // A file that was cut short is told from a whole one wherever the cut is.
        for len in 1..model.len() {
            if len != 2 {
                write(&path, &model[..len]);
                assert!(data_files(&path).is_err(), "{len}");
            }
        }
    }

    #[test]
    fn data_outside_of_the_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        for location in ["../a.bin", "/etc/passwd", "a/../../b"] {
            write(&path, &field(7, &field(5, &tensor(location))));
            let error = data_files(&path).unwrap_err();
            assert!(error.message().contains("not in its folder"), "{}", error.message());
        }
    }

    #[test]
    fn deep_nesting_and_noise_are_no_models() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        let mut graph = Vec::new();
        for _ in 0..200 {
            graph = field(1, &field(5, &field(6, &graph)));
        }
        for content in [field(7, &graph), b"hello world".to_vec(), vec![0xff; 100]] {
            write(&path, &content);
            assert!(data_files(&path).is_err());
        }
    }

    #[test]
    fn the_digits_model_has_no_data_files() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/digits/model.onnx");
        assert!(data_files(&path).unwrap().is_empty());
    }
}
