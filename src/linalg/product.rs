//! Sizes of a product b·a from its singular values.

use ndarray::ArrayView2;

use crate::error::Result;
use crate::kernels::{Kernels, truncated};

/// Singular values of b·a, b: [m, r], a: [r, n], largest first; at most r of them. The product is not formed.
pub fn singular_values(kernels: &dyn Kernels, b: ArrayView2<f32>, a: ArrayView2<f32>) -> Result<Vec<f32>> {
    truncated::product::singular_values(kernels, b, a)
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
    use ndarray::{Array2, array};

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
