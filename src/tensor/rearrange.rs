//! Rows and columns of matrices moved about, byte by byte: nothing here rounds.
//!
//! What fused and split projections, rotary orders and stacks of experts differ in. Every function leaves the element
//! type as it is and works on plain floats.

use std::ops::Range;

use super::{Bytes, Dtype, Shape, Tensor, dtype};
use crate::error::{Error, Result};
use crate::limits;

/// Bytes of one element of a plain float.
fn element(tensor: &Tensor) -> Result<usize> {
    if !dtype::is_plain_float(tensor.dtype) {
        return Err(Error::unsupported(format!("elements of {}, expected plain floats", tensor.dtype)));
    }
    Ok(tensor.dtype.bitsize() / 8)
}

/// Extents as rows and what is in one of them: a vector has rows of one element, a kernel counts as a row.
fn rows_of(tensor: &Tensor) -> Result<(usize, usize)> {
    match tensor.shape.dims() {
        [] => Err(Error::unsupported("a scalar, expected rows")),
        [rows, inner @ ..] => Ok((*rows, inner.iter().product())),
    }
}

/// Rows and columns of a matrix.
pub fn matrix(tensor: &Tensor) -> Result<(usize, usize)> {
    match *tensor.shape.dims() {
        [rows, cols] => Ok((rows, cols)),
        _ => Err(Error::unsupported(format!("shape {}, expected a matrix", tensor.shape))),
    }
}

/// The same inner extents under another number of rows.
fn with_rows(tensor: &Tensor, rows: usize) -> Shape {
    let inner = tensor.shape.dims().iter().skip(1).copied();
    Shape::new(std::iter::once(rows).chain(inner).collect::<Vec<_>>())
}

/// Some rows that stand together; the bytes stay where they are.
pub fn row_range(tensor: &Tensor, range: Range<usize>) -> Result<Tensor> {
    let ((rows, inner), size) = (rows_of(tensor)?, element(tensor)?);
    if range.start > range.end || range.end > rows {
        return Err(Error::mismatch(format!("{}, expected at least {} rows", tensor.shape, range.end)));
    }
    let width = inner * size;
    let bytes = tensor.bytes.slice(range.start * width..range.end * width);
    Tensor::new(tensor.dtype, with_rows(tensor, range.len()), bytes)
}

/// The rows `order`, in this order.
pub fn pick_rows(tensor: &Tensor, order: &[usize]) -> Result<Tensor> {
    let ((rows, inner), size) = (rows_of(tensor)?, element(tensor)?);
    let width = inner * size;
    let old = tensor.bytes.as_slice();
    let mut out = Vec::with_capacity(order.len() * width);
    for row in order {
        if *row >= rows {
            return Err(Error::mismatch(format!("{}, expected more than {row} rows", tensor.shape)));
        }
        out.extend_from_slice(&old[row * width..(row + 1) * width]);
    }
    Tensor::new(tensor.dtype, with_rows(tensor, order.len()), out.into())
}

/// The columns `order` of a matrix, in this order.
pub fn pick_cols(tensor: &Tensor, order: &[usize]) -> Result<Tensor> {
    let ((rows, cols), size) = (matrix(tensor)?, element(tensor)?);
    if let Some(col) = order.iter().find(|col| **col >= cols) {
        return Err(Error::mismatch(format!("{}, expected more than {col} columns", tensor.shape)));
    }
    let mut out = Vec::with_capacity(rows * order.len() * size);
    for row in tensor.bytes.as_slice().chunks_exact((cols * size).max(1)) {
        order.iter().for_each(|col| out.extend_from_slice(&row[col * size..(col + 1) * size]));
    }
    Tensor::new(tensor.dtype, Shape::new([rows, order.len()]), out.into())
}

