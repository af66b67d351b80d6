//! BOFT: OFT with rotations that reach across blocks, and a factor for each output: `s ∘ (W · R₀ᵀ · R₁ᵀ …)`, where
//! `Rᵢ = Pᵢ · diag(Q₀, Q₁ …) · Pᵢᵀ` and Pᵢ is a butterfly permutation (Liu et al., <https://arxiv.org/abs/2311.06243>;
//! huggingface/peft, `src/peft/tuners/boft/layer.py`).

use std::ops::Range;
use std::sync::OnceLock;

use ndarray::{Array2, Array3, ArrayView2, ArrayViewMut2, Axis};

use super::blocks::{Blocks, cayley};
use super::{Action, Site, found_once, misfit};
use crate::adapter::delta::{Act, Before, Inverse, Reversal};
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::tensor::Tensor;

/// Butterfly factors.
#[derive(Clone, Debug, PartialEq)]
pub struct Boft {
    /// `[m, blocks, b, b]`: blocks whose skew-symmetric parts become rotations.
    pub r: Tensor,
    /// One number for each output, in any shape.
    pub s: Tensor,
}

/// One factor: columns are gathered, turned by blocks, and put back.
struct Stage {
    /// Where each column of the permuted weight comes from; none where nothing moves.
    order: Option<Vec<usize>>,
    blocks: Blocks,
    /// Those that turn back, once they were needed, and what errors are multiplied by.
    back: OnceLock<(Blocks, f64)>,
}

struct Ready {
    stages: Vec<Stage>,
    factors: Vec<f32>,
}

impl Boft {
    /// Blocks have to fill the inputs of the weight, factors its outputs.
    pub fn prepare(&self, site: &Site) -> Result<Action> {
        let (rows, cols) = site.matrix();
        let &[stages, count, size, width] = self.r.shape.dims() else {
            return Err(Error::mismatch(format!("rotation {}, expected [m, blocks, b, b]", self.r.shape)));
        };
        if size != width || count.checked_mul(size) != Some(cols) {
            return Err(misfit(&self.r, count.checked_mul(size), site));
        }
        let factors = self.s.to_f32()?;
        if factors.len() != rows {
            return Err(Error::mismatch(format!("{} factors for {rows} outputs", factors.len())));
        }
        let values = self.r.to_f32()?;
        let per_stage = values.len() / stages.max(1);
        let stages = values
            .chunks(per_stage.max(1))
            .enumerate()
            .map(|(i, values)| stage(values, i, stages, (count, size)))
            .collect::<Result<_>>()?;
        Ok(Action::Act(Box::new(Ready { stages, factors })))
    }
}

impl Stage {
    /// Turns by these blocks in the order of this stage.
    fn turn(&self, blocks: &Blocks, kernels: &dyn Kernels, mut w: ArrayViewMut2<f32>) -> Result<()> {
        let Some(order) = &self.order else { return blocks.turn(kernels, w) };
        // (w · P)[order[i]] = w[i]: the columns move to where the permutation sends them, and back.
        let mut moved = Array2::zeros(w.dim());
        for (from, &to) in order.iter().enumerate() {
            moved.column_mut(to).assign(&w.column(from));
        }
        blocks.turn(kernels, moved.view_mut())?;
        for (to, &from) in order.iter().enumerate() {
            w.column_mut(to).assign(&moved.column(from));
        }
        Ok(())
    }
}

fn stage(values: &[f32], index: usize, stages: usize, (count, size): (usize, usize)) -> Result<Stage> {
    let mut blocks = Array3::zeros((count, size, size));
    for (mut block, values) in blocks.outer_iter_mut().zip(values.chunks((size * size).max(1))) {
        let stored = ArrayView2::from_shape((size, size), values)
            .map_err(|e| Error::malformed(format!("rotation block: {e}")))?
            .mapv(f64::from);
        let q = 0.5 * (&stored - &stored.t());
        block.assign(&cayley(q.view())?.mapv(|v| v as f32));
    }
    let order = if stages > 1 { Some(butterfly(index, (count, size))?) } else { None };
    Ok(Stage { order, blocks: Blocks(blocks), back: OnceLock::new() })
}

/// The order of columns that factor `index` works in. Groups of `2^index` blocks are cut into half blocks; the even
/// ones come first.
fn butterfly(index: usize, (count, size): (usize, usize)) -> Result<Vec<usize>> {
    let groups = u32::try_from(index).ok().and_then(|i| count.checked_shr(i)).unwrap_or(0);
    if size % 2 != 0 || groups == 0 || groups << index != count {
        let what = format!("{count} blocks of {size}, expected an even size and a multiple of 2^{index} blocks");
        return Err(Error::mismatch(what).hint("factors of a butterfly need both"));
    }
    let (half, group) = (size / 2, size << index);
    let halves = group / half;
    let sorted = (0..halves).step_by(2).chain((1..halves).step_by(2));
    let within: Vec<usize> = sorted.flat_map(|h| h * half..(h + 1) * half).collect();
    Ok((0..groups).flat_map(|g| within.iter().map(move |w| g * group + w)).collect())
}

impl Act for Ready {
    fn reversal(&self) -> Reversal {
        Reversal::Steps
    }

    fn inverse(&self) -> Inverse {
        if self.factors.contains(&0.0) { Inverse::Never("one of its factors is zero") } else { Inverse::Own }
    }

    fn undo(&self, kernels: &dyn Kernels, rows: Range<usize>, mut w: ArrayViewMut2<f32>) -> Result<f64> {
        let mut spread = 0f64;
        for (mut row, i) in w.axis_iter_mut(Axis(0)).zip(rows) {
            row /= self.factors[i];
            spread = spread.max(f64::from(self.factors[i]).abs().recip());
        }
        for stage in self.stages.iter().rev() {
            let (blocks, more) = found_once(&stage.back, || stage.blocks.inverse())?;
            stage.turn(blocks, kernels, w.view_mut())?;
            spread *= more;
        }
        Ok(spread)
    }

    fn footprint(&self, rows: usize, cols: usize) -> u64 {
        12 * (rows * cols) as u64
    }

    fn act(&self, kernels: &dyn Kernels, rows: Range<usize>, mut w: ArrayViewMut2<f32>, _: &dyn Before) -> Result<()> {
        for stage in &self.stages {
            stage.turn(&stage.blocks, kernels, w.view_mut())?;
        }
        for (mut row, i) in w.axis_iter_mut(Axis(0)).zip(rows) {
            row *= self.factors[i];
        }
        Ok(())
    }
}
