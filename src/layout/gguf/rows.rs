//! Moving rows of factors about, byte by byte: nothing here rounds.

use crate::error::{Error, Result};
use crate::tensor::{Bytes, Shape, Tensor, dtype};

/// Bytes of one element of a plain float.
fn element(tensor: &Tensor) -> Result<usize> {
    if !dtype::is_plain_float(tensor.dtype) {
        return Err(Error::unsupported(format!("factors of {}, expected plain floats", tensor.dtype)));
    }
    Ok(tensor.dtype.bitsize() / 8)
}

/// Rows and columns of a matrix.
pub fn matrix(tensor: &Tensor) -> Result<(usize, usize)> {
    match *tensor.shape.dims() {
        [rows, cols] => Ok((rows, cols)),
        _ => Err(Error::unsupported(format!("a factor {}, expected a matrix", tensor.shape))),
    }
}

/// The transpose of a matrix.
pub fn transposed(tensor: &Tensor) -> Result<Tensor> {
    let (size, (rows, cols)) = (element(tensor)?, matrix(tensor)?);
    let old = tensor.bytes.as_slice();
    let mut out = Vec::with_capacity(old.len());
    for col in 0..cols {
        for row in 0..rows {
            let at = (row * cols + col) * size;
            out.extend_from_slice(&old[at..at + size]);
        }
    }
    Tensor::new(tensor.dtype, Shape::new([cols, rows]), out.into())
}

/// Which way the rows of query and key go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From transformers' order, where a head is two halves, to llama.cpp's, where they alternate.
    Interleave,
    /// Back.
    Separate,
}

/// The rows of a matrix in the other order of the rotary embedding: row `h·D + 2j + t` of llama.cpp is row
/// `h·D + t·D/2 + j` of transformers, in `heads` heads of `D` rows (`permute` in ggml-org/llama.cpp,
/// `conversion/llama.py`).
pub fn permuted(tensor: &Tensor, heads: usize, way: Way) -> Result<Tensor> {
    let (size, (rows, cols)) = (element(tensor)?, matrix(tensor)?);
    let width = rows.checked_div(heads).unwrap_or(0);
    if width == 0 || width * heads != rows || width % 2 != 0 {
        let what = format!("{rows} rows, which are not {heads} heads of an even size");
        return Err(Error::mismatch(what).hint("is this the config of the base model the adapter was trained on?"));
    }
    let old = tensor.bytes.as_slice();
    let mut out = Vec::with_capacity(old.len());
    for row in 0..rows {
        let (head, at) = (row / width, row % width);
        let from = match way {
            Way::Interleave => at % 2 * (width / 2) + at / 2,
            Way::Separate => at % (width / 2) * 2 + at / (width / 2),
        };
        let start = (head * width + from) * cols * size;
        out.extend_from_slice(&old[start..start + cols * size]);
    }
    Tensor::new(tensor.dtype, tensor.shape.clone(), out.into())
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

/// Matrices of one type as a stack, each filled up with zeros to `rows` and `cols`. None is all zeros.
pub fn stacked(parts: &[Option<Tensor>], (rows, cols): (usize, usize)) -> Result<Tensor> {
    let Some(first) = parts.iter().flatten().next() else { return Err(Error::missing("a stack of no experts")) };
    let size = element(first)?;
    let row_bytes = cols.checked_mul(size).ok_or_else(|| Error::mismatch("a stack of experts that is too large"))?;
    let all = rows.checked_mul(row_bytes).and_then(|n| n.checked_mul(parts.len()));
    let mut out = Vec::with_capacity(all.ok_or_else(|| Error::mismatch("a stack of experts that is too large"))?);
    for (number, part) in parts.iter().enumerate() {
        if let Some(part) = part {
            let (own_rows, own_cols) = matrix(part)?;
            if own_rows > rows || own_cols > cols || part.dtype != first.dtype {
                let what = format!("experts of different sizes: {} beside {}", part.shape, first.shape);
                return Err(Error::mismatch(what));
            }
            for row in part.bytes.as_slice().chunks((own_cols * size).max(1)) {
                out.extend_from_slice(row);
                out.resize(out.len() + row_bytes - row.len(), 0);
            }
        }
        out.resize((number + 1) * rows * row_bytes, 0);
    }
    Tensor::new(first.dtype, Shape::new([parts.len(), rows, cols]), out.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;

    fn numbers(rows: usize, cols: usize) -> Tensor {
        let values: Vec<f32> = (0..rows * cols).map(|i| i as f32).collect();
        Tensor::from_f32(Dtype::F16, vec![rows, cols], &values).unwrap()
    }

    #[test]
    fn rows_go_there_and_back() {
        // Two heads of four: numpy's arange(8).reshape(2, 2, 2).swapaxes(1, 2).reshape(8).
        let there = permuted(&numbers(8, 1), 2, Way::Interleave).unwrap();
        assert_eq!(there.to_f32().unwrap(), [0., 2., 1., 3., 4., 6., 5., 7.]);
        let wide = permuted(&numbers(24, 3), 2, Way::Interleave).unwrap();
        assert_eq!(permuted(&wide, 2, Way::Separate).unwrap(), numbers(24, 3));
        for heads in [0, 3, 8, 100] {
            assert!(permuted(&numbers(8, 1), heads, Way::Interleave).is_err());
        }
    }

    #[test]
    fn stacks_are_filled_with_zeros() {
        let stack = stacked(&[Some(numbers(1, 2)), None, Some(numbers(2, 1))], (2, 2)).unwrap();
        assert_eq!(stack.to_f32().unwrap(), [0., 1., 0., 0., 0., 0., 0., 0., 0., 0., 1., 0.]);
        assert_eq!(slice(&stack, 2).unwrap().to_f32().unwrap(), [0., 0., 1., 0.]);
        assert!(slice(&stack, 3).is_err());
        assert_eq!(transposed(&numbers(2, 3)).unwrap().to_f32().unwrap(), [0., 3., 1., 4., 2., 5.]);
    }
}
