//! From approximate factors to what is handed out: orthonormal vectors, signs, and what is lost.

use ndarray::{Array1, Array2, ArrayView2, Axis, s};

use super::{RowSource, Truncated, orth, rows};
use crate::error::{Error, Kind, Result};
use crate::kernels::Kernels;

/// Singular values below this share of the largest are rounding of f32 and left out.
const LEAST: f64 = 1e-8;
/// Vectors are found with an error of about 1e-7 of the largest singular value over their own. Below this share they
/// are made orthonormal once more.
const UNEVEN: f64 = 0.1;
/// Down to this share of the whole the energy of what is lost is a difference; below, its digits are rounding, and it
/// is measured.
const DIFFERENCE: f64 = 1e-4;

/// `d ≈ (s · u)ᵀ · vt`, with nearly orthonormal rows in u: [k, m] and vt: [k, n].
pub struct Factors {
    /// Rows are left vectors.
    pub ut: Array2<f32>,
    /// Largest first.
    pub s: Vec<f64>,
    /// Rows are right vectors.
    pub vt: Array2<f32>,
}

/// What the search for the factors has found out.
pub struct Known {
    /// ‖d‖².
    pub energy: f64,
    /// How often the matrix was read.
    pub passes: usize,
    /// As in [`Truncated`].
    pub excess: f64,
    /// As in [`Truncated`].
    pub vectors: usize,
}

/// The factors in order, and what they leave of the matrix.
pub fn finish<K: Kernels + ?Sized>(
    kernels: &K,
    d: &dyn RowSource,
    factors: Factors,
    known: &Known,
) -> Result<Truncated> {
    let Factors { mut ut, s, mut vt } = without_rounding(factors);
    let kept: f64 = s.iter().map(|s| s * s).sum();
    if s.first().zip(s.last()).is_some_and(|(first, last)| *last < UNEVEN * first) {
        (ut, vt) = (orthonormal(kernels, ut)?, orthonormal(kernels, vt)?);
    }
    let mut u = ut.t().as_standard_layout().into_owned();
    fix_signs(&mut u, &mut vt);
    let mut out = Truncated {
        u,
        s,
        vt,
        energy: known.energy,
        lost: (known.energy - kept).max(0.0),
        excess: known.excess,
        passes: known.passes,
        vectors: known.vectors,
    };
    if out.lost < DIFFERENCE * known.energy && known.energy > 0.0 {
        out.lost = lost(kernels, d, &out)?;
        out.passes += 1;
    }
    Ok(out)
}

/// In order, without those that are rounding.
fn without_rounding(Factors { ut, s, vt }: Factors) -> Factors {
    let least = LEAST * s.iter().fold(0.0, |a: f64, &b| a.max(b));
    let mut order: Vec<usize> = (0..s.len()).filter(|&i| s[i] > least).collect();
    order.sort_by(|&i, &j| s[j].total_cmp(&s[i]));
    if order.len() == s.len() && order.is_sorted() {
        return Factors { ut, s, vt };
    }
    let pick = |x: Array2<f32>| x.select(Axis(0), &order);
    Factors { ut: pick(ut), s: order.iter().map(|&i| s[i]).collect(), vt: pick(vt) }
}

/// Rows made orthonormal from the largest value to the least. What a row has of an earlier one is rounding, about 1e-7 of
/// the larger value, so that taking it out changes nothing else.
fn orthonormal<K: Kernels + ?Sized>(kernels: &K, rows: Array2<f32>) -> Result<Array2<f32>> {
    let none = rows.slice(s![..0, ..]).to_owned();
    let (mut out, r) = orth::against(kernels, none.view(), rows)?;
    for (mut row, turn) in out.rows_mut().into_iter().zip(r.diag()) {
        if *turn < 0.0 {
            row.mapv_inplace(|v| -v); // reflections may turn a row round
        }
    }
    Ok(out)
}

/// The largest entry of every right vector, the first of equal ones, is positive.
pub fn fix_signs(u: &mut Array2<f32>, vt: &mut Array2<f32>) {
    for (mut left, mut right) in u.columns_mut().into_iter().zip(vt.rows_mut()) {
        let largest = right.iter().fold(0f32, |best, &v| if v.abs() > best.abs() { v } else { best });
        if largest < 0.0 {
            left.mapv_inplace(|v| -v);
            right.mapv_inplace(|v| -v);
        }
    }
}

/// ‖d − u · diag(s) · vt‖², by reading d once more.
fn lost<K: Kernels + ?Sized>(kernels: &K, d: &dyn RowSource, found: &Truncated) -> Result<f64> {
    let s: Array1<f32> = found.s.iter().map(|&s| s as f32).collect();
    let mut sum = 0.0;
    rows::for_each(d, |range, mut block| {
        let us = &found.u.slice(s![range.clone(), ..]) * &s;
        kernels.gemm(-1.0, us.view(), found.vt.view(), 1.0, block.view_mut())?;
        sum += rows::energy(range.start, block.view())?;
        Ok(())
    })?;
    Ok(sum)
}

/// `coefficients · rows`, the coefficients rounded to f32.
pub fn combined<K: Kernels + ?Sized>(
    kernels: &K,
    coefficients: &Array2<f64>,
    rows: ArrayView2<f32>,
) -> Result<Array2<f32>> {
    let narrow = coefficients.mapv(|v| v as f32);
    let mut out = Array2::zeros((narrow.nrows(), rows.ncols()));
    kernels.gemm(1.0, narrow.view(), rows, 0.0, out.view_mut())?;
    if out.iter().all(|v: &f32| v.is_finite()) { Ok(out) } else { Err(out_of_range()) }
}

/// Finite values whose products are not.
pub fn out_of_range() -> Error {
    Error::new(Kind::Limit, "values are too large to be decomposed in f32")
}
