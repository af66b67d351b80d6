//! KaSA, a variant of LoRA: `trunc(W) + s · B · diag(d) · A`, where trunc drops the r smallest singular components of
//! the weight (Wang et al., <https://arxiv.org/abs/2412.06071>; huggingface/peft, `src/peft/tuners/lora/variants.py`).

use std::ops::Range;

use ndarray::ArrayViewMut2;

use super::check::{length_is, matrix_only};
use super::{Act, Action, Before, Factors, Inverse, LowRank, Site, truncate};
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::tensor::{Rows, Tensor};

/// LoRA's factors with a diagonal between them.
#[derive(Clone, Debug, PartialEq)]
pub struct Kasa {
    /// A, B and the scale.
    pub factors: LowRank,
    /// `[r]`.
    pub diagonal: Tensor,
}

struct Ready(Factors);

impl Kasa {
    /// Its tensors.
    pub fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        let mut out = self.factors.tensors();
        out.push(("diagonal", &self.diagonal));
        out
    }

    /// The rank has to leave something of the weight.
    pub fn prepare(&self, site: &Site) -> Result<Action> {
        let (rows, cols) = matrix_only("KaSA", site)?;
        let rank = self.factors.rank();
        length_is("lora_diag", &self.diagonal, rank)?;
        if rank >= rows.min(cols) {
            return Err(Error::mismatch(format!("rank {rank} would drop all of the base weight {}", site.shape)));
        }
        let mut factors = self.factors.factors()?;
        site.expect(factors.b.nrows(), factors.a.ncols())?;
        for (mut row, d) in factors.a.rows_mut().into_iter().zip(self.diagonal.to_f32()?) {
            row *= d;
        }
        Ok(Action::Act(Box::new(Ready(factors))))
    }
}

impl Act for Ready {
    fn inverse(&self) -> Inverse {
        Inverse::Never("it drops the smallest singular components of the weight")
    }

    fn rows(&self) -> Rows {
        Rows::Whole
    }

    fn footprint(&self, rows: usize, cols: usize) -> u64 {
        truncate::footprint(rows, cols)
    }

    fn act(&self, kernels: &dyn Kernels, rows: Range<usize>, mut w: ArrayViewMut2<f32>, _: &dyn Before) -> Result<()> {
        truncate::drop_smallest(kernels, w.view_mut(), self.0.rank())?;
        self.0.add_to(kernels, rows, w)
    }
}
