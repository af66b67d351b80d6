//! Two products s·b·a compared from their factors: lengths, angle, difference, and how far the spaces agree in which
//! they lie. Neither product is formed.
//!
//! With X = s·b and Y = aᵀ a product is X·Yᵀ, and ⟨X₁Y₁ᵀ, X₂Y₂ᵀ⟩ = Σ (X₁ᵀX₂) ∘ (Y₁ᵀY₂): inner products of columns, (m +
//! n)·r² operations. They are summed in f64. The difference is not taken from the lengths and the angle, which would
//! leave nothing of a small one: X₁Y₁ᵀ − X₂Y₂ᵀ = (X₁ − X₂)·Y₁ᵀ + X₂·(Y₁ − Y₂)ᵀ is a product as well, zero for equal
//! factors, and as exact as its own size where the factors differ a little. Where equal products have unlike factors
//! about 1e-8 of their size is left.

use std::ops::Range;

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, s};

use crate::error::{Error, Result};
use crate::kernels::Kernels;

/// Rows that are widened to f64 at a time.
const RUN: usize = 2048;

/// scale · b · a, with b: [m, r] and a: [r, n].
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// `[m, r]`.
    pub b: ArrayView2<'a, f32>,
    /// `[r, n]`.
    pub a: ArrayView2<'a, f32>,
    /// Multiplier.
    pub scale: f64,
}

/// Two matrices in four numbers, which add up over parts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// ‖M₁‖².
    pub first: f64,
    /// ‖M₂‖².
    pub second: f64,
    /// ⟨M₁, M₂⟩.
    pub inner: f64,
    /// ‖M₁ − M₂‖².
    pub difference: f64,
}

impl Sums {
    /// Adds those of another part.
    pub fn add(&mut self, other: &Sums) {
        self.first += other.first;
        self.second += other.second;
        self.inner += other.inner;
        self.difference += other.difference;
    }

    /// ‖M₁ − M₂‖ / ‖M₁‖: 0 for equal ones, infinite where only M₁ is zero.
    pub fn relative(&self) -> f64 {
        if self.difference == 0.0 { 0.0 } else { (self.difference / self.first).sqrt() }
    }

    /// ⟨M₁, M₂⟩ / (‖M₁‖ ‖M₂‖); none where one is zero.
    pub fn cosine(&self) -> Option<f64> {
        let lengths = self.first.sqrt() * self.second.sqrt();
        (lengths > 0.0).then(|| (self.inner / lengths).clamp(-1.0, 1.0))
    }

    /// Those of scale₁·M₁ and scale₂·M₂, element by element.
    pub fn of_values<'a>(
        first: impl IntoIterator<Item = &'a f32>,
        scale1: f64,
        second: impl IntoIterator<Item = &'a f32>,
        scale2: f64,
    ) -> Sums {
        let mut out = Sums::default();
        for (&x, &y) in first.into_iter().zip(second) {
            let (x, y) = (scale1 * f64::from(x), scale2 * f64::from(y));
            out.first += x * x;
            out.second += y * y;
            out.inner += x * y;
            out.difference += (x - y) * (x - y);
        }
        out
    }
}

/// The four numbers of two products of one shape.
pub fn sums(first: &Product, second: &Product) -> Result<Sums> {
    fits(first)?;
    fits(second)?;
    if first.b.nrows() != second.b.nrows() || first.a.ncols() != second.a.ncols() {
        return Err(Error::mismatch(format!(
            "a change of [{}, {}] against one of [{}, {}]",
            first.b.nrows(),
            first.a.ncols(),
            second.b.nrows(),
            second.a.ncols()
        )));
    }
    let rank = first.b.ncols().max(second.b.ncols());
    let (mut left, mut right) = (Grams::new(rank), Grams::new(rank));
    for rows in runs(first.b.nrows()) {
        let x1 = widened(first.b.slice(s![rows.clone(), ..]), first.scale, rank);
        let x2 = widened(second.b.slice(s![rows, ..]), second.scale, rank);
        let gap = &x1 - &x2;
        left.add(&x1, &x2, &gap, (&gap, &x2));
    }
    for cols in runs(first.a.ncols()) {
        let y1 = widened(first.a.slice(s![.., cols.clone()]).reversed_axes(), 1.0, rank);
        let y2 = widened(second.a.slice(s![.., cols]).reversed_axes(), 1.0, rank);
        let gap = &y1 - &y2;
        right.add(&y1, &y2, &gap, (&y1, &gap));
    }
    let together = |l: &Array2<f64>, r: &Array2<f64>| l.iter().zip(r).map(|(l, r)| l * r).sum::<f64>();
    let difference = together(&left.gap, &right.first)
        + 2.0 * together(&left.mixed, &right.mixed)
        + together(&left.second, &right.gap);
    // What is a sum of squares may come out below zero by rounding, not below.
    Ok(Sums {
        first: not_negative(together(&left.first, &right.first)),
        second: not_negative(together(&left.second, &right.second)),
        inner: together(&left.cross, &right.cross),
        difference: not_negative(difference),
    })
}

