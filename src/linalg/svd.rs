//! Singular value decompositions, cut where a rule says: of a matrix that is read by rows, and of a product of factors.

use ndarray::{Array1, ArrayView2, s};

use crate::error::Result;
use crate::kernels::truncated::{self, product};
use crate::kernels::{Depth, Kernels, RowSource, Truncated, Wanted};

/// The best approximation of `d` to the tolerance that is wanted, by the cheapest way there.
pub fn truncated(kernels: &dyn Kernels, d: &dyn RowSource, wanted: &Wanted) -> Result<Truncated> {
    kernels.truncated_svd(d, wanted)
}

/// The best approximation of `d`, by a full decomposition. It holds the square of the shorter side in f64, twice.
pub fn exact(kernels: &dyn Kernels, d: &dyn RowSource, depth: Depth, ceiling: usize) -> Result<Truncated> {
    kernels.exact_svd(d, depth, ceiling)
}

/// All of scale · b · a, b: [m, r], a: [r, n], without forming it: at most r singular values, those that are rounding
/// left out. Exact, so that any lower rank can be cut from it.
pub fn of_product(kernels: &dyn Kernels, b: ArrayView2<f32>, a: ArrayView2<f32>, scale: f64) -> Result<Truncated> {
    let svd = product::svd(kernels, b, a)?;
    let sizes: Vec<f64> = svd.s.iter().map(|&s| f64::from(s) * scale.abs()).collect();
    let least = 1e-7 * sizes.first().copied().unwrap_or(0.0);
    let k = sizes.iter().take_while(|&&s| s > least).count();
    let (mut u, mut vt) = (svd.u.slice(s![.., ..k]).to_owned(), svd.vt.slice(s![..k, ..]).to_owned());
    if scale < 0.0 {
        u.mapv_inplace(|v| -v);
    }
    truncated::fix_signs(&mut u, &mut vt);
    let square = |s: &f64| s * s;
    Ok(Truncated {
        u,
        vt,
        energy: sizes.iter().map(square).sum(),
        lost: sizes[k..].iter().map(square).sum(),
        s: sizes[..k].to_vec(),
        excess: 0.0,
        passes: 0,
        vectors: 0,
    })
}

/// The same decomposition, cut at a lower rank.
pub fn cut(mut whole: Truncated, rank: usize) -> Truncated {
    let k = rank.min(whole.s.len());
    whole.lost += whole.s[k..].iter().map(|s| s * s).sum::<f64>();
    whole.s.truncate(k);
    whole.u = whole.u.slice(s![.., ..k]).to_owned();
    whole.vt = whole.vt.slice(s![..k, ..]).to_owned();
    whole
}

/// The factors u · √s and √s · vt of the decomposition: both of one size, as the factors of an adapter mostly are.
pub fn balanced(of: &Truncated) -> (ndarray::Array2<f32>, ndarray::Array2<f32>) {
    let roots: Array1<f32> = of.s.iter().map(|s| s.sqrt() as f32).collect();
    (&of.u * &roots, &of.vt * &roots.insert_axis(ndarray::Axis(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{OpenBlas, Reference};
    use ndarray::{Array2, array};

    #[test]
    fn a_product_is_decomposed_with_its_scale() {
        // b·a = diag(6, 2) padded.
        let b = array![[2.0f32, 0.0], [0.0, -1.0], [0.0, 0.0]];
        let a = array![[3.0f32, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]];
        for kernels in [&Reference as &dyn Kernels, &OpenBlas::new()] {
            let found = of_product(kernels, b.view(), a.view(), -0.5).unwrap();
            assert!((found.s[0] - 3.0).abs() < 1e-6 && (found.s[1] - 1.0).abs() < 1e-6, "{:?}", found.s);
            assert!((found.energy - 10.0).abs() < 1e-5 && found.lost == 0.0);
            let s: Array1<f32> = found.s.iter().map(|&s| s as f32).collect();
            let off = (&found.u * &s).dot(&found.vt) - b.dot(&a) * -0.5;
            assert!(off.iter().all(|v| v.abs() < 1e-6), "{off}");
            assert!(found.vt.iter().all(|v| *v >= -1e-7), "{}", found.vt);
            let one = cut(found, 1);
            assert!((one.lost - 1.0).abs() < 1e-5 && one.u.dim() == (3, 1) && one.vt.dim() == (1, 4));
            let (left, right) = balanced(&one);
            assert!((left.dot(&right)[[0, 0]] + 3.0).abs() < 1e-5);
        }
    }

    #[test]
    fn directions_that_a_product_does_not_have_are_left_out() {
        let b = array![[1.0f32, 1.0], [1.0, 1.0], [0.0, 0.0]];
        let a = array![[1.0f32, 2.0], [3.0, 4.0]];
        let found = of_product(&OpenBlas::new(), b.view(), a.view(), 1.0).unwrap();
        assert_eq!(found.s.len(), 1);
        assert!((found.s[0] - (2.0f64 * 52.0).sqrt()).abs() < 1e-5, "{:?}", found.s);
        let nothing = Array2::<f32>::zeros((3, 2));
        let found = of_product(&OpenBlas::new(), nothing.view(), a.view(), 1.0).unwrap();
        assert_eq!((found.s.len(), found.energy, found.u.dim(), found.vt.dim()), (0, 0.0, (3, 0), (0, 2)));
    }
}
