//! NumPy files: `.npy` in, `.npz` out.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, BufReader, BufWriter, Read, Seek, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use mesh_inference::tensor::{DType, Tensor, TensorError};
use npyz::{NpyFile, Order, WriterBuilder, npz::NpzWriter};

use super::{client::file_error, exit::CliError};

/// The system follows as many links of a path.
const LINKS_MAX: usize = 40;

/// NumPy's type strings, for little-endian data. There is none for BF16.
const TYPES: [(&str, DType); 12] = [
    ("|b1", DType::Bool),
    ("|u1", DType::Uint8),
    ("<u2", DType::Uint16),
    ("<u4", DType::Uint32),
    ("<u8", DType::Uint64),
    ("|i1", DType::Int8),
    ("<i2", DType::Int16),
    ("<i4", DType::Int32),
    ("<i8", DType::Int64),
    ("<f2", DType::Fp16),
    ("<f4", DType::Fp32),
    ("<f8", DType::Fp64),
];

/// NumPy's name of an element type, such as `float32`.
pub(super) fn numpy_name(dtype: DType) -> &'static str {
    match dtype {
        DType::Bool => "bool",
        DType::Uint8 => "uint8",
        DType::Uint16 => "uint16",
        DType::Uint32 => "uint32",
        DType::Uint64 => "uint64",
        DType::Int8 => "int8",
        DType::Int16 => "int16",
        DType::Int32 => "int32",
        DType::Int64 => "int64",
        DType::Fp16 => "float16",
        DType::Bf16 => "bfloat16",
        DType::Fp32 => "float32",
        DType::Fp64 => "float64",
    }
}

/// Reads a `.npy` file.
pub(super) fn read_npy(path: &Path) -> Result<Tensor, CliError> {
    let file = File::open(path).map_err(|error| file_error(path, &error))?;
    let npy = NpyFile::new(BufReader::new(file))
        .map_err(|error| CliError::failed(format!("{} is not a NumPy file: {error}", path.display())))?;
    read(npy).map_err(|what| CliError::failed(format!("{}: {what}", path.display())))
}

/// Reads an array whose header has been read. Its bytes go straight into the tensor.
pub(super) fn read<R: Read>(npy: NpyFile<R>) -> Result<Tensor, String> {
    let dtype = match npy.dtype() {
        npyz::DType::Plain(kind) => dtype_of(&kind.to_string())?,
        npyz::DType::Array(..) | npyz::DType::Record(_) => return Err("records are no tensors".into()),
    };
    if npy.order() != Order::C && npy.shape().len() > 1 {
        return Err("it is stored column by column: save numpy.ascontiguousarray(…) of it".into());
    }
    let shape: Result<Vec<i64>, _> = npy.shape().iter().map(|&extent| i64::try_from(extent)).collect();
    let shape = shape.map_err(|_| "its shape is too large")?;
    let mut reader = npy.into_inner();
    let fill = |target: &mut [u8]| {
        reader.read_exact(target).map_err(|error| Fill(format!("its data cannot be read: {error}")))
    };
    Tensor::build(dtype, &shape, fill).map_err(|Fill(what)| what)
}

fn dtype_of(kind: &str) -> Result<DType, String> {
    if let Some((_, dtype)) = TYPES.iter().find(|(name, _)| *name == kind) {
        return Ok(*dtype);
    }
    let known: Vec<_> = TYPES.iter().map(|&(_, dtype)| numpy_name(dtype)).collect();
    Err(format!(
        "its type {kind} is not one of {}, little-endian: convert it with .astype(…)",
        known.join(", ")
    ))
}

struct Fill(String);

impl From<TensorError> for Fill {
    fn from(error: TensorError) -> Self {
        Self(error.to_string())
    }
}

/// Writes tensors to a `.npz` archive. A file appears when it is complete, in place of what a link points to; what is
/// no file, such as a pipe, is written to. BF16 becomes float32, which holds it.
pub(super) fn write_npz(path: &Path, tensors: &[(String, Tensor)]) -> Result<(), CliError> {
    let written = match fs::metadata(path) {
        Ok(target) if !target.is_file() => write_into(path, tensors),
        Ok(target) => replace(path, tensors, Some(target.permissions())),
        Err(_) => replace(path, tensors, None),
    };
    written.map_err(|error| match error.kind() == io::ErrorKind::BrokenPipe {
        // Its reader has what it wants.
        true => error.into(),
        false => file_error(path, &error),
    })
}

