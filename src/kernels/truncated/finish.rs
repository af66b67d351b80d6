//! From approximate factors to what is handed out: orthonormal vectors, signs, and what is lost.

use ndarray::Array2;

use super::Truncated;
use super::field::Field;
use super::orth;
use crate::error::Result;

/// Singular values below this share of the largest are rounding of f32 and left out.
const LEAST: f64 = 1e-8;
/// Vectors are found with an error of about 1e-7 of the largest singular value over their own. Below this share they
/// are made orthonormal once more.
const UNEVEN: f64 = 0.1;
/// Down to this share of the whole the energy of what is lost is a difference; below, its digits are rounding, and it
/// is measured.
const DIFFERENCE: f64 = 1e-4;

/// `d ≈ (s · u)ᵀ · vt`, with nearly orthonormal vectors in both stacks.
pub struct Factors<S> {
    /// The left vectors.
    pub ut: S,
    /// Largest first.
    pub s: Vec<f64>,
    /// The right vectors.
    pub vt: S,
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
pub fn finish<F: Field>(field: &mut F, factors: Factors<F::Stack>, known: &Known) -> Result<Truncated> {
    let factors = if field.is_rough() { sharpened(field, factors)? } else { factors };
    let Factors { mut ut, s, mut vt } = without_rounding(field, factors)?;
    let kept: f64 = s.iter().map(|s| s * s).sum();
    if s.first().zip(s.last()).is_some_and(|(first, last)| *last < UNEVEN * first) {
        let (m, n) = field.dim();
        (ut, vt) = (orthonormal(field, ut, m)?, orthonormal(field, vt, n)?);
    }
    let (mut lost, mut passes) = ((known.energy - kept).max(0.0), known.passes);
    if field.is_rough() {
        passes += 1;
    }
    if lost < DIFFERENCE * known.energy && known.energy > 0.0 {
        lost = field.residual(&ut, &s, &vt)?;
        passes += 1;
    }
    let mut u = field.to_host(&ut)?.t().as_standard_layout().into_owned();
    let mut vt = field.to_host(&vt)?;
    fix_signs(&mut u, &mut vt);
    let Known { energy, excess, vectors, .. } = *known;
    Ok(Truncated { u, s, vt, energy, lost, excess, passes, vectors })
}

/// The best factors on the right vectors that were found, in all digits of f32: what they keep of the matrix is then known
/// as well as it is without shortcuts.
fn sharpened<F: Field>(field: &mut F, factors: Factors<F::Stack>) -> Result<Factors<F::Stack>> {
    if factors.s.is_empty() {
        return Ok(factors);
    }
    let vt = orthonormal(field, factors.vt, field.dim().1)?;
    let y = field.times(&vt)?;
    let eigen = field.eigh(field.inner(&y, &y)?.view(), factors.s.len())?;
    let s: Vec<f64> = eigen.values.iter().map(|v| v.max(0.0).sqrt()).collect();
    let (vt, y) = (field.combined(&eigen.vectors, &vt)?, field.combined(&eigen.vectors, &y)?);
    let (ut, _) = field.unit(y)?;
    Ok(Factors { ut, s, vt })
}

/// Vectors made orthonormal from the largest value to the least. What one has of an earlier one is rounding, about 1e-7 of
/// the larger value, so that taking it out changes nothing else.
fn orthonormal<F: Field>(field: &F, stack: F::Stack, length: usize) -> Result<F::Stack> {
    let (out, r) = orth::against(field, &field.nothing(length)?, stack)?;
    // Reflections may turn a vector round.
    let turned: Vec<bool> = r.diag().iter().map(|&turn| turn < 0.0).collect();
    if !turned.contains(&true) {
        return Ok(out);
    }
    let mut signs = Array2::zeros((turned.len(), turned.len()));
    signs.diag_mut().iter_mut().zip(turned).for_each(|(sign, turned)| *sign = if turned { -1.0 } else { 1.0 });
    field.turned(signs.view(), &out)
}

/// In order, without those that are rounding.
fn without_rounding<F: Field>(field: &F, factors: Factors<F::Stack>) -> Result<Factors<F::Stack>> {
    let Factors { ut, s, vt } = factors;
    let least = LEAST * s.iter().fold(0.0, |a: f64, &b| a.max(b));
    let mut order: Vec<usize> = (0..s.len()).filter(|&i| s[i] > least).collect();
    order.sort_by(|&i, &j| s[j].total_cmp(&s[i]));
    if order.len() == s.len() && order.is_sorted() {
        return Ok(Factors { ut, s, vt });
    }
    let (ut, vt) = (field.picked(&ut, &order)?, field.picked(&vt, &order)?);
    Ok(Factors { ut, s: order.iter().map(|&i| s[i]).collect(), vt })
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
