//! Low-rank factors that are made when a weight is met, from matrices that all targets share: VeRA and PVeRA, RandLoRA.
//! One file each.
//!
//! They are not expanded when they are read, because the factors of all targets together can be as large as the model.

pub mod projection;
pub mod randlora;
pub mod vera;

use std::ops::Range;

use ndarray::{ArrayViewMut2, s};

pub use projection::{Projection, Seed};
pub use randlora::RandLora;
pub use vera::Vera;

use super::{Act, Action, Before, Factors, Reversal, Site};
use crate::error::Result;
use crate::kernels::Kernels;
use crate::tensor::Tensor;

/// Largest rank that goes through the merge step in its defined order of operations; above it, BLAS multiplies.
const LARGEST_FUSED_RANK: usize = 1024;

/// Where the factors come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Derived {
    /// Bases shared by all targets, combined with weights.
    RandLora(RandLora),
    /// Matrices shared by all targets, their rows multiplied by trained numbers.
    Vera(Vera),
}

impl Derived {
    /// The name people use.
    pub fn kind(&self) -> &'static str {
        match self {
            Derived::RandLora(_) => "RandLoRA",
            Derived::Vera(d) => d.kind(),
        }
    }

    /// Its tensors.
    pub fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        match self {
            Derived::RandLora(d) => d.tensors(),
            Derived::Vera(d) => d.tensors(),
        }
    }

    /// The factors for a weight of `rows` outputs and `cols` inputs.
    pub fn factors(&self, (rows, cols): (usize, usize)) -> Result<Factors> {
        match self {
            Derived::RandLora(d) => d.factors(rows, cols),
            Derived::Vera(d) => d.factors(rows, cols),
        }
    }

    /// Checks that the tensors fit the weight and makes the factors.
    pub fn prepare(&self, site: &Site) -> Result<Action> {
        let factors = self.factors(site.matrix())?;
        site.expect(factors.b.nrows(), factors.a.ncols())?;
        Ok(if factors.rank() > LARGEST_FUSED_RANK {
            Action::Act(Box::new(Wide(factors)))
        } else {
            Action::LowRank(factors)
        })
    }

    /// The shared projection.
    pub fn projection_mut(&mut self) -> &mut Projection {
        match self {
            Derived::RandLora(d) => &mut d.projection,
            Derived::Vera(d) => &mut d.projection,
        }
    }
}

/// Factors nearly as large as the weight, for which a matrix product is worth its setting up.
struct Wide(Factors);

impl Act for Wide {
    fn reversal(&self) -> Reversal {
        Reversal::Sum
    }

    fn footprint(&self, _: usize, _: usize) -> u64 {
        0
    }

    fn act(&self, kernels: &dyn Kernels, rows: Range<usize>, w: ArrayViewMut2<f32>, _: &dyn Before) -> Result<()> {
        kernels.add_product(self.0.scale as f32, self.0.b.slice(s![rows, ..]), self.0.a.view(), w)
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};

    use super::*;
    use crate::adapter::delta::InMemory;

    #[test]
    fn a_wide_product_is_added_like_a_narrow_one() {
        let factors = Factors { a: array![[1.0, 2.0, 3.0]], b: array![[1.0], [-1.0], [2.0]], scale: 0.5 };
        let mut w = Array2::from_elem((2, 3), 1.0f32);
        let before = InMemory(Array2::from_elem((3, 3), 1.0));
        Wide(factors).act(&crate::kernels::Reference, 1..3, w.view_mut(), &before).unwrap();
        assert_eq!(w, array![[0.5, 0.0, -0.5], [2.0, 3.0, 4.0]]);
    }
}
