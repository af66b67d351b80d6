//! Block-diagonal rotations, and the Cayley transform that makes a rotation of a skew-symmetric matrix.

use ndarray::{Array2, Array3, ArrayView2, ArrayViewMut2, Axis, s};

use crate::error::{Error, Kind, Result};
use crate::kernels::Kernels;

/// Square blocks along a diagonal, `[blocks, b, b]`; a single one is used for every place.
pub struct Blocks(pub Array3<f32>);

impl Blocks {
    /// Multiplies the columns of `w` from the right by the transposed blocks: `w · diag(R₀, R₁ …)ᵀ`.
    pub fn turn(&self, kernels: &dyn Kernels, mut w: ArrayViewMut2<f32>) -> Result<()> {
        let (count, size, _) = self.0.dim();
        let mut before = Array2::zeros((w.nrows(), size));
        for (i, mut band) in w.axis_chunks_iter_mut(Axis(1), size.max(1)).enumerate() {
            before.assign(&band);
            let block = self.0.index_axis(Axis(0), if count == 1 { 0 } else { i });
            // The result goes through a matrix of its own: a band of columns is not one piece of memory.
            let mut after = Array2::zeros(before.dim());
            kernels.add_product(1.0, before.view(), block.t(), after.view_mut())?;
            band.assign(&after);
        }
        Ok(())
    }
}

impl Blocks {
    /// Blocks that turn back what these turned, and the largest sum of absolute values in one of their rows: errors
    /// grow no more.
    pub fn inverse(&self) -> Result<(Blocks, f64)> {
        let mut out = Array3::zeros(self.0.dim());
        let mut spread = 0f64;
        for (mut out, block) in out.outer_iter_mut().zip(self.0.outer_iter()) {
            let found = solve(block.mapv(f64::from), Array2::eye(block.nrows()))?;
            spread = found.rows().into_iter().map(|row| row.iter().map(|v| v.abs()).sum()).fold(spread, f64::max);
            out.assign(&found.mapv(|v| v as f32));
        }
        Ok((Blocks(out), spread))
    }
}

/// `(I − Q)(I + Q)⁻¹` for a skew-symmetric Q, in f64.
pub fn cayley(q: ArrayView2<f64>) -> Result<Array2<f64>> {
    let n = q.nrows();
    let eye = Array2::<f64>::eye(n);
    // The two factors commute, so solving (I + Q) X = I − Q gives the same.
    solve(&eye + &q, &eye - &q)
}

/// X with `a · X = b`, by elimination with partial pivoting.
pub fn solve(mut a: Array2<f64>, mut b: Array2<f64>) -> Result<Array2<f64>> {
    let n = a.nrows();
    for k in 0..n {
        let pivot = (k..n).max_by(|&i, &j| a[[i, k]].abs().total_cmp(&a[[j, k]].abs())).unwrap_or(k);
        // Not reached for I + Q with a finite skew-symmetric Q, whose eigenvalues all have the real part 1.
        if !a[[pivot, k]].is_finite() || a[[pivot, k]] == 0.0 {
            let what = "a block cannot be inverted: it is singular, or its values are not finite";
            return Err(Error::new(Kind::Nonfinite, what));
        }
        if pivot != k {
            for m in [&mut a, &mut b] {
                let (mut upper, mut lower) = m.multi_slice_mut((s![k, ..], s![pivot, ..]));
                ndarray::Zip::from(&mut upper).and(&mut lower).for_each(std::mem::swap);
            }
        }
        let (row_a, row_b) = (a.row(k).to_owned(), b.row(k).to_owned());
        for i in k + 1..n {
            let factor = a[[i, k]] / row_a[k];
            if factor != 0.0 {
                a.slice_mut(s![i, k..]).scaled_add(-factor, &row_a.slice(s![k..]));
                b.row_mut(i).scaled_add(-factor, &row_b);
            }
        }
    }
    for k in (0..n).rev() {
        let pivot = a[[k, k]];
        b.row_mut(k).mapv_inplace(|v| v / pivot);
        let row = b.row(k).to_owned();
        for i in 0..k {
            b.row_mut(i).scaled_add(-a[[i, k]], &row);
        }
    }
    Ok(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transform_of_a_plane_rotation_is_the_one_in_the_books() {
        // Q = [[0, t], [-t, 0]] becomes the rotation by −2 atan(t).
        let t = 0.75f64;
        let r = cayley(ndarray::array![[0.0, t], [-t, 0.0]].view()).unwrap();
        let angle = -2.0 * t.atan();
        let expected = ndarray::array![[angle.cos(), angle.sin()], [-angle.sin(), angle.cos()]];
        assert!((&r - &expected).iter().all(|d| d.abs() < 1e-15), "{r}");
    }

    #[test]
    fn rows_are_exchanged_where_the_pivot_is_zero() {
        let x = solve(ndarray::array![[0.0, 2.0], [4.0, 0.0]], ndarray::array![[2.0], [8.0]]).unwrap();
        assert_eq!(x, ndarray::array![[2.0], [1.0]]);
    }

    #[test]
    fn values_that_are_not_finite_are_an_error() {
        assert!(cayley(ndarray::array![[0.0, f64::NAN], [f64::NAN, 0.0]].view()).is_err());
    }
}