/// Whether a path is where stdout goes.
pub(super) fn is_stdout(path: &Path) -> bool {
    let place = |path: &Path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    place(path).is_some_and(|found| place(Path::new("/dev/stdout")) == Some(found))
}

/// Writes into what is there already. The archive is made elsewhere first: its writer goes back in it.
fn write_into(path: &Path, tensors: &[(String, Tensor)]) -> io::Result<()> {
    let mut target = OpenOptions::new().write(true).open(path)?;
    let mut whole = tempfile::tempfile()?;
    write_archive(&mut whole, tensors)?;
    whole.rewind()?;
    io::copy(&mut whole, &mut target)?;
    target.flush()
}

/// Writes a file beside the target and gives it the target's name, and the rights of what it replaces, or those of any
/// new file.
fn replace(path: &Path, tensors: &[(String, Tensor)], rights: Option<Permissions>) -> io::Result<()> {
    let target = behind_links(path)?;
    let folder = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // The system takes from these rights what the user's umask says.
    let mut file = tempfile::Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(folder)?;
    write_archive(&mut file, tensors)?;
    if let Some(rights) = rights {
        file.as_file().set_permissions(rights)?;
    }
    file.persist(&target).map_err(|error| error.error)?;
    Ok(())
}

/// What a path leads to when its links are followed, though there may be nothing yet.
fn behind_links(path: &Path) -> io::Result<PathBuf> {
    let mut target = path.to_owned();
    for _ in 0..LINKS_MAX {
        let Ok(next) = fs::read_link(&target) else { return Ok(target) };
        target = target.parent().unwrap_or(Path::new("")).join(next);
    }
    Err(io::Error::other("it is a link that leads to itself"))
}

fn write_archive(out: impl Write + Seek, tensors: &[(String, Tensor)]) -> io::Result<()> {
    let mut archive = NpzWriter::new(BufWriter::new(out));
    for (name, tensor) in tensors {
        write_array(&mut archive, name, tensor)?;
    }
    archive.zip_writer().finish().map_err(io::Error::from).and_then(|mut out| out.flush())
}

