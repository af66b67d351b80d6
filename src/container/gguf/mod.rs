//! GGUF files, versions 2 and 3, little-endian: typed metadata and tensors, read from a mapped file and written.
//!
//! Format: ggml-org/ggml, `docs/gguf.md`; ggml-org/llama.cpp, `ggml/src/gguf.cpp`. Counts and lengths are checked
//! against what is left of the file before anything is set aside for them. Extents stand innermost first in the file and
//! outermost first here. Quantised tensors are listed; the values of Q8_0 can be had.

mod blocks;
mod cursor;
mod write;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use indexmap::IndexMap;

use crate::error::{Context, Error, Result};
use crate::limits;
use crate::tensor::{Bytes, Dtype, MappedFile, Shape, StateDict, Tensor, dtype};

pub use blocks::Blocks;
use cursor::Cursor;
pub use write::{head, write};

/// The first bytes of a file.
pub const MAGIC: &[u8; 4] = b"GGUF";
/// Where nothing else is said, tensors start at multiples of this.
const DEFAULT_ALIGNMENT: usize = 32;
/// The key that says so.
const ALIGNMENT: &str = "general.alignment";

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An integer without a sign, and its number of bytes (1, 2, 4, 8).
    Unsigned(u64, u8),
    /// An integer with a sign, and its number of bytes.
    Signed(i64, u8),
    /// A float of 4 bytes.
    F32(f32),
    /// A float of 8 bytes.
    F64(f64),
    /// True or false.
    Bool(bool),
    /// Text.
    Text(String),
    /// An array as it is stored, element type and count first; checked, not taken apart.
    Array(Vec<u8>),
}

impl Value {
    /// An integer of 4 bytes, the commonest.
    pub fn u32(number: u32) -> Value {
        Value::Unsigned(u64::from(number), 4)
    }

    /// The text, where it is one.
    pub fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The number, where it is one that is not negative and whole.
    pub fn whole(&self) -> Option<u64> {
        match *self {
            Value::Unsigned(number, _) => Some(number),
            Value::Signed(number, _) => u64::try_from(number).ok(),
            _ => None,
        }
    }

    /// What it is, in words.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::Unsigned(..) | Value::Signed(..) => "an integer",
            Value::F32(_) => "a float of 4 bytes",
            Value::F64(_) => "a float of 8 bytes",
            Value::Bool(_) => "true or false",
            Value::Text(_) => "text",
            Value::Array(_) => "an array",
        }
    }
}

/// Metadata in the order of the file.
pub type Metadata = IndexMap<String, Value>;

/// A file opened for reading. No tensor has been touched.
#[derive(Clone, Debug)]
pub struct GgufFile {
    /// All of the file.
    pub whole: Bytes,
    /// Metadata.
    pub metadata: Metadata,
    /// Tensors of plain floats and integers, in the order of the file.
    pub tensors: StateDict,
    /// The others.
    pub others: Vec<Blocks>,
}

