//! Least squares from the sums of its normal equations, `G·x = r` with `G = XᵀX` and `r = Xᵀy`, for a few unknowns.
//!
//! Columns of X that others make up cannot be told apart by any y. They are found by a Cholesky factorisation with the
//! largest pivot first, held at given values, and the rest is solved; which unknowns that leaves open is part of the
//! answer.

/// A column of X counts as made up by others where less than this share of its square is its own. The columns come from
/// f32 sums, so even the same column computed twice differs by some 1e-14 of its square.
const OWN_SHARE: f64 = 1e-10;

/// A factorised matrix G.
#[derive(Clone, Debug)]
pub struct NormalEquations {
    size: usize,
    gram: Vec<f64>,
    /// Root of the diagonal: the lengths of the columns.
    lengths: Vec<f64>,
    /// The unknowns that are solved for, in the order of their pivots.
    free: Vec<usize>,
    /// Column j of the factor of the correlations of X, over all unknowns.
    factor: Vec<Vec<f64>>,
}

impl NormalEquations {
    /// Factorises G: [size, size], symmetric, row-major.
    pub fn new(size: usize, gram: &[f64]) -> NormalEquations {
        let lengths: Vec<_> = (0..size).map(|k| gram[k * size + k].max(0.0).sqrt()).collect();
        let (free, factor, _) = factorise(size, gram, &lengths, None);
        NormalEquations { size, gram: gram.to_vec(), lengths, free, factor }
    }

    /// Whether the unknown has a column at all.
    pub fn is_present(&self, unknown: usize) -> bool {
        self.lengths[unknown] > 0.0
    }

    /// Whether y says what the unknown is: its column is there and the others do not make it up.
    pub fn is_told(&self, unknown: usize) -> bool {
        if !self.is_present(unknown) || !self.free.contains(&unknown) {
            return false;
        }
        let (.., own) = factorise(self.size, &self.gram, &self.lengths, Some(unknown));
        own[unknown] > OWN_SHARE
    }

    /// The solution for the right side r. Unknowns that are not solved for have the value they have in `held`.
    pub fn solve(&self, right: &[f64], held: &[f64]) -> Vec<f64> {
        let mut out = held.to_vec();
        let fixed = |k: &usize| !self.free.contains(k);
        let rest: Vec<f64> = self
            .free
            .iter()
            .map(|&k| {
                let taken: f64 = (0..self.size).filter(fixed).map(|l| self.gram[k * self.size + l] * held[l]).sum();
                (right[k] - taken) / self.lengths[k]
            })
            .collect();
        for (value, &k) in self.back(&self.forth(rest)).iter().zip(&self.free) {
            out[k] = value / self.lengths[k];
        }
        out
    }

    /// The diagonal of the inverse of G over the unknowns that are solved for: the variances of the solution for noise
    /// of variance 1. Infinite for the others.
    pub fn variances(&self) -> Vec<f64> {
        let mut out = vec![f64::INFINITY; self.size];
        for (i, &k) in self.free.iter().enumerate() {
            let unit = (0..self.free.len()).map(|j| f64::from(u8::from(i == j))).collect();
            let solved = self.forth(unit);
            out[k] = solved.iter().map(|v| v * v).sum::<f64>() / (self.lengths[k] * self.lengths[k]);
        }
        out
    }

    /// ‖y − X·x‖² for `square` = ‖y‖², not below zero.
    pub fn residual(&self, square: f64, right: &[f64], x: &[f64]) -> f64 {
        let mut out = square;
        for k in 0..self.size {
            let row: f64 = (0..self.size).map(|l| self.gram[k * self.size + l] * x[l]).sum();
            out += x[k] * (row - 2.0 * right[k]);
        }
        out.max(0.0)
    }

    /// Solves `L·z = r`.
    fn forth(&self, mut right: Vec<f64>) -> Vec<f64> {
        for i in 0..self.free.len() {
            let known: f64 = (0..i).map(|j| self.factor[j][self.free[i]] * right[j]).sum();
            right[i] = (right[i] - known) / self.factor[i][self.free[i]];
        }
        right
    }

    /// Solves `Lᵀ·z = r`.
    fn back(&self, right: &[f64]) -> Vec<f64> {
        let mut out = right.to_vec();
        for i in (0..self.free.len()).rev() {
            let known: f64 = (i + 1..self.free.len()).map(|j| self.factor[i][self.free[j]] * out[j]).sum();
            out[i] = (out[i] - known) / self.factor[i][self.free[i]];
        }
        out
    }
}

