//! The decomposition of a product b·a from its factors, without forming it.
//!
//! With b = Q₁·R₁ and aᵀ = Q₂·R₂ the product is Q₁·(R₁·R₂ᵀ)·Q₂ᵀ, so its decomposition is that of the r×r core, turned:
//! (m + n)·r² + r³ operations instead of m·n·min(m, n).

use ndarray::{Array2, ArrayView2};

use crate::error::Result;
use crate::kernels::{Kernels, Svd};

/// The orthonormal bases of both factors and the decomposition of what lies between them.
struct Core {
    /// `[m, min(m, r)]`.
    left: Array2<f32>,
    /// `[n, min(n, r)]`.
    right: Array2<f32>,
    svd: Svd,
}

fn core<K: Kernels + ?Sized>(kernels: &K, b: ArrayView2<f32>, a: ArrayView2<f32>) -> Result<Core> {
    let (left, upper) = kernels.qr(b)?;
    let (right, other) = kernels.qr(a.t())?;
    let mut core = Array2::zeros((upper.nrows(), other.nrows()));
    kernels.gemm(1.0, upper.view(), other.t(), 0.0, core.view_mut())?;
    Ok(Core { left, right, svd: kernels.svd(core.view())? })
}

/// Singular values of b·a, b: [m, r], a: [r, n], largest first; at most r of them.
pub fn singular_values<K: Kernels + ?Sized>(kernels: &K, b: ArrayView2<f32>, a: ArrayView2<f32>) -> Result<Vec<f32>> {
    if b.is_empty() || a.is_empty() {
        return Ok(Vec::new());
    }
    Ok(core(kernels, b, a)?.svd.s.to_vec())
}

/// Thin decomposition of b·a: at most r singular values, none of them left out.
pub fn svd<K: Kernels + ?Sized>(kernels: &K, b: ArrayView2<f32>, a: ArrayView2<f32>) -> Result<Svd> {
    if b.is_empty() || a.is_empty() {
        let (u, vt) = (Array2::zeros((b.nrows(), 0)), Array2::zeros((0, a.ncols())));
        return Ok(Svd { u, s: ndarray::Array1::zeros(0), vt });
    }
    let Core { left, right, svd } = core(kernels, b, a)?;
    let mut u = Array2::zeros((b.nrows(), svd.s.len()));
    kernels.gemm(1.0, left.view(), svd.u.view(), 0.0, u.view_mut())?;
    let mut vt = Array2::zeros((svd.s.len(), a.ncols()));
    kernels.gemm(1.0, svd.vt.view(), right.t(), 0.0, vt.view_mut())?;
    Ok(Svd { u, s: svd.s, vt })
}
