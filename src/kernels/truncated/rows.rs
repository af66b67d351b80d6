//! Reading a matrix in blocks of rows that stay in the cache while they are used, and its squared norm.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};

use super::RowSource;
use crate::error::{Error, Kind, Result};

/// Bytes of a block. Lower ones make the products slower, since the narrow factor is packed anew for each; higher ones
/// fall out of the cache.
const BLOCK_BYTES: usize = 4 << 20;
/// Rows of a block, whatever their length.
const MOST_ROWS: usize = 1024;
/// Values that are squared and summed in f32 before the sum goes on in f64: 16 lanes of 16, so that rounding stays
/// near 1e-7 of each run and averages out over many.
const RUN: usize = 256;
const LANES: usize = 16;

/// Rows of a block of a matrix with so many columns.
pub fn height(cols: usize) -> usize {
    let rows = BLOCK_BYTES / (4 * cols.max(1));
    (rows / 16 * 16).clamp(16, MOST_ROWS)
}

/// Calls `f` with every block of rows, in order.
pub fn for_each(d: &dyn RowSource, f: impl FnMut(Range<usize>, ArrayViewMut2<f32>) -> Result<()>) -> Result<()> {
    let (m, n) = d.dim();
    for_each_of(d, 0..m, height(n), f)
}

/// Calls `f` with every block of some of the rows, in order.
pub fn for_each_of(
    d: &dyn RowSource,
    rows: Range<usize>,
    height: usize,
    mut f: impl FnMut(Range<usize>, ArrayViewMut2<f32>) -> Result<()>,
) -> Result<()> {
    let mut buffer = Array2::zeros((height.min(rows.len()), d.dim().1));
    for start in rows.clone().step_by(height) {
        let block = start..(start + height).min(rows.end);
        let mut out = buffer.slice_mut(s![..block.len(), ..]);
        d.read(block.clone(), out.view_mut())?;
        f(block, out)?;
    }
    Ok(())
}

/// ‖d‖² of a block whose first row is `first`; an error that names the row if a value is not finite.
pub fn energy(first: usize, block: ArrayView2<f32>) -> Result<f64> {
    let mut sum = 0.0;
    for (i, row) in block.rows().into_iter().enumerate() {
        let of_row = row.as_slice().map_or_else(|| row.iter().map(|&v| square(v)).sum(), sum_of_squares);
        if !of_row.is_finite() {
            return Err(Error::new(Kind::Nonfinite, format!("row {} has NaN or infinity", first + i)));
        }
        sum += of_row;
    }
    Ok(sum)
}

fn square(v: f32) -> f64 {
    f64::from(v) * f64::from(v)
}

fn sum_of_squares(values: &[f32]) -> f64 {
    values.chunks(RUN).map(run_of_squares).sum()
}

fn run_of_squares(values: &[f32]) -> f64 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0f32; LANES];
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane += v * v;
        }
    }
    let sum = lanes.iter().map(|&l| f64::from(l)).sum::<f64>() + rest.iter().map(|&v| square(v)).sum::<f64>();
    // Squares of f32 leave the range of f32 long before their sum leaves that of f64.
    if (1e-25..1e35).contains(&sum) { sum } else { values.iter().map(|&v| square(v)).sum() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_add_up_at_every_length_and_size() {
        for n in [0, 1, 15, 16, 17, 255, 256, 257, 1000] {
            for unit in [1.0, 1e-30, 1e30] {
                let values: Vec<f32> = (1..=n).map(|i| i as f32 * unit).collect();
                let n = f64::from(n);
                let expected = n * (n + 1.0) * (2.0 * n + 1.0) / 6.0 * f64::from(unit) * f64::from(unit);
                assert!((sum_of_squares(&values) - expected).abs() <= 1e-6 * expected, "{n} {unit}");
            }
        }
    }

    #[test]
    fn the_row_that_is_not_finite_is_named() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut block = Array2::<f32>::ones((4, 33));
            block[[2, 32]] = bad;
            let error = energy(10, block.view()).unwrap_err();
            assert_eq!(error.kind(), Kind::Nonfinite);
            assert!(error.what().contains("row 12"), "{error}");
        }
    }
}