fn write_array<W: Write + Seek>(archive: &mut NpzWriter<W>, name: &str, tensor: &Tensor) -> io::Result<()> {
    let kind = TYPES.iter().find(|(_, dtype)| *dtype == tensor.dtype()).map_or("<f4", |(kind, _)| kind);
    let kind: npyz::TypeStr = kind.parse().map_err(io::Error::other)?;
    let shape: Vec<u64> = tensor.shape().iter().map(|&extent| extent.unsigned_abs()).collect();
    let zip = archive.zip_writer();
    zip.start_file(npyz::npz::file_name_from_array_name(name), Default::default())?;
    npyz::WriteOptions::new_header_only()
        .dtype(npyz::DType::Plain(kind))
        .shape(&shape)
        .writer(&mut *zip)
        .write_header_only()?;
    match tensor.as_slice::<half::bf16>() {
        Some(values) => values.iter().try_for_each(|value| zip.write_all(&value.to_f32().to_le_bytes())),
        None => zip.write_all(tensor.bytes()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File, Permissions},
        io::{Cursor, Read},
        os::unix::fs::{PermissionsExt, symlink},
        path::Path,
        thread,
    };

    use mesh_inference::tensor::{DType, Tensor};

    use super::{TYPES, is_stdout, read, read_npy, write_npz};

    fn one(value: f32) -> Vec<(String, Tensor)> {
        vec![("x".to_owned(), Tensor::from_slice(&[1], &[value]).unwrap())]
    }

    /// The one value of an archive.
    fn value(bytes: Vec<u8>) -> f32 {
        let mut archive = npyz::npz::NpzArchive::new(Cursor::new(bytes)).unwrap();
        let tensor = read(archive.by_name("x").unwrap().unwrap()).unwrap();
        tensor.as_slice::<f32>().unwrap()[0]
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_file_has_the_rights_of_any_other() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("out.npz"), folder.path().join("other"));
        drop(File::create(&other).unwrap());
        write_npz(&path, &one(1.0)).unwrap();
        assert_eq!(mode(&path), mode(&other));
        // What is replaced keeps its own.
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        write_npz(&path, &one(2.0)).unwrap();
        assert_eq!((mode(&path), value(fs::read(&path).unwrap())), (0o640, 2.0));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn links_stay_and_what_they_point_to_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("real")).unwrap();
        symlink("real/out.npz", at("first")).unwrap();
        symlink(at("first"), at("second")).unwrap();
        // At first there is nothing behind them.
        for number in [1.0, 2.0] {
            write_npz(&at("second"), &one(number)).unwrap();
            assert!(
                at("first").is_symlink() && at("second").is_symlink() && !at("real/out.npz").is_symlink()
            );
            assert!((value(fs::read(at("real/out.npz")).unwrap()) - number).abs() < 1e-9);
        }
        symlink("loop", at("loop")).unwrap();
        assert!(write_npz(&at("loop"), &one(1.0)).unwrap_err().message().contains("link"));
        assert!(write_npz(&at("real"), &one(1.0)).unwrap_err().message().contains("real"), "a folder");
    }

    #[test]
    fn a_pipe_is_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut bytes = Vec::new();
                File::open(&pipe).unwrap().read_to_end(&mut bytes).unwrap();
                value(bytes)
            });
            write_npz(&pipe, &one(3.0)).unwrap();
            assert!((reader.join().unwrap() - 3.0).abs() < 1e-9);
        });
        assert!(!is_stdout(&pipe) && !is_stdout(&folder.path().join("nothing")));
        assert_eq!(is_stdout(Path::new("/dev/stdout")), Path::new("/dev/stdout").exists());
    }

    #[test]
    fn every_type_comes_back_from_an_archive() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.npz");
        let mut tensors = vec![("scalar".to_owned(), Tensor::from_slice(&[], &[1.5f32]).unwrap())];
        for (name, dtype) in TYPES {
            let bytes: Vec<u8> = (0..6 * dtype.size()).map(|i| u8::try_from(i % 2).unwrap()).collect();
            let name = name.replace(['<', '|'], "t");
            tensors.push((name, Tensor::from_bytes(dtype, &[2, 3], &bytes).unwrap()));
        }
        write_npz(&path, &tensors).unwrap();
        let mut archive = npyz::npz::NpzArchive::open(&path).unwrap();
        for (name, tensor) in &tensors {
            let back = read(archive.by_name(name).unwrap().unwrap()).unwrap();
            assert_eq!(back.dtype(), tensor.dtype(), "{name}");
            assert_eq!(back.shape(), tensor.shape(), "{name}");
            assert_eq!(back.bytes(), tensor.bytes(), "{name}");
        }
    }

    #[test]
    fn bf16_is_written_as_float32() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.npz");
        let values = [half::bf16::from_f32(1.5), half::bf16::from_f32(-2.0)];
        write_npz(&path, &[("x".to_owned(), Tensor::from_slice(&[2], &values).unwrap())]).unwrap();
        let mut archive = npyz::npz::NpzArchive::open(&path).unwrap();
        let back = read(archive.by_name("x").unwrap().unwrap()).unwrap();
        assert_eq!((back.dtype(), back.as_slice::<f32>()), (DType::Fp32, Some(&[1.5, -2.0][..])));
    }

    #[test]
    fn what_is_no_array_is_said_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        assert!(read_npy(&path).unwrap_err().message().contains("No such file"));
        for (content, says) in [
            (&b"hello"[..], "not a NumPy file"),
            (b"\x93NUMPY\x01\x00\x46\x00{'descr': '>f4', 'fortran_order': False, 'shape': (3,), }             \n", "astype"),
            (b"\x93NUMPY\x01\x00\x46\x00{'descr': '<f4', 'fortran_order': True, 'shape': (3,2,), }            \n", "contiguous"),
            (b"\x93NUMPY\x01\x00\x46\x00{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }             \n1", "data"),
        ] {
            std::io::Write::write_all(&mut std::fs::File::create(&path).unwrap(), content).unwrap();
            let error = read_npy(&path).unwrap_err();
            assert!(error.message().contains(says), "{}", error.message());
        }
    }
}
