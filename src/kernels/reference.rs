//! The definition: plain loops with sums in f64. Slow, obvious, and what every other backend is compared with.

use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2};

use super::{Eigen, Element, Kernels, Moved, Svd, Term, fused};
use crate::error::{Error, Result};

/// The reference backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

impl Kernels for Reference {
    fn name(&self) -> &'static str {
        "reference"
    }

    fn gemm(
        &self,
        alpha: f32,
        a: ArrayView2<f32>,
        b: ArrayView2<f32>,
        beta: f32,
        mut c: ArrayViewMut2<f32>,
    ) -> Result<()> {
        if a.ncols() != b.nrows() || c.dim() != (a.nrows(), b.ncols()) {
            return Err(Error::mismatch(format!("gemm of {:?} and {:?} into {:?}", a.dim(), b.dim(), c.dim())));
        }
        for ((i, j), value) in c.indexed_iter_mut() {
            let sum: f64 = (0..a.ncols()).map(|k| f64::from(a[[i, k]]) * f64::from(b[[k, j]])).sum();
            // As in BLAS, beta = 0 overwrites: what stood there may be NaN.
            let old = if beta == 0.0 { 0.0 } else { f64::from(beta) * f64::from(*value) };
            *value = (f64::from(alpha) * sum + old) as f32;
        }
        Ok(())
    }

    /// Gram–Schmidt, twice over, in f64.
    fn qr(&self, a: ArrayView2<f32>) -> Result<(Array2<f32>, Array2<f32>)> {
        let (m, n) = a.dim();
        let k = m.min(n);
        let mut q = Array2::<f64>::zeros((m, k));
        let mut r = Array2::<f64>::zeros((k, n));
        for j in 0..n {
            let mut v = a.column(j).mapv(f64::from);
            for _ in 0..2 {
                for i in 0..j.min(k) {
                    let along = q.column(i).dot(&v);
                    r[[i, j]] += along;
                    v.scaled_add(-along, &q.column(i));
                }
            }
            if j < k {
                let norm = v.dot(&v).sqrt();
                r[[j, j]] = norm;
                if norm > 0.0 {
                    q.column_mut(j).assign(&(v / norm));
                }
            }
        }
        Ok((q.mapv(|v| v as f32), r.mapv(|v| v as f32)))
    }

    /// One-sided Jacobi rotations in f64 until the columns are orthogonal.
    fn svd(&self, a: ArrayView2<f32>) -> Result<Svd> {
        if a.nrows() < a.ncols() {
            let Svd { u, s, vt } = self.svd(a.t())?;
            return Ok(Svd { u: vt.t().to_owned(), s, vt: u.t().to_owned() });
        }
        let n = a.ncols();
        let mut u = a.mapv(f64::from);
        let mut v = Array2::<f64>::eye(n);
        for _sweep in 0..60 {
            let mut rotated = false;
            for p in 0..n {
                for q in p + 1..n {
                    let (up, uq) = (u.column(p), u.column(q));
                    let (alpha, beta, gamma) = (up.dot(&up), uq.dot(&uq), up.dot(&uq));
                    if gamma.abs() <= 1e-15 * (alpha * beta).sqrt() {
                        continue;
                    }
                    rotated = true;
                    let zeta = (beta - alpha) / (2.0 * gamma);
                    let t = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
                    let c = 1.0 / (1.0 + t * t).sqrt();
                    for matrix in [&mut u, &mut v] {
                        for i in 0..matrix.nrows() {
                            let (x, y) = (matrix[[i, p]], matrix[[i, q]]);
                            matrix[[i, p]] = c * x - c * t * y;
                            matrix[[i, q]] = c * t * x + c * y;
                        }
                    }
                }
            }
            if !rotated {
                break;
            }
        }
        let norms: Vec<f64> = u.columns().into_iter().map(|c| c.dot(&c).sqrt()).collect();
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&i, &j| norms[j].total_cmp(&norms[i]));
        let scaled = |i: usize, j: usize| if norms[j] > 0.0 { u[[i, j]] / norms[j] } else { 0.0 };
        Ok(Svd {
            u: Array2::from_shape_fn(u.dim(), |(i, j)| scaled(i, order[j]) as f32),
            s: order.iter().map(|&j| norms[j] as f32).collect::<Array1<f32>>(),
            vt: Array2::from_shape_fn((n, n), |(i, j)| v[[j, order[i]]] as f32),
        })
    }

    fn add_inner(&self, a: ArrayView2<f32>, b: ArrayView2<f32>, mut out: ArrayViewMut2<f64>) -> Result<()> {
        super::fits_inner(a, b, out.dim())?;
        for ((i, j), value) in out.indexed_iter_mut() {
            *value += (0..a.ncols()).map(|k| f64::from(a[[i, k]]) * f64::from(b[[j, k]])).sum::<f64>();
        }
        Ok(())
    }

    fn eigenvalues(&self, a: ArrayView2<f64>) -> Result<Vec<f64>> {
        Ok(self.eigh(a, a.nrows())?.values)
    }

    /// Two-sided Jacobi rotations until what is off the diagonal is rounding.
    fn eigh(&self, a: ArrayView2<f64>, most: usize) -> Result<Eigen> {
        let n = super::order_of(a)?;
        let (mut a, mut v) = (a.to_owned(), Array2::<f64>::eye(n));
        let size = a.iter().map(|v| v * v).sum::<f64>().sqrt();
        for _sweep in 0..60 {
            let mut rotated = false;
            for p in 0..n {
                for q in p + 1..n {
                    if a[[p, q]].abs() <= 1e-17 * size {
                        continue;
                    }
                    rotated = true;
                    rotate(&mut a, &mut v, p, q);
                }
            }
            if !rotated {
                break;
            }
        }
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&i, &j| a[[j, j]].total_cmp(&a[[i, i]]));
        order.truncate(most);
        Ok(Eigen {
            values: order.iter().map(|&i| a[[i, i]]).collect(),
            vectors: Array2::from_shape_fn((order.len(), n), |(i, j)| v[[order[i], j]]),
        })
    }

    fn add_products(
        &self,
        element: Element,
        w: &[u8],
        out: &mut [u8],
        (rows, cols): (usize, usize),
        terms: &[Term],
    ) -> Moved {
        fused::add_products_with(fused::Variant::Plain, element, w, out, rows, cols, terms)
    }

    fn add_products_to_tile(&self, values: &mut [f32], (rows, cols): (usize, usize), terms: &[Term]) -> Moved {
        fused::add_products_to_tile_with(fused::Variant::Plain, values, rows, cols, terms)
    }
}

/// Makes `a[[p, q]]` of a symmetric matrix zero by a rotation, which goes into the rows of `v` as well.
fn rotate(a: &mut Array2<f64>, v: &mut Array2<f64>, p: usize, q: usize) {
    let theta = (a[[q, q]] - a[[p, p]]) / (2.0 * a[[p, q]]);
    let t = if theta == 0.0 { 1.0 } else { theta.signum() / (theta.abs() + theta.hypot(1.0)) };
    let c = 1.0 / t.hypot(1.0);
    let s = t * c;
    for j in 0..a.ncols() {
        let (x, y) = (a[[p, j]], a[[q, j]]);
        (a[[p, j]], a[[q, j]]) = (c * x - s * y, s * x + c * y);
        let (x, y) = (v[[p, j]], v[[q, j]]);
        (v[[p, j]], v[[q, j]]) = (c * x - s * y, s * x + c * y);
    }
    for i in 0..a.nrows() {
        let (x, y) = (a[[i, p]], a[[i, q]]);
        (a[[i, p]], a[[i, q]]) = (c * x - s * y, s * x + c * y);
    }
}
