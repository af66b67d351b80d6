//! FourierFT: a few coefficients of the weight's spectrum (Gao et al., <https://arxiv.org/abs/2405.03003>;
//! huggingface/peft, `src/peft/tuners/fourierft`).
//!
//! `dW = scaling · Re(ifft2(D))`, D: [out, in] zero but for n values at positions that are drawn with a seed:
//! `dW[p, q] = scaling / (out · in) · Re Σ c e^{2πi (u p / out + v q / in)}`. Rows are independent: row p needs the n
//! coefficients turned by their `u p / out`, then one transform along the inputs. All of it is done in f64.

use std::f64::consts::TAU;
use std::ops::Range;

use ndarray::{ArrayViewMut2, Axis};

use super::check::matrix_only;
use super::{Act, Action, Before, Reversal, Site};
use crate::error::Result;
use crate::kernels::Kernels;
use crate::tensor::{Tensor, TorchRng};

/// A sparse spectrum.
#[derive(Clone, Debug, PartialEq)]
pub struct Fourier {
    /// `[n]` real coefficients, in the order their positions were drawn.
    pub spectrum: Tensor,
    /// Seed of the positions.
    pub seed: u64,
    /// Multiplier.
    pub scaling: f64,
}

/// Real and imaginary part.
type Complex = [f64; 2];

struct Coefficient {
    row: usize,
    col: usize,
    value: f64,
}

struct Ready {
    coefficients: Vec<Coefficient>,
    /// Columns that hold a coefficient, each once.
    columns: Vec<usize>,
    row_turns: Vec<Complex>, // e^{2πi k / out}
    col_turns: Vec<Complex>, // e^{2πi k / in}
    factors: Vec<usize>,     // prime factors of the number of inputs
}

impl Fourier {
    /// Draws the positions.
    pub fn prepare(&self, site: &Site) -> Result<Action> {
        let (rows, cols) = matrix_only("FourierFT", site)?;
        let values = self.spectrum.to_f32()?;
        let places = TorchRng::new(self.seed).permutation_head(site.shape.elements()?, values.len())?;
        let factor = self.scaling / (rows as f64 * cols as f64);
        let coefficients: Vec<_> = places
            .iter()
            .zip(values)
            .map(|(place, c)| Coefficient { row: place / cols, col: place % cols, value: factor * f64::from(c) })
            .collect();
        let mut columns: Vec<usize> = coefficients.iter().map(|c| c.col).collect();
        columns.sort_unstable();
        columns.dedup();
        let (row_turns, col_turns) = (turns(rows), turns(cols));
        Ok(Action::Act(Box::new(Ready { coefficients, columns, row_turns, col_turns, factors: prime_factors(cols) })))
    }
}

impl Act for Ready {
    fn reversal(&self) -> Reversal {
        Reversal::Sum
    }

    fn footprint(&self, _: usize, cols: usize) -> u64 {
        32 * cols as u64
    }

    fn act(&self, _: &dyn Kernels, rows: Range<usize>, mut w: ArrayViewMut2<f32>, _: &dyn Before) -> Result<()> {
        let (height, cols) = (self.row_turns.len(), self.col_turns.len());
        let (mut line, mut out) = (vec![[0.0; 2]; cols], vec![[0.0; 2]; cols]);
        // A transform takes as many steps for each element as its factors sum to; the sum over columns, one a column.
        let transform = self.factors.iter().sum::<usize>() < self.columns.len();
        for (mut row, p) in w.axis_iter_mut(Axis(0)).zip(rows) {
            line.fill([0.0; 2]);
            for c in &self.coefficients {
                let [re, im] = self.row_turns[c.row * p % height];
                line[c.col][0] += c.value * re;
                line[c.col][1] += c.value * im;
            }
            if transform {
                inverse_transform(&line, 1, &mut out, &self.factors, &self.col_turns);
                row.zip_mut_with(&ndarray::aview1(&out), |w, v| *w += v[0] as f32);
            } else {
                for (w, q) in row.iter_mut().zip(0..) {
                    let part = |&v: &usize| {
                        let ([a, b], [re, im]) = (line[v], self.col_turns[v * q % cols]);
                        a * re - b * im
                    };
                    *w += self.columns.iter().map(part).sum::<f64>() as f32;
                }
            }
        }
        Ok(())
    }
}

fn turns(n: usize) -> Vec<Complex> {
    (0..n).map(|k| TAU * k as f64 / n as f64).map(|angle| [angle.cos(), angle.sin()]).collect()
}

fn prime_factors(mut n: usize) -> Vec<usize> {
    let mut out = Vec::new();
    let mut p = 2;
    while p * p <= n {
        while n.is_multiple_of(p) {
            out.push(p);
            n /= p;
        }
        p += 1;
    }
    if n > 1 {
        out.push(n);
    }
    out
}

/// `out[k] = Σ_j input[j · stride] e^{2πi j k / n}` for n = `out.len()`, by splitting off one factor at a time (Cooley
/// and Tukey). `turns` are those of the whole length, of which n is a part.
fn inverse_transform(input: &[Complex], stride: usize, out: &mut [Complex], factors: &[usize], turns: &[Complex]) {
    let Some((&p, rest)) = factors.split_first() else {
        out[0] = input[0];
        return;
    };
    let n = out.len();
    let m = n / p;
    for (part, offset) in out.chunks_exact_mut(m).zip((0..).step_by(stride)) {
        inverse_transform(&input[offset..], stride * p, part, rest, turns);
    }
    let step = turns.len() / n;
    let mut column = vec![[0.0; 2]; p];
    for k in 0..m {
        for (r, value) in column.iter_mut().enumerate() {
            *value = times(out[r * m + k], turns[r * k * step]);
        }
        if let &[a, b] = column.as_slice() {
            out[k] = [a[0] + b[0], a[1] + b[1]];
            out[m + k] = [a[0] - b[0], a[1] - b[1]];
            continue;
        }
        for s in 0..p {
            let mut sum = [0.0; 2];
            for (r, &value) in column.iter().enumerate() {
                let [re, im] = times(value, turns[r * s % p * m * step]);
                sum = [sum[0] + re, sum[1] + im];
            }
            out[s * m + k] = sum;
        }
    }
}

fn times([a, b]: Complex, [c, d]: Complex) -> Complex {
    [a * c - b * d, a * d + b * c]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transform_is_the_sum_it_stands_for() {
        for n in [1usize, 2, 3, 4, 12, 30, 49, 64] {
            let input: Vec<Complex> = (0..n).map(|j| [(j as f64).sin(), (2.0 * j as f64).cos()]).collect();
            let mut out = vec![[0.0; 2]; n];
            inverse_transform(&input, 1, &mut out, &prime_factors(n), &turns(n));
            for (k, found) in out.iter().enumerate() {
                let mut expected = [0.0; 2];
                for (j, &x) in input.iter().enumerate() {
                    let angle = TAU * (j * k) as f64 / n as f64;
                    let [re, im] = times(x, [angle.cos(), angle.sin()]);
                    expected = [expected[0] + re, expected[1] + im];
                }
                let error = (found[0] - expected[0]).hypot(found[1] - expected[1]);
                assert!(error < 1e-11, "n {n}, k {k}: {found:?} against {expected:?}");
            }
        }
    }
}
