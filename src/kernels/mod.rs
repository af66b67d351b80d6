//! The machine: one file or folder per backend, all behind [`Kernels`]; `choice` says which a run uses.
//!
//! A backend computes and does not know for whom. Matrices come in as `ndarray` views of host memory and go out the
//! same way; a backend with memory of its own moves them inside. Nothing here starts threads: whoever calls owns
//! them, and BLAS is kept on one.

pub mod choice;
#[cfg(feature = "cuda")]
#[expect(unsafe_code, reason = "calls of foreign functions, and memory that a device copies from and to")]
pub mod cuda;
#[expect(unsafe_code, reason = "vector instructions and the pointers they load from")]
pub mod fused;
pub mod openblas;
pub mod reference;
pub mod tiles;
pub mod truncated;

use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2};

pub use choice::present;
pub use fused::guess::{Doubt, Guess};
pub use fused::{Element, Moved, Term};
pub use openblas::OpenBlas;
pub use reference::Reference;
pub use tiles::sum_of_squares;
pub use truncated::{Depth, RowSource, Stored, Truncated, Wanted};

use crate::error::{Error, Kind, Result};

/// Thin singular value decomposition `a = u · diag(s) · vt`.
#[derive(Clone, Debug)]
pub struct Svd {
    /// Left singular vectors, `[m, min(m, n)]`.
    pub u: Array2<f32>,
    /// Singular values, largest first.
    pub s: Array1<f32>,
    /// Right singular vectors, transposed, `[min(m, n), n]`.
    pub vt: Array2<f32>,
}

/// Eigenvalues of a symmetric matrix and their vectors.
#[derive(Clone, Debug)]
pub struct Eigen {
    /// Largest first.
    pub values: Vec<f64>,
    /// `[values, n]`: a row for each value, of length one.
    pub vectors: Array2<f64>,
}

/// What a backend does. Six operations are required; the rest is written in terms of fixed loops and may be
/// replaced by a backend that gives the same bytes faster.
pub trait Kernels: Send + Sync {
    /// The name `--device` and reports use.
    fn name(&self) -> &'static str;

    /// `c = alpha · a · b + beta · c`, with a: [m, k], b: [k, n], c: [m, n]. The order of the sums is the backend's.
    fn gemm(&self, alpha: f32, a: ArrayView2<f32>, b: ArrayView2<f32>, beta: f32, c: ArrayViewMut2<f32>) -> Result<()>;

    /// Thin QR of a: [m, n]; q: [m, min(m, n)] with orthonormal columns, r: [min(m, n), n] upper triangular.
    fn qr(&self, a: ArrayView2<f32>) -> Result<(Array2<f32>, Array2<f32>)>;

    /// Thin singular value decomposition of a: [m, n].
    fn svd(&self, a: ArrayView2<f32>) -> Result<Svd>;

    /// `out += a · bᵀ`, the inner products of the rows of a: [p, n] and b: [q, n], with products and sums in f64.
    fn add_inner(&self, a: ArrayView2<f32>, b: ArrayView2<f32>, out: ArrayViewMut2<f64>) -> Result<()>;

    /// All eigenvalues of a symmetric matrix, largest first.
    fn eigenvalues(&self, a: ArrayView2<f64>) -> Result<Vec<f64>>;

    /// The `most` largest eigenvalues of a symmetric matrix, or all if there are fewer, and their vectors.
    fn eigh(&self, a: ArrayView2<f64>, most: usize) -> Result<Eigen>;

    /// The best low-rank approximation of `d`, to a stated tolerance. One call, so that a device can keep the matrix.
    fn truncated_svd(&self, d: &dyn RowSource, wanted: &Wanted) -> Result<Truncated> {
        truncated::truncated_svd(self, d, wanted)
    }

    /// The best approximation of `d`, by a full decomposition. It holds the square of the shorter side in f64, twice.
    fn exact_svd(&self, d: &dyn RowSource, depth: Depth, ceiling: usize) -> Result<Truncated> {
        truncated::exact_svd(self, d, depth, ceiling)
    }

    /// The merge step: `out = round(w + Σ scale · b · a)` over stored elements, in the order of operations defined in
    /// [`fused`]. Every backend gives the same bytes.
    fn add_products(
        &self,
        element: Element,
        w: &[u8],
        out: &mut [u8],
        (rows, cols): (usize, usize),
        terms: &[Term],
    ) -> Moved {
        fused::add_products(element, w, out, rows, cols, terms)
    }

    /// The merge step on a tile of f32 in place. Every backend gives the same values.
    fn add_products_to_tile(&self, values: &mut [f32], (rows, cols): (usize, usize), terms: &[Term]) -> Moved {
        fused::add_products_to_tile(values, rows, cols, terms)
    }

