//! IA³: `W ∘ l`, each row or each column times a number (Liu et al., <https://arxiv.org/abs/2205.05638>).
//! KohakuBlueleaf/LyCORIS (`lycoris/modules/ia3.py`) stores the numbers less one: `W + W ∘ l`.

use std::ops::Range;

use ndarray::{Array1, ArrayViewMut2, Axis};

use super::{Act, Action, Before, Inverse, Reversal, Site};
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::tensor::Tensor;

/// A factor for every row (output) or every column (input) of a weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Rescale {
    /// As many numbers as the axis has, in any shape.
    pub factors: Tensor,
    /// Which axis they run along.
    pub axis: Along,
    /// Whether they are stored less one.
    pub less_one: bool,
}

/// The axis that factors run along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Along {
    /// One for each output.
    #[default]
    Rows,
    /// One for each input; a convolution's inputs span its kernel.
    Cols,
}

struct Ready {
    factors: Array1<f32>,
    axis: Along,
}

impl Rescale {
    /// The number of factors has to be that of the axis.
    pub fn prepare(&self, site: &Site) -> Result<Action> {
        let (rows, cols) = site.matrix();
        let mut values = self.factors.to_f32()?;
        if self.less_one {
            values.iter_mut().for_each(|v| *v += 1.0);
        }
        let inputs = site.shape.dims().get(1).copied().unwrap_or(1);
        let expected = if self.axis == Along::Rows { rows } else { inputs };
        if values.len() != expected {
            return Err(Error::mismatch(format!(
                "{} factors {} for the base weight {}, expected {expected}",
                values.len(),
                self.factors.shape,
                site.shape
            )));
        }
        let factors = match self.axis {
            Along::Rows => Array1::from_vec(values),
            // Columns of the flattened weight: every input repeats over the kernel.
            Along::Cols => {
                let kernel = cols / inputs.max(1);
                values.iter().flat_map(|&v| std::iter::repeat_n(v, kernel)).collect()
            }
        };
        Ok(Action::Act(Box::new(Ready { factors, axis: self.axis })))
    }
}

impl Act for Ready {
    fn reversal(&self) -> Reversal {
        if self.axis == Along::Rows { Reversal::Rows } else { Reversal::Cols }
    }

    fn addend(&self, _: &dyn Kernels, _: Range<usize>, _: ArrayViewMut2<f32>) -> Result<()> {
        Ok(()) // only a factor
    }

    fn inverse(&self) -> Inverse {
        if self.factors.iter().any(|&f| f == 0.0) {
            return Inverse::Never("one of its factors is zero");
        }
        Inverse::Pointwise
    }

    fn act(&self, _: &dyn Kernels, rows: Range<usize>, mut w: ArrayViewMut2<f32>, _: &dyn Before) -> Result<()> {
        match self.axis {
            Along::Rows => {
                for (mut row, i) in w.axis_iter_mut(Axis(0)).zip(rows) {
                    row *= self.factors[i];
                }
            }
            Along::Cols => {
                for mut row in w.axis_iter_mut(Axis(0)) {
                    row *= &self.factors;
                }
            }
        }
        Ok(())
    }
}
