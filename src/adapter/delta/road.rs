//! RoAd: pairs of outputs are rotated and scaled (Liao and Monz, <https://arxiv.org/abs/2409.00119>; huggingface/peft,
//! `src/peft/tuners/road`). Weight and bias change alike.
//!
//! Outputs fall into groups of G; output p of a group's first half pairs with p + G/2. With first and second column
//! `c = α cos θ` and `s = α sin θ`, one of each for every output,
//! `y[p] = c[p] x[p] − s[p] x[p + G/2]` and `y[p + G/2] = c[p + G/2] x[p + G/2] + s[p + G/2] x[p]`.

use std::ops::Range;

use ndarray::ArrayViewMut2;

use super::check::{divides, length_is};
use super::{Act, Action, Before, Inverse, Reversal, Site};
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::tensor::{Rows, Tensor};

/// Angles and scales.
#[derive(Clone, Debug, PartialEq)]
pub struct Road {
    /// Angles θ: as many as the variant asks for.
    pub theta: Tensor,
    /// Scales α, likewise.
    pub alpha: Tensor,
    /// How they are shared.
    pub variant: Variant,
    /// Outputs in one group, an even number.
    pub group: usize,
}

/// How many angles and scales one pair of outputs has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// One: out/2 in all.
    One,
    /// One for each output: out in all.
    Two,
    /// One for each element of the rotation: 2 · out in all, a group's cosine terms before its sine terms.
    Four,
}

struct Ready {
    cosines: Vec<f32>,
    sines: Vec<f32>,
    group: usize,
}

impl Ready {
    /// The determinant of the pair whose first output is this one.
    fn determinant(&self, upper: usize) -> f64 {
        let lower = upper + self.group / 2;
        let value = |values: &[f32], i: usize| values.get(i).copied().map_or(f64::NAN, f64::from);
        value(&self.cosines, upper) * value(&self.cosines, lower)
            + value(&self.sines, upper) * value(&self.sines, lower)
    }
}

impl Road {
    /// Groups have to fill the outputs, and the parameters to be as many as the variant has.
    pub fn prepare(&self, site: &Site) -> Result<Action> {
        let (rows, _) = site.matrix();
        let group = self.group;
        if group < 2 || !group.is_multiple_of(2) {
            return Err(Error::mismatch(format!("groups of {group} outputs, expected an even number")));
        }
        divides("group size", group, rows)?;
        let expected = match self.variant {
            Variant::One => rows / 2,
            Variant::Two => rows,
            Variant::Four => rows.saturating_mul(2),
        };
        length_is("road_theta", &self.theta, expected)?;
        length_is("road_alpha", &self.alpha, expected)?;
        let (theta, alpha) = (self.theta.to_f32()?, self.alpha.to_f32()?);
        let value = |i: usize, of: fn(f64) -> f64| (f64::from(alpha[i]) * of(f64::from(theta[i]))) as f32;
        let half = group / 2;
        let (cosine_at, sine_at): (Vec<usize>, Vec<usize>) = (0..rows)
            .map(|o| {
                let (g, p) = (o / group, o % group);
                match self.variant {
                    Variant::One => (g * half + p % half, g * half + p % half),
                    Variant::Two => (o, o),
                    Variant::Four => (2 * g * group + p, 2 * g * group + group + p),
                }
            })
            .unzip();
        Ok(Action::Act(Box::new(Ready {
            cosines: cosine_at.into_iter().map(|i| value(i, f64::cos)).collect(),
            sines: sine_at.into_iter().map(|i| value(i, f64::sin)).collect(),
            group,
        })))
    }
}

impl Act for Ready {
    fn reversal(&self) -> Reversal {
        Reversal::Steps
    }

    fn inverse(&self) -> Inverse {
        let first_of_pairs = (0..self.cosines.len()).filter(|o| o % self.group < self.group / 2);
        if first_of_pairs.into_iter().any(|upper| self.determinant(upper) == 0.0) {
            return Inverse::Never("it puts two outputs into one");
        }
        Inverse::Own
    }

    fn undo(&self, _: &dyn Kernels, rows: Range<usize>, mut w: ArrayViewMut2<f32>) -> Result<f64> {
        let half = self.group / 2;
        let mut spread = 0f64;
        for start in (0..w.nrows()).step_by(self.group) {
            for p in start..start + half {
                let (upper, lower) = (rows.start + p, rows.start + p + half);
                let by = 1.0 / self.determinant(upper);
                let [c1, s1, c2, s2] = [self.cosines[upper], self.sines[upper], self.cosines[lower], self.sines[lower]]
                    .map(|v| f64::from(v) * by);
                spread = spread.max(c2.abs() + s1.abs()).max(c1.abs() + s2.abs());
                let (first, second) = w.multi_slice_mut((ndarray::s![p, ..], ndarray::s![p + half, ..]));
                ndarray::Zip::from(first).and(second).for_each(|x, y| {
                    let (a, b) = (f64::from(*x), f64::from(*y));
                    *x = (c2 * a + s1 * b) as f32;
                    *y = (c1 * b - s2 * a) as f32;
                });
            }
        }
        Ok(spread)
    }

    fn rows(&self) -> Rows {
        Rows::Multiple(self.group)
    }

    fn footprint(&self, _: usize, _: usize) -> u64 {
        0
    }

    fn act(&self, _: &dyn Kernels, rows: Range<usize>, mut w: ArrayViewMut2<f32>, _: &dyn Before) -> Result<()> {
        let half = self.group / 2;
        for start in (0..w.nrows()).step_by(self.group) {
            for p in start..start + half {
                let (upper, lower) = (rows.start + p, rows.start + p + half);
                let (first, second) = w.multi_slice_mut((ndarray::s![p, ..], ndarray::s![p + half, ..]));
                ndarray::Zip::from(first).and(second).for_each(|x, y| {
                    let (a, b) = (*x, *y);
                    *x = self.cosines[upper] * a - self.sines[upper] * b;
                    *y = self.cosines[lower] * b + self.sines[lower] * a;
                });
            }
        }
        Ok(())
    }
}
