//! The tensor that the scales of a merged weight are stored as: known when those are.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::produce::Merged;
use crate::error::{Error, Result};
use crate::kernels::{Kernels, Moved};
use crate::stream::Produce;
use crate::tensor::{Rows, Shape};

/// Such a tensor.
pub struct ScaleTensor {
    /// The merged one, which may come later in the files.
    pub of: Arc<OnceLock<Arc<Merged>>>,
    /// Its shape.
    pub shape: Shape,
}

impl ScaleTensor {
    fn merged(&self) -> Result<&Arc<Merged>> {
        self.of.get().ok_or_else(|| Error::missing("a scale without its weight"))
    }
}

impl Produce for ScaleTensor {
    fn matrix(&self) -> (usize, usize) {
        self.shape.matrix()
    }

    fn rows(&self) -> Rows {
        Rows::Whole
    }

    fn footprint(&self, _: usize) -> u64 {
        self.of.get().map_or(0, |merged| merged.footprint(merged.rows_of_piece()))
    }

    /// What became of the scales is told.
    fn can_be_taken_up(&self) -> bool {
        false
    }

    fn produce(&self, kernels: &dyn Kernels, _: Range<usize>, out: &mut [u8]) -> Result<Moved> {
        let bytes = match self.merged()?.scales(kernels)? {
            Some(scales) => scales.bytes()?,
            None => return Err(Error::missing("a scale of a weight that has none")),
        };
        if bytes.len() != out.len() {
            return Err(Error::mismatch(format!("scales of {} bytes for {}", bytes.len(), out.len())));
        }
        out.copy_from_slice(&bytes);
        Ok(Moved::default())
    }
}
