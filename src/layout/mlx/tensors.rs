//! Moving the elements of factors: turned, padded, folded, stacked. Nothing is rounded but by a fold that needs it.

use crate::error::{Error, Result};
use crate::tensor::{Dtype, Shape, Tensor, cast, dtype};

/// The transpose of a matrix, of the same type.
pub fn turned(tensor: &Tensor) -> Result<Tensor> {
    let (rows, cols) = matrix(tensor)?;
    let size = element_size(tensor)?;
    let old = tensor.bytes.as_slice();
    let mut new = Vec::with_capacity(old.len());
    for col in 0..cols {
        for row in 0..rows {
            let at = (row * cols + col) * size;
            new.extend_from_slice(&old[at..at + size]);
        }
    }
    tensor.bytes.release(0..old.len());
    Tensor::new(tensor.dtype, Shape::new([cols, rows]), new.into())
}

/// A matrix with zeros below and to the right of it.
pub fn padded(tensor: &Tensor, rows: usize, cols: usize) -> Result<Tensor> {
    let (old_rows, old_cols) = matrix(tensor)?;
    if (old_rows, old_cols) == (rows, cols) {
        return Ok(tensor.clone());
    }
    let size = element_size(tensor)?;
    let (width, old_width) = (cols * size, old_cols * size);
    let mut new = vec![0; dtype::byte_len(tensor.dtype, Shape::new([rows, cols]).elements()?)?];
    for row in 0..old_rows.min(rows) {
        let part = &tensor.bytes.as_slice()[row * old_width..(row + 1) * old_width];
        new[row * width..row * width + old_width].copy_from_slice(part);
    }
    Tensor::new(tensor.dtype, Shape::new([rows, cols]), new.into())
}

/// What became of the elements in [`folded`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fold {
    /// The same type holds the products.
    Exact,
    /// f32 holds them.
    Widened,
    /// They were rounded to f32.
    Rounded,
}

/// Every element times `ratio`: in the tensor's own type where that holds the products, else in f32.
pub fn folded(tensor: &Tensor, ratio: f64) -> Result<(Tensor, Fold)> {
    let values = cast::widen_f64(tensor.dtype, tensor.bytes.as_slice())?;
    let wanted: Vec<f64> = values.iter().map(|v| v * ratio).collect();
    let kept = narrowed(tensor, tensor.dtype, &wanted)?;
    if holds(&kept, &wanted)? {
        return Ok((kept, Fold::Exact));
    }
    if tensor.dtype == Dtype::F64 {
        return Ok((kept, Fold::Rounded));
    }
    let wide = narrowed(tensor, Dtype::F32, &wanted)?;
    let fold = if holds(&wide, &wanted)? { Fold::Widened } else { Fold::Rounded };
    Ok((wide, fold))
}

/// Matrices of one shape behind each other, in f32 where their types differ.
pub fn stacked(parts: &[Tensor]) -> Result<Tensor> {
    let first = parts.first().ok_or_else(|| Error::missing("no expert to put into a stack"))?;
    let one_type = parts.iter().all(|part| part.dtype == first.dtype);
    let mut bytes = Vec::new();
    for part in parts {
        if part.shape != first.shape {
            let what = format!("factors {} and {} of two experts of one stack", first.shape, part.shape);
            return Err(Error::unsupported(what));
        }
        if one_type {
            bytes.extend_from_slice(part.bytes.as_slice());
        } else {
            bytes.extend(part.to_f32()?.iter().flat_map(|v| v.to_le_bytes()));
        }
    }
    let dims: Vec<_> = std::iter::once(parts.len()).chain(first.shape.dims().iter().copied()).collect();
    Tensor::new(if one_type { first.dtype } else { Dtype::F32 }, Shape::new(dims), bytes.into())
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

/// Rows and columns of what has to be a matrix.
pub fn matrix(tensor: &Tensor) -> Result<(usize, usize)> {
    match *tensor.shape.dims() {
        [rows, cols] => Ok((rows, cols)),
        _ => Err(Error::mismatch(format!("shape {}, expected a matrix", tensor.shape))),
    }
}

fn element_size(tensor: &Tensor) -> Result<usize> {
    if dtype::is_plain_float(tensor.dtype) {
        return Ok(tensor.dtype.bitsize() / 8);
    }
    Err(Error::unsupported(format!("factors of type {}, expected floating-point numbers", tensor.dtype)))
}

fn narrowed(like: &Tensor, dtype: Dtype, values: &[f64]) -> Result<Tensor> {
    let mut bytes = vec![0; dtype::byte_len(dtype, values.len())?];
    cast::narrow_f64(dtype, values, &mut bytes)?;
    Tensor::new(dtype, like.shape.clone(), bytes.into())
}

fn holds(tensor: &Tensor, values: &[f64]) -> Result<bool> {
    let found = cast::widen_f64(tensor.dtype, tensor.bytes.as_slice())?;
    Ok(found.iter().zip(values).all(|(a, b)| a == b || a.is_nan() && b.is_nan()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(dtype: Dtype, shape: &[usize], values: &[f32]) -> Tensor {
        Tensor::from_f32(dtype, shape, values).unwrap()
    }

    #[test]
    fn elements_are_moved_and_kept() {
        let m = tensor(Dtype::BF16, &[2, 3], &[1., 2., 3., 4., 5., 6.]);
        assert_eq!(turned(&m).unwrap(), tensor(Dtype::BF16, &[3, 2], &[1., 4., 2., 5., 3., 6.]));
        let wide = padded(&m, 3, 4).unwrap();
        assert_eq!(wide, tensor(Dtype::BF16, &[3, 4], &[1., 2., 3., 0., 4., 5., 6., 0., 0., 0., 0., 0.]));
        let stack = stacked(&[m.clone(), m.clone()]).unwrap();
        assert_eq!(stack.shape.dims(), [2, 2, 3]);
        assert_eq!(cut(&stack, 2, &[2, 3]).unwrap(), [m.clone(), m.clone()]);
        assert!(cut(&stack, 3, &[2, 3]).is_err());
        assert!(turned(&stack).is_err());
    }

    #[test]
    fn a_fold_keeps_the_type_where_it_can() {
        let of = |dtype, ratio| {
            let (t, fold) = folded(&tensor(dtype, &[2], &[1.5, 1.007_812_5]), ratio).unwrap();
            (t.dtype, fold)
        };
        assert_eq!(of(Dtype::BF16, 0.25), (Dtype::BF16, Fold::Exact));
        assert_eq!(of(Dtype::BF16, 1.5), (Dtype::F32, Fold::Widened));
        assert_eq!(of(Dtype::BF16, 0.1), (Dtype::F32, Fold::Rounded));
        assert_eq!(of(Dtype::F32, 3.0), (Dtype::F32, Fold::Exact));
    }
}
