//! Writing GGUF: version 3, metadata in the order given, tensors one after the other at the default alignment.

use std::io::Write;

use super::{DEFAULT_ALIGNMENT, MAGIC, Metadata, Value};
use crate::error::{Context, Error, Result};
use crate::limits;
use crate::tensor::{Dtype, StateDict, Tensor};

/// Writes the file of a [`head`] and the tensors it was made for.
pub fn write(out: &mut dyn Write, head: &[u8], tensors: &StateDict) -> Result<()> {
    let fail = |e: std::io::Error| Error::io("cannot write", e);
    out.write_all(head).map_err(fail)?;
    for tensor in tensors.values() {
        tensor.bytes.fetch(0..tensor.bytes.len());
        let bytes = tensor.bytes.read();
        out.write_all(&bytes).map_err(fail)?;
        out.write_all(&[0; DEFAULT_ALIGNMENT][..padding(bytes.len())]).map_err(fail)?;
        tensor.bytes.release(0..bytes.len());
    }
    Ok(())
}

/// Zeros behind `len` bytes.
fn padding(len: usize) -> usize {
    len.next_multiple_of(DEFAULT_ALIGNMENT) - len
}

/// All that stands before the data.
pub fn head(metadata: &Metadata, tensors: &StateDict) -> Result<Vec<u8>> {
    let mut out = MAGIC.to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_text(&mut out, key);
        put_value(&mut out, value);
    }
    let mut offset = 0u64;
    for (name, tensor) in tensors {
        put_text(&mut out, name);
        put_info(&mut out, tensor, offset).at_key(name)?;
        offset += (tensor.bytes.len() + padding(tensor.bytes.len())) as u64;
    }
    out.resize(out.len() + padding(out.len()), 0);
    Ok(out)
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    let kind: u32 = match value {
        Value::Unsigned(_, 1) => 0,
        Value::Signed(_, 1) => 1,
        Value::Unsigned(_, 2) => 2,
        Value::Signed(_, 2) => 3,
        Value::Unsigned(_, 4) => 4,
        Value::Signed(_, 4) => 5,
        Value::F32(_) => 6,
        Value::Bool(_) => 7,
        Value::Text(_) => 8,
        Value::Array(_) => 9,
        Value::Unsigned(..) => 10,
        Value::Signed(..) => 11,
        Value::F64(_) => 12,
    };
    out.extend(kind.to_le_bytes());
    match value {
        Value::Unsigned(number, size) => out.extend(&number.to_le_bytes()[..usize::from(*size).min(8)]),
        Value::Signed(number, size) => out.extend(&number.to_le_bytes()[..usize::from(*size).min(8)]),
        Value::F32(number) => out.extend(number.to_le_bytes()),
        Value::F64(number) => out.extend(number.to_le_bytes()),
        Value::Bool(truth) => out.push(u8::from(*truth)),
        Value::Text(text) => put_text(out, text),
        Value::Array(bytes) => out.extend(bytes),
    }
}

fn put_info(out: &mut Vec<u8>, tensor: &Tensor, offset: u64) -> Result<()> {
    let kind: u32 = match tensor.dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::BF16 => 30,
        other => return Err(Error::unsupported(format!("{other} in a GGUF file; F32, F16 and BF16 are written"))),
    };
    let dims = tensor.shape.dims();
    if dims.len() > limits::GGUF_DIMENSIONS {
        return Err(Error::unsupported(format!(
            "shape {}, ggml has at most {} extents",
            tensor.shape,
            limits::GGUF_DIMENSIONS
        )));
    }
    out.extend((dims.len() as u32).to_le_bytes());
    for extent in dims.iter().rev() {
        out.extend((*extent as u64).to_le_bytes());
    }
    out.extend(kind.to_le_bytes());
    out.extend(offset.to_le_bytes());
    Ok(())
}
