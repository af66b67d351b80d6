//! C3A: the weight's blocks of b × b are circulant matrices (Chen et al., <https://arxiv.org/abs/2407.19342>;
//! huggingface/peft, `src/peft/tuners/c3a`).
//!
//! With a kernel k: [out/b, in/b, b], `dW[i·b + p, j·b + q] = k[i, j, (q − p) mod b] / in`.

use std::ops::Range;

use ndarray::{ArrayViewMut2, Axis};

use super::check::matrix_only;
use super::{Act, Action, Before, Reversal, Site};
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::tensor::Tensor;

/// The first rows of all blocks.
#[derive(Clone, Debug, PartialEq)]
pub struct Circulant {
    /// `[out/b, in/b, b]`.
    pub kernel: Tensor,
}

struct Ready {
    kernel: Vec<f32>, // already divided by the number of inputs
    block: usize,
}

impl Circulant {
    /// The blocks have to tile the weight.
    pub fn prepare(&self, site: &Site) -> Result<Action> {
        let (rows, cols) = matrix_only("C3A", site)?;
        let &[m, n, block] = self.kernel.shape.dims() else {
            return Err(Error::mismatch(format!("kernel {}, expected three dimensions", self.kernel.shape)));
        };
        if m.checked_mul(block) != Some(rows) || n.checked_mul(block) != Some(cols) {
            return Err(Error::mismatch(format!(
                "kernel {} covers [{m} · {block}, {n} · {block}], the base weight is {}",
                self.kernel.shape, site.shape
            )));
        }
        let kernel = self.kernel.to_f32()?.iter().map(|&k| (f64::from(k) / cols as f64) as f32).collect();
        Ok(Action::Act(Box::new(Ready { kernel, block })))
    }
}

impl Act for Ready {
    fn reversal(&self) -> Reversal {
        Reversal::Sum
    }

    fn footprint(&self, _: usize, _: usize) -> u64 {
        0
    }

    fn act(&self, _: &dyn Kernels, rows: Range<usize>, mut w: ArrayViewMut2<f32>, _: &dyn Before) -> Result<()> {
        let (b, cols) = (self.block, w.ncols());
        for (mut row, i) in w.axis_iter_mut(Axis(0)).zip(rows) {
            let (band, p) = (i / b, i % b);
            // One band of blocks holds as many numbers as a row of the weight.
            let first = &self.kernel[band * cols..(band + 1) * cols];
            for (value, j) in row.iter_mut().zip(0..) {
                let (start, q) = (j / b * b, j % b);
                *value += first[start + (q + b - p) % b];
            }
        }
        Ok(())
    }
}
