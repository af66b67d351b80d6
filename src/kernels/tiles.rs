//! What kinds of change other than a product do to a tile of f32: the definitions, one call each, so that a device takes
//! a tile over the bus once. Every backend gives the same values.

use ndarray::ArrayViewMut2;

use super::{Kernels, Term};

/// Lanes of a sum of squares.
pub const LANES: usize = 8;

/// Σ v², in f64, in a fixed order that the compiler can turn into vector code: lanes side by side, added up at the end.
pub fn sum_of_squares(values: &[f32]) -> f64 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0f64; LANES];
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(v) * f64::from(v);
        }
    }
    let rest: f64 = rest.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
    lanes.iter().sum::<f64>() + rest
}

/// Hands the values of a tile to `work` row by row, in place where they lie so.
pub fn with_values(mut tile: ArrayViewMut2<f32>, work: impl FnOnce(&mut [f32])) {
    if let Some(values) = tile.as_slice_mut() {
        return work(values);
    }
    let mut values: Vec<f32> = tile.iter().copied().collect();
    work(&mut values);
    tile.iter_mut().zip(values).for_each(|(v, value)| *v = value);
}

/// As [`Kernels::add_hadamard`].
pub fn add_hadamard<K: Kernels + ?Sized>(
    kernels: &K,
    values: &mut [f32],
    (rows, cols): (usize, usize),
    scale: f32,
    terms: [Term; 2],
) {
    let [first, second] = terms.map(|term| {
        let mut out = vec![0f32; rows * cols];
        kernels.add_products_to_tile(&mut out, (rows, cols), &[term]);
        out
    });
    for (v, (x, y)) in values.iter_mut().zip(first.iter().zip(&second)) {
        *v += scale * (x * y);
    }
}

/// As [`Kernels::add_blocks`].
///
/// # Panics
///
/// As there.
pub fn add_blocks(values: &mut [f32], rows: usize, (scale, factors): (f32, &[f32]), (block, width): (&[f32], usize)) {
    check_blocks(values.len(), rows, factors, (block, width));
    if block.is_empty() || factors.is_empty() {
        return;
    }
    for (row, block) in values.chunks_exact_mut(factors.len() * width).zip(block.chunks_exact(width)) {
        for (part, factor) in row.chunks_exact_mut(width).zip(factors) {
            let factor = scale * factor;
            part.iter_mut().zip(block).for_each(|(v, b)| *v += b * factor);
        }
    }
}

/// As [`Kernels::add_products_and_stretch`].
///
/// # Panics
///
/// As there.
pub fn add_products_and_stretch<K: Kernels + ?Sized>(
    kernels: &K,
    values: &mut [f32],
    (rows, cols): (usize, usize),
    terms: &[Term],
    magnitudes: &[f32],
) {
    check_magnitudes(rows, magnitudes);
    if !terms.is_empty() {
        kernels.add_products_to_tile(values, (rows, cols), terms);
    }
    for (row, &magnitude) in values.chunks_exact_mut(cols.max(1)).zip(magnitudes) {
        let factor = (f64::from(magnitude) / sum_of_squares(row).sqrt()) as f32;
        row.iter_mut().for_each(|v| *v *= factor);
    }
}

/// Panics where sizes do not fit: they are checked by the callers, before any number is touched.
pub fn check_blocks(values: usize, rows: usize, factors: &[f32], (block, width): (&[f32], usize)) {
    let fits = rows.checked_mul(width) == Some(block.len()) && block.len().checked_mul(factors.len()) == Some(values);
    assert!(fits, "a block of another size");
}

/// The same for magnitudes.
pub fn check_magnitudes(rows: usize, magnitudes: &[f32]) {
    assert!(magnitudes.len() == rows, "magnitudes of another number");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_counts_once() {
        for n in [0, 1, 7, 8, 9, 64, 100] {
            let values: Vec<f32> = (1..=n).map(|i| i as f32).collect();
            let n = f64::from(n);
            assert_eq!(sum_of_squares(&values), n * (n + 1.0) * (2.0 * n + 1.0) / 6.0);
        }
    }
}
