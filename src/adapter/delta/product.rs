//! A matrix that is stored as a product, as a part of LoHa and LoKr; no delta by itself.
//!
//! Two forms: `a · b`, and for convolutions the one of a Tucker decomposition (KohakuBlueleaf/LyCORIS calls it CP):
//! `m[p, q, k …] = Σᵢⱼ core[i, j, k …] · a[i, p] · b[j, q]`.

use ndarray::Array2;

use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// The factors of one matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Product {
    /// `[rows, r]`; with a core `[r, rows]`.
    pub a: Tensor,
    /// `[r, cols]`; with a core `[r, inputs]`.
    pub b: Tensor,
    /// `[r, r, kernel …]`.
    pub core: Option<Tensor>,
}

impl Product {
    /// Its tensors.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [&self.a, &self.b].into_iter().chain(&self.core)
    }

    /// Rank: the extent the factors share.
    pub fn rank(&self) -> usize {
        self.b.shape.dims().first().copied().unwrap_or(0)
    }

    /// Rows and columns of the matrix, or an error where the factors do not fit each other. Nothing is computed.
    pub fn shape(&self) -> Result<(usize, usize)> {
        let (a, b) = (self.a.shape.matrix(), self.b.shape.matrix());
        if b.0 == 0 {
            return Err(self.misfit("have rank 0"));
        }
        let Some(core) = &self.core else {
            if a.1 == b.0 {
                return Ok((a.0, b.1));
            }
            return Err(self.misfit("do not multiply"));
        };
        let [first, second, kernel @ ..] = core.shape.dims() else {
            return Err(Error::mismatch(format!("core {}, expected [r, r, kernel …]", core.shape)));
        };
        if *first != a.0 || *second != b.0 {
            return Err(self.misfit(&format!("do not fit the core {}", core.shape)));
        }
        let cols = kernel.iter().try_fold(b.1, |n, &k| n.checked_mul(k));
        Ok((a.1, cols.ok_or_else(|| Error::malformed(format!("core {} overflows", core.shape)))?))
    }

    fn misfit(&self, what: &str) -> Error {
        Error::mismatch(format!("factors {} and {} {what}", self.a.shape, self.b.shape))
    }

    /// Two matrices whose product is this one: `[rows, r]` and `[r, cols]`. A core is multiplied into the right one,
    /// which is no larger than `r` rows of the result; check [`Product::shape`] against the weight before.
    pub fn halves(&self) -> Result<(Array2<f32>, Array2<f32>)> {
        let (_, cols) = self.shape()?;
        let (a, b) = (self.a.to_matrix()?, self.b.to_matrix()?);
        let Some(core) = &self.core else { return Ok((a, b)) };
        let core = core.to_matrix()?; // [r, r · kernel]
        let (outer, inner) = (core.nrows(), b.nrows());
        let kernel = core.ncols() / inner.max(1);
        let right = Array2::from_shape_fn((outer, cols), |(i, col)| {
            let (input, k) = (col / kernel, col % kernel);
            (0..inner).map(|j| f64::from(b[[j, input]]) * f64::from(core[[i, j * kernel + k]])).sum::<f64>() as f32
        });
        Ok((a.reversed_axes().as_standard_layout().into_owned(), right))
    }
}
