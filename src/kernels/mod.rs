//! The machine: one file per backend, all behind [`Kernels`].
//!
//! A backend computes and does not know for whom. Matrices come in as `ndarray` views of host memory and go out the
//! same way; a backend with memory of its own moves them inside. Nothing here starts threads: whoever calls owns
//! them, and BLAS is kept on one.

#[expect(unsafe_code, reason = "vector instructions and the pointers they load from")]
pub mod fused;
pub mod openblas;
pub mod reference;

use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2};

pub use fused::{Element, Moved, Term};
pub use openblas::OpenBlas;
pub use reference::Reference;

use crate::error::{Error, Result};

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

/// What a backend does. Three operations are required; the rest is written in terms of fixed loops and may be
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

    /// `w += scale · b · a` on an f32 tile, in the same defined order; in place where the tile is contiguous.
    /// b: [rows, rank], a: [rank, cols].
    fn add_product(&self, scale: f32, b: ArrayView2<f32>, a: ArrayView2<f32>, mut w: ArrayViewMut2<f32>) -> Result<()> {
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
        if let Some(values) = w.as_slice_mut() {
            self.add_products_to_tile(values, (rows, cols), &terms);
        } else {
            let mut values: Vec<f32> = w.iter().copied().collect();
            self.add_products_to_tile(&mut values, (rows, cols), &terms);
            w.iter_mut().zip(values).for_each(|(w, value)| *w = value);
        }
        Ok(())
    }
}

/// The backend for this machine: OpenBLAS on the CPU.
pub fn choose() -> Box<dyn Kernels> {
    Box::new(OpenBlas::new())
}

/// Every backend that can run here, with the reference first.
pub fn present() -> Vec<Box<dyn Kernels>> {
    vec![Box::new(Reference), Box::new(OpenBlas::new())]
}
