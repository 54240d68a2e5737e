//! NumPy files: `.npy` in, `.npz` out.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek, Write},
    path::Path,
};

use mesh_inference::tensor::{DType, Tensor, TensorError};
use npyz::{NpyFile, Order, WriterBuilder, npz::NpzWriter};

use super::{client::file_error, exit::CliError};

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

/// Writes tensors to a `.npz` archive; the file appears when it is complete. BF16 becomes float32, which holds it.
pub(super) fn write_npz(path: &Path, tensors: &[(String, Tensor)]) -> Result<(), CliError> {
    let fail = |error: io::Error| file_error(path, &error);
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(fail)?;
    let mut archive = NpzWriter::new(BufWriter::new(&mut file));
    for (name, tensor) in tensors {
        write_array(&mut archive, name, tensor).map_err(fail)?;
    }
    archive.zip_writer().finish().map_err(io::Error::from).and_then(|mut out| out.flush()).map_err(fail)?;
    drop(archive);
    file.persist(path).map_err(|error| fail(error.error))?;
    Ok(())
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
    use mesh_inference::tensor::{DType, Tensor};

    use super::{TYPES, read, read_npy, write_npz};

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
