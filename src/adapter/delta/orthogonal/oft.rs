//! OFT: `W · diag(R₀, R₁ …)ᵀ`, with each block the Cayley transform of a skew-symmetric matrix (Qiu et al.,
//! <https://arxiv.org/abs/2306.07280>; huggingface/peft from 0.18 on, `src/peft/tuners/oft/layer.py`).

use std::ops::Range;
use std::sync::OnceLock;

use ndarray::{Array2, Array3, ArrayViewMut2};

use super::blocks::{Blocks, cayley};
use super::{Action, Site, found_once, misfit};
use crate::adapter::delta::{Act, Before, Inverse, Reversal};
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::tensor::Tensor;

/// Blocks by what is above their diagonals.
#[derive(Clone, Debug, PartialEq)]
pub struct Oft {
    /// `[blocks, b (b − 1) / 2]`: the upper triangles, row by row. A single block that is shared serves all places.
    pub r: Tensor,
    /// Whether all places have the same block.
    pub shared: bool,
    /// How a block becomes a rotation.
    pub transform: Transform,
    /// Largest norm of a block times the root of their number, for constrained OFT; longer ones are shortened.
    pub limit: Option<f64>,
    /// Turns the other way: `W · diag(R₀, R₁ …)`, as embeddings do, whose outputs are the columns of the weight.
    pub inverse: bool,
}

/// From a skew-symmetric Q to a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transform {
    /// `(I − Q)(I + Q)⁻¹`.
    Cayley,
    /// The first terms of the Neumann series of `(I + Q)(I − Q)⁻¹`, which is only nearly a rotation:
    /// `I + 2Q + 2Q² + … + Qⁿ⁻¹`, the last power once.
    Neumann(usize),
}

impl Oft {
    /// Blocks have to fill the inputs of the weight.
    pub fn prepare(&self, site: &Site) -> Result<Action> {
        let (_, cols) = site.matrix();
        let (count, entries) = self.r.shape.matrix();
        let size = block_size(entries).ok_or_else(|| {
            Error::mismatch(format!("rotation {}: {entries} is not b (b - 1) / 2 for any block size b", self.r.shape))
        })?;
        let fits = match (self.shared, count) {
            (true, 1) => cols % size == 0,
            _ => count.checked_mul(size) == Some(cols),
        };
        if !fits {
            return Err(misfit(&self.r, count.checked_mul(size), site));
        }
        let values = self.r.to_f32()?;
        let limit = self.limit.map(|eps| eps / (count as f64).sqrt());
        let mut blocks = Array3::zeros((count, size, size));
        for (mut block, triangle) in blocks.outer_iter_mut().zip(values.chunks(entries)) {
            let mut rotation = self.rotation(skew(triangle, size, limit))?;
            if self.inverse {
                rotation = rotation.reversed_axes();
            }
            block.assign(&rotation.mapv(|v| v as f32));
        }
        Ok(Action::Act(Box::new(Ready(Blocks(blocks), OnceLock::new()))))
    }

    fn rotation(&self, q: Array2<f64>) -> Result<Array2<f64>> {
        let terms = match self.transform {
            Transform::Cayley => return cayley(q.view()),
            Transform::Neumann(terms) => terms,
        };
        let mut sum = Array2::eye(q.nrows());
        if terms > 1 {
            sum.scaled_add(2.0, &q);
        }
        if terms > 2 {
            let mut power = product(&q, &q);
            sum.scaled_add(2.0, &power);
            for _ in 3..terms - 1 {
                power = product(&power, &q);
                sum.scaled_add(2.0, &power);
            }
            sum += &product(&power, &q); // three and four terms are the same: PEFT adds this one in both
        }
        Ok(sum)
    }
}

/// The matrix product, its sums in order: the same on every machine.
fn product(a: &Array2<f64>, b: &Array2<f64>) -> Array2<f64> {
    let mut out = Array2::zeros((a.nrows(), b.ncols()));
    for (mut out, a) in out.rows_mut().into_iter().zip(a.rows()) {
        for (&a, b) in a.iter().zip(b.rows()) {
            out.scaled_add(a, &b);
        }
    }
    out
}

/// b with `b (b − 1) / 2` entries above the diagonal.
pub fn block_size(entries: usize) -> Option<usize> {
    let size = entries.checked_mul(8)?.checked_add(1)?.isqrt().div_ceil(2);
    (entries > 0 && size * (size - 1) / 2 == entries).then_some(size)
}

fn skew(triangle: &[f32], size: usize, limit: Option<f64>) -> Array2<f64> {
    let mut q = Array2::zeros((size, size));
    let above = (0..size).flat_map(|i| (i + 1..size).map(move |j| (i, j)));
    for ((i, j), &value) in above.zip(triangle) {
        q[[i, j]] = f64::from(value);
        q[[j, i]] = -f64::from(value);
    }
    let norm = q.iter().map(|v| v * v).sum::<f64>().sqrt();
    match limit {
        Some(limit) if norm > limit => q * (limit / norm),
        _ => q,
    }
}

/// Blocks, and those that turn back once they were needed.
struct Ready(Blocks, OnceLock<(Blocks, f64)>);

impl Act for Ready {
    fn reversal(&self) -> Reversal {
        Reversal::Steps
    }

    fn inverse(&self) -> Inverse {
        Inverse::Own
    }

    fn undo(&self, kernels: &dyn Kernels, _: Range<usize>, w: ArrayViewMut2<f32>) -> Result<f64> {
        let (blocks, spread) = found_once(&self.1, || self.0.inverse())?;
        blocks.turn(kernels, w)?;
        Ok(*spread)
    }

    fn footprint(&self, rows: usize, cols: usize) -> u64 {
        8 * (rows * cols) as u64
    }

    fn act(&self, kernels: &dyn Kernels, _: Range<usize>, w: ArrayViewMut2<f32>, _: &dyn Before) -> Result<()> {
        self.0.turn(kernels, w)
    }
}