/// Pivots, columns of the factor, and what of each column's square the pivots do not make up. `left_out` is never a
/// pivot.
fn factorise(
    size: usize,
    gram: &[f64],
    lengths: &[f64],
    left_out: Option<usize>,
) -> (Vec<usize>, Vec<Vec<f64>>, Vec<f64>) {
    let mut rest = vec![0.0; size * size];
    for k in 0..size {
        for l in 0..size {
            let length = lengths[k] * lengths[l];
            rest[k * size + l] = if length > 0.0 { gram[k * size + l] / length } else { 0.0 };
        }
    }
    let (mut pivots, mut columns) = (Vec::new(), Vec::new());
    loop {
        let candidates = (0..size).filter(|k| Some(*k) != left_out && !pivots.contains(k));
        let best = candidates.max_by(|a, b| rest[a * size + a].total_cmp(&rest[b * size + b]));
        let Some(best) = best.filter(|k| rest[k * size + k] > OWN_SHARE) else { break };
        let root = rest[best * size + best].sqrt();
        let column: Vec<f64> = (0..size).map(|k| rest[k * size + best] / root).collect();
        for k in 0..size {
            for l in 0..size {
                rest[k * size + l] -= column[k] * column[l];
            }
        }
        pivots.push(best);
        columns.push(column);
    }
    let own = (0..size).map(|k| rest[k * size + k]).collect();
    (pivots, columns, own)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// G and r of columns X and values y.
    fn sums(columns: &[&[f64]], y: &[f64]) -> (Vec<f64>, Vec<f64>, f64) {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let gram = columns.iter().flat_map(|a| columns.iter().map(|b| dot(a, b))).collect();
        (gram, columns.iter().map(|a| dot(a, y)).collect(), dot(y, y))
    }

    #[test]
    fn strengths_come_back() {
        let (a, b, c) = ([1.0, 2.0, 3.0, 4.0], [0.5, -1.0, 2.0, 0.0], [1e-3, 0.0, 0.0, 2e-3]);
        let y: Vec<_> = (0..4).map(|i| 0.5 * a[i] - 0.3 * b[i] + 7.0 * c[i]).collect();
        let (gram, right, square) = sums(&[&a, &b, &c], &y);
        let equations = NormalEquations::new(3, &gram);
        let x = equations.solve(&right, &[0.0; 3]);
        for (found, wanted) in x.iter().zip([0.5, -0.3, 7.0]) {
            assert!((found - wanted).abs() < 1e-9, "{x:?}");
        }
        assert!(equations.residual(square, &right, &x) < 1e-12 * square);
        assert!((0..3).all(|k| equations.is_told(k)));
    }

    #[test]
    fn variances_are_the_diagonal_of_the_inverse() {
        let (a, b) = ([1.0, 2.0, 2.0], [2.0, 0.0, 1.0]);
        let (gram, ..) = sums(&[&a, &b], &[0.0; 3]);
        // G = [[9, 4], [4, 5]], its inverse [[5, -4], [-4, 9]] / 29.
        let variances = NormalEquations::new(2, &gram).variances();
        assert!((variances[0] - 5.0 / 29.0).abs() < 1e-12 && (variances[1] - 9.0 / 29.0).abs() < 1e-12);
    }

    #[test]
    fn what_cannot_be_told_apart_is_held_and_named() {
        let (a, b, c) = ([1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [1.0, -1.0, 0.0]);
        let y: Vec<_> = (0..3).map(|i| 0.5 * a[i] + 0.25 * b[i] + 3.0 * c[i]).collect();
        let (gram, right, square) = sums(&[&a, &b, &c], &y);
        let equations = NormalEquations::new(3, &gram);
        assert_eq!([0, 1, 2].map(|k| equations.is_told(k)), [false, false, true]);
        let x = equations.solve(&right, &[0.5, 0.25, 0.0]);
        assert!((x[0] - 0.5).abs() < 1e-9 && (x[1] - 0.25).abs() < 1e-9 && (x[2] - 3.0).abs() < 1e-9, "{x:?}");
        assert!(equations.residual(square, &right, &x) < 1e-12 * square);
    }

    #[test]
    fn an_empty_column_is_left_at_its_value() {
        let equations = NormalEquations::new(2, &[4.0, 0.0, 0.0, 0.0]);
        assert_eq!(equations.solve(&[2.0, 0.0], &[1.0, 1.0]), [0.5, 1.0]);
        assert!(!equations.is_present(1) && !equations.is_told(1) && equations.is_told(0));
        assert!(equations.variances()[1].is_infinite());
        assert!(NormalEquations::new(0, &[]).solve(&[], &[]).is_empty());
    }
}
