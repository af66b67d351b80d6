//! Where a matrix and the long vectors of an iteration on it are: in host memory, or in that of a device.
//!
//! Everything of the size of the matrix or of its sides goes through [`Field`]; what is smaller, the coefficients of some
//! hundred vectors, is on the host in f64.

use ndarray::{Array2, ArrayView2};

use crate::error::{Error, Kind, Result};
use crate::kernels::Eigen;

/// A matrix d: [m, n], and stacks of vectors as long as one of its sides.
///
/// A stack is stored by rows: each is a vector, so that blocks are appended at the end.
pub trait Field {
    /// Some vectors of one length.
    type Stack;

    /// Rows and columns of the matrix.
    fn dim(&self) -> (usize, usize);

    /// How many vectors a stack has.
    fn count(&self, stack: &Self::Stack) -> usize;

    /// A stack of none.
    fn nothing(&self, length: usize) -> Result<Self::Stack>;

    /// The numbers of `random::normals`.
    fn normals(&self, seed: u64, stream: u64, dim: (usize, usize)) -> Result<Self::Stack>;

    /// The first `count` vectors from `first` on.
    fn part(&self, stack: &Self::Stack, first: usize, count: usize) -> Result<Self::Stack>;

    /// Vectors in another order, or some of them.
    fn picked(&self, stack: &Self::Stack, order: &[usize]) -> Result<Self::Stack>;

    /// The vectors of both.
    fn joined(&self, first: &Self::Stack, second: &Self::Stack) -> Result<Self::Stack>;

    /// Reads the matrix: `y = new · dᵀ` and, in the same breath, `z = unit · y · d`.
    fn pass(&mut self, new: &Self::Stack) -> Result<(Self::Stack, Self::Stack)>;

    /// ‖d‖² and what y is multiplied by before z is formed, so that dᵀ·d stays in the range of f32. Known after the first
    /// pass; no factor where the matrix is zero.
    fn scale(&self) -> (f64, Option<f32>);

    /// Inner products of each with each in f64: [count of a, count of b].
    fn inner(&self, a: &Self::Stack, b: &Self::Stack) -> Result<Array2<f64>>;

    /// Takes the components along the orthonormal vectors `before` out of `z`.
    fn project_out(&self, before: &Self::Stack, z: &mut Self::Stack) -> Result<()>;

    /// `coefficients · stack`; values may be beyond the range of f32.
    fn turned(&self, coefficients: ArrayView2<f32>, stack: &Self::Stack) -> Result<Self::Stack>;

    /// The sum of both.
    fn sum(&self, first: Self::Stack, second: &Self::Stack) -> Result<Self::Stack>;

    /// Orthonormal vectors q and R, upper triangular, with Rᵀ · q = z, by reflections.
    fn reflected(&self, z: &Self::Stack) -> Result<(Self::Stack, Array2<f64>)>;

    /// √Σv² over all vectors.
    fn size(&self, stack: &Self::Stack) -> Result<f64>;

    /// The Gram matrix of the shorter side in f64, ‖d‖², and how often the matrix was read.
    fn gram(&mut self) -> Result<(Array2<f64>, f64, usize)>;

    /// What the matrix makes of vectors as long as its rows: `stack · dᵀ`.
    fn times(&mut self, stack: &Self::Stack) -> Result<Self::Stack>;

    /// What its transpose makes of vectors as long as its columns: `stack · d`.
    fn transposed_times(&mut self, stack: &Self::Stack) -> Result<Self::Stack>;

    /// As [`Kernels::eigenvalues`](crate::kernels::Kernels::eigenvalues).
    fn eigenvalues(&self, a: ArrayView2<f64>) -> Result<Vec<f64>>;

    /// As [`Kernels::eigh`](crate::kernels::Kernels::eigh).
    fn eigh(&self, a: ArrayView2<f64>, most: usize) -> Result<Eigen>;

    /// Whether a pass keeps fewer digits than f32 has, so that what it finds is no more than a guess.
    fn is_rough(&self) -> bool {
        false
    }

    /// The vectors at length one, and their lengths; those of zeros stay as they are.
    fn unit(&self, stack: Self::Stack) -> Result<(Self::Stack, Vec<f64>)>;

    /// ‖d − uᵀ · diag(s) · v‖² for stacks of left and right vectors, by reading the matrix once more.
    fn residual(&mut self, u: &Self::Stack, s: &[f64], v: &Self::Stack) -> Result<f64>;

    /// The vectors in host memory; an error where a value is not finite.
    fn to_host(&self, stack: &Self::Stack) -> Result<Array2<f32>>;

    /// From host memory.
    fn of_host(&self, rows: Array2<f32>) -> Result<Self::Stack>;

    /// An error unless all values are finite.
    fn require_finite(&self, stack: &Self::Stack) -> Result<()>;

    /// `coefficients · stack`, the coefficients rounded to f32.
    fn combined(&self, coefficients: &Array2<f64>, stack: &Self::Stack) -> Result<Self::Stack> {
        let out = self.turned(coefficients.mapv(|v| v as f32).view(), stack)?;
        self.require_finite(&out)?;
        Ok(out)
    }
}

/// Finite values whose products are not.
pub fn out_of_range() -> Error {
    Error::new(Kind::Limit, "values are too large to be decomposed in f32")
}

/// A power of two near one over the norm.
pub fn unit_of(energy: f64) -> Option<f32> {
    (energy > 0.0).then(|| 2f32.powi((-energy.log2() / 2.0).round().clamp(-100.0, 100.0) as i32))
}
