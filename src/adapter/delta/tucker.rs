//! LoRA of a convolution with its kernel in a core (KohakuBlueleaf/LyCORIS, `lycoris/modules/locon.py`, where it is called
//! Tucker or CP): `W[o, i, k …] + s · Σ up[o, p] · core[p, q, k …] · down[q, i]`.
//!
//! The first axis of the core faces up, the second down. Core and down multiplied out make it plain LoRA of the same
//! rank; the three are kept as they are stored.

use ndarray::Array2;

use super::{Action, Factors, Site};
use crate::adapter::scale::Scale;
use crate::error::{Error, Result};
use crate::limits;
use crate::tensor::Tensor;

/// Three factors and a scale.
#[derive(Clone, Debug, PartialEq)]
pub struct Tucker {
    /// `[out, p]`, `[out, p, 1 …]`.
    pub up: Tensor,
    /// `[q, in]`, `[q, in, 1 …]`.
    pub down: Tensor,
    /// `[p, q, kernel …]`.
    pub core: Tensor,
    /// The scale the file came with; its rank is q.
    pub scale: Scale,
}

impl Tucker {
    /// Its tensors.
    pub fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        vec![("down", &self.down), ("core", &self.core), ("up", &self.up)]
    }

    /// The rank that the scale is for.
    pub fn rank(&self) -> usize {
        self.down.shape.dims().first().copied().unwrap_or(0)
    }

    /// Rows and columns of the change, or an error where the factors do not fit each other.
    pub fn matrix(&self) -> Result<(usize, usize)> {
        let [p, q, kernel @ ..] = self.core.shape.dims() else {
            return Err(Error::mismatch(format!("core {}, expected [r, r, kernel …]", self.core.shape)));
        };
        let ((rows, of_up), (of_down, inputs)) = (self.up.shape.matrix(), self.down.shape.matrix());
        if of_up != *p || of_down != *q || of_down == 0 {
            let what =
                format!("up {} and down {} do not fit the core {}", self.up.shape, self.down.shape, self.core.shape);
            return Err(Error::mismatch(what).hint("the parts may come from different adapters"));
        }
        let cols = kernel.iter().try_fold(inputs, |n, &k| n.checked_mul(k));
        Ok((rows, cols.ok_or_else(|| Error::malformed(format!("core {} overflows", self.core.shape)))?))
    }

    /// The same as two factors: the core multiplied into down, in f64.
    pub fn factors(&self) -> Result<Factors> {
        let (_, cols) = self.matrix()?;
        let size = self.core.shape.matrix().0.saturating_mul(cols);
        if size > limits::TUCKER_FACTOR {
            let found = format!("core {} and down {} make {size} numbers", self.core.shape, self.down.shape);
            return Err(Error::limit(found, limits::TUCKER_FACTOR));
        }
        let (b, down, core) = (self.up.to_matrix()?, self.down.to_matrix()?, self.core.to_matrix()?);
        let (inner, kernel) = (down.nrows(), core.ncols() / down.nrows().max(1));
        let a = Array2::from_shape_fn((core.nrows(), cols), |(p, col)| {
            let (input, k) = (col / kernel, col % kernel);
            let term = |q: usize| f64::from(core[[p, q * kernel + k]]) * f64::from(down[[q, input]]);
            (0..inner).map(term).sum::<f64>() as f32
        });
        Ok(Factors { a, b, scale: self.scale.factor(self.rank()) })
    }

    /// Checks the shapes against the weight and multiplies the core out.
    pub fn prepare(&self, site: &Site) -> Result<Action> {
        let (rows, cols) = self.matrix()?;
        let dims = site.shape.dims();
        if dims.len() == self.core.shape.rank() && dims.get(2..) != self.core.shape.dims().get(2..) {
            let what = format!("kernel of the core {} against the base weight {}", self.core.shape, site.shape);
            return Err(Error::mismatch(what));
        }
        site.expect(rows, cols)?;
        Ok(Action::LowRank(self.factors()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Dtype, Shape};

    fn tensor(dims: &[usize], values: &[f32]) -> Tensor {
        Tensor::from_f32(Dtype::F32, dims, values).unwrap()
    }

    #[test]
    fn the_first_axis_of_the_core_faces_up() {
        let (up, down) = (tensor(&[1, 2], &[1.0, 10.0]), tensor(&[2, 1], &[1.0, 100.0]));
        let core = tensor(&[2, 2, 1, 1], &[0.0, 1.0, 2.0, 3.0]);
        let delta = Tucker { up, down, core, scale: Scale::direct(1.0) };
        let Factors { a, b, .. } = delta.factors().unwrap();
        assert_eq!(b.dot(&a), ndarray::array![[3120.0]]);
        let shape = Shape::new([1, 1, 3, 3]);
        assert!(delta.prepare(&Site { shape: &shape, companion: None }).is_err());
        let wrong = Tucker { down: tensor(&[1, 1], &[1.0]), ..delta };
        assert!(wrong.matrix().is_err());
    }
}
