//! MiSS, once called Bone: one block repeated over the inputs (Kang and Yin, <https://arxiv.org/abs/2409.15371>;
//! huggingface/peft, `src/peft/tuners/miss`).
//!
//! Shared: `dW[:, i] = block[i mod r, :]`, block: [r, out]. Mini: the same, with block: [r, m] repeated to `out` first.
//! Bat: with W cut into r × r blocks, `dW = W_block · B + B`, B: [out/r, r, r] chosen by the row of blocks.

use std::ops::Range;

use ndarray::{Array2, Array3, ArrayViewMut2, s};

use super::check::{divides, matrix_only, shape_is};
use super::orthogonal::blocks::solve;
use super::{Act, Action, Before, Factors, Inverse, Reversal, Site};
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::tensor::{Rows, Tensor};

/// A block and what is done with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Miss {
    /// The block.
    pub block: Tensor,
    /// Which of the three.
    pub mode: Mode,
}

/// The three forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `[r, out]`.
    Shared,
    /// `[r, m]`, m dividing `out`.
    Mini,
    /// `[out/r, r, r]`, multiplied with the weight.
    Bat,
}

struct Bat(Array3<f32>);

impl Miss {
    /// The name for reports.
    pub fn kind(&self) -> &'static str {
        match self.mode {
            Mode::Shared => "MiSS",
            Mode::Mini => "MiSS mini",
            Mode::Bat => "MiSS bat",
        }
    }

    /// The block has to fit the weight in the way of its mode.
    pub fn prepare(&self, site: &Site) -> Result<Action> {
        let (rows, cols) = matrix_only("MiSS", site)?;
        if self.mode == Mode::Bat {
            return self.prepare_bat(rows, cols);
        }
        let &[r, width] = self.block.shape.dims() else {
            return Err(Error::mismatch(format!("block {}, expected two dimensions", self.block.shape)));
        };
        match self.mode {
            Mode::Mini => divides("width of the block", width, rows)?,
            _ => shape_is("block", &self.block, &[r, rows])?,
        }
        if r == 0 || r > cols {
            return Err(Error::mismatch(format!("rank {r} for {cols} inputs")));
        }
        let block = self.block.to_matrix()?;
        let a = Array2::from_shape_fn((r, cols), |(k, i)| if i % r == k { 1.0 } else { 0.0 });
        let b = Array2::from_shape_fn((rows, r), |(o, k)| block[[k, o % width]]);
        Ok(Action::LowRank(Factors { a, b, scale: 1.0 }))
    }

    fn prepare_bat(&self, rows: usize, cols: usize) -> Result<Action> {
        let r = self.block.shape.dims().last().copied().unwrap_or(0);
        divides("block size", r, rows)?;
        divides("block size", r, cols)?;
        shape_is("block", &self.block, &[rows / r, r, r])?;
        let blocks = Array3::from_shape_vec((rows / r, r, r), self.block.to_f32()?)
            .map_err(|e| Error::mismatch(format!("block {}: {e}", self.block.shape)))?;
        Ok(Action::Act(Box::new(Bat(blocks))))
    }
}

impl Act for Bat {
    fn reversal(&self) -> Reversal {
        Reversal::Steps
    }

    fn inverse(&self) -> Inverse {
        Inverse::Own
    }

    /// `W' = W (1 + B) + B`, block by block.
    fn undo(&self, kernels: &dyn Kernels, rows: Range<usize>, mut w: ArrayViewMut2<f32>) -> Result<f64> {
        let r = self.0.dim().1;
        let (height, cols) = w.dim();
        let mut spread = 0f64;
        for top in (0..height).step_by(r) {
            let block = self.0.slice(s![(rows.start + top) / r, .., ..]);
            let eye = Array2::<f64>::eye(r);
            let back = solve(&eye + &block.mapv(f64::from), eye)?;
            spread = back.columns().into_iter().map(|c| c.iter().map(|v| v.abs()).sum()).fold(spread, f64::max);
            let back = back.mapv(|v| v as f32);
            for left in (0..cols).step_by(r) {
                let mut part = w.slice_mut(s![top..top + r, left..left + r]);
                part -= &block;
                let mut product = Array2::zeros((r, r));
                kernels.add_product(1.0, part.view(), back.view(), product.view_mut())?;
                part.assign(&product);
            }
        }
        Ok(spread)
    }

    fn rows(&self) -> Rows {
        Rows::Multiple(self.0.dim().1)
    }

    fn act(&self, kernels: &dyn Kernels, rows: Range<usize>, mut w: ArrayViewMut2<f32>, _: &dyn Before) -> Result<()> {
        let r = self.0.dim().1;
        let (height, cols) = w.dim();
        for top in (0..height).step_by(r) {
            let block = self.0.slice(s![(rows.start + top) / r, .., ..]);
            for left in (0..cols).step_by(r) {
                let mut part = w.slice_mut(s![top..top + r, left..left + r]);
                let mut product = block.to_owned();
                kernels.add_product(1.0, part.view(), block, product.view_mut())?;
                part += &product;
            }
        }
        Ok(())
    }
}
