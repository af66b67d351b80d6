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
    archive.check(|range| Bytes::mapped(file, range)).in_file(file.path())?;
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

/// Type and shape out of `{'descr': '<f4', 'fortran_order': False, 'shape': (16, 4), }`: a literal of Python, of which
/// these three fields in any order and nothing else are read.
fn form(header: &str) -> Result<(Dtype, Shape)> {
    let shown = || Error::malformed(format!("header `{:.80}`, expected descr, fortran_order and shape", header.trim()));
    let (mut descr, mut fortran, mut shape) = (None, None, None);
    let mut rest = header.trim().strip_prefix('{').ok_or_else(shown)?.trim_start();
    while !rest.starts_with('}') {
        let (name, value) = quoted(rest).ok_or_else(shown)?;
        let value = value.trim_start().strip_prefix(':').ok_or_else(shown)?.trim_start();
        let is_new = match name {
            "descr" => {
                let (word, after) = quoted(value).ok_or_else(|| Error::unsupported("records, expected numbers"))?;
                rest = after;
                descr.replace(word).is_none()
            }
            "fortran_order" => {
                let word = ["True", "False"].into_iter().find(|word| value.starts_with(word)).ok_or_else(shown)?;
                rest = &value[word.len()..];
                fortran.replace(word == "True").is_none()
            }
            "shape" => {
                let (inner, after) = value.strip_prefix('(').and_then(|v| v.split_once(')')).ok_or_else(shown)?;
                rest = after;
                shape.replace(extents(inner).ok_or_else(shown)?).is_none()
            }
            _ => return Err(shown()),
        };
        if !is_new {
            return Err(Error::malformed(format!("`{name}` stands twice in the header")));
        }
        rest = rest.trim_start();
        rest = match rest.strip_prefix(',') {
            Some(after) => after.trim_start(),
            None if rest.starts_with('}') => rest,
            None => return Err(shown()),
        };
    }
    let (Some(descr), Some(fortran), Some(dims), "}") = (descr, fortran, shape, rest) else { return Err(shown()) };
    if dims.len() > limits::DIMENSIONS {
        return Err(Error::limit(format!("{} dimensions", dims.len()), limits::DIMENSIONS));
    }
    if fortran && dims.len() > 1 {
        return Err(Error::unsupported("an array in the order of Fortran, expected that of C"));
    }
    Ok((element_type(descr)?, Shape::new(dims)))
}

/// The text between quotes at the start, and what follows. No name and no type holds an escape.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let (word, rest) = text.get(1..)?.split_once(quote)?;
    (!word.contains('\\')).then_some((word, rest))
}

/// `16, 4`, `16,` or nothing: a tuple of one has its comma.
fn extents(inner: &str) -> Option<Vec<usize>> {
    let inner = inner.trim();
    if inner.is_empty() {
        return Some(Vec::new());
    }
    let all = inner.strip_suffix(',').or_else(|| inner.contains(',').then_some(inner))?;
    let number = |word: &str| {
        let word = word.trim();
        word.bytes().all(|b| b.is_ascii_digit()).then(|| word.parse().ok())?
    };
    all.split(',').map(number).collect()
}

fn element_type(word: &str) -> Result<Dtype> {
    Ok(match word {
        "<f2" => Dtype::F16,
        "<f4" => Dtype::F32,
        "<f8" => Dtype::F64,
        "<i4" => Dtype::I32,
        "<u4" => Dtype::U32,
        "<i8" => Dtype::I64,
        other => {
            let what = format!("arrays of type `{other:.20}`, expected little-endian floats or integers");
            return Err(Error::unsupported(what));
        }
    })
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
        for header in [
            "",
            "{",
            "{}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), } x",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'shape': (2,), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'more': 1, }",
            "{'descr': '<f4' 'fortran_order': False, 'shape': (1,), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (+1,), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1,,), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1), }",
        ] {
            assert!(form(header).is_err(), "{header}");
        }
        let (_, shape) = form("{\"shape\":(16,4),\"fortran_order\":False,\"descr\":\"<f4\"}").unwrap();
        assert_eq!(shape.dims(), [16, 4]);
    }
}
