//! Strengths from the sums, with what rounding leaves uncertain.
//!
//! Every element is measured in units of its own rounding, so that all have the same noise, of variance 1/12: small
//! weights, which keep the change more finely, count for more, and large ones that swallow it for little.
//!
//! Where the change is far below the units, rounding no longer is noise: it takes a share of the change away. What it
//! leaves of the claim is known, since the correctly rounded merge is: with p the solution for the file and q the one for
//! that merge, which was made at strength s, the strength is `p · s / q`. It is the claim where the file is the merge, and
//! zero where it is the base.

use super::sums::Sums;
use crate::linalg::normal_equations::NormalEquations;

/// Variance of the rounding of an element, in units.
const ROUNDING: f64 = 1.0 / 12.0;
/// Standard deviations that a strength may be off: with thousands of modules, hardly ever exceeded by chance.
const DEVIATIONS: f64 = 6.0;
/// Those that a strength may be off zero for it to be called missing rather than another one.
const ZERO_DEVIATIONS: f64 = 2.0;
/// Share of the claim that a strength may be off whatever the noise.
const SHARE: f64 = 1e-3;

/// How a strength stands to the claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is what was claimed.
    Agrees,
    /// It is another one.
    Other,
    /// It is zero, and the claim is not.
    Missing,
    /// Noise, or another adapter with the same change, hides it.
    Untold,
}

/// The strength of one adapter in one tensor, or in all.
#[derive(Clone, Copy, Debug)]
pub struct Estimate {
    /// Number of the adapter.
    pub adapter: usize,
    /// What was claimed.
    pub claimed: f64,
    /// What was found; none where the adapter changes nothing here or cannot be told from another.
    pub strength: Option<f64>,
    /// The same where it is told; else one that fits together with the claims of the adapters it cannot be told from.
    pub fitted: f64,
    /// Standard deviation of that, by the noise of rounding and of whatever else is in the tensor.
    pub deviation: f64,
    /// What follows.
    pub standing: Standing,
}

/// The strengths that fit the sums best. `claimed` are those of the changes in the sums, `numbers` their adapters. Where
/// the file `is_exact`, nothing else can follow than that the claim holds.
pub fn strengths(sums: &Sums, claimed: &[f64], numbers: &[usize], is_exact: bool) -> Vec<Estimate> {
    let count = claimed.len();
    let equations = NormalEquations::new(count, &sums.units.gram);
    let found = equations.solve(&sums.units.along, claimed);
    let right = equations.solve(&sums.rounded, claimed);
    let left = equations.residual(sums.units.square, &sums.units.along, &found);
    let noise = (left / (sums.elements - sums.left_out).max(1) as f64).max(ROUNDING);
    let variances = equations.variances();
    (0..count)
        .map(|k| {
            let deviation = (noise * variances[k]).sqrt();
            let told = equations.is_told(k);
            let strength = calibrated(found[k], right[k], claimed[k], (ROUNDING * variances[k]).sqrt());
            let standing = match () {
                () if is_exact => Standing::Agrees,
                () if !equations.is_present(k) => Standing::Untold,
                () => standing(strength, claimed[k], deviation, told),
            };
            Estimate {
                adapter: numbers[k],
                claimed: claimed[k],
                strength: told.then_some(strength),
                fitted: strength,
                deviation,
                standing,
            }
        })
        .collect()
}

/// `found` as a strength, where a merge at strength `claimed` looks like `right`: taken as it is unless that is off by
/// more than noise of this standard deviation.
fn calibrated(found: f64, right: f64, claimed: f64, deviation: f64) -> f64 {
    let off = (right - claimed).abs();
    if off > DEVIATIONS * deviation && off <= 0.5 * claimed.abs() { found * (claimed / right) } else { found }
}

/// Adapters that cannot be told apart have all but one of them held at their claims: then the one that is left tells
/// whether the claims together are right, but not which of them is wrong.
fn standing(strength: f64, claimed: f64, deviation: f64, told: bool) -> Standing {
    let noise = DEVIATIONS * deviation;
    if !deviation.is_finite() {
        return Standing::Untold; // held at its claim
    }
    if (strength - claimed).abs() <= noise + SHARE * claimed.abs() {
        let hidden = claimed != 0.0 && noise > 0.5 * claimed.abs();
        return if hidden { Standing::Untold } else { Standing::Agrees };
    }
    let is_zero = strength.abs() <= ZERO_DEVIATIONS * deviation + 10.0 * SHARE * claimed.abs();
    if told && claimed != 0.0 && is_zero { Standing::Missing } else { Standing::Other }
}

/// The share of the difference that the changes at these strengths leave unexplained, and the one that rounding alone
/// would leave. None where there is no difference.
pub fn residual(sums: &Sums, estimates: &[Estimate]) -> Option<(f64, f64)> {
    let square = sums.plain.square;
    if square == 0.0 {
        return None;
    }
    let strengths: Vec<_> = estimates.iter().map(|e| e.fitted).collect();
    let equations = NormalEquations::new(strengths.len(), &sums.plain.gram);
    let left = equations.residual(square, &sums.plain.along, &strengths);
    Some(((left / square).sqrt(), (sums.noise / square).sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_for_what() {
        assert_eq!(standing(1.0004, 1.0, 1e-5, true), Standing::Agrees);
        assert_eq!(standing(0.5, 1.0, 1e-5, true), Standing::Other);
        assert_eq!(standing(0.001, 1.0, 1e-3, true), Standing::Missing);
        assert_eq!(standing(0.9, 1.0, 0.2, true), Standing::Untold);
        assert_eq!(standing(1e-4, 0.0, 1e-3, true), Standing::Agrees);
        assert_eq!(standing(0.1, 0.0, 1e-3, true), Standing::Other);
        assert_eq!(standing(0.0, 1.0, 1e-3, false), Standing::Other);
        assert_eq!(standing(1.0, 1.0, f64::INFINITY, false), Standing::Untold);
    }

    #[test]
    fn a_swallowed_change_is_measured_by_what_a_merge_leaves_of_it() {
        assert_eq!(calibrated(0.6, 0.6, 1.0, 1e-3), 1.0);
        assert_eq!(calibrated(0.0, 0.6, 1.0, 1e-3), 0.0);
        assert_eq!(calibrated(0.3, 0.1, 1.0, 1e-3), 0.3); // hardly anything is left: taken as it is
        assert_eq!(calibrated(0.3, 0.6, 1.0, 0.1), 0.3); // noise may have done that
        assert_eq!(calibrated(0.3, 0.0, 0.0, 1e-3), 0.3);
    }
}
