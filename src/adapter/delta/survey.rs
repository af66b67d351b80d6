//! A look at all rows of a weight before any of them is changed, for kinds whose change depends on all. No kind of its
//! own.

use ndarray::{Array2, ArrayView2};

use super::Before;
use crate::error::{Error, Result};
use crate::kernels::Kernels;

/// Bytes of the weight that are read at a time.
pub const TILE_BYTES: usize = 4 << 20;

/// `left · W` for left: [r, out]. Sums run over the rows in order in f64, so that the result does not depend on the
/// machine.
pub fn left_product(kernels: &dyn Kernels, left: ArrayView2<f32>, before: &dyn Before) -> Result<Array2<f64>> {
    let (rows, cols) = before.matrix();
    if left.ncols() != rows {
        return Err(Error::mismatch(format!("{} rows of the weight, expected {}", rows, left.ncols())));
    }
    let step = (TILE_BYTES / (4 * cols.max(1))).max(1);
    let mut sums = Array2::<f64>::zeros((left.nrows(), cols));
    for start in (0..rows).step_by(step) {
        let tile = before.rows(kernels, start..(start + step).min(rows))?;
        for (row, o) in tile.rows().into_iter().zip(start..) {
            for (mut sum, &factor) in sums.rows_mut().into_iter().zip(left.column(o)) {
                sum.zip_mut_with(&row, |s, &v| *s += f64::from(factor) * f64::from(v));
            }
        }
    }
    Ok(sums)
}
