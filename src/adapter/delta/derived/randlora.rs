//! RandLoRA: a sum of random low-rank products, weighted so that the update has full rank (Albert et al.,
//! <https://arxiv.org/abs/2502.00987>; huggingface/peft, `src/peft/tuners/randlora/layer.py`).
//!
//! With `m` the smaller and `M` the larger side of the weight, `U_A[k · n + j, :] = λ[k, j] · A[k, :m] ∘ γ[j, :]` and
//! `U_B[o, j · r + k] = B[o, j, k]`, both with `r · n` on their common side. The update is `s · U_B · U_A`, or where
//! the outputs are the smaller side `s · U_Aᵀ · U_Bᵀ`. The two orders of (j, k) differ; adapters are trained so.

use ndarray::{Array2, ArrayView2, s};

use super::{Factors, Projection};
use crate::adapter::scale::Scale;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Weights over shared bases.
#[derive(Clone, Debug, PartialEq)]
pub struct RandLora {
    /// `[r, n]`.
    pub lambda: Tensor,
    /// `[n, m]`.
    pub gamma: Tensor,
    /// A: [r, 1, at least m], B: [at least M, at least n, r].
    pub projection: Projection,
    /// Over the rank r.
    pub scale: Scale,
}

impl RandLora {
    pub(super) fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        let mut out = vec![("lambda", &self.lambda), ("gamma", &self.gamma)];
        out.extend(self.projection.tensors());
        out
    }

    pub(super) fn factors(&self, rows: usize, cols: usize) -> Result<Factors> {
        let (shared_a, shared_b) = self.projection.stored()?;
        let (large, small) = (rows.max(cols), rows.min(cols));
        let (rank, bases) = self.lambda.shape.matrix();
        // As many as full rank takes; more of them could be far more than the file holds.
        let enough = rank > 0 && bases == small.div_ceil(rank);
        let a_fits = matches!(shared_a.shape.dims(), &[r, 1, m] if r == rank && m >= small);
        let b_fits = matches!(shared_b.shape.dims(), &[m, n, r] if r == rank && n >= bases && m >= large);
        if !enough || !a_fits || !b_fits || self.gamma.shape.matrix() != (bases, small) {
            return Err(Error::mismatch(format!(
                "lambda {}, gamma {}, shared A {} and B {} for a weight [{rows}, {cols}]",
                self.lambda.shape, self.gamma.shape, shared_a.shape, shared_b.shape
            )));
        }
        let (lambda, gamma) = (self.lambda.to_matrix()?, self.gamma.to_matrix()?);
        let a = shared_a.to_matrix()?;
        let upper = weighted(lambda.view(), a.slice(s![.., ..small]), gamma.view());
        let stored = shared_b.to_matrix()?; // [M, n · r]: the first bases of all are the first columns
        let lower = stored.slice(s![..large, ..bases * rank]);
        let scale = self.scale.factor(rank);
        let turned = |m: ArrayView2<f32>| m.t().as_standard_layout().into_owned();
        Ok(if small == cols {
            Factors { a: upper, b: lower.to_owned(), scale }
        } else {
            Factors { a: turned(lower), b: turned(upper.view()), scale }
        })
    }
}

/// U_A: [r · n, m].
fn weighted(lambda: ArrayView2<f32>, a: ArrayView2<f32>, gamma: ArrayView2<f32>) -> Array2<f32> {
    let (rank, bases) = lambda.dim();
    let mut out = Array2::zeros((rank * bases, a.ncols()));
    for (i, mut row) in out.rows_mut().into_iter().enumerate() {
        let (k, j) = (i / bases, i % bases);
        row.assign(&a.row(k));
        row *= &gamma.row(j);
        row *= lambda[[k, j]];
    }
    out
}
