//! HRA: `W · (I − 2 u₀ u₀ᵀ)(I − 2 u₁ u₁ᵀ) …`, a chain of Householder reflections (Yuan et al.,
//! <https://arxiv.org/abs/2405.17484>; huggingface/peft, `src/peft/tuners/hra/layer.py`).

use std::ops::Range;

use ndarray::{Array1, Array2, ArrayView1, ArrayViewMut1, ArrayViewMut2, Axis};

use super::{Action, Site, misfit};
use crate::adapter::delta::{Act, Before, Inverse, Reversal};
use crate::error::{Error, Kind, Result};
use crate::kernels::Kernels;
use crate::tensor::Tensor;

/// Directions of the reflections.
#[derive(Clone, Debug, PartialEq)]
pub struct Hra {
    /// `[in, r]`, of any length.
    pub u: Tensor,
    /// Whether the directions are made orthogonal to each other first (Gram-Schmidt).
    pub orthogonalised: bool,
}

impl Hra {
    /// A direction has as many entries as the weight has inputs, and a length that is not zero.
    pub fn prepare(&self, site: &Site) -> Result<Action> {
        let (_, cols) = site.matrix();
        let (inputs, rank) = self.u.shape.matrix();
        if inputs != cols || self.u.shape.rank() != 2 {
            return Err(misfit(&self.u, Some(inputs), site));
        }
        let stored = self.u.to_matrix()?;
        let mut units: Vec<Array1<f64>> = Vec::with_capacity(rank);
        for (i, column) in stored.axis_iter(Axis(1)).enumerate() {
            let mut u = column.mapv(f64::from);
            if self.orthogonalised {
                for earlier in &units {
                    let along = product(earlier, &u);
                    u.scaled_add(-along, earlier);
                }
            }
            let norm = product(&u, &u).sqrt();
            if norm == 0.0 || !norm.is_finite() {
                return Err(Error::new(
                    Kind::Nonfinite,
                    format!("direction {i} of {} has length {norm}", self.u.shape),
                ));
            }
            units.push(u / norm);
        }
        let mut rows = Array2::zeros((rank, cols));
        for (mut row, unit) in rows.rows_mut().into_iter().zip(&units) {
            row.assign(&unit.mapv(|v| v as f32));
        }
        Ok(Action::Act(Box::new(Ready(rows))))
    }
}

/// The scalar product, in order: the same on every machine.
fn product(a: &Array1<f64>, b: &Array1<f64>) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Unit directions, one a row.
struct Ready(Array2<f32>);

impl Act for Ready {
    fn reversal(&self) -> Reversal {
        Reversal::Steps
    }

    fn inverse(&self) -> Inverse {
        Inverse::Own
    }

    /// Each reflection is its own inverse; the last comes off first. Together they keep lengths, so that an error in
    /// every element reaches one with the root of their number at most.
    fn undo(&self, _: &dyn Kernels, _: Range<usize>, mut w: ArrayViewMut2<f32>) -> Result<f64> {
        for row in w.rows_mut() {
            reflect(row, self.0.rows().into_iter().rev());
        }
        Ok((w.ncols() as f64).sqrt())
    }

    fn footprint(&self, _: usize, _: usize) -> u64 {
        0
    }

    fn act(&self, _: &dyn Kernels, _: Range<usize>, mut w: ArrayViewMut2<f32>, _: &dyn Before) -> Result<()> {
        for row in w.rows_mut() {
            reflect(row, self.0.rows().into_iter());
        }
        Ok(())
    }
}

/// A row, reflected at each of the directions.
fn reflect<'a>(mut row: ArrayViewMut1<f32>, directions: impl Iterator<Item = ArrayView1<'a, f32>>) {
    for u in directions {
        let along: f64 = row.iter().zip(u).map(|(&w, &u)| f64::from(w) * f64::from(u)).sum();
        row.scaled_add((-2.0 * along) as f32, &u);
    }
}
