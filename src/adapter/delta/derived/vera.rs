//! VeRA: `W + (b ∘ B) · (d ∘ A)`, with A and B random and shared by all targets, of which each takes the first rows
//! and columns it needs, and trained vectors b and d (Kopiczko et al., <https://arxiv.org/abs/2310.11454>).
//!
//! PVeRA draws its update from a distribution; merged, it is the mean, which the first halves of d and of A's rows
//! give (<https://arxiv.org/abs/2512.07703>; huggingface/peft, `src/peft/tuners/pvera`).

use ndarray::s;

use super::{Factors, Projection};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Trained vectors over a shared projection.
#[derive(Clone, Debug, PartialEq)]
pub struct Vera {
    /// `[out]`.
    pub b: Tensor,
    /// `[r]`; `[2 r]` for PVeRA.
    pub d: Tensor,
    /// A: [r, at least in] (2 r rows for PVeRA), B: [at least out, r].
    pub projection: Projection,
    /// PVeRA.
    pub probabilistic: bool,
}

impl Vera {
    pub(super) fn kind(&self) -> &'static str {
        if self.probabilistic { "PVeRA" } else { "VeRA" }
    }

    pub(super) fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        let mut out = vec![("lambda_b", &self.b), ("lambda_d", &self.d)];
        out.extend(self.projection.tensors());
        out
    }

    pub(super) fn factors(&self, rows: usize, cols: usize) -> Result<Factors> {
        let (shared_a, shared_b) = self.projection.stored()?;
        let (b, d) = (self.b.to_f32()?, self.d.to_f32()?);
        if b.len() != rows {
            return Err(Error::mismatch(format!("lambda_b {} for a weight with {rows} outputs", self.b.shape))
                .hint("is this the base model the adapter was trained on?"));
        }
        let (a_rows, a_cols) = shared_a.shape.matrix();
        let (b_rows, rank) = shared_b.shape.matrix();
        let expected = if self.probabilistic { rank.checked_mul(2) } else { Some(rank) };
        if Some(a_rows) != expected || a_rows != d.len() || a_cols < cols || b_rows < rows {
            return Err(Error::mismatch(format!(
                "shared A {} and B {} with lambda_d {} for a weight [{rows}, {cols}]",
                shared_a.shape, shared_b.shape, self.d.shape
            )));
        }
        let mut a = shared_a.to_matrix()?.slice(s![..rank, ..cols]).to_owned();
        for (mut row, factor) in a.rows_mut().into_iter().zip(d) {
            row *= factor;
        }
        let mut shared_b = shared_b.to_matrix()?.slice(s![..rows, ..]).to_owned();
        for (mut row, factor) in shared_b.rows_mut().into_iter().zip(b) {
            row *= factor;
        }
        Ok(Factors { a, b: shared_b, scale: 1.0 })
    }
}