/// True for a file that begins like GGUF.
pub fn claims(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

impl GgufFile {
    /// Maps the file and reads its header.
    pub fn open(path: &Path) -> Result<GgufFile> {
        let file = MappedFile::open(path)?;
        let all = 0..file.as_slice().len();
        Self::within(&file, all).in_file(path)
    }

    /// Reads a file that lies as a whole in a range of another one.
    pub fn within(file: &Arc<MappedFile>, range: Range<usize>) -> Result<GgufFile> {
        Self::parse(&Bytes::mapped(file, range)?)
    }

    /// Reads a file from its bytes.
    pub fn parse(whole: &Bytes) -> Result<GgufFile> {
        let mut cursor = Cursor::new(whole.as_slice());
        let (tensor_count, key_count) = counts(&mut cursor)?;
        let metadata = metadata(&mut cursor, key_count)?;
        let alignment = alignment(&metadata)?;
        let infos = infos(&mut cursor, tensor_count)?;
        let start = cursor.at().checked_next_multiple_of(alignment).ok_or_else(|| Error::malformed("too large"))?;
        let mut out = GgufFile {
            whole: whole.clone(),
            metadata,
            tensors: StateDict::with_capacity(infos.len()),
            others: Vec::new(),
        };
        let mut spans = Vec::with_capacity(infos.len());
        for (name, info) in infos {
            spans.push((info.span(start, alignment, whole.len()).at_key(&name)?, name.clone()));
            match info.form {
                Form::Plain(dtype) => {
                    let span = spans.last().map_or(0..0, |(span, _)| span.clone());
                    let tensor = Tensor::new(dtype, Shape::new(info.dims), whole.slice(span)).at_key(&name)?;
                    out.tensors.insert(name, tensor);
                }
                Form::Blocks(kind, ..) => {
                    let span = spans.last().map_or(0..0, |(span, _)| span.clone());
                    out.others.push(Blocks { name, kind, dims: info.dims, bytes: whole.slice(span) });
                }
            }
        }
        refuse_overlap(spans)?;
        Ok(out)
    }
}

/// Number of tensors and of metadata keys.
fn counts(cursor: &mut Cursor) -> Result<(usize, usize)> {
    if cursor.take(4, "magic")? != MAGIC {
        return Err(Error::malformed("does not begin with `GGUF`"));
    }
    match cursor.u32("version")? {
        2 | 3 => {}
        1 => return Err(Error::unsupported("GGUF version 1; versions 2 and 3 are read").at_key("version")),
        other if other > 0xffff && other.swap_bytes() <= 0xffff => {
            return Err(Error::unsupported("a big-endian GGUF file; little-endian is read").at_key("version"));
        }
        other => {
            let what = format!("GGUF version {other}; versions 2 and 3 are read");
            return Err(Error::unsupported(what).at_key("version"));
        }
    }
    // The shortest tensor: length of its name, number of extents, type, offset. The shortest value: a byte.
    let tensors = cursor.count(24, limits::TENSORS, "tensor_count")?;
    let keys = cursor.count(13, limits::GGUF_KEYS, "metadata_kv_count")?;
    Ok((tensors, keys))
}

fn metadata(cursor: &mut Cursor, count: usize) -> Result<Metadata> {
    let mut out = Metadata::new();
    for number in 0..count {
        let key = cursor.text(limits::GGUF_KEY_BYTES, &format!("metadata key {number}"))?.to_string();
        if key.is_empty() {
            return Err(Error::malformed("an empty key").at_key(format!("metadata key {number}")));
        }
        let kind = cursor.u32("its type").at_key(&key)?;
        let value = value(cursor, kind).at_key(&key)?;
        if out.contains_key(&key) {
            return Err(Error::malformed("this key stands twice").at_key(key));
        }
        out.insert(key, value);
    }
    Ok(out)
}

fn value(cursor: &mut Cursor, kind: u32) -> Result<Value> {
    Ok(match kind {
        0 => Value::Unsigned(u64::from(cursor.array::<1>("value")?[0]), 1),
        1 => Value::Signed(i64::from(i8::from_le_bytes(cursor.array("value")?)), 1),
        2 => Value::Unsigned(u64::from(u16::from_le_bytes(cursor.array("value")?)), 2),
        3 => Value::Signed(i64::from(i16::from_le_bytes(cursor.array("value")?)), 2),
        4 => Value::Unsigned(u64::from(cursor.u32("value")?), 4),
        5 => Value::Signed(i64::from(i32::from_le_bytes(cursor.array("value")?)), 4),
        6 => Value::F32(f32::from_le_bytes(cursor.array("value")?)),
        7 => Value::Bool(truth(cursor.array::<1>("value")?[0])?),
        8 => Value::Text(cursor.text(usize::MAX, "value")?.to_string()),
        9 => {
            let from = cursor.at();
            pass_array(cursor, limits::GGUF_ARRAY_DEPTH)?;
            let bytes = cursor.since(from);
            if bytes.len() > limits::GGUF_ARRAY_BYTES {
                return Err(Error::limit(format!("an array of {} bytes", bytes.len()), limits::GGUF_ARRAY_BYTES));
            }
            Value::Array(bytes.to_vec())
        }
        10 => Value::Unsigned(u64::from_le_bytes(cursor.array("value")?), 8),
        11 => Value::Signed(i64::from_le_bytes(cursor.array("value")?), 8),
        12 => Value::F64(f64::from_le_bytes(cursor.array("value")?)),
        other => return Err(unknown_type(other)),
    })
}

fn unknown_type(kind: u32) -> Error {
    Error::malformed(format!("value of type {kind}, expected 0 to 12"))
}

fn truth(byte: u8) -> Result<bool> {
    match byte {
        0 | 1 => Ok(byte == 1),
        other => Err(Error::malformed(format!("a truth value of {other}, expected 0 or 1"))),
    }
}

/// Goes past an array and checks all of it.
fn pass_array(cursor: &mut Cursor, depth: usize) -> Result<()> {
    if depth == 0 {
        return Err(Error::too_many(limits::GGUF_ARRAY_DEPTH, "levels of arrays in arrays"));
    }
    let kind = cursor.u32("element type")?;
    let size = match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        8 | 10..=12 => 8, // of a text, the length
        9 => 12,          // of an array, type and count
        other => return Err(unknown_type(other)),
    };
    let count = cursor.count(size, usize::MAX, "element count")?;
    match kind {
        8 => (0..count).try_for_each(|_| cursor.text(usize::MAX, "element").map(drop)),
        9 => (0..count).try_for_each(|_| pass_array(cursor, depth - 1)),
        7 => cursor.take(count, "elements")?.iter().try_for_each(|byte| truth(*byte).map(drop)),
        _ => cursor.take(count * size, "elements").map(drop), // no overflow: `count` looked at what is left
    }
}

