//! OFT and BOFT on the outputs, as LyCORIS and sd-scripts have them: rows of the weight are turned, where PEFT turns
//! columns (KohakuBlueleaf/LyCORIS, `lycoris/functional/{diag_oft,boft}.py`; kohya-ss/sd-scripts, `networks/oft.py`).
//!
//! With `Q = X − Xᵀ` and `R = (I + Q)(I − Q)⁻¹` for every block X:
//!
//! - Diag-OFT: `diag(R₀, R₁ …)ᵀ · W`.
//! - BOFT: `Bₘ₋₁ · … · B₀ · W`, each `Bᵢ` block-diagonal on rows that are gathered over `2ⁱ` blocks.
//!
//! A constraint c makes the norm of all Q together at most `c · out`. A factor for every output may follow.

use std::ops::Range;
use std::sync::OnceLock;

use ndarray::{Array2, Array3, ArrayView2, ArrayViewMut2, Axis};

use super::blocks::{Blocks, cayley};
use super::{Action, Site, found_once};
use crate::adapter::delta::{Act, Before, Inverse, Reversal};
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::tensor::{Rows, Tensor};

/// Rotations of the outputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Outputs {
    /// `[blocks, b, b]`, for a butterfly `[m, blocks, b, b]`.
    pub blocks: Tensor,
    /// What a block is.
    pub stored: Stored,
    /// The constraint, a single number; zero and none are no constraint.
    pub constraint: Option<Tensor>,
    /// A factor for every output, in any shape.
    pub rescale: Option<Tensor>,
}

/// What is stored of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// A matrix whose skew-symmetric part gives it.
    Skew,
    /// The rotation itself (LyCORIS before 2.1, `oft_diag`).
    Rotation,
}

struct Stage {
    /// The row each row of the gathered weight comes from; none where nothing moves.
    order: Option<Vec<usize>>,
    /// Blocks that multiply from the left.
    blocks: Blocks,
    /// Those that turn back, once they were needed, and what errors are multiplied by.
    back: OnceLock<(Blocks, f64)>,
}

struct Ready {
    stages: Vec<Stage>,
    factors: Option<Vec<f32>>,
    /// Rows that are turned together, none where all are.
    together: Option<usize>,
}

impl Outputs {
    /// The name people use.
    pub fn kind(&self) -> &'static str {
        if self.blocks.shape.rank() == 4 { "BOFT of outputs" } else { "Diag-OFT" }
    }

    /// Its tensors.
    pub fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        let others = [("constraint", &self.constraint), ("rescale", &self.rescale)];
        let others = others.into_iter().filter_map(|(name, tensor)| Some((name, tensor.as_ref()?)));
        std::iter::once(("blocks", &self.blocks)).chain(others).collect()
    }

    /// Blocks have to fill the outputs of the weight.
    pub fn prepare(&self, site: &Site) -> Result<Action> {
        let (rows, _) = site.matrix();
        let (stages, count, size) = match *self.blocks.shape.dims() {
            [count, size, width] if size == width => (1, count, size),
            [stages, count, size, width] if size == width && self.stored == Stored::Skew => (stages, count, size),
            _ => return Err(Error::mismatch(format!("rotation {}, expected square blocks", self.blocks.shape))),
        };
        if count.checked_mul(size) != Some(rows) || rows == 0 {
            let what = format!("rotation {} of the outputs of the base weight {}", self.blocks.shape, site.shape);
            return Err(Error::mismatch(what).hint("is this the base model the adapter was trained on?"));
        }
        let factors = self.rescale.as_ref().map(Tensor::to_f32).transpose()?;
        if let Some(found) = factors.as_ref().filter(|f| f.len() != rows) {
            return Err(Error::mismatch(format!("{} factors for {rows} outputs", found.len())));
        }
        let values = self.blocks.to_f32()?;
        let is_butterfly = self.blocks.shape.rank() == 4;
        let shortened = self.shortened(&values, size, rows)?;
        let per_stage = (count * size * size).max(1);
        let stage =
            |(i, values): (usize, &[f32])| self.stage(values, shortened, (count, size), is_butterfly.then_some(i));
        let stages = values.chunks(per_stage).take(stages).enumerate().map(stage).collect::<Result<Vec<_>>>()?;
        let together = if is_butterfly { None } else { Some(size) };
        Ok(Action::Act(Box::new(Ready { stages, factors, together })))
    }

    /// What Q is multiplied by for the constraint.
    fn shortened(&self, values: &[f32], size: usize, rows: usize) -> Result<f64> {
        let Some(constraint) = &self.constraint else { return Ok(1.0) };
        let constraint = constraint.to_number()?;
        if constraint <= 0.0 || self.stored == Stored::Rotation {
            return Ok(1.0);
        }
        let limit = constraint * rows as f64;
        let mut sum = 0f64;
        for block in values.chunks((size * size).max(1)) {
            sum += skew(block, size)?.iter().map(|v| v * v).sum::<f64>();
        }
        let norm = sum.sqrt() + 1e-8;
        Ok(if norm > limit { limit / norm } else { 1.0 })
    }

    fn stage(
        &self,
        values: &[f32],
        shortened: f64,
        (count, size): (usize, usize),
        butterfly: Option<usize>,
    ) -> Result<Stage> {
        let mut blocks = Array3::zeros((count, size, size));
        for (mut block, values) in blocks.outer_iter_mut().zip(values.chunks((size * size).max(1))) {
            let rotation = match self.stored {
                Stored::Rotation => square(values, size)?,
                // The transform of −Q is (I + Q)(I − Q)⁻¹.
                Stored::Skew => cayley((skew(values, size)? * -shortened).view())?,
            };
            let turned = if butterfly.is_some() { rotation } else { rotation.reversed_axes() };
            block.assign(&turned.mapv(|v| v as f32));
        }
        let order = butterfly.map(|i| gathered(i, (count, size))).transpose()?;
        Ok(Stage { order, blocks: Blocks(blocks), back: OnceLock::new() })
    }
}

