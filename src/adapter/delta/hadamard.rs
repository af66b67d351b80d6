//! LoHa: `W + s · (w1a · w1b) ∘ (w2a · w2b)`, the elementwise product of two low-rank matrices (FedPara: Hyeon-Woo et
//! al., <https://arxiv.org/abs/2108.06098>; KohakuBlueleaf/LyCORIS, `lycoris/modules/loha.py`).
//!
//! A convolution is the same on its flattened kernel, or has a core in each product.

use std::ops::Range;

use ndarray::{Array2, ArrayViewMut2};

use super::{Act, Action, Before, Product, Reversal, Site};
use crate::adapter::scale::Scale;
use crate::error::{Error, Result};
use crate::kernels::tiles::with_values;
use crate::kernels::{Kernels, Term};
use crate::tensor::Tensor;

/// Two products of the weight's shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Hadamard {
    /// The first.
    pub w1: Product,
    /// The second.
    pub w2: Product,
    /// The scale the file came with; its rank is that of the first product.
    pub scale: Scale,
}

/// The left and the right factor of a product, row by row.
type Halves = (Array2<f32>, Array2<f32>);

struct Ready {
    w1: Halves,
    w2: Halves,
    scale: f32,
}

impl Hadamard {
    /// Its tensors.
    pub fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        self.w1.tensors().map(|t| ("w1", t)).chain(self.w2.tensors().map(|t| ("w2", t))).collect()
    }

    /// Both products have to be of the weight's shape.
    pub fn prepare(&self, site: &Site) -> Result<Action> {
        for product in [&self.w1, &self.w2] {
            let (rows, cols) = product.shape()?;
            site.expect(rows, cols)?;
        }
        let scale = self.scale.factor(self.w1.rank()) as f32;
        let halves = |product: &Product| -> Result<Halves> {
            let (left, right) = product.halves()?;
            let by_rows = |x: Array2<f32>| x.as_standard_layout().into_owned();
            Ok((by_rows(left), by_rows(right)))
        };
        Ok(Action::Act(Box::new(Ready { w1: halves(&self.w1)?, w2: halves(&self.w2)?, scale })))
    }
}

/// Some rows of a product, at scale 1.
fn term_of_rows<'a>(
    (left, right): &'a Halves,
    rows: &Range<usize>,
    (height, width): (usize, usize),
) -> Result<Term<'a>> {
    let rank = right.nrows();
    let b = left.as_slice().and_then(|b| b.get(rows.start * rank..rows.end * rank));
    match (b, right.as_slice()) {
        (Some(b), Some(a)) if rows.len() == height && (left.ncols(), right.ncols()) == (rank, width) => {
            Ok(Term { a, a_stride: width, b, b_stride: rank, rank, scale: 1.0 })
        }
        _ => Err(Error::mismatch(format!("product of {:?} and {:?}", left.dim(), right.dim()))),
    }
}

impl Act for Ready {
    fn reversal(&self) -> Reversal {
        Reversal::Sum
    }

    fn footprint(&self, rows: usize, cols: usize) -> u64 {
        8 * (rows * cols) as u64
    }

    fn act(&self, kernels: &dyn Kernels, rows: Range<usize>, w: ArrayViewMut2<f32>, _: &dyn Before) -> Result<()> {
        let dim = w.dim();
        let terms = [term_of_rows(&self.w1, &rows, dim)?, term_of_rows(&self.w2, &rows, dim)?];
        with_values(w, |values| kernels.add_hadamard(values, dim, self.scale, terms));
        Ok(())
    }
}
