//! A whole tensor: in place of the base's (`modules_to_save`, trained norms and biases), or added to it.

use std::ops::Range;

use ndarray::{ArrayViewMut2, s};

use super::{Act, Action, Before, Inverse, Reversal, Site};
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::tensor::Tensor;

/// A tensor of the weight's own shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Full {
    /// The values.
    pub tensor: Tensor,
    /// What they mean.
    pub mode: Mode,
}

/// What a full tensor does to the base's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// Takes its place.
    Replace,
    /// Is added, times this factor.
    Add(f64),
}

impl Full {
    /// The name for reports.
    pub fn kind(&self) -> &'static str {
        match self.mode {
            Mode::Replace => "replacement",
            Mode::Add(_) => "full difference",
        }
    }

    /// The tensor has to have the weight's shape. A replacement of another shape is settled before this is asked.
    pub fn prepare(&self, site: &Site) -> Result<Action> {
        let other_form = self.mode == Mode::Replace && self.tensor.shape.rank() != site.shape.rank();
        let same_matrix = self.tensor.shape.matrix() == site.matrix();
        if other_form || self.tensor.elements() != site.shape.elements()? || !same_matrix {
            return Err(Error::mismatch(format!("shape {} against the base's {}", self.tensor.shape, site.shape)));
        }
        Ok(Action::Act(Box::new(self.clone())))
    }
}

impl Act for Full {
    fn reversal(&self) -> Reversal {
        if self.mode == Mode::Replace { Reversal::Nothing } else { Reversal::Sum }
    }

    fn inverse(&self) -> Inverse {
        match self.mode {
            Mode::Replace => Inverse::Never("it took the place of the base's values"),
            Mode::Add(_) => Inverse::Pointwise,
        }
    }

    fn act(&self, _: &dyn Kernels, rows: Range<usize>, mut w: ArrayViewMut2<f32>, _: &dyn Before) -> Result<()> {
        // Of the rows at hand: a stack of experts may be seen as its matrices, one under the other.
        let cols = w.ncols();
        let size = self.tensor.dtype.bitsize() / 8;
        let range = rows.start * cols * size..rows.end * cols * size;
        let part = Tensor::new(
            self.tensor.dtype,
            vec![rows.len(), cols].as_slice().into(),
            self.tensor.bytes.slice(range.clone()),
        )?;
        let values = part.to_matrix()?;
        self.tensor.bytes.release(range);
        match self.mode {
            Mode::Replace => w.assign(&values),
            Mode::Add(factor) => w.scaled_add(factor as f32, &values),
        }
        Ok(())
    }
}

/// Rows of a matrix held in f32, for kinds that build a dense part themselves.
pub fn add_rows(w: &mut ArrayViewMut2<f32>, dense: &ndarray::Array2<f32>, rows: Range<usize>, factor: f32) {
    w.scaled_add(factor, &dense.slice(s![rows, ..]));
}