    /// The merge step backwards: see [`fused::inverse`]. Every backend finds the same.
    fn invert(
        &self,
        elements: (Element, Element),
        merged: &[u8],
        dim: (usize, usize),
        step: fused::inverse::Pointwise,
        base: &mut [u8],
        doubtful: &mut Vec<u32>,
    ) {
        fused::inverse::invert(fused::Variant::fastest(), elements, merged, dim, step, base, doubtful);
    }

    /// The merge step on bf16 with one term; what can be told of the weights from the result goes to the rows of
    /// `guess` from `first` on: see [`fused::guess`]. Every backend finds the same.
    fn add_product_and_guess(
        &self,
        w: &[u8],
        out: &mut [u8],
        dim: (usize, usize),
        term: Term,
        (guess, first): (&mut Guess, usize),
    ) -> Moved {
        fused::guess::add_product_with(fused::Variant::fastest(), w, out, dim, term, (guess, first))
    }

    /// [`invert`](Kernels::invert) for bf16 and one product, which is formed on the way. Every backend finds the same.
    fn take_off_product(&self, merged: &[u8], base: &mut [u8], dim: (usize, usize), term: Term, doubt: &mut Doubt) {
        fused::guess::take_off_with(fused::Variant::fastest(), merged, base, dim, term, doubt);
    }

    /// `w += scale · b · a` on an f32 tile, in the same defined order; in place where the tile is contiguous.
    /// b: [rows, rank], a: [rank, cols].
    fn add_product(&self, scale: f32, b: ArrayView2<f32>, a: ArrayView2<f32>, w: ArrayViewMut2<f32>) -> Result<()> {
        let (rows, cols) = w.dim();
        if b.nrows() != rows || a.ncols() != cols || a.nrows() != b.ncols() {
            return Err(Error::mismatch(format!("product of {:?} and {:?} into {:?}", b.dim(), a.dim(), w.dim())));
        }
        let (a, b) = (a.as_standard_layout(), b.as_standard_layout());
        let (Some(a), Some(b)) = (a.as_slice(), b.as_slice()) else {
            return Err(Error::mismatch("a factor is not contiguous"));
        };
        let rank = b.len().checked_div(rows).unwrap_or(0);
        let terms = [Term { a, a_stride: cols, b, b_stride: rank, rank, scale }];
        tiles::with_values(w, |values| {
            self.add_products_to_tile(values, (rows, cols), &terms);
        });
        Ok(())
    }

    /// LoHa: `values += scale · (d₀ · d₁)` element by element on a tile of `dim`, d₀ and d₁ the products of the terms,
    /// each of them added to zero in the defined order. Every backend gives the same values.
    ///
    /// # Panics
    ///
    /// As [`add_products_to_tile`](Kernels::add_products_to_tile) where sizes do not fit.
    fn add_hadamard(&self, values: &mut [f32], dim: (usize, usize), scale: f32, terms: [Term; 2]) {
        tiles::add_hadamard(self, values, dim, scale, terms);
    }

    /// LoKr: `values += [(scale · f₀) · block, (scale · f₁) · block …]` on a tile of `rows` rows, block: [rows, width].
    /// Every backend gives the same values.
    ///
    /// # Panics
    ///
    /// Where sizes do not fit.
    fn add_blocks(&self, values: &mut [f32], rows: usize, factors: (f32, &[f32]), block: (&[f32], usize)) {
        tiles::add_blocks(values, rows, factors, block);
    }

    /// DoRA: products are added to a tile of `dim`, and every row is brought to the length of its magnitude, the lengths
    /// being summed in f64 in a defined order. Every backend gives the same values.
    ///
    /// # Panics
    ///
    /// Where sizes do not fit.
    fn add_products_and_stretch(&self, values: &mut [f32], dim: (usize, usize), terms: &[Term], magnitudes: &[f32]) {
        tiles::add_products_and_stretch(self, values, dim, terms, magnitudes);
    }

    /// What happened on the way that a user should know: that a device failed, or was too small. In no order.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Rows of one length, and room for a product of each with each.
fn fits_inner(a: ArrayView2<f32>, b: ArrayView2<f32>, out: (usize, usize)) -> Result<()> {
    if a.ncols() == b.ncols() && out == (a.nrows(), b.nrows()) {
        return Ok(());
    }
    Err(Error::mismatch(format!("inner products of the rows of {:?} and {:?} into {out:?}", a.dim(), b.dim())))
}

/// The order of a square matrix of finite values.
fn order_of(a: ArrayView2<f64>) -> Result<usize> {
    if a.nrows() != a.ncols() {
        return Err(Error::mismatch(format!("eigenvalues of a matrix of {:?}", a.dim())));
    }
    if !a.iter().all(|v| v.is_finite()) {
        return Err(Error::new(Kind::Nonfinite, "eigenvalues of a matrix with NaN or infinity"));
    }
    Ok(a.nrows())
}