fn square(values: &[f32], size: usize) -> Result<Array2<f64>> {
    let stored = ArrayView2::from_shape((size, size), values);
    Ok(stored.map_err(|e| Error::malformed(format!("rotation block: {e}")))?.mapv(f64::from))
}

fn skew(values: &[f32], size: usize) -> Result<Array2<f64>> {
    let stored = square(values, size)?;
    Ok(&stored - &stored.t())
}

/// The order of rows in stage `index`: of every `2^index` blocks the rows of the first and second half in turns.
fn gathered(index: usize, (count, size): (usize, usize)) -> Result<Vec<usize>> {
    let (rows, wide) = (count * size, u32::try_from(index).ok().and_then(|i| size.checked_shl(i)));
    // A shift that loses bits would be no multiple any more.
    let group = wide.filter(|&group| size.is_multiple_of(2) && group >> index == size && group > 0);
    let Some(group) = group.filter(|&group| rows.is_multiple_of(group)) else {
        let what = format!("{count} blocks of {size}, expected an even size and a multiple of 2^{index} blocks");
        return Err(Error::mismatch(what).hint("factors of a butterfly need both"));
    };
    let half = group / 2;
    Ok((0..rows).map(|p| p / group * group + p % 2 * half + p % group / 2).collect())
}

impl Stage {
    fn turn(&self, blocks: &Blocks, kernels: &dyn Kernels, first: usize, mut w: ArrayViewMut2<f32>) -> Result<()> {
        let Some(order) = &self.order else { return blocks.turn_rows(kernels, first, w) };
        let mut moved = Array2::zeros(w.dim());
        for (to, &from) in order.iter().enumerate() {
            moved.row_mut(to).assign(&w.row(from));
        }
        blocks.turn_rows(kernels, first, moved.view_mut())?;
        for (from, &to) in order.iter().enumerate() {
            w.row_mut(to).assign(&moved.row(from));
        }
        Ok(())
    }
}

impl Blocks {
    /// Multiplies rows of `w` from the left by the blocks; its first row is that of block `first`.
    fn turn_rows(&self, kernels: &dyn Kernels, first: usize, mut w: ArrayViewMut2<f32>) -> Result<()> {
        let (count, size, _) = self.0.dim();
        for (i, mut band) in w.axis_chunks_iter_mut(Axis(0), size.max(1)).enumerate() {
            if first + i >= count || band.nrows() != size {
                return Err(Error::mismatch("rows that are no whole blocks of a rotation"));
            }
            let block = self.0.index_axis(Axis(0), first + i);
            let before = band.to_owned();
            let mut after = Array2::zeros(before.dim());
            kernels.add_product(1.0, block, before.view(), after.view_mut())?;
            band.assign(&after);
        }
        Ok(())
    }
}

impl Ready {
    fn first(&self, rows: &Range<usize>) -> usize {
        self.together.map_or(0, |size| rows.start / size.max(1))
    }
}

