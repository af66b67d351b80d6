//! Moving rows of factors about, byte by byte: nothing here rounds.

use crate::error::{Error, Result};
use crate::tensor::{Dtype, Shape, Tensor, dtype, rearrange};

/// Bytes of one element of a plain float.
fn element(tensor: &Tensor) -> Result<usize> {
    if !dtype::is_plain_float(tensor.dtype) {
        return Err(Error::unsupported(format!("factors of {}, expected plain floats", tensor.dtype)));
    }
    Ok(tensor.dtype.bitsize() / 8)
}

/// Matrices of one type put into a larger one that is zero elsewhere: the rows of each where the numbers beside it say,
/// its columns from the one beside it on.
pub fn placed(parts: &[(&Tensor, &[usize], usize)], (rows, cols): (usize, usize)) -> Result<Tensor> {
    let Some((first, ..)) = parts.first() else { return Err(Error::missing("a matrix of no parts")) };
    let size = element(first)?;
    let all = rows.checked_mul(cols).and_then(|all| all.checked_mul(size));
    let mut out = vec![0; all.ok_or_else(|| Error::mismatch("a matrix that is too large"))?];
    for (part, to, start) in parts {
        let (own_rows, own_cols) = rearrange::matrix(part)?;
        let fits = own_rows == to.len() && start + own_cols <= cols && to.iter().all(|row| *row < rows);
        if !fits || part.dtype != first.dtype {
            return Err(Error::mismatch(format!("{} as {} rows of [{rows}, {cols}]", part.shape, to.len())));
        }
        for (row, bytes) in to.iter().zip(part.bytes.as_slice().chunks((own_cols * size).max(1))) {
            let at = (row * cols + start) * size;
            out[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }
    Tensor::new(first.dtype, Shape::new([rows, cols]), out.into())
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
            let (own_rows, own_cols) = rearrange::matrix(part)?;
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

/// The same values in another element type.
pub fn as_type(tensor: &Tensor, dtype: Dtype) -> Result<Tensor> {
    if tensor.dtype == dtype {
        return Ok(tensor.clone());
    }
    Tensor::from_f32(dtype, tensor.shape.dims(), &tensor.to_f32()?)
}

/// Each row times its number, rounded once to F32.
pub fn times(tensor: &Tensor, numbers: &[f64]) -> Result<Tensor> {
    let (rows, cols) = rearrange::matrix(tensor)?;
    if rows != numbers.len() {
        return Err(Error::mismatch(format!("{}, expected {} rows", tensor.shape, numbers.len())));
    }
    let of_row = numbers.iter().flat_map(|number| std::iter::repeat_n(*number, cols));
    let values: Vec<f32> = tensor.to_f32()?.into_iter().zip(of_row).map(|(v, n)| (f64::from(v) * n) as f32).collect();
    Tensor::from_f32(Dtype::F32, tensor.shape.dims(), &values)
}

/// B times its scale, rounded once to F32.
pub fn folded(b: &Tensor, factor: f64) -> Result<Tensor> {
    let values: Vec<f32> = b.to_f32()?.into_iter().map(|v| (f64::from(v) * factor) as f32).collect();
    Tensor::from_f32(Dtype::F32, b.shape.dims(), &values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::rearrange::{pick_rows, slice};

    fn numbers(rows: usize, cols: usize) -> Tensor {
        let values: Vec<f32> = (0..rows * cols).map(|i| i as f32).collect();
        Tensor::from_f32(Dtype::F16, vec![rows, cols], &values).unwrap()
    }

    #[test]
    fn rows_go_there_and_back() {
        let there = pick_rows(&numbers(3, 2), &[2, 0]).unwrap();
        assert_eq!(there.to_f32().unwrap(), [4., 5., 0., 1.]);
        let back = placed(&[(&there, &[2, 0], 0), (&numbers(1, 1), &[1], 2)], (3, 3)).unwrap();
        assert_eq!(back.to_f32().unwrap(), [0., 1., 0., 0., 0., 0., 4., 5., 0.]);
        for (to, start) in [(&[0usize][..], 0), (&[0, 3], 0), (&[0, 1], 2)] {
            assert!(placed(&[(&there, to, start)], (3, 3)).is_err());
        }
    }

    #[test]
    fn stacks_are_filled_with_zeros() {
        let stack = stacked(&[Some(numbers(1, 2)), None, Some(numbers(2, 1))], (2, 2)).unwrap();
        assert_eq!(stack.to_f32().unwrap(), [0., 1., 0., 0., 0., 0., 0., 0., 0., 0., 1., 0.]);
        assert_eq!(slice(&stack, 2).unwrap().to_f32().unwrap(), [0., 0., 1., 0.]);
    }
}
