//! The size of the weight that a change is for, where its own tensors tell it: no base is asked.

use super::{Delta, Kronecker};

impl Delta {
    /// Rows and columns of the change as a matrix; of one expert's, for a stack. None where only the weight tells, or
    /// where the tensors do not fit together, which is found when the change is prepared.
    pub fn matrix(&self) -> Option<(usize, usize)> {
        match self {
            Delta::LowRank(d) => Some((d.b.shape.matrix().0, d.a.shape.matrix().1)),
            Delta::Hadamard(d) => d.w1.shape().ok(),
            Delta::Kronecker(d) => of_kronecker(d),
            Delta::Tucker(d) => d.matrix().ok(),
            Delta::Full(d) => Some(d.tensor.shape.matrix()),
            Delta::Circulant(d) => match *d.kernel.shape.dims() {
                [m, n, block] => Some((m.checked_mul(block)?, n.checked_mul(block)?)),
                _ => None,
            },
            _ => None,
        }
    }
}

fn of_kronecker(d: &Kronecker) -> Option<(usize, usize)> {
    let ((m1, n1), (m2, n2)) = (d.w1.shape().ok()?, d.w2.shape().ok()?);
    Some((m1.checked_mul(m2)?, n1.checked_mul(n2)?))
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
