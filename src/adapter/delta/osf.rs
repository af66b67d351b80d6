//! OSF: the small singular components of the weight, replaced by trained ones (Nayak et al.,
//! <https://arxiv.org/abs/2504.07097>; huggingface/peft, `src/peft/tuners/osf`).
//!
//! `W' = (U S V)_high of W + U_low · diag(S_low) · V_low`, with U_low: [out, k], S_low: `[k]`, V_low: [k, in]; the k
//! smallest components of W make room.

use std::ops::Range;

use ndarray::{Array2, ArrayViewMut2};

use super::check::{matrix_only, shape_is};
use super::{Act, Action, Before, Inverse, Site, truncate};
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::tensor::{Rows, Tensor};

/// The new components.
#[derive(Clone, Debug, PartialEq)]
pub struct Osf {
    /// `[out, k]`.
    pub u: Tensor,
    /// `[k]`.
    pub s: Tensor,
    /// `[k, in]`.
    pub v: Tensor,
}

struct Ready {
    left: Array2<f32>, // U · diag(S)
    right: Array2<f32>,
}

impl Osf {
    /// Shapes have to agree, with no more components than the weight has.
    pub fn prepare(&self, site: &Site) -> Result<Action> {
        let (rows, cols) = matrix_only("OSF", site)?;
        let count = self.s.elements();
        if count > rows.min(cols) {
            return Err(Error::mismatch(format!("{count} components for the base weight {}", site.shape)));
        }
        shape_is("U_low", &self.u, &[rows, count])?;
        shape_is("S_low", &self.s, &[count])?;
        shape_is("V_low", &self.v, &[count, cols])?;
        let mut left = self.u.to_matrix()?;
        for mut row in left.rows_mut() {
            row.iter_mut().zip(self.s.to_f32()?).for_each(|(u, s)| *u *= s);
        }
        Ok(Action::Act(Box::new(Ready { left, right: self.v.to_matrix()? })))
    }
}

impl Act for Ready {
    fn inverse(&self) -> Inverse {
        Inverse::Never("it replaces the smallest singular components of the weight")
    }

    fn rows(&self) -> Rows {
        Rows::Whole
    }

    fn footprint(&self, rows: usize, cols: usize) -> u64 {
        truncate::footprint(rows, cols)
    }

    fn act(&self, kernels: &dyn Kernels, _: Range<usize>, mut w: ArrayViewMut2<f32>, _: &dyn Before) -> Result<()> {
        truncate::drop_smallest(kernels, w.view_mut(), self.right.nrows())?;
        kernels.gemm(1.0, self.left.view(), self.right.view(), 1.0, w)
    }
}
