//! Trainable tokens: some rows of an embedding, replaced. PEFT's key says `delta`; its values are the new rows.

use std::ops::Range;

use ndarray::{Array2, ArrayViewMut2};

use super::{Act, Action, Before, Inverse, Site};
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::tensor::Tensor;

/// New rows for the listed token ids.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenRows {
    /// Token ids, in the order of the rows.
    pub ids: Vec<usize>,
    /// `[ids, d]`.
    pub rows: Tensor,
}

struct Ready {
    ids: Vec<usize>,
    rows: Array2<f32>,
}

impl TokenRows {
    /// Ids have to lie in the vocabulary, rows to have its width. `site` is the embedding as stored, `[n, d]`.
    pub fn prepare(&self, site: &Site) -> Result<Action> {
        let (n, d) = site.matrix();
        let rows = self.rows.to_matrix()?;
        if rows.dim() != (self.ids.len(), d) {
            return Err(Error::mismatch(format!(
                "{} token ids and rows {} for the embedding {}",
                self.ids.len(),
                self.rows.shape,
                site.shape
            )));
        }
        if let Some(id) = self.ids.iter().find(|&&id| id >= n) {
            return Err(Error::mismatch(format!("token id {id}, the embedding has {n} rows")));
        }
        Ok(Action::Act(Box::new(Ready { ids: self.ids.clone(), rows })))
    }
}

impl Act for Ready {
    fn inverse(&self) -> Inverse {
        Inverse::Never("its rows took the place of those of the base")
    }

    fn act(&self, _: &dyn Kernels, rows: Range<usize>, mut w: ArrayViewMut2<f32>, _: &dyn Before) -> Result<()> {
        for (id, row) in self.ids.iter().zip(self.rows.rows()) {
            if rows.contains(id) {
                w.row_mut(id - rows.start).assign(&row);
            }
        }
        Ok(())
    }
}