impl Act for Ready {
    fn reversal(&self) -> Reversal {
        Reversal::Steps
    }

    fn inverse(&self) -> Inverse {
        match &self.factors {
            Some(factors) if factors.contains(&0.0) => Inverse::Never("one of its factors is zero"),
            _ => Inverse::Own,
        }
    }

    fn rows(&self) -> Rows {
        self.together.map_or(Rows::Whole, Rows::Multiple)
    }

    fn undo(&self, kernels: &dyn Kernels, rows: Range<usize>, mut w: ArrayViewMut2<f32>) -> Result<f64> {
        let mut spread = 1f64;
        if let Some(factors) = &self.factors {
            for (mut row, i) in w.axis_iter_mut(Axis(0)).zip(rows.clone()) {
                row /= factors[i];
                spread = spread.max(f64::from(factors[i]).abs().recip());
            }
        }
        for stage in self.stages.iter().rev() {
            let (blocks, more) = found_once(&stage.back, || stage.blocks.inverse())?;
            stage.turn(blocks, kernels, self.first(&rows), w.view_mut())?;
            spread *= more;
        }
        Ok(spread)
    }

    fn footprint(&self, rows: usize, cols: usize) -> u64 {
        12 * (rows * cols) as u64
    }

    fn act(&self, kernels: &dyn Kernels, rows: Range<usize>, mut w: ArrayViewMut2<f32>, _: &dyn Before) -> Result<()> {
        for stage in &self.stages {
            stage.turn(&stage.blocks, kernels, self.first(&rows), w.view_mut())?;
        }
        if let Some(factors) = &self.factors {
            for (mut row, i) in w.axis_iter_mut(Axis(0)).zip(rows) {
                row *= factors[i];
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::delta::InMemory;
    use crate::tensor::{Dtype, Shape};

    fn tensor(dims: &[usize], values: &[f32]) -> Tensor {
        Tensor::from_f32(Dtype::F32, dims, values).unwrap()
    }

    #[test]
    fn the_transposed_rotation_acts_on_the_rows() {
        let blocks = tensor(&[1, 2, 2], &[0.0, 0.5, 0.0, 0.0]);
        let delta = Outputs { blocks, stored: Stored::Skew, constraint: None, rescale: None };
        let shape = Shape::new([2, 1]);
        let Action::Act(act) = delta.prepare(&Site { shape: &shape, companion: None }).unwrap() else {
            panic!("an act")
        };
        let mut w = ndarray::array![[1.0], [0.0]];
        let before = InMemory(w.clone());
        act.act(&crate::kernels::Reference, 0..2, w.view_mut(), &before).unwrap();
        assert!((w[[0, 0]] - 0.6).abs() < 1e-7 && (w[[1, 0]] - 0.8).abs() < 1e-7, "{w}");
        assert!(act.undo(&crate::kernels::Reference, 0..2, w.view_mut()).unwrap() < 2.0);
        assert!((w[[0, 0]] - 1.0).abs() < 1e-6 && w[[1, 0]].abs() < 1e-6, "{w}");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let shape = Shape::new([8, 3]);
        let zeros = |dims: &[usize]| tensor(dims, &vec![0.0; dims.iter().product()]);
        let of = |dims: &[usize], stored, constraint: Option<usize>, rescale: Option<usize>| Outputs {
            blocks: zeros(dims),
            stored,
            constraint: constraint.map(|n| zeros(&[n])),
            rescale: rescale.map(|n| zeros(&[n])),
        };
        for delta in [
            of(&[2, 3, 3], Stored::Skew, None, None),
            of(&[2, 4, 2], Stored::Skew, None, None),
            of(&[8, 1], Stored::Skew, None, None),
            of(&[2, 4, 4], Stored::Skew, Some(2), None),
            of(&[2, 4, 4], Stored::Skew, None, Some(2)),
            of(&[3, 2, 4, 4], Stored::Skew, None, None), // a butterfly over four blocks
            of(&[70, 8, 1, 1], Stored::Skew, None, None),
            of(&[1, 2, 4, 4], Stored::Rotation, None, None),
        ] {
            assert!(delta.prepare(&Site { shape: &shape, companion: None }).is_err(), "{delta:?}");
        }
        assert!(
            of(&[2, 2, 4, 4], Stored::Skew, Some(1), Some(8)).prepare(&Site { shape: &shape, companion: None }).is_ok()
        );
    }
}