/// Tensors of one type and the same inner extents, one under the other.
pub fn concat_rows(parts: &[Tensor]) -> Result<Tensor> {
    let Some(first) = parts.first() else { return Err(Error::missing("nothing to put together")) };
    element(first)?;
    let mut rows = 0;
    let mut out = Vec::with_capacity(parts.iter().map(|p| p.bytes.len()).sum());
    for part in parts {
        if part.dtype != first.dtype || part.shape.dims().get(1..) != first.shape.dims().get(1..) {
            let what = format!("{} {} under {} {}", part.dtype, part.shape, first.dtype, first.shape);
            return Err(Error::mismatch(what));
        }
        rows += rows_of(part)?.0;
        out.extend_from_slice(part.bytes.as_slice());
    }
    Tensor::new(first.dtype, with_rows(first, rows), out.into())
}

/// Matrices of one type on the diagonal of a larger one, zeros elsewhere.
pub fn block_diagonal(parts: &[Tensor]) -> Result<Tensor> {
    let Some(first) = parts.first() else { return Err(Error::missing("nothing to put together")) };
    let size = element(first)?;
    let mut extents = Vec::with_capacity(parts.len());
    for part in parts {
        if part.dtype != first.dtype {
            return Err(Error::mismatch(format!("{} beside {}", part.dtype, first.dtype)));
        }
        extents.push(matrix(part)?);
    }
    let rows: usize = extents.iter().map(|(rows, _)| rows).sum();
    let cols: usize = extents.iter().map(|(_, cols)| cols).sum();
    let mut out = zero_bytes(first.dtype, &Shape::new([rows, cols]))?;
    let (mut top, mut left) = (0, 0);
    for (part, (height, width)) in parts.iter().zip(extents) {
        for (row, values) in part.bytes.as_slice().chunks_exact((width * size).max(1)).enumerate() {
            let at = ((top + row) * cols + left) * size;
            out[at..at + values.len()].copy_from_slice(values);
        }
        (top, left) = (top + height, left + width);
    }
    Tensor::new(first.dtype, Shape::new([rows, cols]), out.into())
}

/// The tensors in one type: their own where all have the same, else f32.
pub fn alike(tensors: &[Tensor]) -> Result<Vec<Tensor>> {
    let same = tensors.windows(2).all(|pair| pair[0].dtype == pair[1].dtype);
    let widened =
        |t: &Tensor| if same { Ok(t.clone()) } else { Tensor::from_f32(Dtype::F32, t.shape.dims(), &t.to_f32()?) };
    tensors.iter().map(widened).collect()
}

/// Tensors of one shape behind each other along a new first axis, in f32 where their types differ.
pub fn stacked(parts: &[Tensor]) -> Result<Tensor> {
    let parts = alike(parts)?;
    let first = parts.first().ok_or_else(|| Error::missing("nothing to put into a stack"))?;
    let mut bytes = Vec::with_capacity(first.bytes.len() * parts.len());
    for part in &parts {
        if part.shape != first.shape {
            let what = format!("factors {} and {} of two experts of one stack", first.shape, part.shape);
            return Err(Error::unsupported(what));
        }
        bytes.extend_from_slice(part.bytes.as_slice());
    }
    let dims: Vec<_> = std::iter::once(parts.len()).chain(first.shape.dims().iter().copied()).collect();
    Tensor::new(first.dtype, Shape::new(dims), bytes.into())
}

/// A tensor cut along its first axis into `count` parts of this shape, where they lie.
pub fn cut(tensor: &Tensor, count: usize, shape: &[usize]) -> Result<Vec<Tensor>> {
    let size = dtype::byte_len(tensor.dtype, Shape::new(shape).elements()?)?;
    if size.checked_mul(count) != Some(tensor.bytes.len()) {
        return Err(Error::mismatch(format!("shape {}, expected {count} times {}", tensor.shape, Shape::new(shape))));
    }
    let part = |i: usize| Tensor::new(tensor.dtype, Shape::new(shape), tensor.bytes.slice(i * size..(i + 1) * size));
    (0..count).map(part).collect()
}

