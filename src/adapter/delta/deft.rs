//! DEFT: a projection taken out of the weight, and something else put in its place (huggingface/peft,
//! `src/peft/tuners/deft`).
//!
//! From P: [out, r] come Q and T, both [out, r]: `Q = P, T = max(P, 0)`, or `Q = T = orth(P)`. Then
//! `W − Q (Tᵀ W) + s · Q R` with R: [r, in], or without the last term (PaRa).

use std::ops::Range;
use std::sync::OnceLock;

use ndarray::{Array2, ArrayViewMut2, s};

use super::check::{matrix_only, shape_is};
use super::survey::{TILE_BYTES, left_product};
use super::{Act, Action, Before, Inverse, Site};
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::tensor::Tensor;

/// The projection and what replaces it.
#[derive(Clone, Debug, PartialEq)]
pub struct Deft {
    /// `[out, r]`.
    pub p: Tensor,
    /// `[r, in]`, none for PaRa.
    pub r: Option<Tensor>,
    /// How P becomes a projection.
    pub decomposition: Decomposition,
    /// Multiplier of R.
    pub scale: f64,
}

/// How P becomes a projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decomposition {
    /// P and its positive part.
    Relu,
    /// P with orthonormal columns, signs as in LAPACK.
    Qr,
}

struct Ready {
    q: Array2<f32>,
    t: Array2<f32>,         // transposed: [r, out]
    r: Option<Array2<f64>>, // scaled
    middle: OnceLock<Array2<f32>>,
}

impl Deft {
    /// Shapes have to agree with each other and the weight.
    pub fn prepare(&self, site: &Site) -> Result<Action> {
        let (rows, cols) = matrix_only("DEFT", site)?;
        let rank = self.p.shape.dims().get(1).copied().unwrap_or(0);
        if rank == 0 || rank > rows {
            return Err(Error::mismatch(format!("deft_P {} for a weight with {rows} outputs", self.p.shape)));
        }
        shape_is("deft_P", &self.p, &[rows, rank])?;
        let p = self.p.to_matrix()?;
        let (q, t) = match self.decomposition {
            Decomposition::Relu => (p.clone(), p.mapv(|v| v.max(0.0))),
            Decomposition::Qr => {
                let q = orthonormal(&p.mapv(f64::from)).mapv(|v| v as f32);
                (q.clone(), q)
            }
        };
        let r = match &self.r {
            None => None,
            Some(r) => {
                shape_is("deft_R", r, &[rank, cols])?;
                Some(r.to_matrix()?.mapv(|v| self.scale * f64::from(v)))
            }
        };
        let t = t.t().as_standard_layout().into_owned();
        Ok(Action::Act(Box::new(Ready { q, t, r, middle: OnceLock::new() })))
    }
}

impl Ready {
    /// `s R − Tᵀ W`: [r, in], gathered once over all rows.
    fn middle(&self, kernels: &dyn Kernels, before: &dyn Before) -> Result<&Array2<f32>> {
        if let Some(middle) = self.middle.get() {
            return Ok(middle);
        }
        let mut middle = -left_product(kernels, self.t.view(), before)?;
        if let Some(r) = &self.r {
            middle += r;
        }
        // Two threads may both come here first; they compute the same numbers.
        Ok(self.middle.get_or_init(|| middle.mapv(|v| v as f32)))
    }
}

impl Act for Ready {
    fn inverse(&self) -> Inverse {
        Inverse::Never("it takes a projection out of the weight")
    }

    fn footprint(&self, _: usize, cols: usize) -> u64 {
        TILE_BYTES as u64 + 20 * (self.t.nrows() * cols) as u64
    }

    fn act(&self, kernels: &dyn Kernels, rows: Range<usize>, w: ArrayViewMut2<f32>, before: &dyn Before) -> Result<()> {
        let middle = self.middle(kernels, before)?;
        kernels.add_product(1.0, self.q.slice(s![rows, ..]), middle.view(), w)
    }
}

/// Q of the thin QR decomposition by Householder reflections, m ≥ n. The signs of its columns are LAPACK's: the
/// reflection of column j takes it to `−sign(x_j) ‖x‖ e_j`, and leaves it alone where nothing is below the diagonal.
fn orthonormal(a: &Array2<f64>) -> Array2<f64> {
    let (m, n) = a.dim();
    let mut work = a.clone();
    let mut reflections = Vec::with_capacity(n);
    for j in 0..n {
        let mut v = work.slice(s![j.., j]).to_owned();
        let below: f64 = v.iter().skip(1).map(|x| x * x).sum();
        let (head, norm) = (v[0], (v[0] * v[0] + below).sqrt());
        if below > 0.0 {
            v[0] += norm.copysign(head);
            let square = v.dot(&v);
            reflect(&mut work, j, &v, square);
            reflections.push((j, v, square));
        }
    }
    let mut q = Array2::from_shape_fn((m, n), |(i, j)| if i == j { 1.0 } else { 0.0 });
    for (j, v, square) in reflections.iter().rev() {
        reflect(&mut q, *j, v, *square);
    }
    q
}

/// Applies `1 − 2 v vᵀ / vᵀv` to the rows from `top` on.
fn reflect(matrix: &mut Array2<f64>, top: usize, v: &ndarray::Array1<f64>, square: f64) {
    let mut rows = matrix.slice_mut(s![top.., ..]);
    let along = v.dot(&rows);
    for (mut row, &x) in rows.rows_mut().into_iter().zip(v) {
        row.scaled_add(-2.0 * x / square, &along);
    }
}