/// NaN stays.
fn not_negative(value: f64) -> f64 {
    if value < 0.0 { 0.0 } else { value }
}

fn fits(product: &Product) -> Result<()> {
    if product.b.ncols() == product.a.nrows() {
        return Ok(());
    }
    Err(Error::mismatch(format!("factors {:?} and {:?} do not multiply", product.b.dim(), product.a.dim())))
}

fn runs(extent: usize) -> impl Iterator<Item = Range<usize>> {
    (0..extent).step_by(RUN).map(move |start| start..(start + RUN).min(extent))
}

/// In f64, scaled, with columns of zeros up to `rank`.
fn widened(part: ArrayView2<f32>, scale: f64, rank: usize) -> Array2<f64> {
    let mut out = Array2::zeros((part.nrows(), rank));
    out.slice_mut(s![.., ..part.ncols()]).zip_mut_with(&part, |o, &v| *o = scale * f64::from(v));
    out
}

/// Inner products of the columns on one side.
struct Grams {
    first: Array2<f64>,
    second: Array2<f64>,
    cross: Array2<f64>,
    gap: Array2<f64>,
    mixed: Array2<f64>,
}

impl Grams {
    fn new(rank: usize) -> Grams {
        let zeros = || Array2::zeros((rank, rank));
        Grams { first: zeros(), second: zeros(), cross: zeros(), gap: zeros(), mixed: zeros() }
    }

    fn add(&mut self, x1: &Array2<f64>, x2: &Array2<f64>, gap: &Array2<f64>, mixed: (&Array2<f64>, &Array2<f64>)) {
        let all = [
            (x1, x1, &mut self.first),
            (x2, x2, &mut self.second),
            (x1, x2, &mut self.cross),
            (gap, gap, &mut self.gap),
            (mixed.0, mixed.1, &mut self.mixed),
        ];
        for (x, y, sum) in all {
            general_mat_mul(1.0, &x.t(), y, 1.0, sum);
        }
    }
}

/// Orthonormal bases of what a product reaches and of what it sees, as columns.
#[derive(Clone, Debug)]
pub struct Spaces {
    /// Of its columns: `[m, k]`.
    pub left: Array2<f32>,
    /// Of its rows: `[n, k]`.
    pub right: Array2<f32>,
}

/// The spaces of a product, by QR of both factors and the singular vectors of the core (see [`super::product`]).
/// Directions below what rounding leaves of the core are no part of them.
pub fn spaces(kernels: &dyn Kernels, product: &Product) -> Result<Spaces> {
    fits(product)?;
    if product.b.is_empty() || product.a.is_empty() || product.scale == 0.0 {
        let (m, n) = (product.b.nrows(), product.a.ncols());
        return Ok(Spaces { left: Array2::zeros((m, 0)), right: Array2::zeros((n, 0)) });
    }
    let (q1, r1) = kernels.qr(product.b)?;
    let (q2, r2) = kernels.qr(product.a.t())?;
    let mut core = Array2::zeros((r1.nrows(), r2.nrows()));
    kernels.gemm(1.0, r1.view(), r2.t(), 0.0, core.view_mut())?;
    let svd = kernels.svd(core.view())?;
    let length = |m: &Array2<f32>| m.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
    let noise = f64::from(f32::EPSILON) * product.b.ncols() as f64 * length(&r1) * length(&r2);
    let count = svd.s.iter().filter(|&&s| f64::from(s) > noise).count();
    let basis = |q: &Array2<f32>, vectors: ArrayView2<f32>| -> Result<Array2<f32>> {
        let mut out = Array2::zeros((q.nrows(), count));
        kernels.gemm(1.0, q.view(), vectors, 0.0, out.view_mut())?;
        Ok(out)
    };
    let left = basis(&q1, svd.u.slice(s![.., ..count]))?;
    let right = basis(&q2, svd.vt.slice(s![..count, ..]).reversed_axes())?;
    Ok(Spaces { left, right })
}

/// How far the spaces of two products agree: sums of squared cosines of the angles between them, which add up over
/// parts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Overlap {
    /// Σ cos² over the column spaces.
    pub left: f64,
    /// Σ cos² over the row spaces.
    pub right: f64,
    /// What both would be if the smaller space lay inside the larger one: its dimension.
    pub full: f64,
}