/// A matrix with zeros below and to the right of it.
pub fn padded(tensor: &Tensor, rows: usize, cols: usize) -> Result<Tensor> {
    let (old_rows, old_cols) = matrix(tensor)?;
    if (old_rows, old_cols) == (rows, cols) {
        return Ok(tensor.clone());
    }
    if old_rows > rows || old_cols > cols {
        return Err(Error::mismatch(format!("{}, expected no more than [{rows}, {cols}]", tensor.shape)));
    }
    placed(tensor, (0, 0), (rows, cols))
}

/// A matrix inside a larger one of zeros: `at` row and column, of `extents` rows and columns.
pub fn placed(tensor: &Tensor, at: (usize, usize), extents: (usize, usize)) -> Result<Tensor> {
    let ((height, width), size) = (matrix(tensor)?, element(tensor)?);
    let fits = |at: usize, own: usize, all: usize| at.checked_add(own).is_some_and(|end| end <= all);
    if !fits(at.0, height, extents.0) || !fits(at.1, width, extents.1) {
        let what = format!("{} at [{}, {}] of [{}, {}]", tensor.shape, at.0, at.1, extents.0, extents.1);
        return Err(Error::mismatch(what));
    }
    if (height, width) == extents {
        return Ok(tensor.clone());
    }
    let shape = Shape::new([extents.0, extents.1]);
    let mut out = zero_bytes(tensor.dtype, &shape)?;
    for (row, values) in tensor.bytes.as_slice().chunks_exact((width * size).max(1)).enumerate() {
        let start = ((at.0 + row) * extents.1 + at.1) * size;
        out[start..start + values.len()].copy_from_slice(values);
    }
    Tensor::new(tensor.dtype, shape, out.into())
}

/// Zeros.
pub fn zeros(like: &Tensor, shape: impl Into<Vec<usize>>) -> Result<Tensor> {
    element(like)?;
    zeros_of(like.dtype, shape)
}

/// The same of a type.
pub fn zeros_of(dtype: Dtype, shape: impl Into<Vec<usize>>) -> Result<Tensor> {
    let shape = Shape::new(shape);
    let bytes = zero_bytes(dtype, &shape)?;
    Tensor::new(dtype, shape, bytes.into())
}

/// Zeros fill up what is known by its size only, which a config may say as it likes: there is a limit.
fn zero_bytes(dtype: Dtype, shape: &Shape) -> Result<Vec<u8>> {
    let length = dtype::byte_len(dtype, shape.elements()?)?;
    if length > limits::ZERO_BYTES {
        return Err(Error::limit(format!("{shape} to be filled up with zeros, {length} bytes"), limits::ZERO_BYTES));
    }
    Ok(vec![0; length])
}

/// The transpose of a matrix, made when it is wanted.
pub fn transposed(tensor: &Tensor) -> Result<Tensor> {
    let (size, (rows, cols)) = (element(tensor)?, matrix(tensor)?);
    let make = move |old: &[u8]| {
        let mut out = vec![0; old.len()];
        match size {
            2 => transpose(old.as_chunks::<2>().0, rows, cols, out.as_chunks_mut::<2>().0),
            4 => transpose(old.as_chunks::<4>().0, rows, cols, out.as_chunks_mut::<4>().0),
            _ => transpose(old.as_chunks::<8>().0, rows, cols, out.as_chunks_mut::<8>().0),
        }
        out
    };
    let bytes = Bytes::made(&tensor.bytes, tensor.bytes.len(), make);
    Tensor::new(tensor.dtype, Shape::new([cols, rows]), bytes)
}

/// Rows and columns of a tile: of 16-bit elements a row of it is a line of the cache.
const TILE: usize = 32;

