//! HiRA: `W ∘ (1 + B · A)`, with A: [r, in], B: [out, r] and no scale (Huang et al.,
//! <https://openreview.net/forum?id=TwJrTz9cRS>; huggingface/peft, `src/peft/tuners/hira`).
//!
//! A convolution is the same on its flattened kernel, an embedding on its transpose.

use std::ops::Range;

use ndarray::{Array2, ArrayViewMut2};

use super::{Act, Action, Before, Factors, Inverse, LowRank, Reversal, Site};
use crate::adapter::scale::Scale;
use crate::error::Result;
use crate::kernels::Kernels;
use crate::tensor::Tensor;

/// The two factors.
#[derive(Clone, Debug, PartialEq)]
pub struct Hira {
    /// `[r, in]` or `[r, in, kernel …]`.
    pub a: Tensor,
    /// `[out, r]` or `[out, r, 1 …]`.
    pub b: Tensor,
}

struct Ready(Factors);

impl Hira {
    /// The same checks as for LoRA.
    pub fn prepare(&self, site: &Site) -> Result<Action> {
        let factors =
            LowRank { a: self.a.clone(), b: self.b.clone(), scale: Scale::direct(1.0), experts: None, name: "HiRA" };
        Ok(match factors.prepare(site)? {
            Action::LowRank(factors) => Action::Act(Box::new(Ready(factors))),
            other => other,
        })
    }
}

impl Act for Ready {
    fn reversal(&self) -> Reversal {
        Reversal::Steps
    }

    fn inverse(&self) -> Inverse {
        Inverse::Pointwise
    }

    fn act(&self, kernels: &dyn Kernels, rows: Range<usize>, mut w: ArrayViewMut2<f32>, _: &dyn Before) -> Result<()> {
        let mut product = Array2::zeros(w.dim());
        self.0.add_to(kernels, rows, product.view_mut())?;
        w.zip_mut_with(&product, |w, &d| *w += *w * d);
        Ok(())
    }
}
