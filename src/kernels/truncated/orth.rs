//! Orthonormal rows, in f32, orthogonal to those that are there.
//!
//! A Cholesky factorisation of the Gram matrix in f64 (Yamamoto et al. 2015, CholeskyQR2) works on products alone and
//! is several times faster than Householder's reflections where there are many rows. It is done twice, each time after
//! the rows before were projected out, which is enough (Giraud et al. 2005). Where the first Gram matrix is too near to
//! a singular one, reflections take over.

use ndarray::{Array2, ArrayView1, ArrayView2, s};

use super::field::Field;
use crate::error::Result;

/// A pivot below this share of its column's square: a condition of 1e6, where half of the digits of f32 are left, and
/// the second round finds the others.
const LEAST_PIVOT: f64 = 1e-12;

/// Where projecting leaves less than this share of a row, the rest is rounding, and has to be projected once more.
const COLLAPSED: f64 = 1e-4;

/// Vectors that are orthonormal, and orthogonal to the orthonormal vectors `before`; and R, upper triangular, with
/// `Rᵀ · vectors` = what of `z` is orthogonal to `before`. b vectors of z and l before, of length n, b + l ≤ n.
pub fn against<F: Field + ?Sized>(field: &F, before: &F::Stack, mut z: F::Stack) -> Result<(F::Stack, Array2<f64>)> {
    let size = field.size(&z)?;
    field.project_out(before, &mut z)?;
    let (mut q, mut r) = orthonormal(field, z)?;
    let is_rounding = r.diag().iter().any(|v| v.abs() < COLLAPSED * size);
    for _round in 0..if is_rounding { 2 } else { 1 } {
        field.project_out(before, &mut q)?;
        let (next, turn) = orthonormal(field, q)?;
        (q, r) = (next, turn.dot(&r));
    }
    Ok((q, r))
}

/// Vectors that span what those of z span, and R with `Rᵀ · vectors = z`.
fn orthonormal<F: Field + ?Sized>(field: &F, z: F::Stack) -> Result<(F::Stack, Array2<f64>)> {
    let gram = field.inner(&z, &z)?;
    let Some((l, inverse)) = cholesky(gram.view(), gram.diag()) else {
        return field.reflected(&z);
    };
    let turn = inverse.mapv(|v| v as f32);
    Ok((field.turned(turn.view(), &z)?, l.reversed_axes()))
}

/// L, lower triangular, with L·Lᵀ = g, and its inverse; none where g is close to singular or not finite. By halves, so
/// that most of it is products. `sizes` has the diagonal that g has as a part of the whole.
fn cholesky(g: ArrayView2<f64>, sizes: ArrayView1<f64>) -> Option<(Array2<f64>, Array2<f64>)> {
    const SMALL: usize = 64;
    let n = g.nrows();
    if n <= SMALL {
        let l = cholesky_of_few(g, sizes)?;
        let inverse = inverse_of_lower(&l);
        return Some((l, inverse));
    }
    let (above, below) = (..n / 2, n / 2..);
    let (l11, i11) = cholesky(g.slice(s![above, above]), sizes.slice(s![above]))?;
    let l21 = g.slice(s![below.clone(), above]).dot(&i11.t());
    let rest = &g.slice(s![below.clone(), below.clone()]) - &l21.dot(&l21.t());
    let (l22, i22) = cholesky(rest.view(), sizes.slice(s![below.clone()]))?;
    let i21 = -i22.dot(&l21).dot(&i11);
    let whole = |upper: &Array2<f64>, left: &Array2<f64>, lower: &Array2<f64>| {
        let mut out = Array2::zeros((n, n));
        out.slice_mut(s![above, above]).assign(upper);
        out.slice_mut(s![below.clone(), above]).assign(left);
        out.slice_mut(s![below.clone(), below.clone()]).assign(lower);
        out
    };
    Some((whole(&l11, &l21, &l22), whole(&i11, &i21, &i22)))
}

