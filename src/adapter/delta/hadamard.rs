//! LoHa: `W + s · (w1a · w1b) ∘ (w2a · w2b)`, the elementwise product of two low-rank matrices (FedPara: Hyeon-Woo et
//! al., <https://arxiv.org/abs/2108.06098>; KohakuBlueleaf/LyCORIS, `lycoris/modules/loha.py`).
//!
//! A convolution is the same on its flattened kernel, or has a core in each product.

use std::ops::Range;

use ndarray::{Array2, ArrayViewMut2, Zip, s};

use super::{Act, Action, Before, Product, Reversal, Site};
use crate::adapter::scale::Scale;
use crate::error::Result;
use crate::kernels::Kernels;
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

struct Ready {
    w1: (Array2<f32>, Array2<f32>),
    w2: (Array2<f32>, Array2<f32>),
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
        Ok(Action::Act(Box::new(Ready { w1: self.w1.halves()?, w2: self.w2.halves()?, scale })))
    }
}

impl Act for Ready {
    fn reversal(&self) -> Reversal {
        Reversal::Sum
    }

    fn footprint(&self, rows: usize, cols: usize) -> u64 {
        8 * (rows * cols) as u64
    }

    fn act(&self, kernels: &dyn Kernels, rows: Range<usize>, mut w: ArrayViewMut2<f32>, _: &dyn Before) -> Result<()> {
        let product = |(left, right): &(Array2<f32>, Array2<f32>)| -> Result<Array2<f32>> {
            let mut out = Array2::zeros(w.dim());
            kernels.add_product(1.0, left.slice(s![rows.clone(), ..]), right.view(), out.view_mut())?;
            Ok(out)
        };
        let (first, second) = (product(&self.w1)?, product(&self.w2)?);
        Zip::from(&mut w).and(&first).and(&second).for_each(|w, &a, &b| *w += self.scale * (a * b));
        Ok(())
    }
}
