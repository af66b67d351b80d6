//! GLoRA as LyCORIS has it (KohakuBlueleaf/LyCORIS, `lycoris/modules/glora.py`): `W + s · (W · A + B)` with
//! `A = a1 · a2` on the inputs and `B = b1 · b2`. Other than the GLoRA of PEFT, which multiplies elements
//! ([`super::glora`]).
//!
//! Of a convolution the inputs at every place of the kernel are multiplied by the same A. LyCORIS before 2.0 had each
//! pair the other way round: `A = a2 · a1`, `B = b2 · b1`.

use std::ops::Range;

use ndarray::{Array2, ArrayViewMut2, s};

use super::{Act, Action, Before, Inverse, Reversal, Site};
use crate::adapter::scale::Scale;
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::tensor::Tensor;

/// Two products and a scale.
#[derive(Clone, Debug, PartialEq)]
pub struct InputGlora {
    /// `[in, r]`; of the old order `[r, in]`.
    pub a1: Tensor,
    /// `[r, in]`; of the old order `[in, r]`.
    pub a2: Tensor,
    /// `[out, r]`; of the old order `[r, in]`.
    pub b1: Tensor,
    /// `[r, in]`, `[r, in, kernel …]`; of the old order `[out, r]`.
    pub b2: Tensor,
    /// Whether the pairs are in the old order.
    pub old: bool,
    /// The scale the file came with; its rank is that of A.
    pub scale: Scale,
}

struct Ready {
    /// `[in, r]`, `[r, in]`.
    a: (Array2<f32>, Array2<f32>),
    /// `[out, r]`, `[r, in · kernel]`.
    b: (Array2<f32>, Array2<f32>),
    kernel: usize,
    scale: f64,
}

impl InputGlora {
    /// Its tensors.
    pub fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        vec![("a1", &self.a1), ("a2", &self.a2), ("b1", &self.b1), ("b2", &self.b2)]
    }

    /// Whether these extents are of the old order. Where both would do it is the one whose rank is the smaller extent, and
    /// for squares the new one, which all versions since 2023 write.
    pub fn is_old(a1: &Tensor, a2: &Tensor, b1: &Tensor, b2: &Tensor) -> bool {
        let [a1, a2, b1, b2] = [a1, a2, b1, b2].map(|t| t.shape.matrix());
        let new = a1.1 == a2.0 && a1.0 == a2.1 && b1.1 == b2.0 && a1.1 == b1.1;
        let old = a2.1 == a1.0 && a2.0 == a1.1 && b2.1 == b1.0 && a1.0 == b1.0;
        old && !(new && a1.1 <= a1.0)
    }

    /// Both products, the left factor first.
    fn ordered(&self) -> [(&Tensor, &Tensor); 2] {
        match self.old {
            false => [(&self.a1, &self.a2), (&self.b1, &self.b2)],
            true => [(&self.a2, &self.a1), (&self.b2, &self.b1)],
        }
    }

    /// The rank that the scale is for.
    pub fn rank(&self) -> usize {
        self.ordered()[0].1.shape.dims().first().copied().unwrap_or(0)
    }

    /// A has to be square on the inputs, B of the weight's shape.
    pub fn prepare(&self, site: &Site) -> Result<Action> {
        let (rows, cols) = site.matrix();
        let inputs = site.shape.dims().get(1).copied().unwrap_or(1);
        let [a, b] = self.ordered();
        for ((left, right), expected) in [(a, (inputs, inputs)), (b, (rows, cols))] {
            let (m, n) = (left.shape.matrix(), right.shape.matrix());
            if (m.0, n.1) != expected || m.1 != n.0 {
                let what = format!("factors {} and {} for the base weight {}", left.shape, right.shape, site.shape);
                return Err(Error::mismatch(what).hint("is this the base model the adapter was trained on?"));
            }
        }
        let pair = |(left, right): (&Tensor, &Tensor)| Ok((left.to_matrix()?, right.to_matrix()?));
        let scale = self.scale.factor(self.rank());
        Ok(Action::Act(Box::new(Ready { a: pair(a)?, b: pair(b)?, kernel: cols / inputs.max(1), scale })))
    }
}

impl Act for Ready {
    fn reversal(&self) -> Reversal {
        Reversal::Steps
    }

    fn inverse(&self) -> Inverse {
        Inverse::Never("it adds a product with the weight as it was")
    }

    fn footprint(&self, rows: usize, cols: usize) -> u64 {
        12 * (rows * cols) as u64
    }

    fn act(&self, kernels: &dyn Kernels, rows: Range<usize>, mut w: ArrayViewMut2<f32>, _: &dyn Before) -> Result<()> {
        let scale = self.scale as f32;
        for k in 0..self.kernel {
            let before = w.slice(s![.., k..;self.kernel]).as_standard_layout().into_owned();
            let mut inner = Array2::zeros((before.nrows(), self.a.0.ncols()));
            kernels.add_product(1.0, before.view(), self.a.0.view(), inner.view_mut())?;
            let mut after = before;
            kernels.add_product(scale, inner.view(), self.a.1.view(), after.view_mut())?;
            w.slice_mut(s![.., k..;self.kernel]).assign(&after);
        }
        kernels.add_product(scale, self.b.0.slice(s![rows, ..]), self.b.1.view(), w)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;

    #[test]
    fn extents_tell_the_order() {
        let of = |dims: &[usize]| Tensor::from_f32(Dtype::F32, dims, &vec![0.0; dims.iter().product()]).unwrap();
        // For a weight of [5, 3] and rank 2, then for [3, 3].
        assert!(!InputGlora::is_old(&of(&[3, 2]), &of(&[2, 3]), &of(&[5, 2]), &of(&[2, 3])));
        assert!(InputGlora::is_old(&of(&[2, 3]), &of(&[3, 2]), &of(&[2, 3]), &of(&[5, 2])));
        assert!(!InputGlora::is_old(&of(&[3, 2]), &of(&[2, 3]), &of(&[3, 2]), &of(&[2, 3])));
        assert!(InputGlora::is_old(&of(&[2, 3]), &of(&[3, 2]), &of(&[2, 3]), &of(&[3, 2])));
        assert!(!InputGlora::is_old(&of(&[2, 2]), &of(&[2, 2]), &of(&[2, 2]), &of(&[2, 2])));
        assert!(!InputGlora::is_old(&of(&[3, 2, 1, 1]), &of(&[2, 3, 1, 1]), &of(&[5, 2, 1, 1]), &of(&[2, 3, 3, 3])));
    }
}
