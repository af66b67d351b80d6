//! The size of the weight that a change is for, where its own tensors tell it: no base is asked.

use super::Delta;
use crate::error::{Error, Result};

impl Delta {
    /// Rows and columns of the change as a matrix; of one expert's, for a stack. None where only the weight tells, or
    /// where the tensors do not fit together, which is found when the change is prepared.
    pub fn matrix(&self) -> Option<(usize, usize)> {
        match self {
            Delta::LowRank(d) => Some((d.b.shape.matrix().0, d.a.shape.matrix().1)),
            Delta::Hadamard(d) => d.w1.shape().ok(),
            Delta::Kronecker(d) => d.matrix().ok(),
            Delta::Tucker(d) => d.matrix().ok(),
            Delta::Full(d) => Some(d.tensor.shape.matrix()),
            Delta::Circulant(d) => match *d.kernel.shape.dims() {
                [m, n, block] => Some((m.checked_mul(block)?, n.checked_mul(block)?)),
                _ => None,
            },
            _ => None,
        }
    }

    /// An error where its own tensors do not fit each other, of the kinds that are made of several matrices. What is
    /// left is found when it meets a weight.
    pub fn holds_together(&self) -> Result<()> {
        match self {
            Delta::Hadamard(d) => match (d.w1.shape()?, d.w2.shape()?) {
                (w1, w2) if w1 == w2 => Ok(()),
                ((a, b), (c, d)) => Err(Error::mismatch(format!(
                    "w1 of [{a}, {b}] and w2 of [{c}, {d}], expected matrices of one shape"
                ))),
            },
            Delta::Kronecker(d) => d.matrix().map(drop),
            Delta::Tucker(d) => d.matrix().map(drop),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::delta::{Circulant, Full, full::Mode};
    use crate::tensor::{Dtype, Tensor};

    #[test]
    fn sizes_come_from_the_tensors() {
        let zeros = |dims: &[usize]| Tensor::from_f32(Dtype::F32, dims, &vec![0.0; dims.iter().product()]).unwrap();
        let full = Delta::Full(Full { tensor: zeros(&[4, 3, 2]), mode: Mode::Replace });
        assert_eq!(full.matrix(), Some((4, 6)));
        assert_eq!(Delta::Circulant(Circulant { kernel: zeros(&[2, 3, 5]) }).matrix(), Some((10, 15)));
    }
}