impl Overlap {
    /// ‖U₁ᵀU₂‖²_F and ‖V₁ᵀV₂‖²_F of two products of one shape.
    pub fn of(kernels: &dyn Kernels, first: &Spaces, second: &Spaces) -> Result<Overlap> {
        let shared = |u1: &Array2<f32>, u2: &Array2<f32>| -> Result<f64> {
            let mut cosines = Array2::zeros((u1.ncols(), u2.ncols()));
            kernels.gemm(1.0, u1.t(), u2.view(), 0.0, cosines.view_mut())?;
            Ok(cosines.iter().map(|&c| f64::from(c) * f64::from(c)).sum())
        };
        let full = first.left.ncols().min(second.left.ncols()) as f64;
        Ok(Overlap { left: shared(&first.left, &second.left)?, right: shared(&first.right, &second.right)?, full })
    }

    /// Adds that of another part.
    pub fn add(&mut self, other: &Overlap) {
        self.left += other.left;
        self.right += other.right;
        self.full += other.full;
    }

    /// The column spaces' as a share of 1; none where one of them is nothing.
    pub fn left_share(&self) -> Option<f64> {
        (self.full > 0.0).then(|| (self.left / self.full).min(1.0))
    }

    /// The same of the row spaces.
    pub fn right_share(&self) -> Option<f64> {
        (self.full > 0.0).then(|| (self.right / self.full).min(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::present;
    use crate::tensor::TorchRng;

    fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
        let mut rng = TorchRng::new(seed);
        Array2::from_shape_simple_fn((rows, cols), || rng.uniform_f32(-1.0, 1.0))
    }

    fn dense(p: &Product) -> Array2<f64> {
        p.b.mapv(f64::from).dot(&p.a.mapv(f64::from)) * p.scale
    }

    /// The definitions, in f64 over every element.
    fn expected(first: &Product, second: &Product) -> Sums {
        let (x, y) = (dense(first), dense(second));
        let sum = |m: Array2<f64>| m.iter().sum::<f64>();
        Sums {
            first: sum(&x * &x),
            second: sum(&y * &y),
            inner: sum(&x * &y),
            difference: sum((&x - &y).mapv(|v| v * v)),
        }
    }

    #[track_caller]
    fn close(found: f64, wanted: f64, tolerance: f64) {
        assert!((found - wanted).abs() <= tolerance * wanted.abs(), "{found} against {wanted}");
    }

    #[test]
    fn sums_are_those_of_the_products() {
        for (m, n, r1, r2) in [(7, 5, 2, 3), (1, 9, 1, 1), (40, 30, 8, 2), (3, 4, 6, 5), (5000, 3, 2, 2)] {
            let (b1, a1, b2, a2) = (random(m, r1, 1), random(r1, n, 2), random(m, r2, 3), random(r2, n, 4));
            let first = Product { b: b1.view(), a: a1.view(), scale: 0.7 };
            let second = Product { b: b2.view(), a: a2.view(), scale: -1.3 };
            let (found, wanted) = (sums(&first, &second).unwrap(), expected(&first, &second));
            close(found.first, wanted.first, 1e-12);
            close(found.second, wanted.second, 1e-12);
            close(found.difference, wanted.difference, 1e-12);
            assert!((found.inner - wanted.inner).abs() < 1e-12 * (wanted.first * wanted.second).sqrt());
        }
    }

    #[test]
    fn equal_factors_have_no_difference_and_small_ones_keep_their_digits() {
        let (b, a) = (random(64, 8, 1), random(8, 48, 2));
        let first = Product { b: b.view(), a: a.view(), scale: 2.0 };
        assert_eq!(sums(&first, &first).unwrap().difference, 0.0);
        for size in [1e-3f32, 1e-5, 1e-7] {
            let (b2, a2) = (&b + &(random(64, 8, 3) * size), &a + &(random(8, 48, 4) * size));
            let second = Product { b: b2.view(), a: a2.view(), scale: 2.0 };
            let (found, wanted) = (sums(&first, &second).unwrap(), expected(&first, &second));
            close(found.difference, wanted.difference, 1e-6);
        }
        // One element by one unit in the last place.
        let mut b2 = b.clone();
        b2[[3, 3]] = f32::from_bits(b2[[3, 3]].to_bits() + 1);
        let second = Product { b: b2.view(), a: a.view(), scale: 2.0 };
        let found = sums(&first, &second).unwrap();
        close(found.difference, expected(&first, &second).difference, 1e-6);
        assert!(found.relative() > 0.0 && found.relative() < 1e-7, "{}", found.relative());
    }

    #[test]
    fn the_same_product_of_other_factors_differs_by_rounding() {
        // b·T and T⁻¹·a for T = diag(2, 3, 5, 7): only the divisions round, to 1e-7 at most.
        let (b, a) = (random(64, 4, 1), random(4, 48, 2));
        let (mut b2, mut a2) = (b.clone(), a.clone());
        for (k, t) in [2f32, 3.0, 5.0, 7.0].into_iter().enumerate() {
            b2.column_mut(k).mapv_inplace(|v| v * t);
            a2.row_mut(k).mapv_inplace(|v| v / t);
        }
        let first = Product { b: b.view(), a: a.view(), scale: 1.0 };
        let second = Product { b: b2.view(), a: a2.view(), scale: 1.0 };
        let found = sums(&first, &second).unwrap();
        assert!(found.relative() < 2e-7, "{}", found.relative());
        close(found.cosine().unwrap(), 1.0, 1e-12);
    }

    #[test]
    fn what_is_not_there_counts_as_zero() {
        let (b, a) = (random(6, 2, 1), random(2, 5, 2));
        let none = (Array2::<f32>::zeros((6, 0)), Array2::<f32>::zeros((0, 5)));
        let first = Product { b: b.view(), a: a.view(), scale: 1.0 };
        let second = Product { b: none.0.view(), a: none.1.view(), scale: 1.0 };
        let found = sums(&first, &second).unwrap();
        close(found.difference, found.first, 1e-12);
        assert_eq!((found.relative(), found.cosine()), (1.0, None));
        let other_way = sums(&second, &first).unwrap();
        assert_eq!(other_way.relative(), f64::INFINITY);
        assert_eq!(Sums::default().relative(), 0.0);
        let short = Product { b: b.view(), a: none.1.view(), scale: 1.0 };
        assert!(sums(&short, &first).is_err());
    }

    #[test]
    fn values_give_the_same_sums() {
        let (x, y) = (random(6, 5, 1), random(6, 5, 2));
        let found = Sums::of_values(x.iter(), 2.0, y.iter(), 0.5);
        let (x, y) = (x.mapv(|v| 2.0 * f64::from(v)), y.mapv(|v| 0.5 * f64::from(v)));
        close(found.difference, (&x - &y).mapv(|v| v * v).sum(), 1e-12);
        close(found.inner, (&x * &y).sum(), 1e-12);
    }

    /// ‖U₁ᵀU₂‖² is the trace of the product of the two projections, here from (XᵀX)⁻¹ of two columns.
    fn trace_of_projections(x: &Array2<f32>, y: &Array2<f32>) -> f64 {
        let projection = |x: &Array2<f32>| {
            let x = x.mapv(f64::from);
            let g = x.t().dot(&x);
            let det = g[[0, 0]] * g[[1, 1]] - g[[0, 1]] * g[[1, 0]];
            let inverse = ndarray::array![[g[[1, 1]], -g[[0, 1]]], [-g[[1, 0]], g[[0, 0]]]] / det;
            x.dot(&inverse).dot(&x.t())
        };
        (projection(x) * projection(y)).sum()
    }

    #[test]
    fn overlaps_are_those_of_the_projections() {
        let (b1, a1, b2, a2) = (random(20, 2, 1), random(2, 30, 2), random(20, 2, 3), random(2, 30, 4));
        for kernels in present() {
            let kernels = kernels.as_ref();
            let first = spaces(kernels, &Product { b: b1.view(), a: a1.view(), scale: 1.0 }).unwrap();
            let second = spaces(kernels, &Product { b: b2.view(), a: a2.view(), scale: 1.0 }).unwrap();
            let found = Overlap::of(kernels, &first, &second).unwrap();
            assert!((found.left_share().unwrap() - trace_of_projections(&b1, &b2) / 2.0).abs() < 1e-5);
            let (y1, y2) = (a1.t().to_owned(), a2.t().to_owned());
            assert!((found.right_share().unwrap() - trace_of_projections(&y1, &y2) / 2.0).abs() < 1e-5);
            let same = Overlap::of(kernels, &first, &first).unwrap();
            assert!((same.left_share().unwrap() - 1.0).abs() < 1e-5 && same.full == 2.0);
        }
    }

    #[test]
    fn directions_that_are_rounding_do_not_count() {
        // Three columns of which the third is the sum of the others: two dimensions.
        let mut b = random(20, 3, 1);
        let third = &b.column(0) + &b.column(1);
        b.column_mut(2).assign(&third);
        let a = random(3, 30, 2);
        let zero = Array2::<f32>::zeros((20, 3));
        for kernels in present() {
            let kernels = kernels.as_ref();
            let found = spaces(kernels, &Product { b: b.view(), a: a.view(), scale: 1.0 }).unwrap();
            assert_eq!((found.left.dim(), found.right.dim()), ((20, 2), (30, 2)), "{}", kernels.name());
            let nothing = spaces(kernels, &Product { b: zero.view(), a: a.view(), scale: 1.0 }).unwrap();
            assert_eq!(nothing.left.ncols(), 0);
            assert_eq!(Overlap::of(kernels, &found, &nothing).unwrap().left_share(), None);
        }
    }
}
