//! Singular values of a product b·a from its factors, without forming it.
//!
//! With b = Q₁·R₁ and aᵀ = Q₂·R₂ the product is Q₁·(R₁·R₂ᵀ)·Q₂ᵀ, so its singular values are those of the r×r core:
//! (m + n)·r² + r³ operations instead of m·n·min(m, n).

use ndarray::{Array2, ArrayView2};

use crate::error::Result;
use crate::kernels::Kernels;

/// Singular values of b·a, b: [m, r], a: [r, n], largest first; at most r of them.
pub fn singular_values(kernels: &dyn Kernels, b: ArrayView2<f32>, a: ArrayView2<f32>) -> Result<Vec<f32>> {
    if b.is_empty() || a.is_empty() {
        return Ok(Vec::new());
    }
    let (_, left) = kernels.qr(b)?;
    let (_, right) = kernels.qr(a.t())?;
    let mut core = Array2::zeros((left.nrows(), right.nrows()));
    kernels.gemm(1.0, left.view(), right.t(), 0.0, core.view_mut())?;
    Ok(kernels.svd(core.view())?.s.to_vec())
}

/// Frobenius norm from singular values.
pub fn frobenius(singular_values: &[f32]) -> f64 {
    singular_values.iter().map(|&s| f64::from(s) * f64::from(s)).sum::<f64>().sqrt()
}

/// Stable rank ‖M‖²_F / ‖M‖²₂: how many directions carry the product. None for a zero product.
pub fn stable_rank(singular_values: &[f32]) -> Option<f64> {
    let largest = f64::from(*singular_values.first()?);
    (largest > 0.0).then(|| (frobenius(singular_values) / largest).powi(2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Reference;
    use ndarray::array;

    #[test]
    fn values_are_those_of_the_product() {
        // b·a = diag(6, 2) padded; the f64 singular values are 6 and 2 by construction.
        let b = array![[2.0f32, 0.0], [0.0, 1.0], [0.0, 0.0]];
        let a = array![[3.0f32, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]];
        let s = singular_values(&Reference, b.view(), a.view()).unwrap();
        assert!((s[0] - 6.0).abs() < 1e-6 && (s[1] - 2.0).abs() < 1e-6, "{s:?}");
        assert!((frobenius(&s) - 40f64.sqrt()).abs() < 1e-6);
        assert!((stable_rank(&s).unwrap() - 40.0 / 36.0).abs() < 1e-6);
    }

    #[test]
    fn nothing_has_no_rank() {
        let (b, a) = (Array2::<f32>::zeros((3, 2)), Array2::<f32>::zeros((2, 4)));
        let s = singular_values(&Reference, b.view(), a.view()).unwrap();
        assert_eq!((frobenius(&s), stable_rank(&s)), (0.0, None));
        assert!(singular_values(&Reference, b.slice(ndarray::s![..0, ..]), a.view()).unwrap().is_empty());
    }
}