/// Moves elements tile by tile. A tile is put together in a place of its own, so that every line of the cache is read once
/// and written once as a whole: rows whose distance is a power of two push each other out.
fn transpose<const N: usize>(old: &[[u8; N]], rows: usize, cols: usize, out: &mut [[u8; N]]) {
    if out.is_empty() {
        return;
    }
    let mut tile = [[[0; N]; TILE]; TILE];
    for (number, out) in out.chunks_mut(TILE * rows).enumerate() {
        let (left, width) = (number * TILE, out.len() / rows);
        for top in (0..rows).step_by(TILE) {
            let bottom = (top + TILE).min(rows);
            for (row, line) in (top..bottom).zip(&mut tile) {
                let old = &old[row * cols + left..][..width];
                match old.first_chunk() {
                    Some(whole) => *line = *whole,
                    None => line[..width].copy_from_slice(old),
                }
            }
            for (col, new) in out.chunks_exact_mut(rows).enumerate() {
                new[top..bottom].iter_mut().zip(&tile).for_each(|(new, line)| *new = line[col]);
            }
        }
    }
}

/// One matrix of a stack.
pub fn slice(stack: &Tensor, number: usize) -> Result<Tensor> {
    let [count, rows, cols] = *stack.shape.dims() else {
        return Err(Error::mismatch(format!("{}, expected a stack of matrices", stack.shape)));
    };
    if number >= count {
        return Err(Error::mismatch(format!("{}, expected more than {number} matrices", stack.shape)));
    }
    let size = stack.bytes.len() / count;
    let bytes: Bytes = stack.bytes.slice(number * size..(number + 1) * size);
    Tensor::new(stack.dtype, Shape::new([rows, cols]), bytes)
}

/// Which way the rows of query and key go between the two orders of the rotary embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotary {
    /// From transformers' order, where a head is two halves, to that of Meta and llama.cpp, where they alternate.
    Interleave,
    /// Back.
    Separate,
}

