//! The best low-rank approximation of a matrix that is read some rows at a time, in terms of a backend's products.
//!
//! Two numbers for a matrix [m, n], a rank r and L vectors in all, mostly 2·r to 4·r:
//!
//! - *bytes moved*: the matrix is read once for each block of about r/2 vectors, 2 to 5 times, and once more where what
//!   is lost is small; it is never held. Blocks of rows are 4 MB, vectors 4·L·(m + n) bytes;
//! - *operations*: 4·m·n·L in products with it, all in GEMM. What else there is takes (m + n)·L² in f64 and L³.
//!
//! `krylov` is the iteration, `gram` the full decomposition for what it is not worth for; `finish` makes the
//! factors orthonormal and says what they lose. Which rank a [`Depth`] means is found in `depth`. Where the matrix and
//! the vectors are is the matter of a `field`: in `host` memory, or in that of a device.

mod depth;
pub mod field;
mod finish;
mod gram;
mod host;
mod krylov;
mod orth;
pub mod product;
pub mod random;
mod rows;

use std::ops::Range;

use ndarray::{Array2, ArrayViewMut2};

pub use depth::{Cut, noise_edge, noise_rank};
pub use finish::fix_signs;

use super::{Element, Kernels};
use crate::error::Result;
use field::Field;
use host::Host;

/// A matrix that is read some rows at a time, in f32; it may be far larger than memory.
pub trait RowSource: Sync {
    /// Rows and columns.
    fn dim(&self) -> (usize, usize);

    /// Writes the rows `rows` into `out`: [rows, cols], contiguous.
    fn read(&self, rows: Range<usize>, out: ArrayViewMut2<f32>) -> Result<()>;

    /// The stored elements of two matrices whose difference the rows are, where they are that and lie in a row: a device
    /// forms the difference by itself.
    fn stored(&self, _rows: Range<usize>) -> Option<Stored<'_>> {
        None
    }

    /// Says that rows given by [`stored`](RowSource::stored) are not needed any more.
    fn release(&self, _rows: Range<usize>) {}
}

/// Stored elements, and those that are taken off them, of the same number.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    /// What the difference is of.
    pub after: (Element, &'a [u8]),
    /// What is taken off.
    pub before: (Element, &'a [u8]),
}

impl RowSource for Array2<f32> {
    fn dim(&self) -> (usize, usize) {
        self.dim()
    }

    fn read(&self, rows: Range<usize>, mut out: ArrayViewMut2<f32>) -> Result<()> {
        out.assign(&self.slice(ndarray::s![rows, ..]));
        Ok(())
    }
}

/// How many singular values are asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Depth {
    /// So many.
    Rank(usize),
    /// As many as hold this share of the squared Frobenius norm.
    Energy(f64),
    /// All down to this share of the largest.
    Ratio(f64),
    /// All that stand out of noise, by the edge of the Marchenko–Pastur law.
    Noise,
}

/// What is asked of a truncated decomposition.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// How many singular values.
    pub depth: Depth,
    /// Never more than these.
    pub ceiling: usize,
    /// The relative Frobenius error may exceed that of the best approximation of the same rank by this share.
    pub tolerance: f64,
    /// Seed of the random start. The same seed gives the same bytes.
    pub seed: u64,
}

/// `d ≈ u · diag(s) · vt` and how good it is.
#[derive(Clone, Debug)]
pub struct Truncated {
    /// Left singular vectors, `[m, k]`, orthonormal columns.
    pub u: Array2<f32>,
    /// Singular values, largest first; `k` of them.
    pub s: Vec<f64>,
    /// Right singular vectors, transposed, `[k, n]`.
    pub vt: Array2<f32>,
    /// ‖d‖²_F, exact up to f64 sums.
    pub energy: f64,
    /// ‖d − u · diag(s) · vt‖²_F.
    pub lost: f64,
    /// By how much the error may exceed that of the best approximation of this rank, as a share of the latter: an
    /// estimate from the convergence; 0 for a full decomposition.
    pub excess: f64,
    /// How often the matrix was read.
    pub passes: usize,
    /// By how many vectors the matrix and its transpose were multiplied to find the factors; 0 for a full
    /// decomposition.
    pub vectors: usize,
}

/// The best low-rank approximation of the matrix of a field, to a stated tolerance.
pub fn decompose<F: Field>(field: &mut F, wanted: &Wanted) -> Result<Truncated> {
    let (m, n) = field.dim();
    let first = match wanted.depth {
        Depth::Rank(rank) => rank.min(wanted.ceiling),
        _ => FIRST_GUESS.min(wanted.ceiling),
    };
    if is_low(first, m.min(n))
        && let Some(found) = krylov::svd(field, wanted, first)?
    {
        return Ok(found);
    }
    decompose_exactly(field, wanted.depth, wanted.ceiling)
}

/// The decomposition of the matrix of a field with the optimal error, cut at `depth`, at most at `ceiling`.
pub fn decompose_exactly<F: Field>(field: &mut F, depth: Depth, ceiling: usize) -> Result<Truncated> {
    gram::svd(field, depth, ceiling)
}

/// The default of [`Kernels::truncated_svd`].
pub(super) fn truncated_svd<K: Kernels + ?Sized>(kernels: &K, d: &dyn RowSource, wanted: &Wanted) -> Result<Truncated> {
    decompose(&mut Host::new(kernels, d), wanted)
}

/// The default of [`Kernels::exact_svd`].
pub(super) fn exact_svd<K: Kernels + ?Sized>(
    kernels: &K,
    d: &dyn RowSource,
    depth: Depth,
    ceiling: usize,
) -> Result<Truncated> {
    decompose_exactly(&mut Host::new(kernels, d), depth, ceiling)
}

/// The rank that is looked for first where the rule does not say one.
const FIRST_GUESS: usize = 16;

/// Whether a rank is low enough for the iteration to be cheaper than everything.
fn is_low(rank: usize, short: usize) -> bool {
    rank <= short.saturating_sub(64) / 6
}
