//! Checks that several kinds share. No kind of its own.

use super::Site;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// An error unless `tensor` has exactly this shape.
pub fn shape_is(what: &str, tensor: &Tensor, expected: &[usize]) -> Result<()> {
    if tensor.shape.dims() == expected {
        return Ok(());
    }
    Err(Error::mismatch(format!("{what} {}, expected {expected:?}", tensor.shape)))
}

/// An error unless `tensor` has this many elements, in whatever shape.
pub fn length_is(what: &str, tensor: &Tensor, expected: usize) -> Result<()> {
    if tensor.elements() == expected {
        return Ok(());
    }
    Err(Error::mismatch(format!("{what} {} has {} values, expected {expected}", tensor.shape, tensor.elements())))
}

/// Rows and columns of a weight that has to be a matrix: no convolution, no bias.
pub fn matrix_only(kind: &str, site: &Site) -> Result<(usize, usize)> {
    match site.shape.dims() {
        &[rows, cols] if rows > 0 && cols > 0 => Ok((rows, cols)),
        _ => Err(Error::mismatch(format!("{kind} on a weight {}, expected a matrix", site.shape))),
    }
}

/// An error unless `part` divides `whole`.
pub fn divides(what: &str, part: usize, whole: usize) -> Result<()> {
    if part > 0 && whole.is_multiple_of(part) {
        return Ok(());
    }
    Err(Error::mismatch(format!("{what} {part} does not divide {whole}")))
}