/// For each new row the old one: row `h·D + 2j + t` of the alternating order is row `h·D + t·D/2 + j` of the order in
/// halves, in `heads` heads of `D` rows (`permute` in ggml-org/llama.cpp, `conversion/llama.py`; `_permute` in
/// meta-pytorch/torchtune, `torchtune/models/convert_weights.py`).
pub fn rotary_order(rows: usize, heads: usize, way: Rotary) -> Result<Vec<usize>> {
    let width = rows.checked_div(heads).unwrap_or(0);
    if width == 0 || width * heads != rows || !width.is_multiple_of(2) {
        let what = format!("{rows} rows, which are not {heads} heads of an even size");
        return Err(Error::mismatch(what).hint("is this the config of the base model the adapter was trained on?"));
    }
    let from = |at: usize| match way {
        Rotary::Interleave => at % 2 * (width / 2) + at / 2,
        Rotary::Separate => at % (width / 2) * 2 + at / (width / 2),
    };
    Ok((0..rows).map(|row| row / width * width + from(row % width)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(shape: &[usize]) -> Tensor {
        let count = shape.iter().product::<usize>();
        Tensor::from_f32(Dtype::F16, shape, &(0..count).map(|i| i as f32).collect::<Vec<_>>()).unwrap()
    }

    fn values(tensor: Result<Tensor>) -> Vec<f32> {
        tensor.unwrap().to_f32().unwrap()
    }

    #[test]
    fn rows_and_columns_are_taken_by_number() {
        let t = numbers(&[3, 2]);
        assert_eq!(values(row_range(&t, 1..3)), [2., 3., 4., 5.]);
        assert_eq!(values(pick_rows(&t, &[2, 0])), [4., 5., 0., 1.]);
        assert_eq!(values(pick_cols(&t, &[1])), [1., 3., 5.]);
        assert_eq!(values(pick_rows(&numbers(&[3]), &[2, 1])), [2., 1.]);
        assert_eq!(row_range(&numbers(&[3, 2, 4]), 1..2).unwrap().shape.dims(), [1, 2, 4]);
        assert!(row_range(&t, 2..4).is_err() && pick_rows(&t, &[3]).is_err() && pick_cols(&t, &[2]).is_err());
    }

    #[test]
    fn parts_are_put_together() {
        let (a, b) = (numbers(&[1, 2]), numbers(&[2, 2]));
        assert_eq!(values(concat_rows(&[a.clone(), b.clone()])), [0., 1., 0., 1., 2., 3.]);
        let both = block_diagonal(&[a.clone(), numbers(&[2, 1])]).unwrap();
        assert_eq!(both.shape.dims(), [3, 3]);
        assert_eq!(both.to_f32().unwrap(), [0., 1., 0., 0., 0., 0., 0., 0., 1.]);
        assert!(concat_rows(&[a, numbers(&[2, 3])]).is_err());
        assert!(concat_rows(&[b, Tensor::from_f32(Dtype::F32, [1, 2], &[0.0; 2]).unwrap()]).is_err());
        assert_eq!(values(transposed(&numbers(&[2, 3]))), [0., 3., 1., 4., 2., 5.]);
        assert_eq!(values(padded(&numbers(&[1, 2]), 2, 3)), [0., 1., 0., 0., 0., 0.]);
        assert_eq!(values(placed(&numbers(&[1, 2]), (1, 1), (2, 3))), [0., 0., 0., 0., 0., 1.]);
        assert!(placed(&numbers(&[1, 2]), (1, 2), (2, 3)).is_err() && padded(&numbers(&[1, 2]), 1, 1).is_err());
        let stack = stacked(&[numbers(&[2, 3]), numbers(&[2, 3])]).unwrap();
        assert_eq!(cut(&stack, 2, &[2, 3]).unwrap(), [numbers(&[2, 3]), numbers(&[2, 3])]);
        assert!(cut(&stack, 3, &[2, 3]).is_err() && stacked(&[numbers(&[1, 2]), numbers(&[2, 1])]).is_err());
        assert_eq!(values(slice(&numbers(&[2, 1, 2]), 1)), [2., 3.]);
        assert!(slice(&numbers(&[2, 1, 2]), 2).is_err());
    }

    #[test]
    fn a_transpose_has_every_element_in_its_place() {
        for (rows, cols) in [(1, 1), (0, 3), (3, 0), (1, 100), (100, 1), (33, 65), (64, 129), (1000, 3)] {
            let count = rows * cols;
            for (dtype, size) in [(Dtype::BF16, 2), (Dtype::F32, 4), (Dtype::F64, 8)] {
                let bytes: Vec<u8> = (0..count as u64).flat_map(|i| i.to_le_bytes()[..size].to_vec()).collect();
                let turned =
                    transposed(&Tensor::new(dtype, Shape::new([rows, cols]), bytes.clone().into()).unwrap()).unwrap();
                assert_eq!(turned.shape.dims(), [cols, rows]);
                let (all, half) = (turned.bytes.read(), turned.bytes.slice(0..turned.bytes.len() / 2));
                assert_eq!(&*half.read(), &all[..half.len()]);
                let new = turned.bytes.as_slice();
                assert_eq!(new, &*all);
                for (row, col) in (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col))) {
                    let (from, to) = ((row * cols + col) * size, (col * rows + row) * size);
                    assert_eq!(bytes[from..from + size], new[to..to + size], "{rows} x {cols}: {row}, {col}");
                }
            }
        }
    }

    #[test]
    fn rotary_orders_are_each_others_inverse() {
        // numpy: arange(8).reshape(2, 2, 2).swapaxes(1, 2).reshape(8)
        assert_eq!(rotary_order(8, 2, Rotary::Interleave).unwrap(), [0, 2, 1, 3, 4, 6, 5, 7]);
        let there = pick_rows(&numbers(&[24, 3]), &rotary_order(24, 2, Rotary::Interleave).unwrap()).unwrap();
        let back = pick_rows(&there, &rotary_order(24, 2, Rotary::Separate).unwrap()).unwrap();
        assert_eq!(back, numbers(&[24, 3]));
        for heads in [0, 3, 8, 100] {
            assert!(rotary_order(8, heads, Rotary::Interleave).is_err());
        }
    }
}