fn cholesky_of_few(g: ArrayView2<f64>, sizes: ArrayView1<f64>) -> Option<Array2<f64>> {
    let n = g.nrows();
    let mut l = Array2::<f64>::zeros((n, n));
    for j in 0..n {
        for i in 0..=j {
            let known: f64 = (0..i).map(|k| l[[i, k]] * l[[j, k]]).sum();
            let rest = g[[i, j]] - known;
            if i < j {
                l[[j, i]] = rest / l[[i, i]];
            } else if rest > LEAST_PIVOT * sizes[j] && rest.is_normal() {
                l[[j, j]] = rest.sqrt();
            } else {
                return None;
            }
        }
    }
    Some(l)
}

fn inverse_of_lower(l: &Array2<f64>) -> Array2<f64> {
    let n = l.nrows();
    let mut out = Array2::<f64>::zeros((n, n));
    for j in 0..n {
        out[[j, j]] = 1.0 / l[[j, j]];
        for i in (0..j).rev() {
            let known: f64 = (i + 1..=j).map(|k| l[[k, i]] * out[[j, k]]).sum();
            out[[j, i]] = -known / l[[i, i]];
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::host::Host;
    use super::super::random::normals;
    use super::*;
    use crate::kernels::OpenBlas;

    fn skew(x: &Array2<f32>) -> f64 {
        let x = x.mapv(f64::from);
        let off = x.dot(&x.t()) - Array2::<f64>::eye(x.nrows());
        off.iter().fold(0.0, |a: f64, v| a.max(v.abs()))
    }

    #[test]
    fn halves_make_the_same_as_the_definition() {
        let x = normals(3, 0, (300, 320)).mapv(f64::from);
        let g = x.dot(&x.t());
        let (l, inverse) = cholesky(g.view(), g.diag()).unwrap();
        let near = |a: &Array2<f64>, b: &Array2<f64>| {
            let size = b.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            (a - b).iter().all(|v| v.abs() < 1e-12 * size)
        };
        assert!(near(&l.dot(&l.t()), &g));
        assert!(near(&l.dot(&inverse), &Array2::eye(300)));
        assert!((0..300).all(|i| (i + 1..300).all(|j| l[[i, j]] == 0.0 && inverse[[i, j]] == 0.0)));
        let mut singular = g;
        let first = singular.row(0).to_owned();
        singular.row_mut(299).assign(&first);
        singular.column_mut(299).assign(&first);
        singular[[299, 299]] = first[0];
        assert!(cholesky(singular.view(), singular.diag()).is_none());
    }

    #[test]
    fn rows_are_orthonormal_and_orthogonal_to_those_before() {
        let (kernels, d) = (OpenBlas::new(), Array2::<f32>::zeros((0, 200)));
        let field = Host::new(&kernels, &d);
        let (before, _) = against(&field, &Array2::zeros((0, 200)), normals(1, 0, (9, 200))).unwrap();
        assert!(skew(&before) < 1e-6);
        let mut z = normals(2, 0, (7, 200));
        let full = z.clone();
        for (what, share) in [("well conditioned", 1.0), ("nearly dependent", 1e-3), ("dependent", 0.0)] {
            let last = share * &full.row(6) + full.row(0);
            z.row_mut(6).assign(&last);
            let (q, r) = against(&field, &before, z.clone()).unwrap();
            let both = ndarray::concatenate(ndarray::Axis(0), &[before.view(), q.view()]).unwrap();
            assert!(skew(&both) < 1e-6, "{what}: {}", skew(&both));
            // Rᵀ·q is z less its part along the rows before, here in f64.
            let (wide, old) = (z.mapv(f64::from), before.mapv(f64::from));
            let rest = &wide - &wide.dot(&old.t()).dot(&old);
            let off = r.t().dot(&q.mapv(f64::from)) - &rest;
            assert!(off.iter().all(|v| v.abs() < 1e-5), "{what}");
        }
    }
}
