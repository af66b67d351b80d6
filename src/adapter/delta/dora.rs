//! DoRA: `m · V / ‖V‖` with `V = W + s·B·A`, the norm over everything but the magnitude's axis (Liu et al.,
//! <https://arxiv.org/abs/2402.09353>). The magnitude belongs to the target and may follow any additive delta.
//!
//! The axis is that of the outputs (huggingface/peft) or of the inputs (KohakuBlueleaf/LyCORIS, `wd_on_out=False`); the
//! norm of an input of a convolution runs over the outputs and the kernel.

use std::ops::Range;
use std::sync::OnceLock;

use ndarray::{Array1, ArrayViewMut2, Axis};

use super::{Act, Action, Before, Inverse, Reversal};
use crate::error::{Error, Result};
use crate::kernels::tiles::with_values;
use crate::kernels::{Kernels, Term};
use crate::tensor::{Rows, Shape, Tensor};

/// Rows read at a time when column norms are gathered.
const SURVEY_BYTES: usize = 4 << 20;

/// An additive action followed by a magnitude.
pub struct Dora {
    inner: Box<dyn Act>,
    magnitude: Array1<f32>,
    /// Columns that share a number where it runs along them: the kernel of a convolution.
    columns: Option<usize>,
    norms: OnceLock<Array1<f64>>,
}

/// Puts `magnitude` behind `action`. With `columns` it runs along the columns of the stored weight, as for embeddings
/// and weights stored `[in, out]`, or a magnitude of inputs; else along its rows.
pub fn with_magnitude(action: Action, magnitude: &Tensor, columns: bool, stored: &Shape) -> Result<Action> {
    let values = magnitude.to_f32()?;
    let (rows, cols) = stored.matrix();
    let inputs = stored.dims().get(1).copied().unwrap_or(1);
    let expected = if columns { inputs } else { rows };
    if values.len() != expected {
        let what = format!("magnitude {} for a weight {stored}, expected {expected} numbers", magnitude.shape);
        return Err(Error::mismatch(what));
    }
    let columns = columns.then(|| cols / inputs.max(1));
    let inner = action.into_act()?;
    let magnitude = Array1::from_vec(values);
    Ok(Action::Act(Box::new(Dora { inner, magnitude, columns, norms: OnceLock::new() })))
}

impl Dora {
    /// Norms of the columns of V, `kernel` of them together, gathered once over all rows.
    fn column_norms(&self, kernels: &dyn Kernels, before: &dyn Before, kernel: usize) -> Result<&Array1<f64>> {
        if let Some(norms) = self.norms.get() {
            return Ok(norms);
        }
        let (rows, cols) = before.matrix();
        let step = (SURVEY_BYTES / (4 * cols.max(1))).max(1);
        let mut sums = Array1::<f64>::zeros(cols);
        for start in (0..rows).step_by(step) {
            let range = start..(start + step).min(rows);
            let mut tile = before.rows(kernels, range.clone())?;
            self.inner.act(kernels, range, tile.view_mut(), before)?;
            for row in tile.rows() {
                sums.zip_mut_with(&row, |s, &v| *s += f64::from(v) * f64::from(v));
            }
        }
        // Two threads may both come here first; they compute the same numbers.
        let norms = sums.as_slice().unwrap_or(&[]).chunks(kernel.max(1)).map(|part| part.iter().sum::<f64>().sqrt());
        Ok(self.norms.get_or_init(|| norms.collect()))
    }
}

impl Dora {
    /// Rows at the lengths of their magnitudes, after products were added.
    fn stretch(&self, kernels: &dyn Kernels, terms: &[Term], rows: Range<usize>, w: ArrayViewMut2<f32>) -> Result<()> {
        let dim = w.dim();
        let magnitudes = self.magnitude.as_slice().and_then(|m| m.get(rows.clone())).filter(|m| m.len() == dim.0);
        let magnitudes = magnitudes.ok_or_else(|| Error::mismatch(format!("no magnitudes for rows {rows:?}")))?;
        with_values(w, |values| kernels.add_products_and_stretch(values, dim, terms, magnitudes));
        Ok(())
    }
}

impl Act for Dora {
    fn inverse(&self) -> Inverse {
        match self.columns {
            None => {
                Inverse::Never("it brings every row to a length of its own, and the length the row had is kept nowhere")
            }
            Some(_) => {
                Inverse::Never("it brings every column to a length of its own, and the one it had is kept nowhere")
            }
        }
    }

    fn reversal(&self) -> Reversal {
        match (self.inner.reversal(), self.columns) {
            (Reversal::Sum, None) => Reversal::Rows,
            (Reversal::Sum, Some(_)) => Reversal::Cols,
            _ => Reversal::Nothing,
        }
    }

    fn addend(&self, kernels: &dyn Kernels, rows: Range<usize>, sum: ArrayViewMut2<f32>) -> Result<()> {
        self.inner.addend(kernels, rows, sum)
    }

    fn rows(&self) -> Rows {
        self.inner.rows()
    }

    fn footprint(&self, rows: usize, cols: usize) -> u64 {
        self.inner.footprint(rows, cols) + if self.columns.is_some() { 3 * SURVEY_BYTES as u64 } else { 0 }
    }

    fn act(
        &self,
        kernels: &dyn Kernels,
        rows: Range<usize>,
        mut w: ArrayViewMut2<f32>,
        before: &dyn Before,
    ) -> Result<()> {
        let product = self.inner.product().filter(|_| self.columns.is_none());
        if let Some(term) = product.and_then(|factors| factors.term(rows.clone(), w.ncols())) {
            return self.stretch(kernels, &[term], rows, w);
        }
        self.inner.act(kernels, rows.clone(), w.view_mut(), before)?;
        if let Some(kernel) = self.columns {
            let norms = self.column_norms(kernels, before, kernel)?;
            let factors = self.magnitude.iter().zip(norms).map(|(&m, &n)| (f64::from(m) / n) as f32);
            let factors: Array1<f32> = factors.flat_map(|f| std::iter::repeat_n(f, kernel)).collect();
            for mut row in w.axis_iter_mut(Axis(0)) {
                row *= &factors;
            }
            return Ok(());
        }
        self.stretch(kernels, &[], rows, w)
    }
}
