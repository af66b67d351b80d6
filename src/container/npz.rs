//! NumPy's archives of arrays (`.npz`): a zip of stored `.npy` members, read where they lie.
//!
//! Format: numpy/numpy:numpy/lib/format.py. Only little-endian floats and integers in C order are read; a member of
//! any other kind (objects would be pickles) is an error.

use std::sync::Arc;

use super::torch::zip::Archive;
use crate::error::{Context, Error, Result};
use crate::limits;
use crate::tensor::{Bytes, Dtype, MappedFile, Shape, StateDict, Tensor};

const MAGIC: &[u8] = b"\x93NUMPY";

/// Tensors by name, in the order of the archive.
pub fn read(file: &Arc<MappedFile>) -> Result<StateDict> {
    let all = file.as_slice();
    let archive = Archive::open(all).in_file(file.path())?;
    let mut out = StateDict::new();
    for member in archive.names() {
        let name = member.strip_suffix(".npy").unwrap_or(member);
        let Some(place) = archive.get(member) else { continue };
        let tensor = array(file, all.get(place.range.clone()).unwrap_or_default(), place.range.start);
        if out.len() >= limits::TENSORS {
            return Err(Error::too_many(limits::TENSORS, "arrays").in_file(file.path()));
        }
        if out.insert(name.to_string(), tensor.at_key(name).in_file(file.path())?).is_some() {
            return Err(Error::malformed("two arrays of this name").at_key(name).in_file(file.path()));
        }
    }
    Ok(out)
}

/// The array in `member`, which begins at `start` of the file.
fn array(file: &Arc<MappedFile>, member: &[u8], start: usize) -> Result<Tensor> {
    let short = || Error::malformed("ends inside the header of an array");
    let rest = member.strip_prefix(MAGIC).ok_or_else(|| Error::unrecognised("not an array of NumPy"))?;
    let (version, rest) = rest.split_first_chunk::<2>().ok_or_else(short)?;
    let (len, rest) = match version {
        [1, _] => {
            let (len, rest) = rest.split_first_chunk().ok_or_else(short)?;
            (usize::from(u16::from_le_bytes(*len)), rest)
        }
        [2 | 3, _] => {
            let (len, rest) = rest.split_first_chunk().ok_or_else(short)?;
            (usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX), rest)
        }
        [major, _] => return Err(Error::unsupported(format!("version {major} of NumPy's format, expected 1 to 3"))),
    };
    if len > limits::NPY_HEADER_BYTES {
        return Err(Error::limit(format!("a header of {len} bytes"), limits::NPY_HEADER_BYTES));
    }
    let (header, data) = rest.split_at_checked(len).ok_or_else(short)?;
    let header = std::str::from_utf8(header).map_err(|_| Error::malformed("a header that is not text"))?;
    let (dtype, shape) = form(header)?;
    let at = start + (member.len() - data.len());
    Tensor::new(dtype, shape, Bytes::mapped(file, at..at + data.len())?)
}

/// Type and shape out of `{'descr': '<f4', 'fortran_order': False, 'shape': (16, 4), }`.
fn form(header: &str) -> Result<(Dtype, Shape)> {
    let shown = || Error::malformed(format!("header `{:.80}`, expected descr, fortran_order and shape", header.trim()));
    let value = |name: &str| {
        let (_, rest) = header.split_once(&format!("'{name}':"))?;
        Some(rest.trim_start())
    };
    let descr = value("descr").ok_or_else(shown)?;
    let dtype = match descr.strip_prefix('\'').and_then(|rest| rest.split_once('\'')).map(|(word, _)| word) {
        Some("<f2") => Dtype::F16,
        Some("<f4") => Dtype::F32,
        Some("<f8") => Dtype::F64,
        Some("<i4") => Dtype::I32,
        Some("<u4") => Dtype::U32,
        Some("<i8") => Dtype::I64,
        Some(other) => {
            let what = format!("arrays of type `{other:.20}`, expected little-endian floats or integers");
            return Err(Error::unsupported(what));
        }
        None => return Err(Error::unsupported("an array of records, expected numbers")),
    };
    let inner = value("shape").and_then(|rest| rest.strip_prefix('(')).and_then(|rest| rest.split_once(')'));
    let (inner, _) = inner.ok_or_else(shown)?;
    let dims = inner.split(',').map(str::trim).filter(|dim| !dim.is_empty());
    let dims = dims.map(str::parse).collect::<std::result::Result<Vec<usize>, _>>().map_err(|_| shown())?;
    if !value("fortran_order").ok_or_else(shown)?.starts_with("False") && dims.len() > 1 {
        return Err(Error::unsupported("an array in the order of Fortran, expected that of C"));
    }
    Ok((dtype, Shape::new(dims)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        let of = |descr: &str, order: &str, shape: &str| {
            form(&format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}   \n"))
        };
        let (dtype, shape) = of("'<f2'", "False", "(16, 4)").unwrap();
        assert_eq!((dtype, shape.dims()), (Dtype::F16, &[16, 4][..]));
        assert_eq!(of("'<f4'", "True", "(3,)").unwrap().1.dims(), [3]);
        assert_eq!(of("'<f8'", "False", "()").unwrap().1.dims(), [0usize; 0]);
        for (descr, order, shape) in [
            ("'|O'", "False", "(1,)"),
            ("'>f4'", "False", "(1,)"),
            ("[('a', '<f4')]", "False", "(1,)"),
            ("'<f4'", "True", "(2, 2)"),
            ("'<f4'", "False", "(2, -2)"),
            ("'<f4'", "False", "2"),
        ] {
            assert!(of(descr, order, shape).is_err(), "{descr} {order} {shape}");
        }
        assert!(form("").is_err());
    }
}
