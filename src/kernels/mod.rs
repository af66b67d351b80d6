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

    /// `w += scale · b · a` on an f32 tile (rows contiguous), in the same defined order. b: [rows, rank],
    /// a: [rank, cols].
    fn add_product(&self, scale: f32, b: ArrayView2<f32>, a: ArrayView2<f32>, mut w: ArrayViewMut2<f32>) -> Result<()> {
        let (rows, cols) = w.dim();
        if b.nrows() != rows || a.ncols() != cols || a.nrows() != b.ncols() {
            return Err(Error::mismatch(format!("product of {:?} and {:?} into {:?}", b.dim(), a.dim(), w.dim())));
        }
        let (a, b) = (a.as_standard_layout(), b.as_standard_layout());
        let (Some(a), Some(b)) = (a.as_slice(), b.as_slice()) else {
            return Err(Error::mismatch("a factor is not contiguous"));
        };
        let rank = if rows == 0 { 0 } else { b.len() / rows };
        let term = Term { a, a_stride: cols, b, b_stride: rank, rank, scale };
        let before: Vec<u8> = w.iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut after = vec![0u8; before.len()];
        self.add_products(Element::F32, &before, &mut after, (rows, cols), &[term]);
        for (value, bytes) in w.iter_mut().zip(after.as_chunks::<4>().0) {
            *value = f32::from_le_bytes(*bytes);
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