fn alignment(metadata: &Metadata) -> Result<usize> {
    let Some(value) = metadata.get(ALIGNMENT) else { return Ok(DEFAULT_ALIGNMENT) };
    let Value::Unsigned(number, 4) = *value else {
        let what = format!("{}, expected an integer of 4 bytes without a sign", value.type_name());
        return Err(Error::malformed(what).at_key(ALIGNMENT));
    };
    match usize::try_from(number).ok().filter(|n| n.is_power_of_two()) {
        Some(n) if n > limits::GGUF_ALIGNMENT => Err(Error::limit(number, limits::GGUF_ALIGNMENT).at_key(ALIGNMENT)),
        Some(n) => Ok(n),
        None => Err(Error::malformed(format!("{number}, expected a power of two")).at_key(ALIGNMENT)),
    }
}

/// What the header says of a tensor.
struct Info {
    /// Outermost first.
    dims: Vec<usize>,
    form: Form,
    offset: u64,
}

/// How the elements of a type are stored.
#[derive(Clone, Copy)]
enum Form {
    /// One by one.
    Plain(Dtype),
    /// In blocks of so many elements and so many bytes.
    Blocks(&'static str, usize, usize),
}

fn infos(cursor: &mut Cursor, count: usize) -> Result<Vec<(String, Info)>> {
    let mut out: IndexMap<String, Info> = IndexMap::new();
    for number in 0..count {
        let name = cursor.text(limits::NAME_BYTES, &format!("name of tensor {number}"))?.to_string();
        if name.is_empty() {
            return Err(Error::malformed("an empty name").at_key(format!("name of tensor {number}")));
        }
        let info = info(cursor).at_key(&name)?;
        if out.contains_key(&name) {
            return Err(Error::malformed("this name stands twice").at_key(name));
        }
        out.insert(name, info);
    }
    Ok(out.into_iter().collect())
}

fn info(cursor: &mut Cursor) -> Result<Info> {
    let rank = cursor.u32("n_dimensions")? as usize;
    if rank > limits::GGUF_DIMENSIONS {
        return Err(Error::limit(format!("n_dimensions {rank}"), limits::GGUF_DIMENSIONS));
    }
    let mut dims = Vec::with_capacity(rank);
    for _ in 0..rank {
        let extent = cursor.u64("dimensions")?;
        dims.push(usize::try_from(extent).map_err(|_| Error::malformed(format!("an extent of {extent}")))?);
    }
    dims.reverse();
    let form = form(cursor.u32("type")?)?;
    Ok(Info { dims, form, offset: cursor.u64("offset")? })
}

impl Info {
    /// Where the tensor lies in a file of `len` bytes whose data starts at `start`.
    fn span(&self, start: usize, alignment: usize, len: usize) -> Result<Range<usize>> {
        let elements = Shape::new(self.dims.clone()).elements()?;
        let bytes = match self.form {
            Form::Plain(dtype) => dtype::byte_len(dtype, elements)?,
            Form::Blocks(word, block, size) => {
                let row = self.dims.last().copied().unwrap_or(1);
                if row % block != 0 {
                    return Err(Error::malformed(format!(
                        "rows of {row} elements of {word}, whose blocks have {block}"
                    )));
                }
                let bytes = (elements / block).checked_mul(size);
                bytes.ok_or_else(|| Error::malformed("its size overflows"))?
            }
        };
        let offset = usize::try_from(self.offset).map_err(|_| Error::malformed(format!("offset {}", self.offset)))?;
        if offset % alignment != 0 {
            return Err(Error::malformed(format!("offset {offset}, expected a multiple of {alignment}")));
        }
        let from = start.checked_add(offset);
        let to = from.and_then(|from| from.checked_add(bytes)).filter(|to| *to <= len);
        match (from, to) {
            (Some(from), Some(to)) => Ok(from..to),
            _ => Err(Error::malformed(format!(
                "offset {offset} with {bytes} bytes, which reaches past the end of the file of {len} bytes"
            ))
            .hint("the download may have been cut short; compare the size with its source")),
        }
    }
}

fn refuse_overlap(mut spans: Vec<(Range<usize>, String)>) -> Result<()> {
    spans.sort_by_key(|(span, _)| (span.start, span.end));
    for pair in spans.windows(2) {
        if let [(before, first), (after, second)] = pair
            && after.start < before.end
        {
            return Err(Error::malformed(format!("overlaps `{first}`")).at_key(second.as_str()));
        }
    }
    Ok(())
}

/// The types of ggml: `ggml_type` in `ggml/include/ggml.h`, sizes of blocks in `gguf-py/gguf/constants.py`.
fn form(number: u32) -> Result<Form> {
    Ok(match number {
        0 => Form::Plain(Dtype::F32),
        1 => Form::Plain(Dtype::F16),
        30 => Form::Plain(Dtype::BF16),
        28 => Form::Plain(Dtype::F64),
        24 => Form::Plain(Dtype::I8),
        25 => Form::Plain(Dtype::I16),
        26 => Form::Plain(Dtype::I32),
        27 => Form::Plain(Dtype::I64),
        2 => Form::Blocks("Q4_0", 32, 18),
        3 => Form::Blocks("Q4_1", 32, 20),
        6 => Form::Blocks("Q5_0", 32, 22),
        7 => Form::Blocks("Q5_1", 32, 24),
        8 => Form::Blocks("Q8_0", 32, 34),
        9 => Form::Blocks("Q8_1", 32, 40),
        10 => Form::Blocks("Q2_K", 256, 84),
        11 => Form::Blocks("Q3_K", 256, 110),
        12 => Form::Blocks("Q4_K", 256, 144),
        13 => Form::Blocks("Q5_K", 256, 176),
        14 => Form::Blocks("Q6_K", 256, 210),
        15 => Form::Blocks("Q8_K", 256, 292),
        16 => Form::Blocks("IQ2_XXS", 256, 66),
        17 => Form::Blocks("IQ2_XS", 256, 74),
        18 => Form::Blocks("IQ3_XXS", 256, 98),
        19 => Form::Blocks("IQ1_S", 256, 50),
        20 => Form::Blocks("IQ4_NL", 32, 18),
        21 => Form::Blocks("IQ3_S", 256, 110),
        22 => Form::Blocks("IQ2_S", 256, 82),
        23 => Form::Blocks("IQ4_XS", 256, 136),
        29 => Form::Blocks("IQ1_M", 256, 56),
        34 => Form::Blocks("TQ1_0", 256, 54),
        35 => Form::Blocks("TQ2_0", 256, 66),
        39 => Form::Blocks("MXFP4", 32, 17),
        other => {
            return Err(Error::unsupported(format!("type {other}, which is not one of ggml's that are known here")));
        }
    })
}

#[cfg(test)]
mod tests;
